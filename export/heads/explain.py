"""The graph that explains: attention maps, apart from the serving graph."""

from inspect import signature

import torch
from torch import Tensor, nn

from export.heads.classify import Activation
from export.heads.detect import whole, xyxy
from export.heads.entry import Entry

_PREDICTIONS = ("logits", "boxes", "masks", "cells")


class Explain(nn.Module):
    """Pixels and what is asked about them to the maps of the network's ``explain``, by its names.

    ``query`` (B,) int64 is a token's place in the sequence, or an object query or class, -1 being
    the best; ``place`` (B, 2) float32 is a point, down and across as shares of the canvas. Of a
    network that gives ``logits`` there is also which object or class was ``explained`` (B,), with
    its ``explained_logits`` (B, K), or (B, K+1) with "no object", and its ``explained_box`` (B, 4),
    xyxy in 0..1 of the valid area, where there are boxes. Logits for a sigmoid ``activation`` have
    no class "no object".
    """

    def __init__(self, entry: Entry, model: nn.Module, activation: Activation = "softmax") -> None:
        super().__init__()
        self.entry = entry
        self.model = model
        self.activation = activation
        self.taken = tuple(signature(model.explain).parameters)[1:]  # type: ignore[arg-type]

    def forward(
        self,
        images: Tensor,
        query: Tensor | None = None,
        place: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        given = {"query": query, "place": place, "sizes": whole(images) if sizes is None else sizes}
        explain = self.model.explain
        named: dict[str, Tensor] = explain(  # type: ignore[operator]
            self.entry(images, sizes), **{name: given[name] for name in self.taken}
        )
        maps = {name: value for name, value in named.items() if name not in _PREDICTIONS}
        if "logits" not in named:
            return maps
        assert query is not None
        return maps | self._explained(named, query)

    def _explained(self, named: dict[str, Tensor], query: Tensor) -> dict[str, Tensor]:
        """The best, and a query named by its cell, are found as the networks find them."""
        logits = named["logits"]
        if logits.ndim == 2:  # of a classifier
            return {
                "explained": torch.where(query < 0, logits.argmax(dim=-1), query),
                "explained_logits": logits,
            }
        scores = logits if self.activation == "sigmoid" else logits.softmax(dim=-1)[..., :-1]
        cells = named.get("cells")
        row = query if cells is None else (cells == query[:, None]).int().argmax(dim=1)
        chosen = torch.where(query < 0, scores.amax(dim=-1).argmax(dim=-1), row)
        name = chosen if cells is None else cells.gather(1, chosen[:, None])[:, 0]
        found = {"explained": name, "explained_logits": _row(logits, chosen)}
        if "boxes" in named:
            found["explained_box"] = xyxy(_row(named["boxes"], chosen))
        return found


def _row(values: Tensor, chosen: Tensor) -> Tensor:  # (B, Q, D), (B,) -> (B, D)
    return values.gather(1, chosen.view(-1, 1, 1).expand(-1, 1, values.shape[2]))[:, 0]
