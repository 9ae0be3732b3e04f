"""Attention maps."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.base import (
    ABOUT_EXAMPLE,
    Answer,
    Box,
    ImageSize,
    Options,
    Rounded,
    example,
)


class AttentionOptions(Options):
    """Parameters of attention maps."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # JSON may say "layer": 0

    kind: str | None = Field(
        default=None,
        description="Kind of map, one of the model's 'explain.kinds'; its first where absent",
    )
    layer: str | None = Field(
        default=None, description="'last' (the default), 'all' or a number, where there are layers"
    )
    head: str | None = Field(
        default=None, description="'mean' (the default), 'all' or a number, where there are heads"
    )
    query: str | None = Field(
        default=None,
        description="What looks. A token: 'class' (the default), 'distillation', 'register:K' or "
        "a patch 'Y,X'; a place: 'center' (the default) or a cell 'Y,X'; an object: 'best' (the "
        "default) or its query's number; a class: 'best' (the default), a label's id or name",
    )
    point: str | None = Field(
        default=None,
        description="Instead of query, the token or place at 'X,Y' in pixels of the upright "
        "picture",
    )


class Point(BaseModel):
    """A point in pixels of the upright picture."""

    x: Rounded
    y: Rounded


class Explained(BaseModel):
    """What the maps are about: a point, a class, or the object that a decoder's query found."""

    point: Point | None = None
    query: int | None = None
    label: str | None = None
    label_id: int | None = None
    score: Rounded | None = None
    box: Box | None = None


class AttentionMap(BaseModel):
    """Values over a grid, row by row: the weights of a softmax row without prefix tokens and
    padding, a class's logits, or a mask's probabilities.

    ``query`` asks for the same map again. ``region`` is where the grid lies, if that is not the
    region of the transform.
    """

    kind: str
    layer: int | None
    head: int | Literal["mean"] | None
    query: str
    grid: tuple[int, int]
    region: Box | None = None
    values: list[list[Rounded]] | None = None


class Transform(BaseModel):
    """From canvas to picture: ``x = x_canvas * scale[0] + offset[0]``, y likewise; ``region`` is
    what the model sees, and grids cover it, unless a map names its own.
    """

    canvas: ImageSize
    scale: tuple[Rounded, Rounded]
    offset: tuple[Rounded, Rounded]
    region: Box


class AttentionAnswer(Answer):
    """Maps, and where their grid lies on the picture."""

    model_config = example(
        ABOUT_EXAMPLE
        | {
            "maps": [
                {
                    "kind": "raw",
                    "layer": 5,
                    "head": "mean",
                    "query": "class",
                    "grid": [2, 2],
                    "values": [[0.201, 0.017], [0.65, 0.102]],
                }
            ],
            "transform": {
                "canvas": {"width": 128, "height": 128},
                "scale": [3.75, 3.75],
                "offset": [0, 0],
                "region": {"xmin": 0, "ymin": 0, "xmax": 480, "ymax": 480},
            },
        }
    )

    explained: Explained | None = None
    maps: list[AttentionMap]
    transform: Transform
