"""How answers of detectors and segmenters are compared."""

import numpy as np
import pytest

from service.agreement import compare_boxes, compare_masks, iou
from service.geometry import Size
from service.worker.runtimes.base import Arrays

CANVAS = Size(height=64, width=64)

BOXES = np.array([[[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9], [0, 0, 1, 1]]], dtype=np.float32)
FOUND: Arrays = {
    "scores": np.array([[0.9, 0.8, 0.7]], dtype=np.float32),
    "classes": np.array([[3, 1, 1]], dtype=np.int32),
    "boxes": BOXES,
}
MERGED: Arrays = {
    "logits": np.zeros((1, 2, 3), dtype=np.float32),
    "masks": np.zeros((1, 2, 2, 2), dtype=np.float32),
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
        ("instance_classes", (0, 1), 9, 0.5),
    ],
)
def test_the_share_of_masks_is_that_of_the_worst_map(
    name: str, place: tuple[int, ...], value: float, share: float
) -> None:
    assert compare_masks(MERGED, MERGED, CANVAS) == 1
    assert compare_masks(MERGED, changed(name, place, value), CANVAS) == share


def with_instances(*places: tuple[slice, slice]) -> Arrays:
    """Two pictures of 40 x 40 cells with an instance for each place."""
    masks = np.zeros((2, len(places), 40, 40), dtype=np.uint8)
    for row, place in enumerate(places):
        masks[:, row][:, *place] = 1
    count = (2, len(places))
    return {
        "logits": np.zeros((2, 1, 1), dtype=np.float32),
        "masks": np.zeros((2, 1, 40, 40), dtype=np.float32),
        "instance_masks": masks,
        "instance_classes": np.ones(count, dtype=np.int32),
        "instance_scores": np.full(count, 0.9, dtype=np.float32),
        "instance_queries": np.tile(np.arange(len(places), dtype=np.int32), (2, 1)),
    }


def test_small_instances_that_lie_elsewhere_are_lost() -> None:
    large, small = np.s_[:20, :20], np.s_[30:33, 30:33]
    expected = with_instances(large, small)
    assert compare_masks(expected, with_instances(large, np.s_[30:33, 33:36]), CANVAS) == 0.5
    assert compare_masks(expected, with_instances(np.s_[:20, :17], small), CANVAS) == 0.5
    assert compare_masks(expected, with_instances(np.s_[:20, :18], small), CANVAS) == 1
    one_cell_less = with_instances(large, small)
    one_cell_less["instance_masks"][:, 1, 30, 30] = 0
    assert compare_masks(expected, one_cell_less, CANVAS) == 1


def test_only_cells_that_show_the_picture_count() -> None:
    sizes = np.array([[33, 16]], dtype=np.int32)  # 3 x 1 cells of 4 x 4, 16 pixels each
    expected: Arrays = {
        "logits": np.zeros((1, 2, 3), dtype=np.float32),
        "masks": np.zeros((1, 2, 4, 4), dtype=np.float32),
        "panoptic_map": np.zeros((1, 4, 4), dtype=np.int32),
        "panoptic_classes": np.array([[5, 6]], dtype=np.int32),
        "semantic_map": np.zeros((1, 4, 4), dtype=np.int32),
    }
    for name in ("panoptic_map", "semantic_map"):
        other = expected | {name: expected[name].copy()}
        other[name][0, 0, 0] = 1
        assert compare_masks(expected, other, CANVAS) == 15 / 16
        assert compare_masks(expected, other, CANVAS, sizes) == pytest.approx(2 / 3)


def test_overlap_of_boxes() -> None:
    assert iou(BOXES[0, 0], BOXES[0, 0]) == pytest.approx(1)
    assert iou(BOXES[0, 0], BOXES[0, 1]) == 0
    assert iou(BOXES[0, 0], BOXES[0, 2]) == pytest.approx(0.16)
    assert iou(np.zeros(4), np.zeros(4)) == 0
