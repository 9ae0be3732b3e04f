"""From an upright picture to a model's canvas and back: the resize, crop and pad rules of a
manifest.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, log
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.resize import Resizer, exact, simd

Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

# A strip of 1 x 16384 pixels resized to a shortest edge of 256 has 10^9 pixels, of which a crop
# keeps 224 x 224. Beyond this many canvases only the part that is kept is computed, which moves a
# few pixels by one level.
WHOLE_RESIZE_CANVASES = 64


class Size(BaseModel):
    """Height and width in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(ge=1)
    width: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class Resize(BaseModel):
    """How a picture is brought to size before cropping or padding; sizes in pixels of the nominal
    canvas.

    ``squash`` ignores the aspect ratio (``height``, ``width``); ``shortest_edge`` keeps it and may
    be held back by ``longest_edge``; ``fit`` keeps it inside ``height`` x ``width``; ``none``
    leaves the picture as it is. ``multiple_of`` then stretches both sides up to a multiple.

    ``rounding`` of ``shortest_edge``: where the longest edge holds back, "detr" rounds the short
    side and derives the long one from it, "huggingface" derives the long one from the unrounded
    short one, and "detectron2" rounds both half up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["squash", "shortest_edge", "fit", "none"]
    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    shortest_edge: int | None = Field(default=None, ge=1)
    longest_edge: int | None = Field(default=None, ge=1)
    multiple_of: int = Field(default=1, ge=1)
    rounding: Literal["huggingface", "detr", "detectron2"] = "huggingface"
    interpolation: Interpolation = "bilinear"

    @model_validator(mode="after")
    def _has_the_sizes_of_its_mode(self) -> Self:
        needed = {
            "squash": ("height", "width"),
            "fit": ("height", "width"),
            "shortest_edge": ("shortest_edge",),
            "none": (),
        }[self.mode]
        allowed = (*needed, "longest_edge") if self.mode == "shortest_edge" else needed
        for name in ("height", "width", "shortest_edge", "longest_edge"):
            given = getattr(self, name) is not None
            if given and name not in allowed:
                raise ValueError(f"resize mode {self.mode!r} does not take {name!r}")
            if not given and name in needed:
                raise ValueError(f"resize mode {self.mode!r} needs {name!r}")
        return self


class Geometry(BaseModel):
    """The rule from picture to canvas. ``nominal`` is the canvas that the pixel sizes in ``resize``
    belong to.

    ``placement`` "stretch" expects that resizing ends at the canvas; "crop" cuts the middle out
    (zeros where the picture is smaller); "pad" keeps all of it at the top left and fills right and
    bottom with zeros. ``crop_rounding`` says which side an odd pixel belongs to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nominal: Size
    resize: Resize
    placement: Literal["stretch", "crop", "pad"]
    crop_rounding: Literal["huggingface", "torchvision"] = "huggingface"

    @model_validator(mode="after")
    def _stretch_ends_at_the_canvas(self) -> Self:
        resize, nominal = self.resize, self.nominal
        squashed = (resize.mode, resize.height, resize.width)
        if self.placement == "stretch" and squashed != ("squash", nominal.height, nominal.width):
            raise ValueError(
                f"placement 'stretch' needs a resize that squashes to the nominal {nominal}"
            )
        return self


@dataclass(frozen=True)
class Placement:
    """Where a picture lies on a canvas.

    The resized picture's top left corner is at canvas pixel (``left``, ``top``); negative where it
    was cropped. ``valid`` is what the graph is told to look at, from the top left: the picture
    where it was padded, and the whole canvas otherwise (zeros around a crop count as seen).
    """

    image: Size
    canvas: Size
    resized: Size
    top: int
    left: int
    valid: Size
    interpolation: Interpolation

    @property
    def scale_x(self) -> float:
        """Original pixels per canvas pixel."""
        return self.image.width / self.resized.width

    @property
    def scale_y(self) -> float:
        """Original pixels per canvas pixel."""
        return self.image.height / self.resized.height

    @property
    def offset_x(self) -> float:
        """The original x of the canvas's left edge."""
        return -self.left * self.scale_x

    @property
    def offset_y(self) -> float:
        """The original y of the canvas's top edge."""
        return -self.top * self.scale_y

    def to_original(self, x: float, y: float) -> tuple[float, float]:
        """From canvas to upright original, both in pixels measured from the outer top left edge, so
        that a pixel's centre is at a half: ``x * scale_x + offset_x``. Not clipped.
        """
        return x * self.scale_x + self.offset_x, y * self.scale_y + self.offset_y

    @property
    def region(self) -> tuple[float, float, float, float]:
        """What the canvas shows, xyxy in pixels of the upright original; reaches past the picture
        where zeros fill the canvas.
        """
        return (
            *self.to_original(0, 0),
            *self.to_original(self.canvas.width, self.canvas.height),
        )


def choose_canvas(geometry: Geometry, image: Size, canvases: list[Size]) -> Size:
    """The canvas for a picture, by its size alone.

    "stretch" and "crop" take the aspect ratio closest to the picture's (by logarithm). "pad" takes
    the smallest area that holds the resized picture, or if none does the canvas on which it stays
    largest. Ties go to the canvas listed first.
    """
    if geometry.placement != "pad":
        aspect = log(image.height / image.width)
        return min(canvases, key=lambda c: abs(log(c.height / c.width) - aspect))
    resized = _resized(geometry.resize, image)
    return min(
        canvases, key=lambda c: (-min(Fraction(1), _fitting(resized, c)), c.height * c.width)
    )


def place(geometry: Geometry, image: Size, canvas: Size) -> Placement:
    """Where a picture of this upright size goes on ``canvas``.

    "stretch" and "crop" scale the sizes of ``resize`` from the nominal canvas to this one; "pad"
    does not, and shrinks a picture that is still too large.
    """
    top = left = 0
    if geometry.placement == "pad":
        resized = valid = _shrunk(_resized(geometry.resize, image), canvas)
    else:
        valid = canvas
        resized = _resized(_for_canvas(geometry, canvas), image)
        if geometry.placement == "stretch":
            resized = canvas
        elif canvas != geometry.nominal and _covers_nominal(geometry):
            resized = _covering(resized, canvas)
        offset = (
            _hugging_face_offset if geometry.crop_rounding == "huggingface" else _torchvision_offset
        )
        top = offset(canvas.height, resized.height)
        left = offset(canvas.width, resized.width)
    return Placement(image, canvas, resized, top, left, valid, geometry.resize.interpolation)


def least_decoded(placement: Placement, scale: float) -> Size:
    """The size that leaves ``scale`` pixels a side for each that resizing keeps."""
    resized = placement.resized
    return Size(height=ceil(resized.height * scale), width=ceil(resized.width * scale))


def to_canvas(
    image: Image.Image, placement: Placement, box: Box | None = None, resizer: Resizer = "pillow"
) -> NDArray[np.uint8]:
    """Resize, then crop or pad an upright RGB picture: uint8 (H, W, 3), contiguous and read-only.

    With Pillow equal to the bit to transformers' PIL processors before they rescale. A picture
    decoded smaller than ``placement.image`` is resized from what there is; ``box`` is the part of
    ``image`` that shows the picture, None for all of it.
    """
    resized, canvas = placement.resized, placement.canvas
    top, left = placement.top, placement.left
    resize = {"pillow": exact, "simd": simd}[resizer]
    shown = box or (0, 0, image.width, image.height)
    if shown == (0, 0, resized.width, resized.height) and shown[2:] == image.size:
        pass
    elif resized.height * resized.width > WHOLE_RESIZE_CANVASES * canvas.height * canvas.width:
        x0, x1 = max(0, -left), min(resized.width, canvas.width - left)
        y0, y1 = max(0, -top), min(resized.height, canvas.height - top)
        scale_x = (shown[2] - shown[0]) / resized.width
        scale_y = (shown[3] - shown[1]) / resized.height
        part = (
            shown[0] + x0 * scale_x,
            shown[1] + y0 * scale_y,
            min(shown[2], shown[0] + x1 * scale_x),
            min(shown[3], shown[1] + y1 * scale_y),
        )
        image = resize(image, (x1 - x0, y1 - y0), placement.interpolation, part)
        top, left = top + y0, left + x0
    else:
        size = resized.width, resized.height
        image = resize(image, size, placement.interpolation, shown)
    if (top, left, image.height, image.width) != (0, 0, canvas.height, canvas.width):
        image = image.crop((-left, -top, canvas.width - left, canvas.height - top))
    return np.asarray(image)  # a copy already: Pillow has four bytes a pixel


def _resized(resize: Resize, image: Size) -> Size:
    """The size after resizing, in pixels of the nominal canvas; at least one pixel a side."""
    height, width = image.height, image.width
    match resize.mode:
        case "squash":
            assert resize.height is not None
            assert resize.width is not None
            height, width = resize.height, resize.width
        case "fit":
            assert resize.height is not None
            assert resize.width is not None
            scale = min(resize.height / height, resize.width / width)
            height, width = int(height * scale), int(width * scale)
        case "shortest_edge":
            height, width = _by_shortest_edge(resize, image)
    multiple = resize.multiple_of
    return Size(
        height=ceil(max(1, height) / multiple) * multiple,
        width=ceil(max(1, width) / multiple) * multiple,
    )


def _by_shortest_edge(resize: Resize, image: Size) -> tuple[int, int]:
    assert resize.shortest_edge is not None
    short, long = sorted((image.height, image.width))
    if resize.rounding == "detectron2":
        new_short, new_long = _detectron2_edges(short, long, resize)
    else:
        new_short, new_long = _hugging_face_edges(short, long, resize)
    if image.height <= image.width:
        return new_short, new_long
    return new_long, new_short


def _hugging_face_edges(short: int, long: int, resize: Resize) -> tuple[int, int]:
    """transformers ``get_size_with_aspect_ratio``, and DETR's ``datasets/transforms.py``."""
    edge: int = resize.shortest_edge or 0
    exact: float = edge
    if resize.longest_edge is not None and long / short * edge > resize.longest_edge:
        exact = resize.longest_edge * short / long
        edge = round(exact)
        if resize.rounding == "detr" and exact > 0.5:  # below it DETR itself ends at no pixels
            exact = edge
    if short == edge:
        return short, long
    return edge, int(exact * long / short)


def _detectron2_edges(short: int, long: int, resize: Resize) -> tuple[int, int]:
    """detectron2 ``ResizeShortestEdge.get_output_shape``."""
    new_short = float(resize.shortest_edge or 0)
    new_long = new_short / short * long
    if resize.longest_edge is not None and new_long > resize.longest_edge:
        scale = resize.longest_edge / new_long
        new_short, new_long = new_short * scale, new_long * scale
    return int(new_short + 0.5), int(new_long + 0.5)


def _for_canvas(geometry: Geometry, canvas: Size) -> Resize:
    """The resize rule with its pixel sizes scaled from the nominal canvas to ``canvas``."""
    nominal, resize = geometry.nominal, geometry.resize
    if canvas == nominal:
        return resize
    short = Fraction(min(canvas.height, canvas.width), min(nominal.height, nominal.width))
    scales = {
        "height": Fraction(canvas.height, nominal.height),
        "width": Fraction(canvas.width, nominal.width),
        "shortest_edge": short,
        "longest_edge": short,
    }
    return resize.model_copy(
        update={
            name: max(1, floor(value * scale))
            for name, scale in scales.items()
            if (value := getattr(resize, name)) is not None
        }
    )


def _hugging_face_offset(canvas: int, resized: int) -> int:
    """transformers' ``center_crop``: an odd pixel is cut at the end, or added at the start."""
    return -((resized - canvas) // 2)


def _torchvision_offset(canvas: int, resized: int) -> int:
    """torchvision's ``center_crop``: half pixels are cut to even, or added at the end."""
    return (canvas - resized) // 2 if canvas > resized else -round((resized - canvas) / 2)


def _covers_nominal(geometry: Geometry) -> bool:
    edge, nominal = geometry.resize.shortest_edge, geometry.nominal
    return edge is not None and edge >= max(nominal.height, nominal.width)


def _covering(resized: Size, canvas: Size) -> Size:
    """Enlarged, if need be, until no canvas pixel is left empty."""
    scale = max(
        Fraction(1),
        Fraction(canvas.height, resized.height),
        Fraction(canvas.width, resized.width),
    )
    return Size(height=ceil(resized.height * scale), width=ceil(resized.width * scale))


def _fitting(resized: Size, canvas: Size) -> Fraction:
    """The largest scale at which the resized picture fits the canvas."""
    return min(
        Fraction(canvas.height, resized.height),
        Fraction(canvas.width, resized.width),
    )


def _shrunk(resized: Size, canvas: Size) -> Size:
    scale = _fitting(resized, canvas)
    if scale >= 1:
        return resized
    return Size(
        height=max(1, floor(resized.height * scale)), width=max(1, floor(resized.width * scale))
    )
