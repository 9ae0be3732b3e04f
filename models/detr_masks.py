"""The mask head of DETR: a picture-sized mask per query from where the query looks.

Carion et al. 2020, arXiv 2005.12872, section 4.4 and figure 8.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class AttentionMaps(nn.Module):
    """How much each query attends to each cell: one softmax over all cells of all heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """(B, Q, D), (B, N, D) and ``bias`` (B, 1, 1, N) to (B, Q, h, N)."""
        q = (self.q(queries) * self.scale).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.k(memory).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = (q @ k.transpose(-2, -1) + bias).transpose(1, 2)
        return scores.flatten(2).softmax(dim=-1).unflatten(-1, (self.heads, -1))

    def product_macs(self, queries: Tensor, memory: Tensor, bias: Tensor) -> int:
        """Multiply-accumulates of Q K^T."""
        return queries.numel() * memory.shape[1]


class Refine(nn.Module):
    """3x3 convolution, group norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = _group_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:  # (B*Q, C, h, w) -> (B*Q, C', h, w)
        return self.norm(self.conv(x)).relu()


class MaskHead(nn.Module):
    """Convolutions over every query's attention maps and the picture's features, which the three
    finer maps of the backbone, of ``channels``, sharpen step by step.

    What the picture alone decides is computed once and shared by the queries: a convolution of
    features and attention maps side by side is the sum of one each.
    """

    def __init__(self, dim: int, heads: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        width = dim + heads
        widths = [dim // 2, dim // 4, dim // 8, dim // 16]
        self.attention = AttentionMaps(dim, heads)
        self.from_features = nn.Conv2d(dim, width, 3, padding=1)
        self.from_attention = nn.Conv2d(heads, width, 3, padding=1, bias=False)
        self.norm = _group_norm(width)
        self.narrow = Refine(width, widths[0])
        self.adapters = nn.ModuleList(
            nn.Conv2d(channel, width, 1)
            for channel, width in zip(reversed(channels), widths[:3], strict=True)
        )
        self.refine = nn.ModuleList(Refine(widths[step], widths[step + 1]) for step in range(3))
        self.out = nn.Conv2d(widths[3], 1, 3, padding=1)

    def forward(
        self,
        queries: Tensor,
        memory: Tensor,
        bias: Tensor,
        features: Tensor,
        maps: list[Tensor],
    ) -> Tensor:
        """Decoder states (B, Q, D), encoder output (B, N, D), its ``bias`` (B, 1, 1, N), its input
        (B, D, h, w) and three maps, finest first, to mask logits (B, Q, H/4, W/4).
        """
        count, grid = queries.shape[1], features.shape[-2:]
        attention = self.attention(queries, memory, bias).unflatten(-1, grid)
        x = self.from_attention(attention.flatten(0, 1)).unflatten(0, (-1, count))
        x = x + self.from_features(features)[:, None]  # (B, Q, D+h, h, w)
        x = self.narrow(self.norm(x.flatten(0, 1)).relu())  # (B*Q, D/2, h, w)
        for adapter, refine, finer in zip(self.adapters, self.refine, reversed(maps), strict=True):
            x = F.interpolate(x, size=finer.shape[-2:], mode="nearest")
            x = x.unflatten(0, (-1, count)) + adapter(finer)[:, None]
            x = refine(x.flatten(0, 1))
        return self.out(x)[:, 0].unflatten(0, (-1, count))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(8, channels), channels)
