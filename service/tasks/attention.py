"""Attention maps: which kind, layers and heads are asked for, and the maps in a graph's outputs."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from service.errors import InvalidParameter
from service.explain import Explain, Kind, Layer
from service.geometry import Placement, Size
from service.worker.runtimes.base import Array, Arrays

_ABOUT = ("explained", "explained_logits", "explained_box")
"""Outputs of an explain graph that say what its maps are about, as far as it has them."""

Region = tuple[float, float, float, float]
"""A box xyxy in pixels of the upright original."""


@dataclass(frozen=True)
class Selection:
    """Which maps: numbers of ``kind.layers``, and of their heads; ``heads`` "mean" averages them,
    and None takes them all.
    """

    kind: Kind
    layers: tuple[int, ...]
    heads: tuple[int, ...] | Literal["mean"] | None

    def served(self, query: int) -> bool:
        """Whether the serving graph gives these maps by the way: some of the first token's."""
        return query == 0 and all(self.kind.layers[n].served is not None for n in self.layers)

    def outputs(self, served: bool, given: Collection[str]) -> tuple[str, ...]:
        """What has to come back from the serving graph, or else the explain graph, of what it has
        ``given``.
        """
        layers = [self.kind.layers[number] for number in self.layers]
        names = [(layer.served or "") if served else layer.output for layer in layers]
        names += _ABOUT if self.kind.query in ("object", "class") else ()
        return tuple(name for name in dict.fromkeys(names) if name in given)


@dataclass(frozen=True)
class Map:
    """One map over the part of a grid that shows the picture, row by row.

    Attention holds the weights of a softmax row as they are, without the prefix tokens and what
    fell on padding. ``region`` is where the values lie, xyxy in pixels of the upright original; the
    last cells reach past the picture where it ends within them.
    """

    layer: int | None
    head: int | Literal["mean"] | None
    values: Array
    region: Region


def select(explain: Explain, kind: str | None, layer: str | None, head: str | None) -> Selection:
    """Read the request's ``kind`` (the first where absent), ``layer`` ("last", "all" or a number)
    and ``head`` ("mean", "all" or a number).

    Raises:
        InvalidParameter: one of them names what this model does not have.
    """
    chosen = _kind(explain, kind)
    _refuse_idle(chosen, layer, head)
    count = len(chosen.layers)
    last = (count - 1,)
    layers = last if layer is None else _numbers("layer", layer, count, {"last": last})
    if head is None or head == "mean":
        return Selection(chosen, layers, "mean")
    if head == "all":
        return Selection(chosen, layers, None)
    heads = min(chosen.layers[number].heads for number in layers)
    return Selection(chosen, layers, _numbers("head", head, heads, {}))


def seen_cells(layer: Layer, placement: Placement) -> tuple[int, int]:
    """Rows and columns of a layer's grid that show the picture, or the zeros around a crop.

    A cell counts by the first pixel in it, as in the networks that are told the size.
    """
    canvas, valid = placement.canvas, placement.valid
    rows, columns = layer.grid(canvas)
    return _seen(rows, canvas.height, valid.height), _seen(columns, canvas.width, valid.width)


def seen_region(placement: Placement) -> Region:
    """What the model sees, a padded picture without its padding."""
    valid = placement.valid
    return (*placement.to_original(0, 0), *placement.to_original(valid.width, valid.height))


def answer(selection: Selection, placement: Placement, outputs: Arrays, served: bool) -> list[Map]:
    """Cut the asked maps out of one picture's outputs, of the serving graph if ``served``."""
    maps: list[Map] = []
    for number in selection.layers:
        layer = selection.kind.layers[number]
        by_head = _by_head(layer, placement.canvas, outputs, served)
        rows, columns = seen_cells(layer, placement)
        by_head = by_head[:, :rows, :columns]
        region = _region(layer, (rows, columns), placement)
        if layer.heads == 0:
            shown = None if selection.kind.single else number
            maps.append(Map(shown, None, by_head[0], region))
        elif selection.heads == "mean":
            maps.append(Map(number, "mean", by_head.mean(axis=0), region))
        else:
            heads = range(layer.heads) if selection.heads is None else selection.heads
            maps += [Map(number, head, by_head[head], region) for head in heads]
    return maps


def _kind(explain: Explain, name: str | None) -> Kind:
    for kind in explain.kinds:
        if name in (None, kind.name):
            return kind
    names = [kind.name for kind in explain.kinds]
    raise InvalidParameter(
        f"kind={name!r} is not available: this model shows {', '.join(map(repr, names))}",
        parameter="kind",
        allowed=names,
    )


def _refuse_idle(kind: Kind, layer: str | None, head: str | None) -> None:
    """Refuse a choice where there is nothing to choose."""
    headless = all(one.heads == 0 for one in kind.layers)
    idle = ["head"] if headless and head is not None else []
    idle += ["layer"] if kind.single and layer is not None else []
    if idle:
        has = "is one map, of no layer and no head" if kind.single else "has no heads"
        raise InvalidParameter(
            f"kind {kind.name!r} {has}; leave out {' and '.join(idle)}", parameters=idle
        )


def _numbers(
    name: str, text: str, count: int, names: dict[str, tuple[int, ...]]
) -> tuple[int, ...]:
    if text == "all":
        return tuple(range(count))
    if text in names:
        return names[text]
    if re.fullmatch(r"-?[0-9]{1,4}", text) and -count <= int(text) < count:
        return (int(text) % count,)
    words = "".join(f"{word!r}, " for word in names)
    extra = "'mean', " if name == "head" else ""
    raise InvalidParameter(
        f"{name}={text!r} is not available: this model has {name}s 0 to {count - 1}; "
        f"allowed are {extra}{words}'all' or a number (negative ones count from the end)",
        parameter=name,
    )


def _by_head(layer: Layer, canvas: Size, outputs: Arrays, served: bool) -> Array:
    """(heads, rows, columns), or (1, rows, columns) for a layer without heads."""
    if served:
        assert layer.served is not None
        values = outputs[layer.served]
    else:
        values = outputs[layer.output]
        values = values if layer.index is None else values[layer.index]
    return values.reshape(-1, *layer.grid(canvas))


def _seen(cells: int, canvas_px: int, valid_px: int) -> int:
    return sum(cell * canvas_px // cells < valid_px for cell in range(cells))


def _region(layer: Layer, seen: tuple[int, int], placement: Placement) -> Region:
    bottom, right = (count * layer.stride for count in seen)
    return (*placement.to_original(0, 0), *placement.to_original(right, bottom))
