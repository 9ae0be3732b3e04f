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

    kind: Literal["raw", "rollout"] = Field(
        default="raw", description="One layer's softmax rows, or the rollout over all layers"
    )
    layer: str = Field(default="last", description="'last', 'all' or a number; raw maps only")
    head: str = Field(default="mean", description="'mean', 'all' or a number; raw maps only")
    query: str = Field(
        default="class",
        description="Token that attends: 'class', 'distillation', 'register:K' or a patch 'Y,X'",
    )


class AttentionMap(BaseModel):
    """Weights over the grid of patches, row by row; prefix tokens are left out."""

    kind: Literal["raw", "rollout"]
    layer: int | None
    head: int | Literal["mean"] | None
    query: str
    grid: tuple[int, int]
    values: list[list[Rounded]] | None = None


class Transform(BaseModel):
    """From canvas to picture: ``x = x_canvas * scale[0] + offset[0]``, y likewise; the grid covers
    ``region``.
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

    maps: list[AttentionMap]
    transform: Transform
