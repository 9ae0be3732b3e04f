"""Instances at the resolution of the picture: masks with a class and a score each, by the rules of
``service.tasks.merging``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.tasks.competition import sigmoid
from service.tasks.framing import Axes, Frame, Merging, axes, composed, hf_maps, on_canvas, softmax
from service.tasks.merging import Segment, Segments, merge_panoptic
from service.tasks.resampling import Maps, Tiling, bilinear, nearest_by_edge
from service.worker.runtimes.base import Array

MOST_INSTANCES = 100  # pairs of query and class that the authors of Mask2Former keep


@dataclass(frozen=True)
class Instance:
    """One mask with its class and score, kept as bits (H, W/8) since there may be a hundred."""

    class_index: int
    score: float
    query: int
    bits: NDArray[np.uint8]
    width: int

    @property
    def mask(self) -> NDArray[np.bool_]:  # (H, W)
        """The pixels, made anew at every call."""
        return np.unpackbits(self.bits, axis=1, count=self.width).astype(bool)


def merge_instances(
    merging: Merging,
    frame: Frame,
    logits: Array,
    masks: Array,
    threshold: float,
    overlap_threshold: float,
) -> list[Instance]:
    """Masks that score at least ``threshold``, best first; those without a pixel are left out.

    ``logits`` (Q, K+1) and ``masks`` (Q, h, w) are raw, float32. Reference: masks may overlap, and
    one query may give several classes. A score is the class score times the mean probability inside
    the mask, for DETR (one row for every query) the class score alone. "hf": masks are disjoint,
    since transformers draws them into one map, a later one over an earlier; DETR's are made as
    panoptic segments with nothing fused, scoring above ``threshold``.
    """
    if merging.profile == "hf":
        found = draw_instances(merging, frame, logits, masks, threshold, overlap_threshold)
        return _apart(found)
    if merging.rule == "detr":
        return _best_classes(frame, logits, masks, threshold)
    return _pairs(merging, frame, logits, masks, threshold)


def draw_instances(
    merging: Merging,
    frame: Frame,
    logits: Array,
    masks: Array,
    threshold: float,
    overlap_threshold: float,
) -> Segments:
    """As ``merge_instances`` for the profile "hf", in the one map that transformers draws into; a
    row may have no pixel left.
    """
    if merging.rule == "detr":
        alone = replace(merging, fused=frozenset())
        return merge_panoptic(alone, frame, logits, masks, threshold, overlap_threshold)
    return _drawn_over_one_another(merging, frame, logits, masks, threshold)


@dataclass(frozen=True)
class _Row:
    """A mask by its place among the maps, with what it is."""

    index: int
    class_index: int
    score: float
    query: int


@dataclass(frozen=True)
class _Inside:
    """Where maps are positive: ``bits`` (N, H, W/8), ``areas`` in pixels (N,), and the mean
    probability there (N,).
    """

    bits: NDArray[np.uint8]
    areas: NDArray[np.int64]
    means: NDArray[np.float64]


def _pairs(
    merging: Merging, frame: Frame, logits: Array, masks: Maps, threshold: float
) -> list[Instance]:
    pairs = softmax(logits)[:, :-1]
    rows = _best_pairs(pairs, MOST_INSTANCES, threshold)
    if "panoptic" in merging.modes:  # then the authors keep things alone
        rows = [row for row in rows if merging.things[row.class_index]]
    queries = sorted({row.query for row in rows})
    outer = axes(bilinear, frame.valid, frame.picture)
    inside = _inside(masks[queries], composed(outer, on_canvas(frame, masks.shape[1:])))
    return _instances(frame, inside, _weighed(rows, queries, inside.means, threshold))


def _best_classes(frame: Frame, logits: Array, masks: Maps, threshold: float) -> list[Instance]:
    pairs = softmax(logits)[:, :-1]
    scores, classes = pairs.max(axis=1), pairs.argmax(axis=1)
    kept = np.flatnonzero(scores >= threshold)
    outer = axes(nearest_by_edge, frame.valid, frame.picture)
    inside = _inside(masks[kept], composed(outer, on_canvas(frame, masks.shape[1:])))
    rows = [
        _Row(index, int(classes[query]), float(scores[query]), int(query))
        for index, query in enumerate(kept)
    ]
    return _instances(frame, inside, rows)


def _drawn_over_one_another(
    merging: Merging, frame: Frame, logits: Array, masks: Maps, threshold: float
) -> Segments:
    """Masks become binary, and get their mean probability, before they are resized."""
    best = _best_pairs(softmax(logits)[:, :-1], len(logits), threshold)
    queries = sorted({row.query for row in best})
    maps = hf_maps(merging, frame, masks[queries])[0]
    binary = maps > 0
    totals = np.where(binary, sigmoid(maps), 0).sum(axis=(1, 2), dtype=np.float64)
    means = totals / (np.count_nonzero(binary, axis=(1, 2)) + 1e-6)
    down, across = axes(nearest_by_edge, maps.shape[1:], frame.picture)
    places = np.ix_(down.indices[:, 0], across.indices[:, 0])
    ids = np.zeros(frame.picture, dtype=np.uint16)
    drawn = _weighed(best, queries, means, threshold)
    for number, row in enumerate(drawn, 1):
        ids[binary[row.index][places]] = number
    rows = [Segment(n, row.class_index, row.score, row.query) for n, row in enumerate(drawn, 1)]
    return Segments(ids, rows)


def _best_pairs(pairs: Maps, most: int, threshold: float) -> list[_Row]:
    """The ``most`` probable of ``pairs`` (Q, K), best first, of which the weight of a mask may
    still leave ``threshold``.
    """
    best = np.argsort(-pairs.ravel(), kind="stable")[:most]
    return [
        _Row(-1, int(index % pairs.shape[1]), score, int(index // pairs.shape[1]))
        for index in best
        if (score := float(pairs.ravel()[index])) >= threshold
    ]


def _weighed(
    rows: Sequence[_Row], queries: Sequence[int], means: Array, threshold: float
) -> list[_Row]:
    """The rows whose class score times the mean of their query's mask reaches ``threshold``."""
    places = {query: index for index, query in enumerate(queries)}
    weighed = [
        replace(row, index=places[row.query], score=row.score * float(means[places[row.query]]))
        for row in rows
    ]
    return [row for row in weighed if row.score >= threshold]


def _inside(maps: Maps, resize: Axes) -> _Inside:
    """Logits to masks: a probability above one half is a logit above zero."""
    height, width = (len(taps) for taps in resize)
    bits = np.zeros((len(maps), height, -(-width // 8)), dtype=np.uint8)
    areas = np.zeros(len(maps), dtype=np.int64)
    totals = np.zeros(len(maps))
    tiling = Tiling.of(*resize)
    for tile, high in zip(tiling, tiling.bounds(maps)[1], strict=True):
        chosen = np.flatnonzero(high > 0)
        if len(chosen) == 0:
            continue
        values = tile.values(maps, chosen)
        positive = values > 0
        columns = slice(tile.columns.start // 8, -(-tile.columns.stop // 8))
        bits[chosen, tile.rows, columns] = np.packbits(positive, axis=2)
        areas[chosen] += np.count_nonzero(positive, axis=(1, 2))
        totals[chosen] += np.where(positive, sigmoid(values), 0).sum(axis=(1, 2))
    return _Inside(bits, areas, totals / (areas + 1e-6))


def _instances(frame: Frame, inside: _Inside, rows: Sequence[_Row]) -> list[Instance]:
    found = [
        Instance(row.class_index, row.score, row.query, inside.bits[row.index], frame.picture[1])
        for row in rows
        if inside.areas[row.index] > 0
    ]
    return sorted(found, key=lambda instance: -instance.score)


def _apart(drawn: Segments) -> list[Instance]:
    """Every row that has a pixel, with a mask of its own."""
    found = [
        Instance(row.class_index, row.score, row.query, np.packbits(mask, axis=1), mask.shape[1])
        for row in drawn.rows
        if (mask := drawn.ids == row.id).any()
    ]
    return sorted(found, key=lambda instance: -instance.score)
