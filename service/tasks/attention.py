"""Attention maps: which token asks, which layers and heads answer, and where a map lies on the
picture.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.bundle import Explain
from service.errors import InvalidParameter
from service.geometry import Size
from service.worker.runtimes.base import Array, Arrays

Kind = Literal["raw", "rollout"]


@dataclass(frozen=True)
class Selection:
    """Which maps of which token: ``layers`` and ``heads`` are None for all; ``heads`` "mean"
    averages them.
    """

    kind: Kind
    query: int
    query_name: str
    layers: tuple[int, ...]
    heads: tuple[int, ...] | Literal["mean"]

    def needs_explain(self, explain: Explain) -> bool:
        """Whether the serving graph's class-token row of the last layer is not enough."""
        return self.kind == "rollout" or self.query != 0 or self.layers != (explain.layers - 1,)


@dataclass(frozen=True)
class Map:
    """One map over the grid of patches, row by row; weights of one softmax row, prefix tokens left
    out.
    """

    layer: int | None
    head: int | Literal["mean"] | None
    values: Array


def select(
    explain: Explain, canvas: Size, kind: Kind, layer: str, head: str, query: str
) -> Selection:
    """Read the request's ``layer`` ("last", "all" or a number), ``head`` ("mean", "all" or a
    number) and ``query``.

    ``query`` is "class", "distillation", "register:K" or "Y,X", the patch in row Y and column X of
    the grid.

    Raises:
        InvalidParameter: one of them names what this model does not have.
    """
    layers = _numbers("layer", layer, explain.layers, {"last": (explain.layers - 1,)})
    heads: tuple[int, ...] | Literal["mean"] = "mean"
    if head != "mean":
        heads = _numbers("head", head, explain.heads, {})
    return Selection(kind, _token(explain, canvas, query), query, layers, heads)


def grid_of(explain: Explain, canvas: Size) -> tuple[int, int]:
    """Patches down and across."""
    return canvas.height // explain.patch_size, canvas.width // explain.patch_size


def answer(explain: Explain, canvas: Size, outputs: Arrays, selection: Selection) -> list[Map]:
    """Cut the asked maps out of a graph's ``attention`` ((h, P), or (L, h, P) with ``rollout``
    (P,)).
    """
    grid = grid_of(explain, canvas)
    if selection.kind == "rollout":
        return [Map(None, None, outputs["rollout"].reshape(grid))]
    attention = outputs["attention"]
    by_layer = attention if attention.ndim == 3 else attention[np.newaxis]
    first = 0 if attention.ndim == 3 else explain.layers - 1
    maps: list[Map] = []
    for layer in selection.layers:
        rows = by_layer[layer - first]  # (h, P)
        if selection.heads == "mean":
            maps.append(Map(layer, "mean", rows.mean(axis=0).reshape(grid)))
        else:
            maps += [Map(layer, head, rows[head].reshape(grid)) for head in selection.heads]
    return maps


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


def _token(explain: Explain, canvas: Size, query: str) -> int:
    prefix: list[str] = list(explain.prefix_tokens)
    if query in prefix and query != "register":
        return prefix.index(query)
    registers = prefix.count("register")
    if (match := re.fullmatch(r"register:([0-9]{1,3})", query)) and int(match[1]) < registers:
        return prefix.index("register") + int(match[1])
    rows, columns = grid_of(explain, canvas)
    if match := re.fullmatch(r"([0-9]{1,4}),([0-9]{1,4})", query):
        y, x = int(match[1]), int(match[2])
        if y < rows and x < columns:
            return len(prefix) + y * columns + x
    allowed = [repr(token) for token in dict.fromkeys(prefix) if token != "register"]
    if registers:
        allowed.append(f"'register:0' to 'register:{registers - 1}'")
    allowed.append(f"'Y,X' with Y below {rows} and X below {columns}")
    raise InvalidParameter(
        f"query={query!r} is not a token of this model; allowed are {', '.join(allowed)}",
        parameter="query",
    )
