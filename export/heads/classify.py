"""Serving graphs of networks that name the picture: scores of its classes, and its embedding."""

from typing import Literal

from torch import Tensor, nn

from export.heads.entry import Entry

Activation = Literal["softmax", "sigmoid"]


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
