"""From an upright picture to a model's canvas and back: the resize, crop and pad rules of a
manifest.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


class Size(BaseModel):
    """Height and width in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(ge=1, le=8192)
    width: int = Field(ge=1, le=8192)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class Resize(BaseModel):
    """How a picture is brought to size before cropping or padding; sizes in pixels of the nominal
    canvas.

    ``squash`` ignores the aspect ratio (``height``, ``width``); ``shortest_edge`` keeps it and may
    be held back by ``longest_edge``; ``fit`` keeps it inside ``height`` x ``width``; ``none``
    leaves the picture as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["squash", "shortest_edge", "fit", "none"]
    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    shortest_edge: int | None = Field(default=None, ge=1)
    longest_edge: int | None = Field(default=None, ge=1)
    rounding: Literal["huggingface", "detr", "detectron2"] = "huggingface"
    interpolation: Interpolation = "bilinear"


class Geometry(BaseModel):
    """The rule from picture to canvas. ``nominal`` is the canvas that the pixel sizes in ``resize``
    belong to.

    ``placement`` "stretch" expects that resizing ends at the canvas; "crop" cuts the middle out
    (zeros where the picture is smaller); "pad" keeps all of it at the top left and fills right and
    bottom with zeros.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nominal: Size
    resize: Resize
    placement: Literal["stretch", "crop", "pad"]
