"""Random and awkward outputs of a segmenter, for those who merge them."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

KINDS = ("smooth", "noise", "empty", "tie", "tiny", "wide", "none", "repeated", "strip")


@dataclass(frozen=True)
class Case:
    """``logits`` (Q, K+1) and ``masks`` (Q, h, w), float32; the first half of the classes are
    things; ``picture`` (H, W) is what the masks are of.
    """

    kind: str
    logits: NDArray[np.float32]
    masks: NDArray[np.float32]
    things: tuple[bool, ...]
    picture: tuple[int, int]


def draw(rng: Generator, kind: str, classes: int = 8) -> Case:
    """One case; "none" has no query with an object, "tie" the same mask and score twice, "tiny"
    masks of a cell, "wide" one mask everywhere, "repeated" one kind of stuff in most queries,
    "strip" a picture many times as long as high.
    """
    count = int(rng.integers(2, 16))
    grid = tuple(int(side) for side in rng.integers(5, 30, size=2))
    picture = tuple(int(side) for side in rng.integers(10, 120, size=2))
    things = tuple(index < (classes + 1) // 2 for index in range(classes))
    logits = rng.normal(size=(count, classes + 1))
    best = rng.integers(0, classes, size=count)
    logits[np.arange(count), best] += rng.uniform(2, 9, size=count)
    masks = rng.normal(size=(count, *grid)) * 4 if kind == "noise" else smooth(rng, count, grid)
    if kind == "empty":
        masks = -np.abs(masks) - 0.1
    elif kind == "tie":
        masks[1], logits[1] = masks[0], logits[0]
    elif kind == "tiny":
        masks[:] = -8
        rows, columns = (rng.integers(0, side, size=count) for side in grid)
        masks[np.arange(count), rows, columns] = 6
    elif kind == "wide":
        masks[0] = 12
    elif kind == "none":
        logits[:, -1] += 30
    elif kind == "repeated":
        logits[: -(-2 * count // 3), -2] += 12
    elif kind == "strip":
        picture = (3, 400) if rng.integers(2) else (400, 3)
    return Case(
        kind,
        logits.astype(np.float32),
        masks.astype(np.float32),
        things,
        (picture[0], picture[1]),
    )


def smooth(rng: Generator, count: int, grid: tuple[int, ...]) -> NDArray[np.float64]:
    """Hills and valleys, some three of them a side."""
    rows, columns = (np.linspace(0, 3, side) for side in grid)
    phases = rng.uniform(0, 2 * np.pi, size=(2, count, 1, 1))
    slopes = rng.uniform(-2, 2, size=(2, count, 1, 1))
    waves = np.sin(slopes[0] * rows[:, None] + phases[0]) + np.cos(slopes[1] * columns + phases[1])
    return waves * 6 + rng.normal(size=(count, 1, 1)) * 2 - 2
