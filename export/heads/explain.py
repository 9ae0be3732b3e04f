"""The graph that explains: attention maps, apart from the serving graph."""

from inspect import signature

from torch import Tensor, nn

from export.heads.detect import whole, xyxy
from export.heads.entry import Entry

_PREDICTIONS = ("logits", "boxes", "masks", "cells", "chosen")


class Explain(nn.Module):
    """Pixels and what is asked about them to the maps of the network's ``explain``, by its names.

    ``query`` (B,) int64 is a token's place in the sequence, or an object query or class, -1 being
    the best; ``place`` (B, 2) float32 is a point, down and across as shares of the canvas. Of a
    network that gives ``logits`` there is also which object or class was ``explained`` (B,), in two
    stages by its cell, with its ``explained_logits`` (B, K), or (B, K+1) with "no object", and its
    ``explained_box`` (B, 4), xyxy in 0..1 of the valid area, where there are boxes.
    """

    def __init__(self, entry: Entry, model: nn.Module) -> None:
        super().__init__()
        self.entry = entry
        self.model = model
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
        return maps | _explained(named) if "logits" in named else maps


def _explained(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which object or class it is, by what the network says that it chose."""
    logits, chosen = named["logits"], named["chosen"]
    if logits.ndim == 2:  # of a classifier
        return {"explained": chosen, "explained_logits": logits}
    cells = named.get("cells")
    name = chosen if cells is None else cells.gather(1, chosen[:, None])[:, 0]
    found = {"explained": name, "explained_logits": _row(logits, chosen)}
    if "boxes" in named:
        found["explained_box"] = xyxy(_row(named["boxes"], chosen))
    return found


def _row(values: Tensor, chosen: Tensor) -> Tensor:  # (B, Q, D), (B,) -> (B, D)
    return values.gather(1, chosen.view(-1, 1, 1).expand(-1, 1, values.shape[2]))[:, 0]
