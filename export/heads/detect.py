"""Serving graphs of detectors: boxes with a class and a score."""

import torch
from torch import Tensor, nn

from export.heads.classify import Activation
from export.heads.entry import Entry

MOST_BOXES = 100
"""What Deformable DETR hands out of its Q*K pairs of query and class (arXiv 2010.04159)."""


class Boxes(nn.Module):
    """Raw predictions to rows: ``scores``, ``classes``, ``boxes`` and ``queries`` (B, T).

    "softmax" (DETR, Carion et al. 2020, arXiv 2005.12872): T = Q rows in the order of the queries,
    each with its best class other than the last, "no object". "sigmoid" (Deformable DETR): the T =
    min(100, Q*K) best pairs of query and class, best first, so that a query may have several rows.
    Where a network names its queries by ``cells``, so does ``queries``.

    ``boxes`` (B, T, 4) are xyxy in 0..1 of the valid area, not clipped. Rows are the same in both
    profiles: nothing is left out here. Who answers keeps ``score > threshold`` under "hf", and
    ``score >= threshold`` under "reference", whose authors know no threshold.
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(
        self, logits: Tensor, boxes: Tensor, cells: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``logits`` (B, Q, K+1), or (B, Q, K) of a sigmoid; ``boxes`` (B, Q, 4) cxcywh in 0..1;
        ``cells`` (B, Q).
        """
        corners = xyxy(boxes)
        if self.activation == "softmax":
            scores, classes = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
            queries = torch.arange(logits.shape[1], device=logits.device).expand_as(classes)
        else:
            pairs = logits.sigmoid().flatten(1)  # (B, Q*K)
            scores, best = pairs.topk(min(MOST_BOXES, pairs.shape[1]))
            queries, classes = best // logits.shape[2], best % logits.shape[2]
            corners = corners.gather(1, queries[..., None].expand(-1, -1, 4))
        queries = queries if cells is None else cells.gather(1, queries)
        return {
            "scores": scores,
            "classes": classes.int(),
            "boxes": corners,
            "queries": queries.int(),
        }


class Detect(nn.Module):
    """Pixels to the outputs of ``Boxes`` and the raw ``logits``.

    ``sizes`` (B, 2) int32, where pictures are padded, are height and width of their valid part.
    """

    def __init__(self, entry: Entry, model: nn.Module, activation: Activation = "softmax") -> None:
        super().__init__()
        self.entry = entry
        self.model = model
        self.boxes = Boxes(activation)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> dict[str, Tensor]:
        x = self.entry(images, sizes)
        raw = self.model(x, whole(images) if sizes is None else sizes)
        rows: dict[str, Tensor] = self.boxes(raw["logits"], raw["boxes"], raw.get("cells"))
        return rows | {"logits": raw["logits"]}


def xyxy(boxes: Tensor) -> Tensor:
    """Corners of boxes (..., 4) given by centre and size."""
    middle, extent = boxes[..., :2], boxes[..., 2:]
    return torch.cat([middle - extent / 2, middle + extent / 2], dim=-1)


def whole(images: Tensor) -> Tensor:
    """``sizes`` of pictures (B, H, W, 3) that fill their canvas."""
    size = torch.tensor(images.shape[1:3], dtype=torch.int32, device=images.device)
    return size.expand(images.shape[0], 2)
