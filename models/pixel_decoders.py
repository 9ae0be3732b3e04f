"""From the maps of a backbone to an embedding of every pixel: the pixel decoders of MaskFormer and
Mask2Former, and what else the two share.

Cheng et al. 2021, arXiv 2107.06278, section 3.2 and appendix A; Cheng et al. 2021, arXiv
2112.01527, section 3.1 and appendix.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.deformable import DeformableAttention, Grids, Sampling
from models.layers import ReluMlp, SinePositions
from models.resnet import ResNet, ResNetConfig
from models.swin import Swin, SwinConfig


class MaskProduct(nn.Module):
    """Mask logits: the dot product of every query's mask embedding with every pixel's."""

    def forward(self, embeddings: Tensor, pixels: Tensor) -> Tensor:
        """(B, Q, D), (B, D, h, w) -> (B, Q, h, w)"""
        return (embeddings @ pixels.flatten(2)).unflatten(-1, pixels.shape[2:])

    def product_macs(self, embeddings: Tensor, pixels: Tensor) -> int:
        """Multiply-accumulates of one product for each query and pixel."""
        return embeddings.shape[1] * pixels.numel()


class FpnStep(nn.Module):
    """A finer map of the backbone joined with the coarser result (Lin et al. 2016, arXiv
    1612.03144, with group norm): projected, added to the enlarged result, and smoothed.
    """

    def __init__(self, channels: int, dim: int, groups: int, enlarge: str) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.lateral = nn.Conv2d(channels, dim, 1, bias=False)
        self.lateral_norm = nn.GroupNorm(groups, dim)
        self.smooth = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.smooth_norm = nn.GroupNorm(groups, dim)
        for conv in (self.lateral, self.smooth):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, finer: Tensor, coarser: Tensor) -> Tensor:
        """(B, C, 2h, 2w), (B, D, h, w) -> (B, D, 2h, 2w)"""
        lateral = self.lateral_norm(self.lateral(finer))
        x = lateral + F.interpolate(coarser, size=finer.shape[2:], mode=self.enlarge)
        return self.smooth_norm(self.smooth(x)).relu()


class DeformableLayer(nn.Module):
    """Post-norm encoder layer of Deformable DETR (Zhu et al. 2020, arXiv 2010.04159, section
    4.1).
    """

    def __init__(
        self, dim: int, heads: int, mlp_dim: int, points: int, grids: Grids, sampling: Sampling
    ) -> None:
        super().__init__()
        self.attn = DeformableAttention(dim, heads, len(grids), points, grids, sampling)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = ReluMlp((dim, mlp_dim, dim))
        self.norm2 = nn.LayerNorm(dim)
        xavier(self.mlp)

    def forward(self, x: Tensor, positions: Tensor, reference: Tensor) -> Tensor:
        """``x`` and ``positions`` (B, S, D), ``reference`` (1, S, 1, 2) -> (B, S, D)"""
        x = self.norm1(x + self.attn(x + positions, reference, x))
        return self.norm2(x + self.mlp(x))


class DeformablePixelDecoder(nn.Module):
    """Deformable attention over the three coarsest maps of the backbone, then an FPN step to each
    finer one.

    ``channels`` and ``grids`` are those of the backbone's maps, finest first. ``positions`` (1, S,
    D) of the cells of the three maps, coarsest first, is a constant of the canvas.
    """

    levels = 3
    points = 4

    def __init__(
        self,
        channels: Sequence[int],
        grids: Grids,
        dim: int,
        heads: int,
        layers: int,
        mlp_dim: int,
        groups: int,
        sampling: Sampling = "grid_sample",
    ) -> None:
        super().__init__()
        fine = len(channels) - self.levels
        self.grids = tuple(reversed(grids[fine:]))
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, dim, 1), nn.GroupNorm(groups, dim))
            for width in reversed(channels[fine:])
        )
        self.level_embed = nn.Parameter(torch.randn(self.levels, dim))
        self.layers = nn.ModuleList(
            DeformableLayer(dim, heads, mlp_dim, self.points, self.grids, sampling)
            for _ in range(layers)
        )
        self.steps = nn.ModuleList(
            FpnStep(width, dim, groups, enlarge="bilinear") for width in reversed(channels[:fine])
        )
        self.mask_features = nn.Conv2d(dim, dim, 1)
        self.positions = nn.Buffer(sine_positions(dim, self.grids), persistent=False)
        middles = torch.cat([_middles(grid) for grid in self.grids])
        self.middles = nn.Buffer(middles[None, :, None], persistent=False)  # (1, S, 1, 2)
        xavier(self.projections)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The three maps, coarsest first, as tokens (B, h*w, D), and pixel embeddings (B, D, h, w)
        on the finest grid.
        """
        coarse, fine = list(reversed(maps))[: self.levels], list(reversed(maps))[self.levels :]
        x = torch.cat(
            [
                project(level).flatten(2).transpose(1, 2)
                for project, level in zip(self.projections, coarse, strict=True)
            ],
            dim=1,
        )  # (B, S, D)
        cells = cell_counts(self.grids)
        levels = self.positions.split(cells, dim=1)
        positions = torch.cat(
            [level + embed for level, embed in zip(levels, self.level_embed, strict=True)], dim=1
        )
        for layer in self.layers:
            x = layer(x, positions, self.middles)
        tokens = list(x.split(cells, dim=1))
        pixels = tokens[-1].transpose(1, 2).unflatten(-1, self.grids[-1])
        for step, finer in zip(self.steps, fine, strict=True):
            pixels = step(finer, pixels)
        return tokens, self.mask_features(pixels)


class FpnPixelDecoder(nn.Module):
    """The coarsest map, smoothed, then an FPN step to each finer one (arXiv 2107.06278, section
    4.1). ``channels`` are those of the maps, finest first.
    """

    def __init__(self, channels: Sequence[int], dim: int, groups: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels[-1], dim, 3, padding=1, bias=False)
        self.stem_norm = nn.GroupNorm(groups, dim)
        self.steps = nn.ModuleList(
            FpnStep(width, dim, groups, enlarge="nearest") for width in reversed(channels[:-1])
        )
        self.mask_features = nn.Conv2d(dim, dim, 3, padding=1)
        for conv in (self.stem, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pixel embeddings (B, D, h, w) on the finest grid."""
        *finer, coarsest = maps
        x = self.stem_norm(self.stem(coarsest)).relu()
        for step, level in zip(self.steps, reversed(finer), strict=True):
            x = step(level, x)
        return self.mask_features(x)


def build_backbone(config: SwinConfig | ResNetConfig, canvas: tuple[int, int]) -> Swin | ResNet:
    """The backbone at ``canvas``, whatever canvas its own config names."""
    if isinstance(config, ResNetConfig):
        return ResNet(config)
    return Swin(dataclasses.replace(config, canvas=canvas))


def grids_of(canvas: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width of the maps that a backbone makes of a canvas, which it pads where a stride
    does not divide it.
    """
    return [(-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in strides]


def cell_counts(grids: Grids) -> list[int]:
    """Cells of each grid."""
    return [height * width for height, width in grids]


def sine_positions(dim: int, grids: Grids) -> Tensor:
    """Positions (1, S, D) of the cells of wholly valid grids, one grid after another."""
    sine = SinePositions(dim)
    return torch.cat([sine(torch.tensor([grid]), grid) for grid in grids], dim=1)


def rows_of(query: Tensor, matrices: Tensor) -> Tensor:
    """The rows of one query per picture: (B,), (B, h, Q, N) -> (B, h, N)"""
    index = query.view(-1, 1, 1, 1).expand(-1, matrices.shape[1], 1, matrices.shape[3])
    return matrices.gather(2, index)[:, :, 0]


def xavier(module: nn.Module) -> None:
    """Weights of linear layers and convolutions as the papers start them, biases at zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _middles(grid: tuple[int, int]) -> Tensor:
    """x and y (h*w, 2) of the middles of cells as shares of the grid, row by row."""
    down, across = ((torch.arange(side) + 0.5) / side for side in grid)
    y, x = torch.meshgrid(down, across, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)
