"""Serving graphs of segmenters: queries with masks merged to segments, instances and classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from export.heads.detect import Boxes, whole
from export.heads.entry import Entry
from export.heads.instance import (
    MOST_INSTANCES,
    Instances,
    best_class_of_query,
    from_panoptic,
    laid_over,
    pairs_of_query_and_class,
)
from export.heads.panoptic import (
    SMALL_AREA_PX,
    Panoptic,
    Queries,
    merge_by_argmax,
    merge_by_probability,
    read_queries,
)
from models.layers import valid_cells, valid_mask
from service.bundle import Mode, Profile, Rule


class Merge(nn.Module):
    """Class and mask logits of Q queries to what each of ``modes`` asks for, on the grid of the
    masks.

    ``things`` (K,) tells things from stuff; ``canvas`` is height and width of what the network saw.
    ``rule`` is whose definition, ``profile`` whose code: "reference" the authors', "hf" that of
    transformers, which under every rule

    - merges by probability (DETR's authors take the largest mask logit),
    - compares probability times score with one half where MaskFormer compares probability, wants a
      share above the overlap threshold, and hands out all cells won,
    - fuses no classes, and draws instances over one another, of stuff as well as of things.

    The authors of MaskFormer define no instances, and those of DETR no semantic map: both are made
    by Mask2Former's rule, which the first of them led to.
    """

    def __init__(
        self,
        rule: Rule,
        profile: Profile,
        modes: Sequence[Mode],
        things: Sequence[bool],
        canvas: tuple[int, int],
    ) -> None:
        super().__init__()
        self.rule, self.profile, self.modes, self.canvas = rule, profile, tuple(modes), canvas
        hf = profile == "hf"
        fused = [not (thing or hf) for thing in things]
        # With panoptic merging on, the authors of Mask2Former keep instances of things alone.
        allowed = [thing or hf or "panoptic" not in modes for thing in things]
        self.fused = nn.Buffer(torch.tensor([*fused, False]), persistent=False)
        self.allowed = nn.Buffer(torch.tensor([*allowed, False]), persistent=False)

    def forward(
        self,
        logits: Tensor,
        masks: Tensor,
        threshold: Tensor,
        overlap_threshold: Tensor,
        sizes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``logits`` (B, Q, K+1), ``masks`` (B, Q, h, w) logits; thresholds (B,); ``sizes`` (B, 2)
        int32 where only a part of the canvas shows the picture.

        Returns ``panoptic_map`` (B, h, w), 0 for void, else row + 1, with ``panoptic_classes`` and
        ``panoptic_scores`` (B, Q); ``instance_masks`` (B, T, h, w) with ``instance_classes``,
        ``instance_scores`` and ``instance_queries`` (B, T); ``semantic_map`` (B, h, w), -1 beyond
        the picture. A class is -1 where the row holds nothing. T is Q, except for the reference of
        MaskFormer and Mask2Former: min(100, Q*K).
        """
        grid = masks.shape[2], masks.shape[3]
        if sizes is None:
            seen = torch.ones(1, 1, *grid, dtype=torch.bool, device=masks.device)
        else:
            cells = valid_cells(sizes, self.canvas, grid)
            seen = valid_mask(cells, grid).unflatten(1, grid)[:, None]
        merged: dict[str, Tensor] = {}
        if "panoptic" in self.modes:
            queries = read_queries(logits, threshold, self.fused)
            panoptic = self._panoptic(queries, masks, seen, overlap_threshold)
            merged |= _named("panoptic", panoptic)
        if "instance" in self.modes:
            instances = self._instances(logits, masks, seen, threshold, overlap_threshold)
            merged |= _named("instance", instances)
            # Last, since TensorRT knows bytes as inputs and outputs only.
            merged["instance_masks"] = merged["instance_masks"].to(torch.uint8)
        if "semantic" in self.modes:
            merged["semantic_map"] = _semantic(logits, masks, seen[:, 0])
        return merged

    def _panoptic(self, queries: Queries, masks: Tensor, seen: Tensor, overlap: Tensor) -> Panoptic:
        if self.profile == "hf":
            return merge_by_probability(queries, masks, seen, overlap, weighted_area=True)
        if self.rule == "detr":
            pixels = self.canvas[0] * self.canvas[1] / (masks.shape[2] * masks.shape[3])
            return merge_by_argmax(queries, masks, seen, SMALL_AREA_PX / pixels)
        strong = self.rule == "mask2former"
        return merge_by_probability(queries, masks, seen, overlap, strong_cells=strong)

    def _instances(
        self, logits: Tensor, masks: Tensor, seen: Tensor, threshold: Tensor, overlap: Tensor
    ) -> Instances:
        if self.rule == "detr" and self.profile == "hf":
            queries = read_queries(logits, threshold, self.fused)
            return from_panoptic(self._panoptic(queries, masks, seen, overlap))
        if self.rule == "detr":
            return best_class_of_query(logits, masks, seen, threshold)
        most = logits.shape[1] if self.profile == "hf" else MOST_INSTANCES
        found = pairs_of_query_and_class(logits, masks, seen, threshold, self.allowed, most)
        return laid_over(found) if self.profile == "hf" else found


class Segment(nn.Module):
    """Pixels to the outputs of ``Merge``, and the raw ``logits`` and ``masks``.

    A network that gives boxes too (DETR with its mask head) answers for both tasks: the outputs of
    ``Boxes`` are among these. ``takes_sizes`` tells whether the network is told which part of the
    canvas shows the picture.
    """

    def __init__(self, entry: Entry, model: nn.Module, merge: Merge, takes_sizes: bool) -> None:
        super().__init__()
        self.entry = entry
        self.model = model
        self.merge = merge
        self.takes_sizes = takes_sizes
        self.boxes = Boxes("softmax")

    def forward(
        self,
        images: Tensor,
        threshold: Tensor,
        overlap_threshold: Tensor,
        sizes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        x = self.entry(images, sizes)
        told = (whole(images) if sizes is None else sizes,) if self.takes_sizes else ()
        raw = self.model(x, *told)
        logits, masks = raw["logits"], raw["masks"]
        rows = self.boxes(logits, raw["boxes"]) if "boxes" in raw else {}
        merged = self.merge(logits, masks, threshold, overlap_threshold, sizes)
        return {"logits": logits, "masks": masks} | rows | merged


def _named(mode: Mode, found: Panoptic | Instances) -> dict[str, Tensor]:
    return {f"{mode}_{name}": value for name, value in vars(found).items()}


def _semantic(logits: Tensor, masks: Tensor, seen: Tensor) -> Tensor:
    """The class (B, h, w) with the largest sum over queries of class times mask probability (Cheng
    et al. 2021, arXiv 2107.06278, section 3.4).
    """
    classes = logits.softmax(dim=-1)[..., :-1].transpose(1, 2)  # (B, K, Q)
    sums = classes @ masks.sigmoid().flatten(2)
    best = sums.argmax(dim=1).unflatten(1, masks.shape[2:])
    return torch.where(seen, best, -1).int()
