"""The lesson of the segmenter: masks and classes of all segments, matched one to one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from export.demo.pool import Examples
from export.demo.scenes import CLASSES, STUFF
from export.demo.scoring import PanopticQuality
from export.demo.training.batches import Batch, class_shares, plain, segment_shares
from export.demo.training.cells import CELL_PX, CellHeads
from export.demo.training.classify import SwinLesson, logits_of, swin_config
from export.demo.training.loop import Figures, Losses
from export.demo.training.matching import mask_costs, match, of_classes
from models.mask2former import Mask2Former, Mask2FormerConfig
from models.swin import Swin, SwinClassifier, as_map

NO_OBJECT_WEIGHT = 0.1


def mask2former_config() -> Mask2FormerConfig:
    """The classifier's network as backbone, and 0.4 M parameters that make segments of its maps."""
    backbone = replace(swin_config(), classes=0, always_pad=True)
    return Mask2FormerConfig(
        canvas=backbone.canvas,
        backbone=backbone,
        classes=len(CLASSES),
        queries=20,
        dim=64,
        heads=4,
        encoder_layers=1,
        encoder_mlp_dim=256,
        decoder_layers=3,
        decoder_mlp_dim=256,
        groups=32,
    )


def mask_losses(logits: Tensor, masks: Tensor, classes: Tensor, truth: Tensor) -> Losses:
    """Cross-entropy of the classes, and of the masks per segment with their dice loss (Cheng et al.
    2021, arXiv 2112.01527, section 3.3), at all pixels of the masks.

    ``logits`` (B, Q, K + 1), ``masks`` (B, Q, h, w), ``classes`` (B, S) with -1 for none. ``truth``
    (B, S, h, w) is the share of a segment in a mask's pixel, so that edges are right to less than a
    pixel.
    """
    logits, masks = logits.float(), masks.float()
    wanted = classes >= 0
    entropy, dice = mask_costs(masks.flatten(2), truth.flatten(2))
    likely = of_classes(logits.softmax(dim=-1), classes)
    found = match(5 * entropy + 5 * dice - 2 * likely, wanted)
    chosen = (found.pictures, found.queries, found.segments)
    target = torch.full(logits.shape[:2], logits.shape[2] - 1)
    target[found.pictures, found.queries] = classes[found.pictures, found.segments]
    weight = torch.ones(logits.shape[2])
    weight[-1] = NO_OBJECT_WEIGHT
    return {
        "class": 2 * F.cross_entropy(logits.transpose(1, 2), target, weight),
        "mask": 5 * entropy[chosen].mean(),
        "dice": 5 * dice[chosen].mean(),
    }


class SegmentLesson(nn.Module):
    """Segments and, from the same backbone, the label: classes and masks before the decoder and
    after each of its layers, the lesson of the classifier, and what the cells show to every stage
    of the backbone and to the tokens that the queries look at.

    The classifier goes on learning beside the segmenter, whose masks teach the trunk more than
    labels can.
    """

    def __init__(self, model: Mask2Former, classifier: SwinClassifier) -> None:
        super().__init__()
        backbone = model.backbone
        assert isinstance(backbone, Swin)
        self.model, self.classifier = model, classifier
        classifier.trunk = backbone.trunk
        self.strides = backbone.strides
        self.cell_heads = CellHeads(dict(zip(self.strides, backbone.channels, strict=True)))
        self.token_heads = CellHeads(dict.fromkeys(self.strides[1:], model.config.dim))
        self._seen: dict[str, Any] = {}
        backbone.register_forward_hook(self._keep("maps"))
        backbone.trunk.register_forward_hook(self._keep("stages"))
        model.pixel_decoder.register_forward_hook(self._keep("decoded"))

    def forward(self, batch: Batch) -> Losses:
        with torch.autocast("cpu", torch.bfloat16):
            stages = self.model.predictions(batch.images)
            maps = dict(zip(self.strides, self._seen["maps"], strict=True))
            shares = class_shares(batch, CELL_PX)
            cells = self.cell_heads(maps, shares) + self.token_heads(self._tokens(), shares)
            logits = logits_of(self.classifier, self._seen["stages"][-1])
        truth = segment_shares(batch, self.strides[0])
        by_stage = [
            mask_losses(named["logits"], named["masks"], batch.classes, truth) for named in stages
        ]
        losses = {name: torch.stack([one[name] for one in by_stage]).sum() for name in by_stage[0]}
        label = F.cross_entropy(logits.float(), batch.labels, label_smoothing=0.02)
        return losses | {"cells": cells, "label": label}

    def _tokens(self) -> dict[int, Tensor]:
        """What the queries look at, as maps by stride."""
        tokens, _ = self._seen["decoded"]
        grids = self.model.pixel_decoder.grids
        maps = (as_map(level, grid) for level, grid in zip(tokens, grids, strict=True))
        return dict(zip(reversed(self.strides[1:]), maps, strict=True))

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that notes what a module gave."""

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._seen[name] = output

        return hook


def begin_with(lesson: SegmentLesson, taught: SwinLesson) -> None:
    """Take over the trunk, its norms, cell heads and classifier of the first lesson."""
    lesson.classifier.load_state_dict(taught.model.state_dict())
    assert isinstance(lesson.model.backbone, Swin)
    lesson.model.backbone.norms.load_state_dict(taught.norms.state_dict())
    lesson.cell_heads.load_state_dict(taught.cell_heads.state_dict())


@torch.inference_mode()
def quality(model: Mask2Former, examples: Examples, batch: int = 64) -> Figures:
    """PQ, SQ and RQ at the canvas."""
    panoptic = PanopticQuality()
    for start in range(0, len(examples), batch):
        chosen = plain(examples, slice(start, start + batch))
        named = model(chosen.images)
        masks = F.interpolate(named["masks"], examples.ids.shape[1:], mode="bilinear").sigmoid()
        for logits, chances, ids, classes in zip(
            named["logits"], masks, chosen.ids, chosen.classes, strict=True
        ):
            labels = [CLASSES[kind] for kind in classes.tolist() if kind >= 0]
            panoptic.add(ids.numpy(), labels, *merged(logits.softmax(dim=-1), chances))
    return panoptic.figures()


def merged(scores: Tensor, masks: Tensor) -> tuple[NDArray[np.int64], list[str]]:
    """Segment ids (H, W) and their classes, from the scores (Q, K + 1) and chances (Q, H, W) of the
    queries: each pixel goes to the query most sure of it, and what keeps less than 0.8 of its own
    mask is dropped (Cheng et al. 2021, arXiv 2107.06278, section 3.4).
    """
    sure, kinds = scores.max(dim=-1)
    kept = (kinds < len(CLASSES)) & (sure > 0.5)
    sure, kinds, masks = sure[kept], kinds[kept], masks[kept]
    ids, labels = np.zeros(masks.shape[1:], dtype=np.int64), []
    owner = (sure[:, None, None] * masks).argmax(dim=0) if len(kinds) else None
    stuff: dict[int, int] = {}
    for query, kind in enumerate(kinds.tolist()):
        inside = masks[query] >= 0.5
        own = (owner == query) & inside
        if own.sum() == 0 or own.sum() < 0.8 * inside.sum():
            continue
        known = stuff.get(kind)
        if known is None:
            labels.append(CLASSES[kind])
            known = len(labels)
        if CLASSES[kind] in STUFF:
            stuff[kind] = known
        ids[own.numpy()] = known
    return ids, labels
