"""Queries with masks merged at the resolution of the picture, in the order of operations of whoever
defined the rule.

"reference" is the authors' code: DETR (Carion et al. 2020, arXiv 2005.12872), MaskFormer (Cheng et
al. 2021, arXiv 2107.06278), Mask2Former (Cheng et al. 2022, arXiv 2112.01527). "hf" is transformers
5 on the picture without its padding. It merges DETR's queries by MaskFormer's rule, brings the
masks of Mask2Former to 384 x 384 first, and compares probability times score where MaskFormer
compares probability.

In our answers ids count from 1 and each is given once. transformers may use an id twice, since its
counter goes back to the id of the segment that a fused one is added to, and it lists a segment for
every query that was fused. Here what was fused is one row, and the next segment has a fresh id;
which pixels belong together, and their class, is the same.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.tasks.competition import by_probability, by_resized_sum, by_sum, by_value, sigmoid
from service.tasks.framing import (
    Frame,
    Merging,
    axes,
    composed,
    cropped,
    hf_maps,
    on_canvas,
    softmax,
)
from service.tasks.resampling import Maps, bilinear, nearest_by_centre
from service.tasks.runs import Runs
from service.worker.runtimes.base import Array

SMALL_AREA_PX = 4  # DETR drops segments of at most so many pixels


@dataclass(frozen=True)
class Segment:
    """One row of a panoptic answer; ``query`` is the first one where several were fused."""

    id: int
    class_index: int
    score: float
    query: int


@dataclass(frozen=True)
class Segments:
    """``ids`` (H, W), 0 for void; every row has at least a pixel, and ids count from 1."""

    ids: NDArray[np.uint16]
    rows: list[Segment]


def merge_panoptic(
    merging: Merging,
    frame: Frame,
    logits: Array,
    masks: Array,
    threshold: float,
    overlap_threshold: float,
) -> Segments:
    """Every pixel to one segment, or to none.

    ``logits`` (Q, K+1) and ``masks`` (Q, h, w) are raw, float32. Queries whose best class is an
    object and scores above ``threshold`` take part. DETR's authors have no overlap threshold.
    """
    probabilities = softmax(logits)
    scores, classes = probabilities.max(axis=1), probabilities.argmax(axis=1)
    kept = np.flatnonzero((classes != logits.shape[1] - 1) & (scores > threshold))
    if len(kept) == 0:
        return Segments(np.zeros(frame.picture, dtype=np.uint16), [])
    scores, classes, masks = scores[kept], classes[kept], masks[kept]
    if merging.profile == "reference" and merging.rule == "detr":
        firsts = _firsts(merging, classes, np.ones(len(kept), dtype=bool))
        drawn = _detr_rounds(frame, masks, firsts)
        return numbered(drawn, kept, classes, scores)
    if merging.profile == "hf":
        drawn, valid = _hf_winners(merging, frame, masks, scores, overlap_threshold)
    else:
        drawn, valid = _reference_winners(merging, frame, masks, scores, overlap_threshold)
    table = np.zeros(len(kept) + 1, dtype=np.uint16)
    table[1:] = np.where(valid, _firsts(merging, classes, valid) + 1, 0)
    return numbered(Runs.of(drawn).renumbered(table).drawn(), kept, classes, scores)


def merge_semantic(
    merging: Merging, frame: Frame, logits: Array, masks: Array
) -> NDArray[np.uint16]:
    """The class index of every pixel (H, W): the largest sum over queries of class probability
    times mask probability.

    ``logits`` (Q, K+1) and ``masks`` (Q, h, w) are raw, float32. Where a model offers nothing but
    this mode, the authors of MaskFormer and Mask2Former make the sums at the resolution of the
    canvas and resize them; else they resize the masks. For DETR they are made as Mask2Former's.
    """
    weights = softmax(logits)[:, :-1].T
    if merging.profile == "hf":
        maps, down, across = hf_maps(merging, frame, masks)
        sums = np.tensordot(weights, sigmoid(maps), axes=1)
        return by_value(sums, down, across)
    inner = on_canvas(frame, masks.shape[1:])
    outer = axes(bilinear, frame.valid, frame.picture)
    if merging.modes == ("semantic",):
        return by_resized_sum(masks, weights, inner, outer)
    return by_sum(masks, weights, *composed(outer, inner))


def numbered(drawn: NDArray[np.uint16], queries: Array, classes: Array, scores: Array) -> Segments:
    """Ids from 1 on, in the order of the masks, for those that ``drawn`` (H, W) shows as index + 1;
    ``queries``, ``classes`` and ``scores`` (N,) say what they are.
    """
    runs = Runs.of(drawn)
    present = np.flatnonzero(runs.areas(len(queries) + 1)[1:])
    table = np.zeros(len(queries) + 1, dtype=np.uint16)
    table[present + 1] = np.arange(1, len(present) + 1)
    rows = [
        Segment(number, int(classes[index]), float(scores[index]), int(queries[index]))
        for number, index in enumerate(present, 1)
    ]
    return Segments(runs.renumbered(table).drawn(), rows)


def _hf_winners(
    merging: Merging, frame: Frame, masks: Maps, scores: Maps, overlap_threshold: float
) -> tuple[Array, Array]:
    """Winner + 1 of every pixel, and which of them (N,) are segments."""
    maps, down, across = hf_maps(merging, frame, masks)
    contest = by_probability(sigmoid(maps), scores, down, across, are_logits=False, weighted=True)
    areas = contest.areas
    own_areas = np.maximum(contest.own_areas, 1).astype(np.float32)
    shares = areas.astype(np.float32) / own_areas  # in single precision, as there
    passes = shares.astype(np.float64) > overlap_threshold
    return contest.winners + np.uint16(1), (areas > 0) & (contest.own_areas > 0) & passes


def _reference_winners(
    merging: Merging, frame: Frame, masks: Maps, scores: Maps, overlap_threshold: float
) -> tuple[Array, Array]:
    """As ``_hf_winners``; of Mask2Former 0 where the winner's own probability is below one half."""
    outer = axes(bilinear, frame.valid, frame.picture)
    way = composed(outer, on_canvas(frame, masks.shape[1:]))
    contest = by_probability(masks, scores, *way, are_logits=True, weighted=False)
    areas = contest.areas
    shares = areas / np.maximum(contest.own_areas, 1)
    valid = (areas > 0) & (contest.own_areas > 0) & (shares >= overlap_threshold)
    drawn = contest.winners + np.uint16(1)
    if merging.rule == "maskformer":
        return drawn, valid
    drawn *= contest.strong
    return drawn, valid & (Runs.of(drawn).areas(len(valid) + 1)[1:] > 0)


def _detr_rounds(frame: Frame, masks: Maps, firsts: Array) -> Array:
    """Index + 1 of the mask that has the pixel, 0 everywhere if none is left.

    Taken from the valid cells to the processed size, then by the nearest pixel to the picture, as
    the authors' code does for one picture without padding. The first round gives the pixels of
    duplicates to ``firsts`` (N,); then small segments are dropped until none is.
    """
    maps = cropped(frame, masks)
    inner = axes(bilinear, maps.shape[1:], frame.valid)
    way = composed(axes(nearest_by_centre, frame.valid, frame.picture), inner)
    alive = np.arange(len(maps), dtype=np.uint16)
    runs = Runs.of(by_value(maps, *way)).renumbered(firsts)
    while True:
        large = runs.areas(len(alive)) > SMALL_AREA_PX
        if large.all():
            return runs.renumbered(alive + np.uint16(1)).drawn()
        alive = alive[large]
        if len(alive) == 0:
            return np.zeros(frame.picture, dtype=np.uint16)
        runs = Runs.of(by_value(maps[alive], *way))


def _firsts(merging: Merging, classes: Array, valid: Array) -> Array:
    """For every mask the first valid one of its class where those are fused, else itself (N,)."""
    firsts = np.arange(len(classes), dtype=np.uint16)
    of_class: dict[int, int] = {}
    for index in np.flatnonzero(valid):
        if merging.fuses(int(classes[index])):
            firsts[index] = of_class.setdefault(int(classes[index]), int(index))
    return firsts
