"""Who has a pixel: maps are compared at the resolution of a picture, tile by tile.

Within a tile no value exceeds those of the cells around it. So a map that cannot win there is not
brought to the tile's resolution at all, which decides nothing and leaves out most of the work: a
mask is far from one half almost everywhere.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from service.tasks.resampling import Maps, Taps, Tile, Tiling
from service.tasks.runs import Runs

_SHARE = 1e-4  # by which rounding may move a probability, as a share of it
_TRACE = 1e-5  # of a sum of probabilities, which may be left out


@dataclass(frozen=True)
class Contest:
    """``winners`` (H, W): index of the map that has the pixel. ``strong`` (H, W): whether its own
    probability reaches one half there. ``own_areas`` (N,): pixels where a map is strong by itself.
    """

    winners: NDArray[np.uint16]
    strong: NDArray[np.bool_]
    own_areas: NDArray[np.int64]

    @property
    def areas(self) -> NDArray[np.int64]:  # (N,)
        """Pixels that every map won."""
        return Runs.of(self.winners).areas(len(self.own_areas))


def sigmoid(logits: Maps) -> Maps:
    """Probabilities, float32."""
    raised = np.negative(logits)
    with np.errstate(over="ignore"):
        np.exp(raised, out=raised)
    raised += 1
    return np.reciprocal(raised, out=raised)


def by_probability(
    maps: Maps, scores: Maps, down: Taps, across: Taps, are_logits: bool, weighted: bool
) -> Contest:
    """The largest probability times score (N,) has the pixel, the first of equals.

    ``maps`` (N, h, w), at least one, are logits whose probability is taken after the resize, or
    probabilities. ``weighted``: a map is strong where probability times score reaches one half.
    """
    winners = np.empty((len(down), len(across)), dtype=np.uint16)
    strong = np.empty(winners.shape, dtype=bool)
    tiling = Tiling.of(down, across)
    low, high = tiling.bounds(maps)  # (T, N)
    if are_logits:
        low, high = sigmoid(low), sigmoid(high)
    low_weighted, high_weighted = low * scores, high * scores
    if weighted:
        low, high = low_weighted, high_weighted
    rivals = high_weighted >= low_weighted.max(axis=1, keepdims=True) * (1 - _SHARE)
    unsure = (low < 0.5 * (1 + _SHARE)) & (high >= 0.5 * (1 - _SHARE))
    decided = (rivals.sum(axis=1) == 1) & ~(rivals & unsure).any(axis=1)
    own_areas = tiling.areas @ (low >= 0.5 * (1 + _SHARE))
    for number, tile in enumerate(tiling):
        place = tile.rows, tile.columns
        if decided[number]:
            best = rivals[number].argmax()
            winners[place], strong[place] = best, low[number, best] >= 0.5
            rivals[number, best] = False
        chosen = np.flatnonzero(rivals[number] | unsure[number])
        if len(chosen) == 0:
            continue
        values = tile.values(maps, chosen)
        if are_logits:
            values = sigmoid(values)
        weighted_values = values * scores[chosen, None, None]
        half = (weighted_values if weighted else values) >= 0.5
        own_areas[chosen] += unsure[number, chosen] * np.count_nonzero(half, axis=(1, 2))
        running = np.flatnonzero(rivals[number, chosen])
        if len(running):
            largest = reduce(np.maximum, (weighted_values[index] for index in running))
            for index in running[::-1]:  # so that of equals the first is written last
                here = weighted_values[index] == largest
                np.copyto(winners[place], np.uint16(chosen[index]), where=here)
                np.copyto(strong[place], half[index], where=here)
    return Contest(winners, strong, own_areas)


def by_value(maps: Maps, down: Taps, across: Taps) -> NDArray[np.uint16]:  # (H, W)
    """The index of the largest of ``maps`` (N, h, w), at least one, at every pixel; the first of
    equals.
    """
    winners = np.empty((len(down), len(across)), dtype=np.uint16)
    tiling = Tiling.of(down, across)
    for tile, low, high in zip(tiling, *tiling.bounds(maps), strict=True):
        slack = _SHARE * max(float(np.abs(low).max()), float(np.abs(high).max()))
        rivals = np.flatnonzero(high >= low.max() - slack)
        if len(rivals) > 1:
            rivals = rivals[_first_largest(tile.values(maps, rivals))]
        winners[tile.rows, tile.columns] = rivals
    return winners


def by_sum(maps: Maps, weights: Maps, down: Taps, across: Taps) -> NDArray[np.uint16]:  # (H, W)
    """The class whose sum over maps of ``weights`` (K, N) times probability is largest; ``maps``
    (N, h, w) are logits whose probability is taken after the resize.
    """
    winners = np.empty((len(down), len(across)), dtype=np.uint16)
    tiling = Tiling.of(down, across)
    bounds = (sigmoid(bound) for bound in tiling.bounds(maps))
    for tile, low, high in zip(tiling, *bounds, strict=True):
        least = (weights @ low).max()  # the best sum is no smaller
        rivals = np.flatnonzero(weights @ high >= least * (1 - _SHARE))
        if len(rivals) > 1:
            own = weights[rivals]
            # Maps that together add to no sum more than a trace are left out.
            reach = own.max(axis=0) * high
            order = np.argsort(reach)
            chosen = np.sort(order[np.cumsum(reach[order]) >= least * _TRACE])
            rivals = rivals[_largest_sum(tile, maps, own, chosen)]
        winners[tile.rows, tile.columns] = rivals
    return winners


def by_resized_sum(
    maps: Maps, weights: Maps, inner: tuple[Taps, Taps], outer: tuple[Taps, Taps]
) -> NDArray[np.uint16]:  # (H, W)
    """As ``by_sum``, but the sums are made after the ``inner`` resize and go through the ``outer``
    one before they are compared.
    """
    winners = np.empty((len(outer[0]), len(outer[1])), dtype=np.uint16)
    for tile in Tiling.of(*outer):
        (rows, first), (columns, second) = (
            taps.matrix(part) for taps, part in zip(inner, tile.window, strict=True)
        )
        probabilities = sigmoid(first @ maps[:, rows, columns] @ second.T)
        sums = np.tensordot(weights, probabilities, axes=1)
        winners[tile.rows, tile.columns] = _first_largest(tile.blend(sums))
    return winners


def _largest_sum(
    tile: Tile, maps: Maps, weights: Maps, chosen: NDArray[np.int64]
) -> NDArray[np.uint16]:
    probabilities = sigmoid(tile.values(maps, chosen))
    return _first_largest(np.tensordot(weights[:, chosen], probabilities, axes=1))


def _first_largest(values: Maps) -> NDArray[np.uint16]:  # (N, ...) -> (...)
    """``argmax(axis=0)``, some five times faster for values that lie side by side."""
    largest = values.max(axis=0)
    indices = np.zeros(largest.shape, dtype=np.uint16)
    for index in range(len(values) - 1, -1, -1):
        np.copyto(indices, np.uint16(index), where=values[index] == largest)
    return indices
