"""The lesson of the detector: boxes and classes of the things, matched one to one."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.demo.pool import Examples
from export.demo.scenes import THINGS
from export.demo.scoring import BoxTruth, Detections, average_precision
from export.demo.training.batches import Batch, class_shares, plain
from export.demo.training.cells import CELL_PX, CellHeads
from export.demo.training.loop import Figures, Losses
from export.demo.training.matching import (
    centers,
    corners,
    focal_cost,
    generalized_iou,
    match,
)
from models.deformable_detr import DeformableDetr, DeformableDetrConfig
from models.resnet import ConvNorm, ResNet, ResNetConfig


def backbone_config() -> ResNetConfig:
    """A residual network of 0.95 M parameters, for 20, 10 and 5 cells a side."""
    return ResNetConfig(
        depths=(1, 2, 3, 2), widths=(64, 128, 256, 512), stem_width=32, returned=(2, 3, 4)
    )


def detector_config() -> DeformableDetrConfig:
    """Two stages with iterative refinement, the quickest of the family to learn."""
    return DeformableDetrConfig(
        canvas=(160, 160),
        backbone=backbone_config(),
        classes=len(THINGS),
        queries=30,
        dim=64,
        heads=4,
        encoder_layers=1,
        decoder_layers=3,
        mlp_dim=256,
        levels=3,
        refine=True,
        two_stage=True,
        groups=32,
    )


class Boxes(NamedTuple):
    """What is to be found: ``classes`` (B, S), -1 where there is nothing, and ``corners``
    (B, S, 4), x0, y0, x1, y1 in 0..1.
    """

    classes: Tensor
    corners: Tensor


def things_of(batch: Batch) -> Boxes:
    """The boxes of a batch without those of stuff."""
    thing = batch.classes < len(THINGS)
    return Boxes(batch.classes.where(thing, torch.tensor(-1)), batch.boxes)


def box_losses(logits: Tensor, boxes: Tensor, truth: Boxes) -> Losses:
    """Focal loss of the classes, L1 and generalized IoU of the boxes, per thing (Zhu et al. 2020,
    arXiv 2010.04159, appendix A.4).

    ``logits`` (B, Q, K) for sigmoids; where K is 1 the question is whether there is a thing at all.
    ``boxes`` (B, Q, 4) are centre and size in 0..1.
    """
    logits, boxes = logits.float(), boxes.float()
    wanted = truth.classes >= 0
    classes = truth.classes.clamp(max=logits.shape[-1] - 1)
    with torch.no_grad():
        distance, apart = _apart(boxes[:, :, None], truth.corners[:, None])  # (B, Q, S)
        found = match(2 * focal_cost(logits, classes) + 5 * distance + 2 * apart, wanted)
    distance, apart = _apart(
        boxes[found.pictures, found.queries], truth.corners[found.pictures, found.segments]
    )
    target = torch.zeros_like(logits)
    target[found.pictures, found.queries, classes[found.pictures, found.segments]] = 1
    things = max(len(found.pictures), 1)
    return {
        "class": 2 * focal_loss(logits, target) / things,
        "distance": 5 * distance.sum() / things,
        "apart": 2 * apart.sum() / things,
    }


def _apart(boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """L1 distance, and what generalized IoU lacks of 1, of centres and sizes and of corners."""
    distance = (boxes - centers(truth)).abs().sum(dim=-1)
    return distance, 1 - generalized_iou(corners(boxes), truth)


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sum of the focal loss (Lin et al. 2017, arXiv 1708.02002, eq. 5), alpha 0.25, gamma 2."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    chance = logits.sigmoid()
    wrong = torch.where(target > 0, 0.25 * (1 - chance) ** 2, 0.75 * chance**2)
    return (wrong * entropy).sum()


class DetectLesson(nn.Module):
    """Boxes and classes after every decoder layer, the encoder's proposals, and what the cells show
    to the maps of the backbone.
    """

    def __init__(self, model: DeformableDetr) -> None:
        super().__init__()
        self.model = model
        backbone = model.backbone
        self.strides = backbone.strides
        self.cell_heads = CellHeads(dict(zip(self.strides, backbone.channels, strict=True)))
        self._maps: list[Tensor] = []
        backbone.register_forward_hook(lambda _m, _i, maps: setattr(self, "_maps", maps))

    def forward(self, batch: Batch) -> Losses:
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            layers = self.model.predictions(images, whole(batch.images))
            maps = dict(zip(self.strides, self._maps, strict=True))
            cells = self.cell_heads(maps, class_shares(batch, CELL_PX))
        truth = things_of(batch)
        by_layer = [box_losses(named["logits"], named["boxes"], truth) for named in layers]
        losses = {name: torch.stack([one[name] for one in by_layer]).mean() for name in by_layer[0]}
        proposals = layers[-1]["proposal_logits"][..., :1], layers[-1]["proposal_boxes"]
        proposed = torch.stack(list(box_losses(*proposals, truth).values())).sum()
        return losses | {"proposals": 0.5 * proposed, "cells": cells}


def whole(images: Tensor) -> Tensor:
    """Sizes (B, 2) of pictures (B, 3, H, W) that fill the canvas."""
    return torch.tensor([images.shape[2:]], dtype=torch.int32).expand(len(images), -1)


class BackboneLesson(nn.Module):
    """What the cells show to the maps of a residual network, before there is a detector on it."""

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.backbone = backbone
        self.cell_heads = CellHeads(dict(zip(backbone.strides, backbone.channels, strict=True)))

    def forward(self, batch: Batch) -> Losses:
        with torch.autocast("cpu", torch.bfloat16):
            maps = self.backbone(batch.images.contiguous(memory_format=torch.channels_last))
            maps = dict(zip(self.backbone.strides, maps, strict=True))
            return {"cells": self.cell_heads(maps, class_shares(batch, CELL_PX))}


def learn_statistics(model: nn.Module) -> None:
    """Put batch norms that learn in the place of the frozen ones, whose names they share."""
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.norm = nn.BatchNorm2d(module.conv.out_channels, momentum=0.05)


def frozen(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a network trained so, as the one with frozen norms takes it."""
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


@torch.inference_mode()
def precision(model: DeformableDetr, examples: Examples, batch: int = 64) -> Figures:
    """AP50 and AP over all pairs of query and class."""
    truth, found = [], []
    for start in range(0, len(examples), batch):
        chosen = plain(examples, slice(start, start + batch))
        named = model(chosen.images, whole(chosen.images))
        scores = named["logits"].sigmoid().flatten(1)
        boxes = corners(named["boxes"]) * examples.ids.shape[1]
        for i in range(len(scores)):
            sure, pairs = scores[i].topk(100)
            queries, kinds = pairs // len(THINGS), pairs % len(THINGS)
            found.append(Detections(sure.numpy(), kinds.numpy(), boxes[i, queries].numpy()))
            things = (chosen.classes[i] >= 0) & (chosen.classes[i] < len(THINGS))
            sides = chosen.boxes[i, things] * examples.ids.shape[1]
            size = examples.ids.shape[1:]
            truth.append(BoxTruth(size, chosen.classes[i, things].numpy(), sides.numpy()))
    return average_precision(truth, found)
