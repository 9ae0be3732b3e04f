"""From arrays to answers: classes and overlays."""

import io
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.bundle import Manifest
from service.tasks import classify, render
from tests.service.sample_bundle import manifest_of


def classes(scores: list[float], top_k: int = 5, threshold: float = 0.0) -> list[tuple[str, float]]:
    manifest = Manifest.model_validate(manifest_of())
    found = classify.answer(manifest, np.array(scores, np.float32), top_k, threshold)
    return [(prediction.label, prediction.score) for prediction in found]


def test_classes_come_best_first_and_at_most_top_k() -> None:
    assert classes([0.25, 0.5, 0.125]) == [("bee", 0.5), ("ant", 0.25), ("cat", 0.125)]
    assert classes([0.25, 0.5, 0.125], top_k=1) == [("bee", 0.5)]
    assert len(classes([0.25, 0.5, 0.125], top_k=100)) == 3


def test_equal_scores_come_in_the_order_of_labels() -> None:
    assert [label for label, _ in classes([0.25, 0.25, 0.25])] == ["ant", "bee", "cat"]
    assert [label for label, _ in classes([0.25, 0.5, 0.5], top_k=2)] == ["bee", "cat"]


def test_a_score_that_equals_the_threshold_counts() -> None:
    assert classes([0.25, 0.5, 0.125], threshold=0.25) == [("bee", 0.5), ("ant", 0.25)]
    assert classes([0.25, 0.5, 0.125], threshold=0.75) == []


def overlay(
    region: tuple[float, float, float, float],
    size: tuple[int, int] = (8, 4),
    values: Any = ((1.0, 1.0), (1.0, 1.0)),
) -> np.ndarray[Any, Any]:
    png = render.overlay_png(Image.new("RGB", size, (100, 100, 100)), np.array(values), region)
    return np.array(Image.open(io.BytesIO(png)))


def test_an_overlay_changes_the_region_and_nothing_else() -> None:
    pixels = overlay((2, 1, 6, 3))
    brightest = np.rint(0.45 * 100 + 0.55 * np.array([252, 250, 180]))
    assert pixels.shape == (4, 8, 3)
    assert (pixels[1:3, 2:6] == brightest).all()
    pixels[1:3, 2:6] = 100
    assert (pixels == 100).all()


def test_a_region_beyond_the_picture_is_cut_and_not_squeezed() -> None:
    inside = overlay((0, 0, 8, 4), values=[[0, 0, 1, 1]] * 4)
    beyond = overlay((-8, 0, 8, 4), values=[[0, 0, 0, 0, 0, 0, 1, 1]] * 4)
    assert (inside[:, :2] == inside[0, 0]).all()
    assert np.abs(inside.astype(int) - beyond.astype(int)).max() <= 1


def test_the_brightest_is_the_largest_value_whatever_its_size() -> None:
    small = overlay((0, 0, 8, 4), values=[[0.0, 0.001]])
    large = overlay((0, 0, 8, 4), values=[[0.0, 1.0]])
    assert np.abs(small.astype(int) - large.astype(int)).max() <= 1
    assert small[0, -1].sum() > small[0, 0].sum()
    assert (overlay((0, 0, 8, 4), values=[[0.0, 0.0]]) == overlay((0, 0, 8, 4))).sum() == 0


def test_a_large_picture_is_shown_smaller() -> None:
    assert overlay((0, 0, 5000, 100), size=(5000, 100)).shape == (41, render.MAX_SIDE_PX, 3)
    assert overlay((0, 0, 1, 9000), size=(1, 9000)).shape == (render.MAX_SIDE_PX, 1, 3)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    edges=st.tuples(*[st.floats(-20, 20) for _ in range(4)]),
)
def test_any_region_gives_a_picture_of_the_same_size(
    size: tuple[int, int], edges: tuple[float, float, float, float]
) -> None:
    region = min(edges[0::2]), min(edges[1::2]), max(edges[0::2]), max(edges[1::2])
    assert overlay(region, size).shape == (size[1], size[0], 3)
