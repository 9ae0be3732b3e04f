"""Swin Transformer V2: cosine attention, norms behind the branches, positions on a log scale.

Liu et al. 2022, arXiv 2111.09883, section 3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import Mlp
from models.swin import Neighbours, SwinClassifier, check_stages, widths
from models.windows import WindowAttention, Windows, relative_index

BIAS_WIDTH = 512
BIAS_RANGE = 16.0
LARGEST_LOG_SCALE = math.log(100.0)
SMALLEST_NORM = 1e-6  # a token of padding has a key of zeros; fp16 can still hold this


@dataclass(frozen=True)
class SwinV2Config:
    """Dimensions of one network at one canvas, as in ``SwinConfig``.

    ``fitted`` is the canvas that the windows were fitted to, its own where None: a stage whose map
    had no more rows there than the window has windows of that side, without shift, at any canvas.
    ``trained_windows`` are the sides by which each stage's offsets are measured, those its windows
    had in pretraining; 0 for the side in use.
    """

    canvas: tuple[int, int]
    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 8
    classes: int = 0
    patch_size: int = 4
    fitted: tuple[int, int] | None = None
    trained_windows: tuple[int, ...] = (0, 0, 0, 0)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_stages(self)
        if len(self.trained_windows) != len(self.depths):
            raise ValueError(
                f"{len(self.depths)} depths, but {len(self.trained_windows)} trained windows"
            )

    def windows_of(self, stage: int) -> tuple[int, int]:
        """Side of the windows of a stage, and shift of every second block, in tokens."""
        rows = (self.fitted or self.canvas)[0] // self.patch_size // 2**stage
        return (rows, 0) if rows <= self.window else (self.window, self.window // 2)


class ContinuousBias(nn.Module):
    """Bias per head and offset between two tokens of a window, by a small network from the
    logarithms of the offset (section 3.3, eq. 3 and 4), squashed to 0..16.

    ``trained_side`` is the side of window at whose edge offsets measure 8.
    """

    def __init__(self, heads: int, side: int, trained_side: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, BIAS_WIDTH)
        self.fc2 = nn.Linear(BIAS_WIDTH, heads, bias=False)
        offsets = torch.arange(1 - side, side) * 8 / max(trained_side - 1, 1)
        logs = offsets.sign() * (offsets.abs() + 1).log2() / math.log2(8)
        down, across = logs[:, None].expand(-1, len(logs)), logs.expand(len(logs), -1)
        offsets = torch.stack([down, across], dim=-1).flatten(0, 1)  # ((2M-1)^2, 2)
        self.offsets = nn.Buffer(offsets, persistent=False)
        self.index = nn.Buffer(relative_index(side, side), persistent=False)

    def forward(self) -> Tensor:  # (h, M*M, M*M)
        table = BIAS_RANGE * self.fc2(self.fc1(self.offsets).relu()).sigmoid()
        return table[self.index].permute(2, 0, 1)


class CosineAttention(WindowAttention):
    """Window attention by cosines times a learned scale of at most 100 per head (section 3.2,
    eq. 2).

    Published keys have no bias: theirs is zero.
    """

    def __init__(
        self, dim: int, heads: int, windows: Windows, relative: nn.Module, qkv_bias: bool = True
    ) -> None:
        super().__init__(dim, heads, windows, relative, qkv_bias)
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))

    def similarity(self, q: Tensor, k: Tensor) -> Tensor:
        scale = self.log_scale.clamp(max=LARGEST_LOG_SCALE).exp().repeat(self.groups, 1, 1)
        return (_unit(q) * scale) @ _unit(k).transpose(-2, -1)


def _unit(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=SMALLEST_NORM)


class BlockV2(nn.Module):
    """Block whose branches are normed before they are added (section 3.1, figure 1)."""

    def __init__(self, config: SwinV2Config, stage: int, windows: Windows) -> None:
        super().__init__()
        dim, heads = widths(config)[stage], config.heads[stage]
        relative = ContinuousBias(
            heads, windows.side, config.trained_windows[stage] or windows.side
        )
        self.windows = windows
        self.attn = CosineAttention(dim, heads, windows, relative, config.qkv_bias)
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(dim, int(config.mlp_ratio * dim))
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        x = x + self.norm1(self.windows.unpartition(self.attn(self.windows.partition(x))))
        return x + self.norm2(self.mlp(x))

    def forward_with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the attention matrices (B, nW, h, M*M, M*M) beside the output."""
        attended, weights = self.attn.forward_with_weights(self.windows.partition(x))
        x = x + self.norm1(self.windows.unpartition(attended))
        return x + self.norm2(self.mlp(x)), weights


class PatchMergingV2(nn.Module):
    """Half the resolution at twice the width ``dim``, normed behind the reduction."""

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.neighbours = Neighbours(grid)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N/4, 2 D)
        return self.norm(self.reduction(self.neighbours(x)))


class SwinV2Classifier(SwinClassifier):
    """As ``SwinClassifier``, with the blocks of the second version."""

    block = BlockV2
    merge = PatchMergingV2
