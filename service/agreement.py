"""How far two answers of a detector or a segmenter agree, in the terms of what users get."""

from dataclasses import dataclass

import numpy as np

from service.geometry import Size
from service.worker.runtimes.base import Array, Arrays

SCORE_FLOOR = 0.5
"""A row of the reference that scores at least this counts as found ..."""
LEAST_ROWS = 10
"""... and so many of the best rows do in any case: random weights find nothing else."""
SAME_OBJECT_IOU = 0.9
SAME_EDGE = 1e-3
"""Boxes whose edges are as near as this are the same, however thin they are."""
SAME_CELLS = 1
"""Masks that differ in so few cells are the same, however small they are."""


@dataclass(frozen=True)
class BoxAgreement:
    """``agreement`` is the share of the expected boxes that were found with their class;
    ``error`` the largest difference of an edge of those, in 0..1 of the picture's sides.
    """

    agreement: float
    error: float


def compare_boxes(expected: Arrays, found: Arrays) -> BoxAgreement:
    """Compare ``scores``, ``classes`` and ``boxes`` (N, T, ...), whatever the order of the rows."""
    matched, total, error = 0, 0, 0.0
    for picture, scores in enumerate(expected["scores"]):
        for row in _rows_that_count(scores):
            total += 1
            same = found["classes"][picture] == expected["classes"][picture][row]
            boxes = found["boxes"][picture][same]
            if not len(boxes):
                continue
            wanted = expected["boxes"][picture][row]
            differences = np.abs(boxes - wanted).max(axis=1)
            nearest = int(np.argmin(differences))
            if iou(wanted, boxes[nearest]) >= SAME_OBJECT_IOU or differences[nearest] < SAME_EDGE:
                matched += 1
                error = max(error, float(differences[nearest]))
    return BoxAgreement(matched / max(total, 1), error)


def compare_masks(
    expected: Arrays, found: Arrays, canvas: Size, sizes: Array | None = None
) -> float:
    """The smallest of: the shares of cells with the same segment and class in each panoptic and
    semantic map, and the share of the expected instances that were found, over all pictures.

    Only cells count that show the picture: ``sizes`` (N, 2) are height and width of its part of the
    ``canvas``, None for all of it. An instance is found where the same query has it with the same
    class and a mask of at least that IoU.
    """
    shares, instances = [], []
    for picture in range(len(expected["logits"])):
        wanted, got = ({name: a[picture] for name, a in one.items()} for one in (expected, found))
        seen = _seen(wanted["masks"].shape[1:], canvas, None if sizes is None else sizes[picture])
        if "panoptic_map" in wanted:
            same = (_panoptic(wanted) == _panoptic(got)).all(axis=0)
            shares.append(float(same[seen].mean()))
        if "semantic_map" in wanted:
            shares.append(float((wanted["semantic_map"] == got["semantic_map"])[seen].mean()))
        if "instance_masks" in wanted:
            instances += _instances(wanted, got)
    if instances:
        shares.append(float(np.mean(instances)))
    return min(shares, default=1.0)


def iou(a: Array, b: Array) -> float:
    """Intersection over union of two xyxy boxes (4,); 0 where neither has area."""
    corner, opposite = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float((opposite - corner).clip(0).prod())
    both = sum(float((box[2:] - box[:2]).clip(0).prod()) for box in (a, b)) - shared
    return shared / both if both > 0 else 0.0


def _rows_that_count(scores: Array) -> Array:
    """Places of the rows (T,) that a reference found, best first."""
    count = max(int((scores >= SCORE_FLOOR).sum()), min(LEAST_ROWS, len(scores)))
    return np.argsort(-scores, kind="stable")[:count]


def _panoptic(answer: Arrays) -> Array:
    """The query and the class (2, h, w) that every cell shows."""
    ids = answer["panoptic_map"]
    classes = np.concatenate([[-1], answer["panoptic_classes"]])
    return np.stack([ids, classes[ids]])


def _seen(grid: tuple[int, ...], canvas: Size, size: Array | None) -> tuple[slice, slice]:
    """The rows and columns of a map (h, w) that show the picture, as ``models.layers.valid_cells``
    counts them, and at least one.
    """
    if size is None:
        return slice(None), slice(None)
    sides = zip(grid, (canvas.height, canvas.width), size, strict=True)
    down, across = (
        max(1, int((np.arange(cells) * side // cells < valid).sum()))
        for cells, side, valid in sides
    )
    return slice(down), slice(across)


def _instances(wanted: Arrays, got: Arrays) -> list[bool]:
    """Whether each instance that counts was found, by query and class."""
    places = {
        (int(query), int(kind)): row
        for row, (query, kind) in enumerate(
            zip(got["instance_queries"], got["instance_classes"], strict=True)
        )
    }
    found = []
    for row in _rows_that_count(wanted["instance_scores"]):
        kind = int(wanted["instance_classes"][row])
        if kind < 0:
            continue
        other = places.get((int(wanted["instance_queries"][row]), kind))
        found.append(
            other is not None
            and _same_mask(wanted["instance_masks"][row] > 0, got["instance_masks"][other] > 0)
        )
    return found


def _same_mask(a: Array, b: Array) -> bool:
    shared, either = int((a & b).sum()), int((a | b).sum())
    return shared >= SAME_OBJECT_IOU * either or either - shared <= SAME_CELLS
