"""What a graph does besides the network: normalisation at its entry, the task's arithmetic at its
exit.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["softmax", "sigmoid"]


class Entry(nn.Module):
    """Pixels (B, H, W, 3), uint8 RGB, to what the network takes: (B, 3, H, W), normalised.

    Computes ``(pixel * scale - mean) / std`` per channel as one multiply and one add, then turns
    RGB to BGR where ``flip_channels`` says so; ``mean`` and ``std`` are in RGB order.
    """

    def __init__(
        self, scale: float, mean: Sequence[float], std: Sequence[float], flip_channels: bool = False
    ) -> None:
        super().__init__()
        deviation = torch.tensor(std, dtype=torch.float64)
        factor = scale / deviation
        offset = -torch.tensor(mean, dtype=torch.float64) / deviation
        self.flip_channels = flip_channels
        self.factor = nn.Buffer(factor.float())
        self.offset = nn.Buffer(offset.float())

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() * self.factor + self.offset
        x = x.flip(-1) if self.flip_channels else x
        return x.permute(0, 3, 1, 2)


class Serve(nn.Module):
    """Pixels to the outputs of the serving graph.

    ``scores`` and ``logits`` (B, K) where the network has a head, ``embedding`` (B, D), and
    ``attention`` (B, h, P): the class token's row over the patches in the last block.
    """

    def __init__(self, entry: Entry, model: nn.Module, activation: Activation = "softmax") -> None:
        super().__init__()
        self.entry = entry
        self.model = model
        self.activation = activation

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        named = self.model(self.entry(images))
        kept = {name: named[name] for name in ("logits", "embedding", "attention") if name in named}
        if "logits" not in named:
            return kept
        logits = named["logits"]
        scores = logits.softmax(dim=-1) if self.activation == "softmax" else logits.sigmoid()
        return {"scores": scores} | kept


class Explain(nn.Module):
    """Pixels and one token per picture to the outputs of the explain graph.

    ``query`` (B,) int64 is the token's place in the sequence. Returns ``attention`` (B, L, h, P),
    that token's row over the patches in every layer, and ``rollout`` (B, P).
    """

    def __init__(self, entry: Entry, model: nn.Module) -> None:
        super().__init__()
        self.entry = entry
        self.model = model

    def forward(self, images: Tensor, query: Tensor) -> dict[str, Tensor]:
        explain = self.model.explain
        named: dict[str, Tensor] = explain(self.entry(images), query)  # type: ignore[operator]
        return {name: named[name] for name in ("attention", "rollout")}
