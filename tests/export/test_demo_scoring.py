"""Panoptic quality and average precision on cases made by hand."""

import numpy as np
import pytest

from export.demo.scoring import BoxTruth, Detections, PanopticQuality, average_precision


def test_an_answer_like_the_truth_has_full_quality() -> None:
    ids = np.array([[1, 1, 2, 2], [1, 1, 3, 3]])
    quality = PanopticQuality()
    quality.add(ids, ["sky", "star", "star"], np.array([0, 2, 1, 3])[ids], ["star", "sky", "star"])
    assert quality.figures() == {"PQ": 1, "SQ": 1, "RQ": 1}


def test_quality_counts_matches_misses_and_inventions_by_class() -> None:
    truth = np.repeat([1, 2], [6, 4])[None]
    found = np.repeat([1, 2, 3], [4, 2, 4])[None]
    quality = PanopticQuality()
    # The sky is found with an IoU of 4/6; a star is seen in its place; the square is called a ring.
    quality.add(truth, ["sky", "square"], found, ["sky", "star", "ring"])
    figures = quality.figures()
    assert figures["PQ"] == pytest.approx((4 / 6) / 4)  # of sky, square, star and ring
    assert figures["RQ"] == pytest.approx(1 / 4)
    assert figures["SQ"] == pytest.approx((4 / 6) / 4)


def test_an_overlap_of_one_half_is_no_match_and_pixels_may_be_void() -> None:
    truth = np.ones((1, 4), dtype=np.uint8)
    quality = PanopticQuality()
    quality.add(truth, ["sky"], np.array([[1, 1, 0, 0]]), ["sky"])
    assert quality.figures()["PQ"] == 0
    quality.add(truth, ["sky"], np.array([[1, 1, 1, 0]]), ["sky"])
    assert quality.figures()["PQ"] == pytest.approx(0.75 / (1 + 0.5 * 2))
    assert quality.figures()["SQ"] == pytest.approx(0.75)


def test_quality_adds_up_over_pictures() -> None:
    quality = PanopticQuality()
    whole = np.ones((2, 2), dtype=np.uint8)
    quality.add(whole, ["sky"], whole, ["sky"])
    quality.add(whole, ["sky"], np.zeros((2, 2), dtype=np.uint8), [])
    assert quality.figures()["RQ"] == pytest.approx(1 / 1.5)


def test_average_precision_asks_for_the_class_and_for_the_overlap() -> None:
    size, box = (100, 100), np.array([[10.0, 10.0, 50.0, 50.0]])
    truth = [BoxTruth(size, np.array([2]), box), BoxTruth(size, np.array([5]), box)]

    def found(first: int, shift_px: float) -> dict[str, float]:
        return average_precision(
            truth,
            [
                Detections(np.array([0.9]), np.array([first]), box + shift_px),
                Detections(np.array([0.8]), np.array([5]), box),
            ],
        )

    assert found(2, 0) == pytest.approx({"AP50": 1, "AP": 1})
    assert found(3, 0)["AP50"] == pytest.approx(0.5)
    shifted = found(2, 5)  # an IoU of 0.62: right at 0.5, 0.55 and 0.6
    assert shifted["AP50"] == pytest.approx(1)
    assert shifted["AP"] == pytest.approx((1 + 0.3) / 2)
