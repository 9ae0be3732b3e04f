"""Layers that the transformer families share."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """Gated MLP (Shazeer 2020, arXiv 2002.05202): ``(silu(x W1) * x W2) W3`` with W1 and W2 in one
    product.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(dim, 2 * hidden_dim)
        self.out = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class ReluMlp(nn.Module):
    """Linear layers of the given widths with ReLU between them: a feed-forward block or a head."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:  # (..., widths[0]) -> (..., widths[-1])
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention, softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, arXiv
    1706.03762).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, N, D)
        q, k, v = self._project(x)
        # Written out, not F.scaled_dot_product_attention: the exporter would wrap that softmax in
        # IsNaN and Where.
        weights = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))

    def forward_with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the attention matrix (B, h, N, N) beside the output."""
        q, k, v = self._project(x)
        weights = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2)), weights

    def product_macs(self, x: Tensor) -> int:
        """Multiply-accumulates of Q K^T and of its product with V."""
        batch, tokens, dim = x.shape
        return 2 * batch * tokens * tokens * dim

    def first_row(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, h, N)
        """Attention of token 0 to every token: a side branch that leaves a fused main path be."""
        dim = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x[:, :1], weight[:dim], bias[:dim]) * self.scale
        k = F.linear(x, weight[dim : 2 * dim], bias[dim : 2 * dim])
        q, k = self._split(q), self._split(k)
        return (q @ k.transpose(-2, -1)).softmax(dim=-1)[:, :, 0]

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self._split(q * self.scale), self._split(k), self._split(v)

    def _split(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, h, N, D/h)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MultiHeadAttention(nn.Module):
    """Attention of queries to keys and values that are not their own, or carry other positions
    (Vaswani et al. 2017, arXiv 1706.03762).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> Tensor:  # (B, M, D), (B, N, D), (B, N, D) -> (B, M, D)
        """``bias`` is added before the softmax and broadcasts to (B, h, M, N); ``MASKED`` where a
        query must not look.
        """
        return self.forward_with_weights(query, key, value, bias)[0]

    def forward_with_weights(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the attention matrix (B, h, M, N) beside the output."""
        q, k = self._split(self.q(query) * self.scale), self._split(self.k(key))
        scores = q @ k.transpose(-2, -1)
        weights = (scores if bias is None else scores + bias).softmax(dim=-1)
        attended = weights @ self._split(self.v(value))
        return self.proj(attended.transpose(1, 2).flatten(2)), weights

    def product_macs(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> int:
        """Multiply-accumulates of Q K^T and of its product with V."""
        return 2 * query.shape[0] * query.shape[1] * key.shape[1] * query.shape[2]

    def _split(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, h, N, D/h)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


MASKED = -1e4
"""Added to the score of a key that must not be seen: finite, so that no row turns into NaN, and
within the range of every half precision."""


class SinePositions(nn.Module):
    """Sines and cosines of a cell's row and column, as shares of the valid rows and columns (Carion
    et al. 2020, arXiv 2005.12872, appendix A.4).

    ``offset`` is added to the place of a cell, counted from 1: -0.5 puts it into the cell's middle.
    """

    def __init__(self, dim: int, offset: float = 0.0) -> None:
        super().__init__()
        half = dim // 2
        exponents = torch.arange(half, dtype=torch.float32).div(2).floor() * 2 / half
        self.offset = offset
        self.wavelengths = nn.Buffer(10000**exponents, persistent=False)

    def forward(self, valid: Tensor, grid: tuple[int, int]) -> Tensor:
        """``valid`` (B, 2) rows and columns in use, of ``grid``; returns (B, h*w, D), row by row.

        Rows and columns beyond the valid ones repeat the last; nobody must look at them.
        """
        down, across = (self._axis(valid[:, axis : axis + 1], grid[axis]) for axis in (0, 1))
        down = down[:, :, None].expand(-1, -1, grid[1], -1)
        across = across[:, None].expand(-1, grid[0], -1, -1)
        return torch.cat([down, across], dim=-1).flatten(1, 2)

    def _axis(self, valid: Tensor, cells: int) -> Tensor:  # (B, 1) -> (B, cells, D/2)
        valid = valid.float()
        places = torch.arange(1, cells + 1, dtype=torch.float32, device=valid.device)
        shares = (places.minimum(valid) + self.offset) / (valid + 1e-6) * (2 * math.pi)
        angles = shares[..., None] / self.wavelengths
        return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


def valid_cells(sizes: Tensor, canvas: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Rows and columns (B, 2) of a feature grid that show the picture.

    ``sizes`` (B, 2) are the height and width in pixels that a picture takes up at the top left of
    the canvas. A cell counts by the pixel that a nearest-neighbour reduction takes for it.
    """
    counts = []
    for axis in (0, 1):
        cells = torch.arange(grid[axis], device=sizes.device)
        sources = cells * canvas[axis] // grid[axis]
        counts.append((sources < sizes[:, axis : axis + 1]).sum(dim=1))
    return torch.stack(counts, dim=1)


def valid_mask(valid: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h*w), True where a cell lies within the ``valid`` (B, 2) rows and columns."""
    down = torch.arange(grid[0], device=valid.device) < valid[:, :1]
    across = torch.arange(grid[1], device=valid.device) < valid[:, 1:]
    return (down[:, :, None] & across[:, None]).flatten(1)
