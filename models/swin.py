"""Swin Transformer: attention within windows that shift from block to block.

Liu et al. 2021, arXiv 2103.14030, section 3.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Mlp
from models.windows import Gather, RelativeBias, WindowAttention, Windows


@dataclass(frozen=True)
class SwinConfig:
    """Dimensions of one network at one canvas; ``canvas`` is (height, width) in pixels.

    ``dim`` is the width of the first stage and doubles from stage to stage; ``window`` is a side in
    tokens. A map whose shorter side is no longer than the window has windows of that side, and no
    shift; under ``always_pad``, as backbones of segmentation have it, it is padded to the window
    and shifted like any other. ``norm_eps`` is that of the blocks and the final norm; the norms
    between stages have 1e-5. ``classes`` is 0 for a network without a head.
    """

    canvas: tuple[int, int]
    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    classes: int = 0
    patch_size: int = 4
    always_pad: bool = False
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_stages(self)

    def windows_of(self, stage: int) -> tuple[int, int]:
        """Side of the windows of a stage, and shift of every second block, in tokens."""
        shortest = min(grids(self)[stage])
        if shortest <= self.window and not self.always_pad:
            return shortest, 0
        return self.window, self.window // 2


class StagesConfig(Protocol):
    """What both versions of the network read of a config."""

    @property
    def canvas(self) -> tuple[int, int]: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def depths(self) -> tuple[int, ...]: ...
    @property
    def heads(self) -> tuple[int, ...]: ...
    @property
    def classes(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    def windows_of(self, stage: int) -> tuple[int, int]: ...


def check_stages(config: StagesConfig) -> None:
    """ValueError unless every stage has a number of heads that divides its width."""
    if len(config.depths) != len(config.heads):
        raise ValueError(f"{len(config.depths)} depths, but {len(config.heads)} numbers of heads")
    for dim, heads in zip(widths(config), config.heads, strict=True):
        if dim % heads:
            raise ValueError(f"width {dim} does not divide into {heads} heads")


def widths(config: StagesConfig) -> tuple[int, ...]:
    """Channels of every stage."""
    return tuple(config.dim * 2**stage for stage in range(len(config.depths)))


def grids(config: StagesConfig) -> list[tuple[int, int]]:
    """Rows and columns of every stage's map; what does not divide is padded, so rounded up."""
    strides = [config.patch_size * 2**stage for stage in range(len(config.depths))]
    return [(-(-config.canvas[0] // side), -(-config.canvas[1] // side)) for side in strides]


def token_at(config: StagesConfig, stage: int, place: Tensor) -> Tensor:
    """The token (B,) of a stage's map that holds ``place`` (B, 2), y and x as shares of the
    canvas.
    """
    cells = []
    for axis, cell_count in enumerate(grids(config)[stage]):
        span = config.canvas[axis] / (config.patch_size * 2**stage)
        cells.append((place[:, axis] * span).long().clamp(0, cell_count - 1))
    return cells[0] * grids(config)[stage][1] + cells[1]


class Block(nn.Module):
    """Pre-norm block with attention within windows (section 3.1, eq. 3)."""

    def __init__(self, config: SwinConfig, stage: int, windows: Windows) -> None:
        super().__init__()
        dim, heads = widths(config)[stage], config.heads[stage]
        relative = RelativeBias(heads, windows.side, config.window)
        self.windows = windows
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attn = WindowAttention(dim, heads, windows, relative, config.qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(dim, int(config.mlp_ratio * dim))

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        x = x + self.windows.unpartition(self.attn(self.windows.partition(self.norm1(x))))
        return x + self.mlp(self.norm2(x))

    def forward_with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the attention matrices (B, nW, h, M*M, M*M) beside the output."""
        windows = self.windows.partition(self.norm1(x))
        attended, weights = self.attn.forward_with_weights(windows)
        x = x + self.windows.unpartition(attended)
        return x + self.mlp(self.norm2(x)), weights


class Neighbours(Gather):
    """Every two by two tokens of a map side by side: (B, N, D) to (B, N/4, 4 D), down before
    across; odd sides are padded with zeros.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        height, width = grid
        rows, columns = (torch.arange(side + side % 2).view(-1, 2) for side in grid)
        rows, columns = rows[:, None, None], columns[:, :, None]  # (H/2, 1, 1, 2), (W/2, 2, 1)
        inside = (rows < height) & (columns < width)
        index = torch.where(inside, rows * width + columns, height * width)
        super().__init__(index.flatten(), pads=height % 2 + width % 2 > 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unflatten(1, (-1, 4)).flatten(2)


class PatchMerging(nn.Module):
    """Half the resolution at twice the width ``dim`` (section 3.1)."""

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.neighbours = Neighbours(grid)
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N/4, 2 D)
        return self.reduction(self.norm(self.neighbours(x)))


class Trunk(nn.Module):
    """Images (B, 3, H, W), normalised, to the tokens (B, N_i, C_i) that leave the blocks of every
    stage, before they are merged for the next.

    ``block`` is made of config, stage and windows, ``merge`` of grid and width.
    """

    def __init__(
        self, config: StagesConfig, block: type[nn.Module], merge: type[nn.Module]
    ) -> None:
        super().__init__()
        self.config = config
        sides = (-side % config.patch_size for side in config.canvas)
        self.pad_down, self.pad_across = sides
        self.patch_embed = nn.Conv2d(3, config.dim, config.patch_size, stride=config.patch_size)
        self.norm = nn.LayerNorm(config.dim)
        self.stages = nn.ModuleList()
        self.merges = nn.ModuleList()
        for stage, (grid, depth) in enumerate(zip(grids(config), config.depths, strict=True)):
            side, shift = config.windows_of(stage)
            straight = Windows(grid, side, 0)
            shifted = Windows(grid, side, shift) if shift else straight
            alternating = [(straight, shifted)[index % 2] for index in range(depth)]
            self.stages.append(nn.ModuleList(block(config, stage, w) for w in alternating))
            if stage + 1 < len(config.depths):
                self.merges.append(merge(grid, widths(config)[stage]))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.embed(images)
        outputs = []
        for stage, blocks in enumerate(self.stages):
            x = self.merges[stage - 1](x) if stage else x
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            outputs.append(x)
        return outputs

    def forward_with_rows(
        self, images: Tensor, place: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The tokens that leave the last stage, and per block the attention (B, h, N) to its
        stage's tokens: of the token that holds ``place`` (B, 2), y and x as shares of the canvas,
        and of all tokens in the mean.
        """
        x = self.embed(images)
        rows, means = [], []
        for stage, blocks in enumerate(self.stages):
            x = self.merges[stage - 1](x) if stage else x
            token = token_at(self.config, stage, place)
            for block in blocks:  # type: ignore[attr-defined]
                x, weights = block.forward_with_weights(x)
                rows.append(block.windows.row(weights, token))
                means.append(block.windows.mean_row(weights))
        return x, rows, means

    def embed(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, N, D)
        if self.pad_down or self.pad_across:
            images = F.pad(images, (0, self.pad_across, 0, self.pad_down))
        return self.norm(self.patch_embed(images).flatten(2).transpose(1, 2))


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:  # (B, N, C) -> (B, C, h, w)
    """Tokens, row by row, as a feature map."""
    return tokens.transpose(1, 2).unflatten(2, grid)


class Swin(nn.Module):
    """Images (B, 3, H, W), normalised, to the map (B, C_i, H/s_i, W/s_i) of every stage, finest
    first, each after a norm of its own.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = widths(config)
        self.strides = tuple(config.patch_size * 2**stage for stage in range(len(config.depths)))
        self.trunk = Trunk(config, Block, PatchMerging)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        outputs = zip(self.norms, self.trunk(images), grids(self.config), strict=True)
        return [as_map(norm(tokens), grid) for norm, tokens, grid in outputs]


class SwinClassifier(nn.Module):
    """Images (B, 3, H, W), normalised, to named tensors.

    ``features`` (B, D, gh, gw) of the last stage after the final norm, ``embedding`` (B, D), their
    mean, and, where there is a head, ``logits`` (B, K).
    """

    block: type[nn.Module] = Block
    merge: type[nn.Module] = PatchMerging

    def __init__(self, config: StagesConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config, self.block, self.merge)
        self.norm = nn.LayerNorm(widths(config)[-1], eps=config.norm_eps)
        self.head = nn.Linear(widths(config)[-1], config.classes) if config.classes else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.norm(self.trunk(images)[-1])
        embedding = tokens.mean(dim=1)
        named = {"features": as_map(tokens, grids(self.config)[-1]), "embedding": embedding}
        return named if self.head is None else named | {"logits": self.head(embedding)}

    def explain(self, images: Tensor, query: Tensor, place: Tensor) -> dict[str, Tensor]:
        """Where a class was seen, and what one place looked at.

        ``query`` (B,) int64 is a class, -1 the best; ``place`` (B, 2) y and x as shares of the
        canvas. Returns ``cam`` (B, gh, gw), the class's logit by place of the last map, of which it
        is the mean (Zhou et al. 2015, arXiv 1512.04150, eq. 2), and ``attention.{i}`` (B, h, N_i)
        for every block, counted through all stages: the row of the token of its map that holds
        ``place``, over the whole map, zero outside the token's window. ``pooled.{i}`` is the mean
        of all tokens' rows, as the embedding is the mean of all tokens; with a head there are also
        ``logits`` (B, K), and ``chosen`` (B,), the class.
        """
        tokens, rows, means = self.trunk.forward_with_rows(images, place)
        named = {f"attention.{index}": row for index, row in enumerate(rows)}
        named |= {f"pooled.{index}": mean for index, mean in enumerate(means)}
        if self.head is None:
            return named
        tokens = self.norm(tokens)
        logits = self.head(tokens.mean(dim=1))
        chosen = torch.where(query < 0, logits.argmax(dim=-1), query)
        weight, bias = self.head.weight[chosen], self.head.bias[chosen]
        cam = (tokens @ weight[:, :, None])[..., 0] + bias[:, None]
        cam = cam.unflatten(1, grids(self.config)[-1])
        return {"cam": cam} | named | {"logits": logits, "chosen": chosen}
