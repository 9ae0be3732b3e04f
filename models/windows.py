"""Windows of tokens over a feature map, and attention within them.

Liu et al. 2021, arXiv 2103.14030, section 3.2. For a fixed map, padding, shift and partition are
one gather with a constant index, and relative position bias and shift mask one addition.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHIFT_MASK = -100.0
"""Added to the score of a token that the shift brought into the window from another place."""

MERGED_WINDOWS = 64
"""Up to so many windows, bias and mask are added as one constant of that many copies of the bias;
beyond, the copies would outgrow the weights, and the mask is added by itself."""


class Gather(nn.Module):
    """Tokens (B, N, D) taken in the order of a constant index; N stands for a token of zeros."""

    def __init__(self, index: Tensor, pads: bool) -> None:
        super().__init__()
        self.index = nn.Buffer(index, persistent=False)
        self.pads = pads

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, len(index), D)
        return (F.pad(x, (0, 0, 0, 1)) if self.pads else x).index_select(1, self.index)


class Windows(nn.Module):
    """The windows of side ``side`` over a map of ``grid`` (rows, columns) tokens, which is padded
    with zeros at the right and bottom, then rolled up and to the left by ``shift`` (section 3.2,
    figure 4).

    ``mask`` (nW, M*M, M*M) is ``SHIFT_MASK`` between tokens that are no neighbours; None without
    shift. ``places`` (N,) are the tokens' places in the windows put one after another.
    """

    def __init__(self, grid: tuple[int, int], side: int, shift: int) -> None:
        super().__init__()
        self.grid, self.side, self.shift = grid, side, shift
        (height, width), (down, across) = grid, (-(-grid[0] // side), -(-grid[1] // side))
        padded = (down * side, across * side)
        pads = padded != grid
        self.count = down * across

        rows, columns = torch.arange(padded[0])[:, None], torch.arange(padded[1])
        inside = (rows < height) & (columns < width)
        tokens = torch.where(inside, rows * width + columns, height * width)
        self.to_windows = Gather(self._cut(tokens.roll((-shift, -shift), (0, 1))).flatten(), pads)
        order = torch.arange(padded[0] * padded[1]).view(down, across, side, side).transpose(1, 2)
        places = order.reshape(padded).roll((shift, shift), (0, 1))[:height, :width].flatten()
        self.to_tokens = Gather(places, pads=False)

        mask = None
        if shift:
            regions = 3 * self._regions(rows) + self._regions(columns)
            of_windows = self._cut(regions).flatten(1)  # (nW, M*M)
            apart = of_windows[:, :, None] != of_windows[:, None]
            mask = torch.where(apart, SHIFT_MASK, 0.0)
        self.mask: Tensor | None
        self.register_buffer("mask", mask, persistent=False)

    @property
    def places(self) -> Tensor:
        return self.to_tokens.index

    def partition(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, nW, M*M, D)
        return self.to_windows(x).unflatten(1, (self.count, self.side**2))

    def unpartition(self, x: Tensor) -> Tensor:  # (B, nW, M*M, D) -> (B, N, D)
        return self.to_tokens(x.flatten(1, 2))

    def row(self, weights: Tensor, token: Tensor) -> Tensor:
        """Attention of one token per picture to all: zero outside its window.

        ``weights`` (B, nW, h, M*M, M*M), ``token`` (B,); returns (B, h, N).
        """
        tokens = self.side**2
        place = self.places.index_select(0, token)
        window, row = place // tokens, place % tokens
        index = window.view(-1, 1, 1, 1, 1).expand(-1, -1, *weights.shape[2:])
        weights = weights.gather(1, index)[:, 0]  # (B, h, M*M, M*M)
        index = row.view(-1, 1, 1, 1).expand(-1, weights.shape[1], 1, tokens)
        seen = weights.gather(2, index)[:, :, 0].index_select(2, self.places % tokens)
        same = self.places // tokens == window[:, None]
        return torch.where(same[:, None], seen, 0.0)

    def mean_row(self, weights: Tensor) -> Tensor:
        """The mean (B, h, N) of all tokens' rows: how much each token is looked at; ``weights`` as
        in ``row``.
        """
        tokens = weights.new_ones(1, self.grid[0] * self.grid[1], 1)
        real = self.partition(tokens)[:, :, None]  # (1, nW, 1, M*M, 1), zero where padded
        sums = (weights * real).sum(dim=3).transpose(2, 3)  # (B, nW, M*M, h)
        return self.unpartition(sums).transpose(1, 2) / tokens.shape[1]

    def _cut(self, picture: Tensor) -> Tensor:  # (rows, columns) -> (nW, M, M)
        rows = picture.unflatten(0, (-1, self.side)).unflatten(2, (-1, self.side))
        return rows.transpose(1, 2).flatten(0, 1)

    def _regions(self, places: Tensor) -> Tensor:
        """Whether places along one axis lie before the last window, in its part that stayed, or in
        the part that was rolled over: 0, 1 or 2.
        """
        end = places.numel()
        return (places >= end - self.side).long() + (places >= end - self.shift).long()


class RelativeBias(nn.Module):
    """A learned number per head and offset between two tokens of a window (section 3.2, eq. 4).

    The table is for windows of side ``table_side``; smaller ones use the middle of it.
    """

    def __init__(self, heads: int, side: int, table_side: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * table_side - 1) ** 2, heads))
        self.index = nn.Buffer(relative_index(side, table_side), persistent=False)

    def forward(self) -> Tensor:  # (h, M*M, M*M)
        return self.table[self.index].permute(2, 0, 1)


def relative_index(side: int, table_side: int) -> Tensor:  # (M*M, M*M)
    """Rows, in a table of all offsets (dy, dx) of windows of ``table_side``, of the offsets from
    every token of a window of ``side`` to every other.
    """
    places = torch.arange(side)
    offsets = places[:, None] - places + table_side - 1
    down, across = offsets[:, None, :, None], offsets[None, :, None, :]
    return (down * (2 * table_side - 1) + across).reshape(side**2, side**2)


class WindowAttention(nn.Module):
    """Self-attention within each window, softmax(Q K^T / sqrt(d) + B) V (section 3.2, eq. 4).

    Tensors have four axes throughout, as fused attention kernels want them: where bias and mask are
    merged, windows count as heads, since each has a bias of its own; else as pictures.
    """

    def __init__(
        self, dim: int, heads: int, windows: Windows, relative: nn.Module, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.heads, self.windows = heads, windows
        self.scale = (dim // heads) ** -0.5
        self.merged = windows.mask is not None and windows.count <= MERGED_WINDOWS
        self.groups = windows.count if self.merged else 1
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.relative = relative

    def forward(self, x: Tensor) -> Tensor:  # (B, nW, M*M, D) -> (B, nW, M*M, D)
        return self.forward_with_weights(x)[0]

    def forward_with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the attention matrices (B, nW, h, M*M, M*M) beside the output."""
        q, k, v = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        weights = self._add_bias(self.similarity(q, k)).softmax(dim=-1)
        attended = self._windowed(weights @ v).transpose(2, 3).flatten(3)
        return self.proj(attended), self._windowed(weights)

    def similarity(self, q: Tensor, k: Tensor) -> Tensor:
        """Scores (., ., M*M, M*M) of queries and keys (., ., M*M, D/h)."""
        return (q * self.scale) @ k.transpose(-2, -1)

    def product_macs(self, x: Tensor) -> int:
        """Multiply-accumulates of Q K^T and of its product with V."""
        batch, windows, tokens, dim = x.shape
        return 2 * batch * windows * tokens * tokens * dim

    def _add_bias(self, scores: Tensor) -> Tensor:
        bias, mask = self.relative(), self.windows.mask
        if mask is None:
            return scores + bias
        if self.merged:
            return scores + (bias + mask[:, None]).flatten(0, 1)
        masked = (scores + bias).unflatten(0, (-1, self.windows.count)) + mask[:, None]
        return masked.flatten(0, 1)

    def _split(self, x: Tensor) -> Tensor:  # (B, nW, M*M, D) -> (B*nW/g, g*h, M*M, D/h)
        by_head = x.unflatten(-1, (self.heads, -1)).transpose(2, 3)
        return by_head.reshape(-1, self.groups * self.heads, *by_head.shape[3:])

    def _windowed(self, x: Tensor) -> Tensor:  # (B*nW/g, g*h, M*M, .) -> (B, nW, h, M*M, .)
        return x.reshape(-1, self.windows.count, self.heads, *x.shape[2:])
