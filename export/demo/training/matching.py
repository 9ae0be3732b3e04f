"""Predictions matched one to one with the truth (Carion et al. 2020, arXiv 2005.12872, section
3.1), and the costs that decide it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class Matches:
    """Query ``queries[m]`` of picture ``pictures[m]`` answers for its segment ``segments[m]``."""

    pictures: Tensor
    queries: Tensor
    segments: Tensor


def match(cost: Tensor, wanted: Tensor) -> Matches:
    """The cheapest one-to-one matches: every wanted segment gets a query of its own.

    ``cost`` (B, Q, S) of a query answering for a segment; ``wanted`` (B, S) bool.
    """
    found = []
    for picture, (costs, columns) in enumerate(zip(cost.detach().cpu(), wanted, strict=True)):
        segments = columns.nonzero()[:, 0]
        rows, picked = linear_sum_assignment(costs[:, segments].double().numpy())
        rows, picked = torch.from_numpy(rows), torch.from_numpy(picked)
        found.append(torch.stack([torch.full_like(rows, picture), rows, segments[picked]]))
    return Matches(*torch.cat(found, dim=1))


def focal_cost(logits: Tensor, classes: Tensor) -> Tensor:
    """What saying yes instead of no to a class changes in the focal loss (B, Q, S).

    ``logits`` (B, Q, K), ``classes`` (B, S) where -1 counts as 0.
    """
    chance = logits.sigmoid()
    yes = 0.25 * (1 - chance) ** 2 * -F.logsigmoid(logits)
    no = 0.75 * chance**2 * -F.logsigmoid(-logits)
    return of_classes(yes - no, classes)


def of_classes(by_class: Tensor, classes: Tensor) -> Tensor:
    """Columns of (B, Q, K) for the class of every segment: (B, Q, S); -1 counts as 0."""
    index = classes.clamp(min=0)[:, None].expand(-1, by_class.shape[1], -1)
    return by_class.gather(2, index)


def corners(boxes: Tensor) -> Tensor:
    """Centre and size (..., 4) to x0, y0, x1, y1."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def centers(boxes: Tensor) -> Tensor:
    """x0, y0, x1, y1 (..., 4) to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalized IoU (Rezatofighi et al. 2019, arXiv 1902.09630) of boxes x0, y0, x1, y1 (..., 4)
    that broadcast, in -1..1.
    """
    shared = _area(
        torch.maximum(first[..., :2], second[..., :2]),
        torch.minimum(first[..., 2:], second[..., 2:]),
    )
    around = _area(
        torch.minimum(first[..., :2], second[..., :2]),
        torch.maximum(first[..., 2:], second[..., 2:]),
    )
    areas = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:])
    union = areas - shared
    return shared / (union + 1e-7) - (around - union) / (around + 1e-7)


def mask_costs(masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy and dice loss of every mask with every segment, each (B, Q, S).

    ``masks`` (B, Q, P) logits, ``truth`` (B, S, P) in 0..1 over the same P points.
    """
    # BCE = softplus(x) - x * t, whose second part is one matrix product.
    product = masks @ truth.mT / masks.shape[-1]
    entropy = F.softplus(masks).mean(dim=-1, keepdim=True) - product
    chance = masks.sigmoid()
    overlap = chance @ truth.mT
    total = chance.sum(dim=-1, keepdim=True) + truth.sum(dim=-1)[:, None]
    return entropy, 1 - (2 * overlap + 1) / (total + 1)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(dim=-1)
