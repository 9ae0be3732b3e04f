"""What a map is asked about: a token, a place, an object or a class, read from a request."""

import re
from dataclasses import dataclass

import numpy as np

from service.bundle import Label, Manifest
from service.errors import InvalidParameter
from service.explain import Kind, Layer
from service.geometry import Placement
from service.tasks.attention import Selection, seen_cells
from service.worker.runtimes.base import Arrays

_ABOUT = {"object": "an object", "class": "a class", "all": "all tokens"}


@dataclass(frozen=True)
class Point:
    """A point of the picture: shares of the canvas ``down`` and ``across``, and pixels ``x``, ``y``
    of the upright original.
    """

    down: float
    across: float
    x: float
    y: float

    def cell(self, layer: Layer, placement: Placement) -> tuple[int, int]:
        """Row and column of the cell of a layer's grid that holds it, computed in single precision
        as the networks do.
        """
        canvas = placement.canvas
        last = np.array(layer.grid(canvas)) - 1
        cells = np.array([canvas.height / layer.stride, canvas.width / layer.stride], np.float32)
        place = np.array([self.down, self.across], dtype=np.float32)
        row, column = np.minimum((place * cells).astype(int), last)
        return int(row), int(column)


@dataclass(frozen=True)
class Object:
    """What was explained: a class, or what a decoder's ``query`` found, with its ``box`` (xyxy in
    0..1 of the valid area) where the model gives boxes.
    """

    label: Label
    score: float
    query: int | None
    box: tuple[float, float, float, float] | None

    @property
    def name(self) -> str:
        """The ``query`` that asks for it again."""
        return str(self.label.id if self.query is None else self.query)


@dataclass(frozen=True)
class Question:
    """What a graph is asked: ``query`` as it takes it, -1 for the best; the ``point`` asked about,
    if it is one; or the ``token`` as the request called it.
    """

    query: int = -1
    point: Point | None = None
    token: str | None = None

    def name(self, layer: Layer, placement: Placement, found: Object | None) -> str:
        """The ``query`` that asks for the same map of this layer."""
        if self.point is not None:
            return "{},{}".format(*self.point.cell(layer, placement))
        return found.name if found is not None else str(self.token)

    def inputs(self) -> Arrays:
        """What an explain graph may take besides the picture."""
        place = (self.point.down, self.point.across) if self.point else (0.5, 0.5)
        return {"query": np.array(self.query, np.int64), "place": np.array(place, np.float32)}


def read_question(
    selection: Selection,
    manifest: Manifest,
    placement: Placement,
    query: str | None,
    point: str | None,
) -> Question:
    """What the request's ``query`` or ``point`` means for the chosen kind and layers.

    A token is "class", "distillation", "register:K" or "Y,X", the patch in row Y and column X of
    the grid. A place is "center" or a cell "Y,X". An object is "best" or a number, and a class is
    "best", or a label's id or name. All tokens are "all". ``point`` is "X,Y" in pixels of the
    upright original, measured from its outer top left edge, and names a place, or the token there.

    Raises:
        InvalidParameter: the model or the picture has no such thing, or there are two of them.
    """
    kind = selection.kind
    _refuse_point(kind, query, point)
    at = None if point is None else _read_point(point, placement)
    if kind.query == "place":
        return Question(point=at or _read_place(selection, placement, query))
    if kind.query == "all":
        return _read_all(query)
    if kind.query == "object":
        return Question(_read_object(kind, "best" if query is None else query))
    if kind.query == "class":
        return Question(_read_class(manifest.labels, "best" if query is None else query))
    prefix: list[str] = list(manifest.explain.prefix_tokens) if manifest.explain else []
    if at is None:
        query = "class" if query is None else query
        return Question(_read_token(kind.layers[0], prefix, placement, query), token=query)
    cell = at.cell(kind.layers[0], placement)
    return Question(_token_of(cell, kind.layers[0], prefix, placement), point=at)


def read_found(
    selection: Selection, manifest: Manifest, outputs: Arrays, question: Question
) -> Object | None:
    """Which object or class an explain graph explained; None for a kind that is about neither.

    Raises:
        InvalidParameter: not the one that was asked for, since this picture has no such query.
    """
    if selection.kind.query not in ("object", "class"):
        return None
    number, logits = int(outputs["explained"]), outputs["explained_logits"].astype(np.float64)
    if question.query not in (-1, number):
        raise InvalidParameter(
            f"query={question.query} is none of this picture's; ask for the 'query' of an object "
            "that was found in it, or for 'best'",
            parameter="query",
        )
    if manifest.activation == "sigmoid":
        scores = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    else:
        powers = np.exp(logits - logits.max())
        scores = powers / powers.sum()
    if selection.kind.query == "class":
        return Object(manifest.labels[number], float(scores[number]), None, None)
    best = int(scores[: len(manifest.labels)].argmax())
    box = None
    if "explained_box" in outputs:
        x0, y0, x1, y1 = outputs["explained_box"].tolist()
        box = (x0, y0, x1, y1)
    return Object(manifest.labels[best], float(scores[best]), number, box)


def _refuse_point(kind: Kind, query: str | None, point: str | None) -> None:
    if point is None:
        return
    if kind.query not in ("token", "place"):
        raise InvalidParameter(
            f"kind {kind.name!r} is not about a place but about {_ABOUT[kind.query]}; "
            "leave out point",
            parameter="point",
        )
    if query is not None:
        raise InvalidParameter(
            "query and point both say which place is meant; leave out one of them",
            parameters=["query", "point"],
        )


def _read_token(layer: Layer, prefix: list[str], placement: Placement, query: str) -> int:
    """The token's place in the sequence."""
    if query in prefix and query != "register":
        return prefix.index(query)
    registers = prefix.count("register")
    if (match := re.fullmatch(r"register:([0-9]{1,3})", query)) and int(match[1]) < registers:
        return prefix.index("register") + int(match[1])
    rows, columns = seen_cells(layer, placement)
    if (cell := _cell(query)) and cell[0] < rows and cell[1] < columns:
        return _token_of(cell, layer, prefix, placement)
    allowed = [repr(token) for token in dict.fromkeys(prefix) if token != "register"]
    if registers:
        allowed.append(f"'register:0' to 'register:{registers - 1}'")
    allowed.append(f"'Y,X' with Y below {rows} and X below {columns}")
    raise InvalidParameter(
        f"query={query!r} is not a token of this model; allowed are {', '.join(allowed)}",
        parameter="query",
    )


def _token_of(cell: tuple[int, int], layer: Layer, prefix: list[str], placement: Placement) -> int:
    return len(prefix) + cell[0] * layer.grid(placement.canvas)[1] + cell[1]


def _read_point(point: str, placement: Placement) -> Point:
    """Pixels "X,Y" of the upright original, measured from its outer top left edge."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?),([0-9]{1,6}(?:\.[0-9]{1,6})?)", point)
    image = placement.image
    if match is None or float(match[1]) >= image.width or float(match[2]) >= image.height:
        raise InvalidParameter(
            f"point={point!r} is not on the picture; allowed is 'X,Y' in its pixels, X below "
            f"{image.width} and Y below {image.height}",
            parameter="point",
        )
    x, y = float(match[1]), float(match[2])
    left, top, right, bottom = _seen_px(placement)
    across_px = x / placement.scale_x + placement.left
    down_px = y / placement.scale_y + placement.top
    if not (left <= across_px < right and top <= down_px < bottom):
        (x0, y0), (x1, y1) = placement.to_original(left, top), placement.to_original(right, bottom)
        raise InvalidParameter(
            f"point={point!r} lies outside of what the model sees of this picture: "
            f"X from {x0:g} to {x1:g} and Y from {y0:g} to {y1:g}",
            parameter="point",
        )
    return Point(down_px / placement.canvas.height, across_px / placement.canvas.width, x, y)


def _read_place(selection: Selection, placement: Placement, query: str | None) -> Point:
    """The middle of "Y,X", the cell in row Y and column X, or of what is seen ("center")."""
    if query is None or query == "center":
        left, top, right, bottom = _seen_px(placement)
        return _at(placement, (left + right) / 2, (top + bottom) / 2)
    layers = [selection.kind.layers[number] for number in selection.layers]
    if len({layer.stride for layer in layers}) > 1:
        raise InvalidParameter(
            f"query={query!r} is ambiguous, since the chosen layers have different grids; name a "
            "'point' in pixels of the picture, or choose one layer",
            parameter="query",
        )
    rows, columns = seen_cells(layers[0], placement)
    cell = _cell(query)
    if cell is None or cell[0] >= rows or cell[1] >= columns:
        raise InvalidParameter(
            f"query={query!r} is not a place; allowed are 'center' and 'Y,X' with Y below {rows} "
            f"and X below {columns}",
            parameter="query",
        )
    down, across = (
        (index * stride + min((index + 1) * stride, side)) / 2
        for index, side, stride in zip(
            cell,
            (placement.canvas.height, placement.canvas.width),
            (layers[0].stride,) * 2,
            strict=True,
        )
    )
    return _at(placement, across, down)


def _read_all(query: str | None) -> Question:
    if query is None or query == "all":
        return Question(token="all")
    raise InvalidParameter(
        f"query={query!r} is not available: this kind of map is the mean over 'all'",
        parameter="query",
    )


def _read_object(kind: Kind, query: str) -> int:
    if query == "best":
        return -1
    assert kind.queries is not None
    if re.fullmatch(r"[0-9]{1,5}", query) and int(query) < kind.queries:
        return int(query)
    raise InvalidParameter(
        f"query={query!r} is not an object of this model; allowed are 'best' or a number from 0 to "
        f"{kind.queries - 1}",
        parameter="query",
    )


def _read_class(labels: list[Label], query: str) -> int:
    """The class's place among the labels."""
    if query == "best":
        return -1
    for name in (lambda label: str(label.id), lambda label: label.name):
        for index, label in enumerate(labels):
            if name(label) == query:
                return index
    raise InvalidParameter(
        f"query={query!r} is not a class of this model; allowed are 'best', a label's id or name",
        parameter="query",
    )


def _cell(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"([0-9]{1,4}),([0-9]{1,4})", text)
    return (int(match[1]), int(match[2])) if match else None


def _seen_px(placement: Placement) -> tuple[float, float, float, float]:
    """The part of the canvas that shows the picture, xyxy in its pixels."""
    resized, canvas = placement.resized, placement.canvas
    return (
        max(placement.left, 0),
        max(placement.top, 0),
        min(placement.left + resized.width, canvas.width),
        min(placement.top + resized.height, canvas.height),
    )


def _at(placement: Placement, across_px: float, down_px: float) -> Point:
    x, y = placement.to_original(across_px, down_px)
    return Point(down_px / placement.canvas.height, across_px / placement.canvas.width, x, y)
