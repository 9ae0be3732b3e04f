"""How answers of detectors and segmenters are compared."""

import numpy as np
import pytest

from service.agreement import compare_boxes, compare_masks, iou
from service.worker.runtimes.base import Arrays

BOXES = np.array([[[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9], [0, 0, 1, 1]]], dtype=np.float32)
FOUND: Arrays = {
    "scores": np.array([[0.9, 0.8, 0.7]], dtype=np.float32),
    "classes": np.array([[3, 1, 1]], dtype=np.int32),
    "boxes": BOXES,
}
MERGED: Arrays = {
    "logits": np.zeros((1, 2, 3), dtype=np.float32),
    "panoptic_map": np.array([[[1, 1], [2, 0]]], dtype=np.int32),
    "panoptic_classes": np.array([[5, 6]], dtype=np.int32),
    "semantic_map": np.array([[[5, 5], [6, 6]]], dtype=np.int32),
    "instance_masks": np.array([[[[1, 1], [0, 0]], [[0, 0], [1, 0]]]], dtype=np.uint8),
    "instance_classes": np.array([[5, 6]], dtype=np.int32),
    "instance_scores": np.array([[0.9, 0.8]], dtype=np.float32),
    "instance_queries": np.array([[0, 1]], dtype=np.int32),
}


def changed(name: str, place: tuple[int, ...], value: float) -> Arrays:
    arrays = {key: array.copy() for key, array in (FOUND | MERGED).items()}
    arrays[name][place] = value
    return arrays


def test_rows_may_change_places() -> None:
    turned = {name: array[:, ::-1] for name, array in FOUND.items()}
    found = compare_boxes(FOUND, turned)
    assert (found.agreement, found.error) == (1, 0)


def test_a_box_of_another_class_or_elsewhere_is_lost() -> None:
    assert compare_boxes(FOUND, changed("classes", (0, 0), 4)).agreement == pytest.approx(2 / 3)
    assert compare_boxes(FOUND, changed("boxes", (0, 0, 2), 0.9)).agreement == pytest.approx(2 / 3)


def test_the_error_of_a_box_is_that_of_its_worst_edge() -> None:
    found = compare_boxes(FOUND, changed("boxes", (0, 1, 3), 0.91))
    assert found.agreement == 1
    assert found.error == pytest.approx(0.01, abs=1e-6)


def test_rows_below_the_floor_count_only_among_the_best() -> None:
    many = {name: np.repeat(array, 8, axis=1) for name, array in FOUND.items()}
    many["scores"] = np.full((1, 24), 0.1, dtype=np.float32)
    other = many | {"classes": many["classes"].copy()}
    other["classes"][0, 10:] = 7
    assert compare_boxes(many, other).agreement == 1


@pytest.mark.parametrize(
    ("name", "place", "value", "share"),
    [
        ("panoptic_map", (0, 1, 1), 2, 0.75),
        ("panoptic_classes", (0, 0), 7, 0.5),
        ("semantic_map", (0, 0, 0), 9, 0.75),
        ("instance_masks", (0, 1, 0, 0), 1, 0.875),
        ("instance_classes", (0, 1), 9, 0.5),
    ],
)
def test_the_share_of_equal_pixels_is_that_of_the_worst_map(
    name: str, place: tuple[int, ...], value: float, share: float
) -> None:
    assert compare_masks(MERGED, MERGED) == 1
    assert compare_masks(MERGED, changed(name, place, value)) == share


def test_overlap_of_boxes() -> None:
    assert iou(BOXES[0, 0], BOXES[0, 0]) == pytest.approx(1)
    assert iou(BOXES[0, 0], BOXES[0, 1]) == 0
    assert iou(BOXES[0, 0], BOXES[0, 2]) == pytest.approx(0.16)
    assert iou(np.zeros(4), np.zeros(4)) == 0
