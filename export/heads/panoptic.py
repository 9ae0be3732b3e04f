"""Panoptic merging at the resolution of the masks: every cell to one segment, or to none.

All functions work on a grid (h, w) of cells, of which ``seen`` (B, 1, h, w), bool, show the
picture; a cell beyond is void and counts for no area. What would be loops over queries and shapes
that depend on the data is written as comparisons, sums and gathers, which every runtime has.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALL_AREA_PX = 4
"""DETR drops segments of at most so many pixels."""


@dataclass(frozen=True)
class Queries:
    """What the class logits say: ``scores`` and ``classes`` (B, Q) of the best class, which may be
    K, "no object"; ``kept`` (B, Q), bool, where it is an object that may become a segment; and
    ``fused`` (B, Q), bool, where segments of its class become one.
    """

    scores: Tensor
    classes: Tensor
    kept: Tensor
    fused: Tensor


@dataclass(frozen=True)
class Panoptic:
    """``map`` (B, h, w) int32: 0 for void, else row + 1; ``classes`` (B, Q) int32, -1 where the row
    is no segment; ``scores`` (B, Q). A row is a query, the first one where several were fused.
    """

    map: Tensor
    classes: Tensor
    scores: Tensor


def read_queries(logits: Tensor, threshold: Tensor, fused: Tensor) -> Queries:
    """``logits`` (B, Q, K+1), ``threshold`` (B,), and ``fused`` (K+1,), bool, by class."""
    scores, classes = logits.softmax(dim=-1).max(dim=-1)
    kept = (classes != logits.shape[-1] - 1) & (scores > threshold[:, None])
    return Queries(scores, classes, kept, by_class(fused, classes))


def by_class(table: Tensor, classes: Tensor) -> Tensor:
    """The entries of ``table`` (K+1,) for ``classes`` of any shape."""
    return table.index_select(0, classes.flatten()).view_as(classes)


def merge_by_probability(
    queries: Queries,
    masks: Tensor,
    seen: Tensor,
    overlap_threshold: Tensor,
    weighted_area: bool = False,
    strong_cells: bool = False,
) -> Panoptic:
    """The most probable mask, weighted by its score, takes the cell; a mask that keeps too small a
    share of its own area is dropped (Cheng et al. 2021, arXiv 2107.06278, section 3.4).

    Its own area is where its probability reaches one half, with ``weighted_area`` (transformers)
    where the weighted one does. A share equal to ``overlap_threshold`` (B,) passes, with
    ``weighted_area`` it does not. With ``strong_cells`` (Mask2Former) a segment has only the cells
    where its own probability reaches one half; else all that it won.
    """
    probabilities = masks.sigmoid()  # (B, Q, h, w)
    weighted = probabilities * queries.scores[..., None, None]
    winners = torch.where(queries.kept[..., None, None], weighted, -1.0).argmax(dim=1)
    won = _one_hot(winners, masks.shape[1]) & seen
    strong = probabilities >= 0.5
    area = _count(won)
    own_area = _count((weighted >= 0.5 if weighted_area else strong) & seen)
    share = area / own_area.clamp(min=1)
    overlap = overlap_threshold[:, None]
    passes = share > overlap if weighted_area else share >= overlap
    valid = queries.kept & (area > 0) & (own_area > 0) & passes
    shown = seen[:, 0]
    if strong_cells:
        valid = valid & (_count(won & strong) > 0)
        shown = shown & (probabilities.gather(1, winners[:, None])[:, 0] >= 0.5)
    return _drawn(queries, valid, _first_of_class(queries, valid), winners, shown)


def merge_by_argmax(queries: Queries, masks: Tensor, seen: Tensor, small_area: float) -> Panoptic:
    """The largest mask logit takes the cell; duplicates of a fused class give their cells to the
    first, then segments of at most ``small_area`` cells are dropped and the rest decides anew
    (DETR, Carion et al. 2020, arXiv 2005.12872, section 4.4, as the authors' code has it).

    The authors repeat the last step until nothing is dropped, without fusing again. Two rounds are
    all that can happen: after the first the rivals of a segment only get fewer, so that its area
    cannot shrink, save for the one that a fused class was credited with; the second round sees the
    true one, and what it leaves stays. The softmax over queries that the authors take first changes
    no argmax.
    """
    numbers = torch.arange(masks.shape[1], device=masks.device)
    winners = _largest(masks, queries.kept)
    first = _first_of_class(queries, queries.kept)
    credited = first.gather(1, winners.flatten(1)).view_as(winners)
    kept = queries.kept & (_count(_one_hot(credited, len(numbers)) & seen) > small_area)
    winners = _largest(masks, kept)
    kept = kept & (_count(_one_hot(winners, len(numbers)) & seen) > small_area)
    own = numbers.expand_as(kept)
    return _drawn(queries, kept, own, _largest(masks, kept), seen[:, 0])


def _drawn(
    queries: Queries, valid: Tensor, first: Tensor, winners: Tensor, shown: Tensor
) -> Panoptic:
    """The map of the ``valid`` winners (B, h, w), drawn as the ``first`` (B, Q) of its class."""
    values = torch.where(valid, first + 1, 0)
    drawn = values.gather(1, winners.flatten(1)).view_as(winners)
    numbers = torch.arange(valid.shape[1], device=valid.device)
    classes = torch.where(valid & (first == numbers), queries.classes, -1)
    return Panoptic(torch.where(shown, drawn, 0).int(), classes.int(), queries.scores)


def _first_of_class(queries: Queries, valid: Tensor) -> Tensor:
    """The first valid query of the same class (B, Q), for a class that is not fused the query."""
    count = valid.shape[1]
    numbers = torch.arange(count, device=valid.device)
    alike = (queries.classes[:, :, None] == queries.classes[:, None]) & valid[:, None]
    first = torch.where(alike, numbers, count).amin(dim=-1)
    # A query that is not valid may have no valid one of its class.
    return torch.where(queries.fused & (first < count), first, numbers)


def _largest(masks: Tensor, kept: Tensor) -> Tensor:  # (B, Q, h, w) -> (B, h, w)
    return torch.where(kept[..., None, None], masks, -torch.inf).argmax(dim=1)


def _one_hot(winners: Tensor, count: int) -> Tensor:  # (B, h, w) -> (B, Q, h, w)
    numbers = torch.arange(count, device=winners.device)
    return winners[:, None] == numbers[:, None, None]


def _count(cells: Tensor) -> Tensor:
    """Cells by query, (B, Q, h, w) -> (B, Q); whole numbers, exact in every precision."""
    return cells.flatten(2).sum(dim=-1, dtype=torch.int32)
