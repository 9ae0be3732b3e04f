"""Names on a picture: filled tags with text, each where it hides least."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from PIL import ImageDraw, ImageFont

from service.tasks.colours import Colour, text_on

Rectangle = tuple[int, int, int, int]
"""Edges xyxy in pixels."""

MOST_HIDDEN = 0.25  # of a tag under other tags; one that would be hidden more is left out

_HIDES_A_TAG, _HIDES_AN_OBJECT = 10.0, 1.0


@dataclass(frozen=True)
class Tag:
    """A name, its colour, the object's box, and the point to put the name on, if any."""

    text: str
    colour: Colour
    box: Rectangle
    centre: tuple[int, int] | None = None


@dataclass(frozen=True)
class Style:
    """Sizes in pixels that go with a picture's size."""

    text: int
    line: int

    @classmethod
    def of(cls, size: tuple[int, int], count: int) -> Self:
        """For a picture of this width and height with so many names; many are written smaller."""
        side = min(math.sqrt(size[0] * size[1]), 2.5 * min(size))
        crowded = min(1, max(0.75, math.sqrt(10 / max(1, count))))
        return cls(
            round(min(max(side * 0.025 * crowded, 11), 34)), round(min(max(2, side / 250), 6))
        )


def draw_tags(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], tags: Sequence[Tag], style: Style
) -> list[Rectangle]:
    """Draw the tags inside a picture of this width and height, the first ones having first choice;
    returns where they are. A tag that finds no room is left out.
    """
    font = _font(style.text)
    pad = max(2, style.text // 4)
    ascent, descent = font.getmetrics()
    placed: list[Rectangle] = []
    boxes = [tag.box for tag in tags]
    for tag in tags:
        text = _shortened(font, tag.text, size[0] - 2 * pad)
        extent = math.ceil(font.getlength(text)) + 2 * pad, ascent + descent + pad
        place = _place(tag, extent, size, placed, boxes)
        if place is None:
            continue
        placed.append(place)
        right, bottom = place[2] - 1, place[3] - 1  # Pillow counts the last pixel in
        draw.rounded_rectangle((*place[:2], right, bottom), pad, fill=tag.colour)
        middle = place[0] + pad, (place[1] + place[3]) / 2
        draw.text(middle, text, fill=text_on(tag.colour), font=font, anchor="lm")
    return placed


def _place(
    tag: Tag,
    extent: tuple[int, int],
    size: tuple[int, int],
    placed: Sequence[Rectangle],
    boxes: Sequence[Rectangle],
) -> Rectangle | None:
    """The first best of some places at the box; None where other tags would hide it."""
    best, least = None, math.inf
    area = extent[0] * extent[1]
    for left, top in _candidates(tag, extent):
        left = min(max(left, 0), max(0, size[0] - extent[0]))
        top = min(max(top, 0), max(0, size[1] - extent[1]))
        place = left, top, left + extent[0], top + extent[1]
        on_tags = sum(_common(place, other) for other in placed) / area
        if on_tags > MOST_HIDDEN:
            continue
        on_objects = sum(
            _common(place, box) / max(1, _area(box)) for box in boxes if box != tag.box
        )
        cost = _HIDES_A_TAG * on_tags + _HIDES_AN_OBJECT * on_objects
        cost += _common(place, tag.box) / max(1, _area(tag.box)) if tag.centre is None else 0
        if cost < least - 0.02:
            best, least = place, cost
    return best


def _candidates(tag: Tag, extent: tuple[int, int]) -> list[tuple[int, int]]:
    x0, y0, x1, y1 = tag.box
    width, height = extent
    found = []
    if tag.centre is not None and width < 0.9 * (x1 - x0) and height < 0.6 * (y1 - y0):
        found = [(tag.centre[0] - width // 2, tag.centre[1] - height // 2)]
    return [
        *found,
        (x0, y0 - height),
        (x0, y0),
        (x0, y1),
        (x1 - width, y0 - height),
        (x1 - width, y1),
        (x1, y0),
        (x0 - width, y0),
        (x0, y1 - height),
    ]


def _common(a: Rectangle, b: Rectangle) -> int:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _area(box: Rectangle) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shortened(font: ImageFont.FreeTypeFont, text: str, width: int) -> str:
    """The text, or as much of it as fits."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..." if len(text) > 1 else text


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)  # Aileron, which comes with Pillow
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
