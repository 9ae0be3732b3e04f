"""Stacks of maps (N, h, w) brought to the size of a picture tile by tile, so that what is held at
once does not grow with the picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from service.worker.runtimes.base import Array

Maps = NDArray[np.float32]
"""(N, h, w), and whatever else holds single precision."""

_TILE = (64, 128)
"""Pixels down and across; the second is a multiple of 8, so that rows of bits start at bytes."""


@dataclass(frozen=True)
class Taps:
    """A resize along one axis: output i is the sum over t of ``weights[i, t]`` times input
    ``indices[i, t]``; both (n, T).
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.indices)

    def first(self, count: int) -> Self:
        """The first ``count`` outputs alone."""
        return type(self)(self.indices[:count], self.weights[:count])

    def after(self, earlier: Self) -> Self:
        """This resize of what ``earlier`` gives, as one."""
        weights = self.weights[..., None] * earlier.weights[self.indices]
        count = len(self)
        return type(self)(
            earlier.indices[self.indices].reshape(count, -1), weights.reshape(count, -1)
        )

    def matrix(self, outputs: slice) -> tuple[slice, Array]:
        """The inputs that ``outputs`` read, and the matrix (outputs, inputs) that makes them."""
        indices, weights = self.indices[outputs], self.weights[outputs]
        low, high = int(indices.min()), int(indices.max()) + 1
        dense = np.zeros((len(indices), high - low))
        rows = np.arange(len(indices))
        for tap in range(indices.shape[1]):
            dense[rows, indices[:, tap] - low] += weights[:, tap]
        return slice(low, high), dense.astype(np.float32)


def bilinear(source: int, target: int) -> Taps:
    """Between the centres of two neighbours, edges repeated and nothing smoothed when shrinking:
    torch's ``interpolate(mode="bilinear", align_corners=False)``.
    """
    places = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    low = np.minimum(places.astype(np.int64), source - 1)
    share = np.minimum(places - low, 1)
    indices = np.stack([low, np.minimum(low + 1, source - 1)], axis=1)
    return Taps(indices, np.stack([1 - share, share], axis=1))


def nearest_by_centre(source: int, target: int) -> Taps:
    """The input under an output's centre: Pillow's NEAREST, with its running sum of steps."""
    steps = np.full(target, source / target)
    steps[0] /= 2
    return _picked(np.cumsum(steps), source)


def nearest_by_edge(source: int, target: int) -> Taps:
    """The input under an output's first edge, in single precision: torch's
    ``interpolate(mode="nearest")``.
    """
    step = np.float32(source) / np.float32(target)
    return _picked(np.arange(target, dtype=np.float32) * step, source)


def _picked(places: NDArray[np.floating], source: int) -> Taps:
    indices = np.minimum(places.astype(np.int64), source - 1)[:, None]
    return Taps(indices, np.ones(indices.shape))


@dataclass(frozen=True)
class Tile:
    """A part of the output, ``rows`` and ``columns``, and what it is made of."""

    rows: slice
    columns: slice
    window: tuple[slice, slice]
    """Rows and columns of the maps that the tile reads."""
    down: Array
    across: Array

    def values(self, maps: Maps, chosen: NDArray[np.int64] | None = None) -> Maps:
        """The ``chosen`` of ``maps`` (N, h, w), or all, at the tile's pixels (n, rows, columns);
        equal maps give equal values, to the bit.
        """
        patch = maps[:, *self.window]
        return self.blend(patch if chosen is None else patch[chosen])

    def blend(self, patch: Maps) -> Maps:  # (n, window) -> (n, rows, columns)
        """As ``values``, from the window alone."""
        return self.down @ patch @ self.across.T


@dataclass(frozen=True)
class Tiling:
    """A picture cut into tiles, row by row; of each of their rows and columns the slice of the
    output, that of the maps which it reads, and the matrix between them.
    """

    rows: list[tuple[slice, slice, Array]]
    columns: list[tuple[slice, slice, Array]]

    @classmethod
    def of(cls, down: Taps, across: Taps) -> Self:
        """Tiles of a picture of ``len(down)`` x ``len(across)`` pixels; they are smaller where
        pictures shrink, so that their windows are not larger than a tile would be.
        """
        rows, columns = (
            [(part, *taps.matrix(part)) for part in _slices(len(taps), _step(taps, most))]
            for taps, most in zip((down, across), _TILE, strict=True)
        )
        return cls(rows, columns)

    def __iter__(self) -> Iterator[Tile]:
        for rows, window_down, down in self.rows:
            for columns, window_across, across in self.columns:
                yield Tile(rows, columns, (window_down, window_across), down, across)

    @property
    def areas(self) -> NDArray[np.int64]:  # (T,)
        """Pixels of each tile."""
        heights, widths = (
            np.array([len(matrix) for *_, matrix in parts]) for parts in (self.rows, self.columns)
        )
        return np.outer(heights, widths).ravel()

    def bounds(self, maps: Maps) -> tuple[Maps, Maps]:
        """What no value of a map (N, h, w) falls below or rises above within a tile, (T, N) each,
        up to rounding: weights are positive and sum up to one.
        """
        return self._reduced(np.minimum, maps), self._reduced(np.maximum, maps)

    def _reduced(self, extreme: np.ufunc, maps: Maps) -> Maps:
        of_rows = [extreme.reduce(maps[:, window], axis=1) for _, window, _ in self.rows]
        stacked = np.stack(of_rows)  # (rows of tiles, N, w)
        found = [extreme.reduce(stacked[..., window], axis=2) for _, window, _ in self.columns]
        return np.stack(found, axis=1).reshape(len(of_rows) * len(found), len(maps))


def resized(maps: Maps, down: Taps, across: Taps) -> Maps:  # (N, h, w) -> (N, H, W)
    """All of it at once."""
    full = np.empty((len(maps), len(down), len(across)), dtype=np.float32)
    for tile in Tiling.of(down, across):
        full[:, tile.rows, tile.columns] = tile.values(maps)
    return full


def _step(taps: Taps, most: int) -> int:
    span = int(taps.indices.max() - taps.indices.min()) + 1
    return max(8, int(most * min(1, len(taps) / span)) // 8 * 8)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
