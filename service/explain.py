"""What a bundle can show of a model's inside: kinds of maps, what each is asked about, and the
graph outputs that hold them.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from service.geometry import Size

Query = Literal["token", "place", "object", "class", "all"]
KindName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class Layer(BaseModel):
    """One layer's maps: ``output`` of the explain graph, (N, [layers,] [heads,] cells row by row).

    ``index`` is the place along the axis where an output stacks layers; ``heads`` is 0 where there
    is one map. The cells are ``stride`` pixels of the canvas wide and high, the last ones cut off
    where a side is no multiple. ``served`` names the output (N, [heads,] cells) of the serving
    graph that holds the same maps for the first token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str
    index: int | None = Field(default=None, ge=0)
    heads: int = Field(ge=0)
    stride: int = Field(ge=1)
    served: str | None = None

    def grid(self, canvas: Size) -> tuple[int, int]:
        """Cells down and across."""
        return -(-canvas.height // self.stride), -(-canvas.width // self.stride)

    def fits(self, shape: list[int], canvas: Size) -> bool:
        """Whether an output of the explain graph of this shape can hold the maps."""
        rest = shape[1:]
        if self.index is not None and not (rest and self.index < rest.pop(0)):
            return False
        if self.heads and not (rest and self.heads == rest.pop(0)):
            return False
        return math.prod(rest) == math.prod(self.grid(canvas))


class Kind(BaseModel):
    """One kind of map, its layers in the network's order.

    ``query`` says what it is asked about: a "token" of the sequence, a "place" on the canvas, an
    "object" (one of a decoder's ``queries``), a "class" (one of the labels), or "all" tokens in the
    mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: KindName
    query: Query
    queries: int | None = Field(default=None, ge=1)
    layers: list[Layer] = Field(min_length=1)

    @model_validator(mode="after")
    def _objects_are_counted(self) -> Self:
        if (self.query == "object") != (self.queries is not None):
            raise ValueError(f"kind {self.name!r} must say how many queries there are, or not")
        return self

    @property
    def single(self) -> bool:
        """Whether it is one map, so that there is no layer and no head to choose."""
        return len(self.layers) == 1 and self.layers[0].heads == 0


class Explain(BaseModel):
    """Every kind of map of a model, the default first; ``prefix_tokens`` come before the first
    patch in the sequence of a "token" query.

    An explain graph takes ``query`` int64 (N,), -1 for the best object or class, and ``place``
    float32 (N, 2), down and across as shares of the canvas, where its kinds need them. Beside the
    maps it says which object or class it ``explained`` (N,), with ``explained_logits`` (N, K), or
    (N, K+1) with "no object" last, and where there are boxes ``explained_box`` (N, 4), xyxy in 0..1
    of the valid area.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: list[Kind] = Field(min_length=1)
    prefix_tokens: list[Literal["class", "distillation", "register"]] = []

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [kind.name for kind in self.kinds]
        if len(set(names)) != len(names):
            raise ValueError(f"a kind of map is listed twice among {', '.join(names)}")
        return self

    @property
    def served_outputs(self) -> tuple[str, ...]:
        """The maps that the serving graph must give."""
        layers = [layer for kind in self.kinds for layer in kind.layers]
        return tuple(dict.fromkeys(layer.served for layer in layers if layer.served is not None))

    def fault(
        self, inputs: dict[str, list[int]], outputs: dict[str, list[int]], canvas: Size
    ) -> str | None:
        """What an explain graph with inputs and outputs of these shapes lacks, as a clause; None if
        nothing.
        """
        for kind in self.kinds:
            needed = {"place": "place", "all": "images"}.get(kind.query, "query")
            if needed not in inputs:
                return f"kind {kind.name!r} needs an input {needed!r}"
            about = ("explained", "explained_logits") * (kind.query in ("object", "class"))
            for name in (*about, *(layer.output for layer in kind.layers)):
                if name not in outputs:
                    return f"kind {kind.name!r} needs an output {name!r}"
            for layer in kind.layers:
                if not layer.fits(outputs[layer.output], canvas):
                    rows, columns = layer.grid(canvas)
                    return (
                        f"output {layer.output!r} has the shape {outputs[layer.output]}, which is "
                        f"not kind {kind.name!r} with {layer.heads} heads on {rows}x{columns} cells"
                    )
        return None
