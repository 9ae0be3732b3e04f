"""Instances at the resolution of the masks: rows of one mask, class and score each.

``seen`` (B, 1, h, w), bool, are the cells that show the picture; no mask reaches beyond.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from export.heads.panoptic import Panoptic, by_class

MOST_INSTANCES = 100
"""What the authors of Mask2Former keep of the Q*K pairs of query and class."""


@dataclass(frozen=True)
class Instances:
    """``masks`` (B, T, h, w), bool; ``classes`` (B, T) int32, -1 where the row is no
    instance: its score is below the threshold, no cell is left, or its class is not asked for;
    ``scores`` (B, T); ``queries`` (B, T) int32.
    """

    masks: Tensor
    classes: Tensor
    scores: Tensor
    queries: Tensor


def pairs_of_query_and_class(
    logits: Tensor,
    masks: Tensor,
    seen: Tensor,
    threshold: Tensor,
    allowed: Tensor,
    most: int,
) -> Instances:
    """The ``most`` probable pairs of query and class, by class score, best first; the final score
    is that times the mean probability inside the mask (Cheng et al. 2022, arXiv 2112.01527, as the
    authors' code has it).

    ``allowed`` (K+1,), bool, are the classes that count.
    """
    pairs = logits.softmax(dim=-1)[..., :-1]
    class_scores, best = pairs.flatten(1).topk(min(most, pairs.shape[1] * pairs.shape[2]))
    queries, classes = best // pairs.shape[2], best % pairs.shape[2]
    inside = (masks > 0) & seen
    area = inside.flatten(2).sum(dim=-1)
    total = torch.where(inside, masks.sigmoid(), 0.0).flatten(2).sum(dim=-1)
    scores = class_scores * (total / (area + 1e-6)).gather(1, queries)
    valid = (
        (scores >= threshold[:, None]) & (area.gather(1, queries) > 0) & by_class(allowed, classes)
    )
    return _rows(_rows_of(inside, queries), valid, classes, scores, queries)


def best_class_of_query(
    logits: Tensor, masks: Tensor, seen: Tensor, threshold: Tensor
) -> Instances:
    """One row for every query, with its best class other than "no object", whose score is the class
    score alone (DETR's ``PostProcessSegm``).
    """
    scores, classes = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
    inside = (masks.sigmoid() > 0.5) & seen
    valid = (scores >= threshold[:, None]) & inside.flatten(2).any(dim=-1)
    queries = torch.arange(logits.shape[1], device=logits.device).expand_as(classes)
    return _rows(inside, valid, classes, scores, queries)


def laid_over(instances: Instances) -> Instances:
    """Disjoint masks: where two meet the later row has the cell (transformers draws them so)."""
    count = instances.masks.shape[1]
    numbers = torch.arange(1, count + 1, dtype=torch.int32, device=instances.masks.device)
    heights = torch.where(instances.classes >= 0, numbers, 0)
    laid = torch.where(instances.masks, heights[..., None, None], 0)
    top = laid.amax(dim=1, keepdim=True)
    masks = instances.masks & (top == numbers[:, None, None])
    valid = (instances.classes >= 0) & masks.flatten(2).any(dim=-1)
    return _rows(masks, valid, instances.classes, instances.scores, instances.queries)


def from_panoptic(panoptic: Panoptic) -> Instances:
    """The segments of a panoptic map as instances (transformers takes DETR's so)."""
    numbers = torch.arange(panoptic.classes.shape[1], device=panoptic.map.device)
    masks = panoptic.map[:, None] == numbers[:, None, None] + 1
    return _rows(
        masks,
        panoptic.classes >= 0,
        panoptic.classes,
        panoptic.scores,
        numbers.expand_as(panoptic.classes),
    )


def _rows(
    masks: Tensor, valid: Tensor, classes: Tensor, scores: Tensor, queries: Tensor
) -> Instances:
    return Instances(masks, torch.where(valid, classes, -1).int(), scores, queries.int())


def _rows_of(masks: Tensor, queries: Tensor) -> Tensor:
    """``masks`` (B, Q, h, w) of the ``queries`` (B, T): (B, T, h, w)."""
    batch, count = masks.shape[:2]
    starts = torch.arange(batch, device=masks.device)[:, None] * count
    chosen = masks.flatten(0, 1).index_select(0, (starts + queries).flatten())
    return chosen.unflatten(0, (-1, queries.shape[1]))
