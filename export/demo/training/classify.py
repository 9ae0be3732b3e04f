"""The lesson of the classifiers: the label of a scene, and what its cells show."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.demo.pool import Examples
from export.demo.scenes import THINGS
from export.demo.training.batches import Batch, class_shares, plain
from export.demo.training.cells import CELL_PX, CellHeads
from export.demo.training.loop import Figures, Losses
from models.swin import SwinClassifier, SwinConfig, as_map, grids, widths


def swin_config() -> SwinConfig:
    """A network small enough to train on a laptop and to ship with the package (5 MB)."""
    return SwinConfig(
        canvas=(160, 160),
        dim=24,
        depths=(2, 2, 4, 1),
        heads=(1, 2, 4, 8),
        window=5,
        classes=len(THINGS),
    )


class SwinLesson(nn.Module):
    """Cross-entropy of the label, and of what the cells show to every stage."""

    def __init__(self, model: SwinClassifier) -> None:
        super().__init__()
        self.model = model
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths(model.config))
        strides = [model.config.patch_size * 2**stage for stage in range(len(self.norms))]
        self.strides = strides
        self.cell_heads = CellHeads(dict(zip(strides, widths(model.config), strict=True)))

    def forward(self, batch: Batch) -> Losses:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self.model.trunk(batch.images)
            logits = logits_of(self.model, outputs[-1])
        maps = {
            stride: as_map(norm(tokens.float()), grid)
            for stride, norm, tokens, grid in zip(
                self.strides, self.norms, outputs, grids(self.model.config), strict=True
            )
        }
        return {
            "label": F.cross_entropy(logits.float(), batch.labels, label_smoothing=0.02),
            "cells": self.cell_heads(maps, class_shares(batch, CELL_PX)),
        }


def logits_of(model: SwinClassifier, tokens: Tensor) -> Tensor:
    """Of the last stage's tokens (B, N, D): (B, K)."""
    assert model.head is not None
    return model.head(model.norm(tokens).mean(dim=1))


def initialize_swin(model: nn.Module) -> None:
    """Random weights for all linear layers; tables of relative positions start at nothing."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.inference_mode()
def top1(model: nn.Module, examples: Examples, batch: int = 128) -> Figures:
    """Share of pictures whose highest logit is the label."""
    right = 0
    for start in range(0, len(examples), batch):
        chosen = plain(examples, slice(start, start + batch))
        found = model(chosen.images)["logits"].argmax(dim=1)
        right += int((found == chosen.labels).sum())
    return {"top-1": right / len(examples)}
