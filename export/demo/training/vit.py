"""The ViT classifier of the demo and its lesson."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.demo.scenes import THINGS
from export.demo.training.batches import Batch, class_shares
from export.demo.training.cells import CELL_PX, CellHeads
from export.demo.training.loop import Losses
from models.vit import ViT, ViTConfig


def vit_config() -> ViTConfig:
    """A network small enough to train on a laptop and to ship with the package (5 MB)."""
    return ViTConfig(
        canvas=(128, 128),
        patch_size=16,
        dim=128,
        depth=6,
        heads=4,
        mlp_dim=512,
        classes=len(THINGS),
    )


class VitLesson(nn.Module):
    """Cross-entropy of the label, and of what the cells show to every patch token."""

    def __init__(self, model: ViT) -> None:
        super().__init__()
        self.model = model
        self.cell_heads = CellHeads({model.config.patch_size: model.config.dim})

    def forward(self, batch: Batch) -> Losses:
        config = self.model.config
        with torch.autocast("cpu", torch.bfloat16):
            named = self.model(batch.images)
            patches = named["tokens"][:, config.prefix_tokens :].transpose(1, 2)
            maps = {config.patch_size: patches.unflatten(2, config.grid)}
            cells = self.cell_heads(maps, class_shares(batch, CELL_PX))
        label = F.cross_entropy(named["logits"].float(), batch.labels, label_smoothing=0.02)
        return {"label": label, "cells": cells}


def initialize_vit(model: ViT) -> None:
    """Random weights; positions start as sines and cosines of the patch's row and column."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.class_tokens, std=0.02)
    (rows, columns), quarter = model.config.grid, model.config.dim // 4
    frequencies = 2.0 ** torch.linspace(0, -4, quarter) * math.pi / 2
    down = torch.arange(rows)[:, None] * frequencies
    across = torch.arange(columns)[:, None] * frequencies
    grid = torch.cat(
        [
            torch.cat([down.sin(), down.cos()], dim=1)[:, None].expand(-1, columns, -1),
            torch.cat([across.sin(), across.cos()], dim=1)[None].expand(rows, -1, -1),
        ],
        dim=2,
    )
    with torch.no_grad():
        model.positions[0, model.config.class_tokens :] = 0.3 * grid.flatten(0, 1)


def whiten(model: ViT, images: Tensor) -> None:
    """Start the patch embedding with the principal components of patches, at equal variance.

    As in the whitening layer of Jordan 2024, arXiv 2404.00498, section 3.2: outlines, which vary
    far less than colours, then reach the first block as loud as they do. ``images`` (B, 3, H, W).
    """
    side, dim = model.config.patch_size, model.config.dim
    tiles = images.unfold(2, side, side).unfold(3, side, side)  # (B, 3, gh, gw, side, side)
    patches = tiles.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double()
    variances, components = torch.linalg.eigh(torch.cov(patches.T))  # ascending
    assert model.patch_embed.bias is not None
    filters = 0.5 * components[:, -dim:] / (variances[-dim:] + 1e-2).sqrt()
    with torch.no_grad():
        model.patch_embed.weight.copy_(filters.T.view_as(model.patch_embed.weight))
        model.patch_embed.bias.copy_(-patches.mean(dim=0) @ filters)
