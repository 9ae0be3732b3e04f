"""The things of a scene: outlines of eight shapes and their antialiased masks."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Mask = NDArray[np.float32]
Points = NDArray[np.float64]

# Pixels of the drawing per pixel of the mask, along each axis.
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Shape:
    """One kind of thing: outlines (vertices, 2) as x and y within the unit circle.

    ``outlines`` are filled one after the other, the first solid, the rest cut out of it.
    """

    name: str
    outlines: tuple[Points, ...]

    @property
    def unit_area(self) -> float:
        """Area at radius 1."""
        first, *holes = (_polygon_area(outline) for outline in self.outlines)
        return first - sum(holes)


@cache
def shapes() -> tuple[Shape, ...]:
    """The classes of things, in the order of their label ids."""
    return (
        Shape("circle", (_arc(1.0, 0, 2 * math.pi, 96),)),
        Shape("square", (_regular(4),)),
        Shape("triangle", (_regular(3),)),
        Shape("star", (_star(points=5, inner=0.45),)),
        Shape("cross", (_cross(half_width=0.3),)),
        Shape("ring", (_arc(1.0, 0, 2 * math.pi, 96), _arc(0.58, 0, 2 * math.pi, 72))),
        Shape("heart", (_heart(),)),
        Shape("moon", (_moon(inner=0.8, offset=0.5),)),
    )


@dataclass(frozen=True)
class Stamp:
    """A shape at a place: coverage (h, w) in 0..1, its outer rim likewise, and its top left corner
    (row, column) in the picture.
    """

    coverage: Mask
    rim: Mask
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Where the stamp lies in an array of the picture."""
        height, width = self.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def solid(self) -> NDArray[np.bool_]:
        """Pixels that count as covered."""
        return self.coverage >= 0.5


def stamp(
    shape: Shape,
    radius_px: float,
    angle: float,
    place_01: tuple[float, float],
    size: tuple[int, int],
) -> Stamp:
    """Draw a shape rotated by ``angle`` (radians), wholly inside a picture of ``size``.

    ``place_01`` picks the corner among those that fit: 0 is top and left, 1 bottom and right. The
    shape must fit (``radius_px`` at most half the shorter side, less a pixel).
    """
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    outlines = [outline @ turn * radius_px for outline in shape.outlines]
    low = outlines[0].min(axis=0)
    width, height = (int(side) for side in np.ceil(outlines[0].max(axis=0) - low) + 2)
    canvas = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    drawn = [
        [(float(x), float(y)) for x, y in (outline - low + 1) * SUPERSAMPLING]
        for outline in outlines
    ]
    for number, vertices in enumerate(drawn):
        pen.polygon(vertices, fill=0 if number else 255)
    coverage = _reduced(canvas)
    stroke = max(round(0.09 * radius_px * SUPERSAMPLING), 1)
    for vertices in drawn:
        pen.line([*vertices, vertices[0]], fill=0, width=stroke)
    return Stamp(
        coverage=coverage,
        rim=coverage - _reduced(canvas),
        top=round(place_01[0] * (size[0] - height)),
        left=round(place_01[1] * (size[1] - width)),
    )


def _reduced(canvas: Image.Image) -> Mask:
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) * np.float32(1 / 255)


def _polygon_area(points: Points) -> float:
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _arc(radius: float, start: float, stop: float, steps: int, center_x: float = 0.0) -> Points:
    angles = np.linspace(start, stop, steps, endpoint=False)
    return np.stack([center_x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _regular(corners: int) -> Points:
    return _arc(1.0, 0, 2 * math.pi, corners)


def _star(points: int, inner: float) -> Points:
    angles = np.arange(2 * points) * math.pi / points
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _cross(half_width: float) -> Points:
    tip = math.sqrt(1 - half_width**2)
    arm = np.array([[half_width, half_width], [tip, half_width], [tip, -half_width]])
    corners = []
    for quarter in range(4):
        cos, sin = [(1, 0), (0, -1), (-1, 0), (0, 1)][quarter]
        corners.append(arm @ np.array([[cos, -sin], [sin, cos]]).T)
    return np.concatenate(corners)


def _heart() -> Points:
    t = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    points = np.stack([x, y], axis=1)
    points -= (points.max(axis=0) + points.min(axis=0)) / 2
    return points / np.hypot(*points.T).max()


def _moon(inner: float, offset: float) -> Points:
    """A disc of radius 1 less one of radius ``inner`` with its centre ``offset`` to the right."""
    x = (1 + offset**2 - inner**2) / (2 * offset)
    y = math.sqrt(1 - x**2)
    outer_angle, inner_angle = math.atan2(y, x), math.atan2(y, x - offset)
    outer = _arc(1.0, outer_angle, 2 * math.pi - outer_angle, 72)
    bite = _arc(inner, 2 * math.pi - inner_angle, inner_angle, 60, center_x=offset)
    return np.concatenate([outer, bite])
