"""Boxes and masks drawn on the picture that they were found in."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from service.bundle import Label
from service.tasks.colours import Colour, colour_of, shade
from service.tasks.masks import Crop
from service.tasks.render import MAX_SIDE_PX
from service.tasks.tags import Rectangle, Style, Tag, draw_tags

FILL_SHARE = 0.42

_HALO = (0, 0, 0, 110)
_COARSE = 64  # cells a side of the grid on which the middle of a mask is looked for


class HasCrop(Protocol):
    """A mask inside its box."""

    @property
    def crop(self) -> Crop:
        """The pixels of the box that belong to it."""
        ...


@dataclass(frozen=True)
class Shown:
    """One object to draw, ``box`` xyxy in pixels of the picture, ``index`` that of its label; with
    its ``mask`` where the box is that of whole pixels.
    """

    index: int
    score: float | None
    box: tuple[float, float, float, float]
    mask: HasCrop | None = None


def boxes_overlay(
    upright: Image.Image, found: Sequence[Shown], labels: Sequence[Label], media_type: str
) -> bytes:
    """The picture with boxes and names, at most ``MAX_SIDE_PX`` on a side, encoded as
    ``media_type`` says. What comes first is drawn on top.
    """
    picture, shrink = _shrunk(upright)
    style = Style.of(picture.size, len(found))
    drawn = list(_coloured(found, labels))
    draw = ImageDraw.Draw(picture, "RGBA")
    tags = []
    for one, colour in reversed(drawn):
        box = _scaled(one.box, shrink, picture.size)
        x0, y0, x1, y1 = box[0], box[1], box[2] - 1, box[3] - 1  # Pillow counts the last pixel in
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_HALO, width=style.line + 2)
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=style.line)
        tags.append(Tag(_name(one, labels), colour, box))
    draw_tags(draw, picture.size, tags[::-1], style)
    return _encoded(picture, media_type)


def masks_overlay(
    upright: Image.Image, found: Sequence[Shown], labels: Sequence[Label], media_type: str
) -> bytes:
    """The picture with masks, their outlines and names, as ``boxes_overlay``."""
    picture, shrink = _shrunk(upright)
    style = Style.of(picture.size, len(found))
    tags = []
    for one, colour in reversed(list(_coloured(found, labels))):
        box, mask = _mask_on(one, shrink, picture.size)
        _paint(picture, box, mask, colour, style)
        tags.append(Tag(_name(one, labels), colour, box, _middle(box, mask)))
    draw_tags(ImageDraw.Draw(picture, "RGBA"), picture.size, tags[::-1], style)
    return _encoded(picture, media_type)


def _coloured(found: Sequence[Shown], labels: Sequence[Label]) -> Iterator[tuple[Shown, Colour]]:
    """With the colour of its class for the first of a class, shades of it for others."""
    seen: dict[int, int] = {}
    for one in found:
        number = seen.get(one.index, 0)
        seen[one.index] = number + 1
        yield one, shade(colour_of(labels[one.index]), number)


def _paint(
    picture: Image.Image, box: Rectangle, mask: Image.Image, colour: Colour, style: Style
) -> None:
    """Fill the mask lightly, and its rim, except at the edges of the picture, strongly."""
    around = style.line + 1
    left, top = max(0, box[0] - around), max(0, box[1] - around)
    right = min(picture.width, box[2] + around)
    bottom = min(picture.height, box[3] + around)
    area = Image.new("L", (right - left, bottom - top))
    area.paste(mask, (box[0] - left, box[1] - top))
    # Pillow repeats the edge pixels when it blurs, so that a cut edge has no rim.
    soft = area.filter(ImageFilter.BoxBlur(style.line))
    inner = ImageChops.multiply(area, soft.point([min(255, (255 - v) * 3) for v in range(256)]))
    outer = ImageChops.multiply(
        ImageChops.invert(area), soft.point([v * 2 // 3 for v in range(256)])
    )
    picture.paste((0, 0, 0), (left, top), outer.point([v // 2 for v in range(256)]))
    picture.paste(colour, (left, top), area.point([round(FILL_SHARE * v) for v in range(256)]))
    picture.paste(colour, (left, top), inner)


def _mask_on(one: Shown, shrink: float, size: tuple[int, int]) -> tuple[Rectangle, Image.Image]:
    """The mask's box on the shrunk picture and the share of each of its pixels, 0..255."""
    assert one.mask is not None
    box = _scaled(one.box, shrink, size)
    mask = Image.fromarray(one.mask.crop.astype(np.uint8) * 255)
    extent = box[2] - box[0], box[3] - box[1]
    return box, mask if mask.size == extent else mask.resize(extent, Image.Resampling.BOX)


def _middle(box: Rectangle, mask: Image.Image) -> tuple[int, int]:
    """The point deepest inside a mask, found by taking its rim off until nothing is left."""
    coarse = mask.resize(
        (min(_COARSE, mask.width), min(_COARSE, mask.height)), Image.Resampling.BOX
    )
    left = np.pad(np.asarray(coarse) > 127, 1)
    while True:
        inner = left.copy()
        for axis in (0, 1):
            for step in (1, -1):
                inner &= np.roll(left, step, axis)
        if not inner.any():
            break
        left = inner
    y, x = np.argwhere(left).mean(axis=0) if left.any() else (c / 2 + 0.5 for c in left.shape)
    nearest = np.argwhere(left)
    if len(nearest):
        y, x = nearest[np.abs(nearest - (y, x)).sum(axis=1).argmin()]
    return (
        box[0] + round((x - 0.5) * mask.width / coarse.width),
        box[1] + round((y - 0.5) * mask.height / coarse.height),
    )


def _name(one: Shown, labels: Sequence[Label]) -> str:
    name = labels[one.index].name
    return name if one.score is None else f"{name} {one.score:.2f}"


def _scaled(
    box: tuple[float, float, float, float], shrink: float, size: tuple[int, int]
) -> Rectangle:
    """Whole pixels of the shrunk picture, at least one a side."""
    x0, y0, x1, y1 = (round(edge * shrink) for edge in box)
    x0, y0 = min(max(x0, 0), size[0] - 1), min(max(y0, 0), size[1] - 1)
    return x0, y0, min(max(x1, x0 + 1), size[0]), min(max(y1, y0 + 1), size[1])


def _shrunk(upright: Image.Image) -> tuple[Image.Image, float]:
    """A copy to draw on, and its scale."""
    shrink = min(1.0, MAX_SIDE_PX / max(upright.size))
    if shrink == 1:
        return upright.copy(), shrink
    size = max(1, round(upright.width * shrink)), max(1, round(upright.height * shrink))
    return upright.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0), shrink


def _encoded(picture: Image.Image, media_type: str) -> bytes:
    file = io.BytesIO()
    if media_type == "image/jpeg":
        picture.save(file, "JPEG", quality=90)
    elif media_type == "image/webp":
        picture.save(file, "WEBP", quality=88, method=2)
    else:
        picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
