"""The lesson of a detector from few pictures, much like that of the demo detector."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from export.demo.scoring import BoxTruth, Detections, average_precision
from export.demo.training.cells import CELL_PX, CellHeads
from export.demo.training.detect import Boxes, backbone_config, box_losses, whole
from export.demo.training.loop import Figures, Losses
from export.demo.training.matching import corners
from export.detector.pictures import Batch, Pictures, plain
from models.deformable_detr import DeformableDetr, DeformableDetrConfig

Tensors = tuple[Tensor, ...] | list[Tensor]

# The share of the average that a step keeps, once there are many.
KEPT = 0.998


def detector_config(canvas: tuple[int, int], classes: int, queries: int) -> DeformableDetrConfig:
    """The demo detector for another canvas and other classes, in one stage: queries with a place
    of their own sooner agree on which of them answers for one of many things alike.
    """
    return DeformableDetrConfig(
        canvas=canvas,
        backbone=backbone_config(),
        classes=classes,
        queries=queries,
        dim=64,
        heads=4,
        encoder_layers=1,
        decoder_layers=4,
        mlp_dim=256,
        levels=3,
        refine=True,
        groups=32,
    )


class BoxLesson(nn.Module):
    """Boxes and classes after every decoder layer, and what the cells show to the maps of the
    backbone.

    ``average`` is the mean of the network over its last steps, which is what one keeps.
    """

    def __init__(self, model: DeformableDetr) -> None:
        super().__init__()
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=_average, use_buffers=True)
        self.average.requires_grad_(False)
        self.strides = model.backbone.strides
        channels = dict(zip(self.strides, model.backbone.channels, strict=True))
        self.cell_heads = CellHeads(channels, model.config.classes + 1)
        self._maps: list[Tensor] = []
        model.backbone.register_forward_hook(lambda _m, _i, maps: setattr(self, "_maps", maps))

    def forward(self, batch: Batch) -> Losses:
        if self.training:
            self.average.update_parameters(self.model)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        layers = self.model.predictions(images, whole(images))
        maps = dict(zip(self.strides, self._maps, strict=True))
        cells = self.cell_heads(maps, cell_shares(batch, self.model.config.classes, CELL_PX))
        by_layer = [box_losses(named["logits"], named["boxes"], batch.boxes) for named in layers]
        losses = {name: torch.stack([one[name] for one in by_layer]).mean() for name in by_layer[0]}
        return losses | {"cells": cells}


def cell_shares(batch: Batch, classes: int, side: int) -> Tensor:
    """What cells of ``side`` pixels show (B, h, w, K + 2), as ``CellHeads`` takes it: the class at
    their middle, the last for none, and whether it is the inner half of a thing.

    A thing is the ellipse in its box, and the smaller lies on the larger.
    """
    height, width = (size // side for size in batch.images.shape[2:])
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    x0, y0, x1, y1 = batch.boxes.corners[..., None, None].unbind(dim=2)  # (B, S, 1, 1)
    away = ((2 * x - x0 - x1) / (x1 - x0).clamp(min=1e-6)) ** 2
    away = away + ((2 * y - y0 - y1) / (y1 - y0).clamp(min=1e-6)) ** 2
    away = away.masked_fill(batch.boxes.classes[..., None, None] < 0, torch.inf)
    area = ((x1 - x0) * (y1 - y0)).expand_as(away).masked_fill(away > 1, torch.inf)
    smallest, thing = area.min(dim=1)
    kind = batch.boxes.classes.gather(1, thing.flatten(1)).view_as(thing)
    kind = kind.where(smallest.isfinite(), torch.tensor(classes))
    shares = nn.functional.one_hot(kind, classes + 1).float()
    inner = (away < 0.25).any(dim=1).float()
    return torch.cat([shares, inner[..., None]], dim=-1)


@torch.inference_mode()
def precision(model: nn.Module, pictures: Pictures, batch: int = 32) -> Figures:
    """AP50 and AP over all pairs of query and class, of 100 at most."""
    truth, found = [], []
    kinds = len(pictures.labels)
    for start in range(0, len(pictures), batch):
        chosen = plain(pictures, slice(start, start + batch))
        named = model(chosen.images, whole(chosen.images))
        scores = named["logits"].sigmoid().flatten(1)
        boxes = corners(named["boxes"]).clamp(0, 1)
        for i, size in enumerate(pictures.sizes[start : start + batch]):
            sides = torch.tensor([size.width, size.height]).repeat(2)
            sure, pairs = scores[i].topk(min(100, scores.shape[1]))
            places = boxes[i, pairs // kinds] * sides
            found.append(Detections(sure.numpy(), (pairs % kinds).numpy(), places.numpy()))
            things = _things(chosen.boxes, i)
            places = things.corners * sides
            truth.append(
                BoxTruth((size.height, size.width), things.classes.numpy(), places.numpy())
            )
    return average_precision(truth, found, pictures.labels)


def _average(average: Tensors, current: Tensors, steps: "Tensor | int") -> None:
    """Move the average; the first steps, far from where it goes, are soon forgotten."""
    kept = min(KEPT, (1 + int(steps)) / (10 + int(steps)))
    get_ema_multi_avg_fn(kept)(average, current, steps)


def _things(boxes: Boxes, row: int) -> Boxes:
    there = boxes.classes[row] >= 0
    return Boxes(boxes.classes[row, there], boxes.corners[row, there])
