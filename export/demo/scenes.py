"""Scenes drawn from a seed, with their truth: classes, boxes, visible masks, a dominant thing."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from export.demo.landscape import Picture, landscape, noise
from export.demo.shapes import Shape, Stamp, shapes, stamp

THINGS = tuple(shape.name for shape in shapes())
STUFF = ("sky", "ground", "water")
CLASSES = THINGS + STUFF

# The dominant thing shows at least this much more area than any other.
DOMINANCE = 1.5
# The least that occlusion leaves of the dominant thing, of another thing, and of a stuff layer.
VISIBLE_DOMINANT, VISIBLE_THING, VISIBLE_STUFF = 0.85, 0.5, 0.4
# The smallest layer of stuff, and the smallest thing before occlusion, as shares of the picture.
SMALLEST_STUFF, SMALLEST_THING = 0.02, 0.005


@dataclass(frozen=True)
class Segment:
    """What is visible of one thing, or of one stuff class.

    ``box_xyxy_px`` encloses the visible pixels; right and bottom edges lie beyond the last pixel.
    """

    id: int
    label: str
    isthing: bool
    area_px: int
    box_xyxy_px: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3) in RGB, the segment id of every pixel (H, W), and its segments by id.

    Ids count from 1 without gaps, stuff first, then things from back to front; every pixel belongs
    to a segment. ``label`` is the class of the dominant thing.
    """

    image: NDArray[np.uint8]
    ids: NDArray[np.uint8]
    segments: list[Segment]
    label: str

    @property
    def objects(self) -> list[Segment]:
        """The things."""
        return [segment for segment in self.segments if segment.isthing]

    def mask(self, segment: Segment) -> NDArray[np.bool_]:
        """Visible pixels (H, W) of a segment."""
        return self.ids == segment.id


@dataclass(frozen=True)
class _Plan:
    """A thing before it is placed."""

    shape: Shape
    radius_px: float
    dominant: bool


def draw(rng: Generator, size: tuple[int, int]) -> Scene:
    """Draw the scene that ``rng`` leads to, ``size`` (height, width) in pixels.

    One to six things lie over a landscape. The dominant one shows ``DOMINANCE`` times the area of
    any other and has the largest radius, so that a person would name it first.

    Raises:
        ValueError: a side is below 64 px, where the smallest things would lose their form, or one
        is more than three times the other.
    """
    if min(size) < 64 or max(size) > 3 * min(size):
        raise ValueError(
            f"a scene of {size[0]}x{size[1]} cannot be drawn; "
            "make its sides at least 64 px long and at most 3 : 1"
        )
    while True:
        scene = _attempt(rng, size)
        if scene is not None:
            return scene


def _attempt(rng: Generator, size: tuple[int, int]) -> Scene | None:
    """One scene, or nothing where stuff came out too small or the dominant thing found no place."""
    image, ids, names = _paint_landscape(rng, size)
    full_areas = np.bincount(ids.ravel(), minlength=len(names) + 1).tolist()
    if min(full_areas[1:]) < SMALLEST_STUFF * ids.size:
        return None
    least = [VISIBLE_STUFF] * len(names)
    label = ""
    for plan in _plans(rng, size):
        placed = _find_place(rng, plan, ids, full_areas, least)
        if placed is None and plan.dominant:
            return None
        if placed is None:
            continue
        names.append(plan.shape.name)
        least.append(VISIBLE_DOMINANT if plan.dominant else VISIBLE_THING)
        full_areas.append(int(placed.solid.sum()))
        ids[placed.window][placed.solid] = len(names)
        _paint_thing(rng, image, placed)
        label = plan.shape.name if plan.dominant else label
    pixels = (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(pixels, ids, [_segment(ids, i, name) for i, name in enumerate(names, 1)], label)


def _paint_landscape(
    rng: Generator, size: tuple[int, int]
) -> tuple[Picture, NDArray[np.uint8], list[str]]:
    image = np.zeros((*size, 3), dtype=np.float32)
    ids = np.zeros(size, dtype=np.uint8)
    names = []
    for layer in landscape(rng, size):
        image += (layer.color - image) * layer.coverage[..., None]
        names.append(layer.name)
        ids[layer.coverage >= 0.5] = len(names)
    return image, ids, names


def _plans(rng: Generator, size: tuple[int, int]) -> list[_Plan]:
    """What to place, from back to front."""
    kinds = shapes()
    longest = 0.42 * min(size)
    picture = size[0] * size[1]
    dominant = kinds[rng.integers(len(kinds))]
    radius = min(math.sqrt(rng.uniform(0.07, 0.2) * picture / dominant.unit_area), longest)
    area = radius**2 * dominant.unit_area
    plans = [_Plan(dominant, radius, dominant=True)]
    for _ in range(rng.integers(0, 6)):
        shape = kinds[rng.integers(len(kinds))]
        wanted = max(area * rng.uniform(0.06, 0.5), SMALLEST_THING * picture)
        smaller = min(math.sqrt(wanted / shape.unit_area), 0.75 * radius)
        plans.append(_Plan(shape, smaller, dominant=False))
    return [plans[i] for i in rng.permutation(len(plans))]


def _find_place(
    rng: Generator,
    plan: _Plan,
    ids: NDArray[np.uint8],
    full_areas: list[int],
    least: list[float],
) -> Stamp | None:
    """A stamp that leaves enough of all that it covers, or nothing after a few trials."""
    size = (ids.shape[0], ids.shape[1])
    visible = np.bincount(ids.ravel(), minlength=len(full_areas))
    keep = np.array(full_areas) * np.array([0, *least])
    for _ in range(16 if plan.dominant else 6):
        angle = rng.uniform(0, 2 * math.pi)
        place = (rng.uniform(), rng.uniform())
        placed = stamp(plan.shape, plan.radius_px, angle, place, size)
        covered = np.bincount(ids[placed.window][placed.solid], minlength=len(full_areas))
        if (visible - covered >= keep).all():
            return placed
    return None


def _paint_thing(rng: Generator, image: Picture, placed: Stamp) -> None:
    """Blend a coloured surface over the picture, shaded from one side, some striped or rimmed."""
    under = image[placed.window]
    alpha = placed.coverage[..., None]
    height, width = placed.coverage.shape
    color = _contrasting(rng, under[:: max(height // 8, 1), :: max(width // 8, 1)])
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, width, dtype=np.float32)[None]
    light = rng.uniform(0, 2 * math.pi)
    slope = down * math.sin(light) + across * math.cos(light)
    shade = 1 + rng.uniform(0.05, 0.18) * slope + 0.03 * noise(rng, (height, width), (4, 4), 3)
    if rng.uniform() < 0.3:
        stripes = np.sin((slope + rng.uniform()) * rng.uniform(8, 18))
        shade += rng.uniform(0.05, 0.12) * stripes
    surface = color * shade[..., None]
    if rng.uniform() < 0.5:
        surface = surface * (1 - rng.uniform(0.25, 0.6) * placed.rim[..., None])
    under += (surface - under) * alpha


def _contrasting(rng: Generator, surroundings: Picture) -> NDArray[np.float32]:
    """A colour, mostly vivid, that stands out from all of ``surroundings`` (h, w, 3)."""
    colors = rng.uniform(0, 1, (16, 3)).astype(np.float32)
    low, high = colors.min(axis=1, keepdims=True), colors.max(axis=1, keepdims=True)
    vivid = 0.15 + 0.8 * (colors - low) / (high - low + 1e-3)
    colors = np.where(rng.uniform(size=(16, 1)) < 0.8, vivid, colors)
    colors *= np.float32(rng.uniform(0.6, 1.05))
    differences = colors[:, None] - surroundings.reshape(1, -1, 3)
    nearest = np.sqrt((differences**2).sum(axis=2)).min(axis=1)
    far = np.flatnonzero(nearest > 0.35)
    return colors[far[0] if len(far) else nearest.argmax()]


def _segment(ids: NDArray[np.uint8], segment_id: int, label: str) -> Segment:
    mask = ids == segment_id
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return Segment(segment_id, label, label in THINGS, int(mask.sum()), box)
