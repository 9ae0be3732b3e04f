"""Panoptic quality as COCO's own evaluator counts it.

PQ, SQ and RQ: Kirillov et al. 2019, arXiv 1801.00868, section 4; void and crowds:
github.com/cocodataset/panopticapi, ``panopticapi/evaluation.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.evaluate.categories import Category

Counts = NDArray[np.float64]
"""Sum of IoUs, segments found, invented and missed, in the last axis (..., 4)."""

IOU_SUM, FOUND, INVENTED, MISSED = range(4)


@dataclass(frozen=True)
class Segment:
    """What the pixels with ``id`` are; a crowd is a region of several that count as none."""

    id: int
    category_id: int
    iscrowd: bool = False


class PanopticQuality:
    """Counts of every class in every picture, and the means over the classes that occur."""

    def __init__(self, categories: Sequence[Category]) -> None:
        self.categories = list(categories)
        self.pictures: list[Counts] = []
        self._rows = {category.id: row for row, category in enumerate(categories)}
        self._total = np.zeros((len(self.categories), 4))

    def add(
        self,
        true_ids: NDArray[np.integer],
        truth: Sequence[Segment],
        found_ids: NDArray[np.integer],
        found: Sequence[Segment],
    ) -> None:
        """Note one answer: segment ids of every pixel (H, W) in truth and answer, and what they
        are; ids that are not listed are void.
        """
        counts = np.zeros((len(self.categories), 4))
        matches = _Matches.of(true_ids, truth, found_ids, found)
        for true_row, found_row, iou in matches.pairs():
            counts[self._rows[truth[true_row].category_id], [IOU_SUM, FOUND]] += iou, 1
            matches.settle(true_row, found_row)
        for segment in matches.missed():
            counts[self._rows[segment.category_id], MISSED] += 1
        for segment in matches.invented():
            counts[self._rows[segment.category_id], INVENTED] += 1
        self.pictures.append(counts)
        self._total += counts

    def figures(self) -> dict[str, float]:
        """PQ, SQ and RQ in 0..1 of all classes, and of things (th) and stuff (st) where known."""
        return {name: float(value) for name, value in self.summarize(self.total()).items()}

    def total(self) -> Counts:
        """Counts of all pictures together (K, 4)."""
        return self._total.copy()

    def summarize(self, counts: Counts) -> dict[str, NDArray[np.float64]]:
        """The figures of counts (..., K, 4), each (...)."""
        figures = {}
        for suffix, rows in self._groups().items():
            occur = counts[..., rows, FOUND:].sum(axis=-1) > 0
            qualities = qualities_of(counts[..., rows, :])
            for name, values in zip(("PQ", "SQ", "RQ"), qualities, strict=True):
                classes = np.maximum(occur.sum(axis=-1), 1)
                figures[name + suffix] = np.where(occur, values, 0).sum(axis=-1) / classes
        return figures

    def per_class(self) -> dict[int, dict[str, float]]:
        """PQ, SQ and RQ of every class by id, and its segments found, invented and missed; one
        without any does not occur.
        """
        return {
            category.id: dict(
                zip(("PQ", "SQ", "RQ"), map(float, qualities_of(counts)), strict=True),
                found=int(counts[FOUND]),
                invented=int(counts[INVENTED]),
                missed=int(counts[MISSED]),
            )
            for category, counts in zip(self.categories, self.total(), strict=True)
        }

    def _groups(self) -> dict[str, list[int]]:
        groups = {"": list(range(len(self.categories)))}
        for suffix, isthing in (("_th", True), ("_st", False)):
            rows = [i for i, one in enumerate(self.categories) if one.isthing is isthing]
            if rows:
                groups[suffix] = rows
        return groups


def qualities_of(counts: Counts) -> tuple[NDArray[np.float64], ...]:
    """PQ, SQ and RQ of each class, 0 for one that does not occur."""
    found = counts[..., FOUND]
    weight = found + 0.5 * (counts[..., INVENTED] + counts[..., MISSED])
    weight = np.where(weight > 0, weight, 1)
    iou_sum = counts[..., IOU_SUM]
    return iou_sum / weight, iou_sum / np.maximum(found, 1), found / weight


def run_starts(*flat: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where in arrays of the same length (N,) a value is another than the one before it, and 0."""
    size = flat[0].size
    changes = np.zeros(size, dtype=bool)
    changes[:1] = True
    for one in flat:
        changes[1:] |= one[1:] != one[:-1]
    return np.flatnonzero(changes)


class _Matches:
    """Which segments of one picture were found; void comes first in rows and columns."""

    def __init__(
        self, truth: Sequence[Segment], found: Sequence[Segment], shared: NDArray[np.int64]
    ) -> None:
        self._truth, self._found, self._shared = truth, found, shared
        self._true_left = set(range(len(truth)))
        self._found_left = set(range(len(found)))

    @classmethod
    def of(
        cls,
        true_ids: NDArray[np.integer],
        truth: Sequence[Segment],
        found_ids: NDArray[np.integer],
        found: Sequence[Segment],
    ) -> "_Matches":
        true, said = true_ids.ravel(), found_ids.ravel()
        starts = run_starts(true, said)  # far fewer than pixels
        lengths = np.diff(np.append(starts, true.size))
        rows, columns = _rows_of(true[starts], truth), _rows_of(said[starts], found)
        width = len(found) + 1
        size = (len(truth) + 1) * width
        joint = np.bincount(rows * width + columns, weights=lengths, minlength=size)
        return cls(truth, found, joint.astype(np.int64).reshape(-1, width))

    def pairs(self) -> list[tuple[int, int, float]]:
        """Rows of truth and answer that match, and their IoU: one class, and more than a half, so
        that no segment has two. Pixels that are void in truth do not count against the answer.
        """
        sizes, void = self._shared.sum(axis=0), self._shared[0]
        pairs = []
        for row, segment in enumerate(self._truth):
            if segment.iscrowd:
                continue
            shared = self._shared[row + 1]
            for column in map(int, np.flatnonzero(shared[1:])):
                union = shared.sum() + sizes[column + 1] - shared[column + 1] - void[column + 1]
                iou = float(shared[column + 1] / union)
                if iou > 0.5 and self._found[column].category_id == segment.category_id:
                    pairs.append((row, column, iou))
        return pairs

    def settle(self, true_row: int, found_row: int) -> None:
        """Note that the two match."""
        self._true_left.discard(true_row)
        self._found_left.discard(found_row)

    def missed(self) -> list[Segment]:
        """Segments of the truth without a match; crowds are not looked for."""
        return [self._truth[i] for i in sorted(self._true_left) if not self._truth[i].iscrowd]

    def invented(self) -> list[Segment]:
        """Segments of the answer without a match, unless more than a half of one lies on void or
        on the crowd of its class.
        """
        crowds = {one.category_id: row for row, one in enumerate(self._truth) if one.iscrowd}
        invented = []
        for column in sorted(self._found_left):
            segment, shared = self._found[column], self._shared[:, column + 1]
            excused = shared[0]
            if segment.category_id in crowds:
                excused = excused + shared[crowds[segment.category_id] + 1]
            if shared.sum() > 0 and excused / shared.sum() <= 0.5:
                invented.append(segment)
        return invented


def _rows_of(ids: NDArray[np.integer], segments: Sequence[Segment]) -> NDArray[np.int64]:
    """The place from 1 on of each pixel's segment in the list, 0 for void."""
    known = np.array([segment.id for segment in segments], dtype=np.int64)
    order = np.argsort(known)
    if not len(known):
        return np.zeros(ids.shape, dtype=np.int64)
    wide = ids.astype(np.int64)
    places = np.minimum(np.searchsorted(known, wide, sorter=order), len(known) - 1)
    rows = order[places]
    return np.where(known[rows] == wide, rows + 1, 0)
