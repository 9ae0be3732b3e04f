"""How far a score would move had other pictures of the same kind been drawn.

Bootstrap over pictures (Efron and Tibshirani 1993, chapters 13 and 14).
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
"""How often each picture was drawn (N,)."""
Figures = dict[str, float]
Draws = dict[str, NDArray[np.float64]]
"""Every figure of each draw (R,)."""
RESAMPLES = 1000
SHARE = 0.95
SEED = 20_260_701


def resample(
    pictures: int, measure: Callable[[Weights], Figures], resamples: int = RESAMPLES
) -> Draws:
    """Every figure of ``resamples`` draws with replacement, each (R,); NaN in a draw that has
    nothing to say of it.

    Draws are the same for the same number of pictures, so that two models are compared on the same
    ones.
    """
    rng = np.random.default_rng(SEED)
    chances = np.full(pictures, 1 / max(pictures, 1))
    drawn = [
        measure(rng.multinomial(pictures, chances).astype(np.float64)) for _ in range(resamples)
    ]
    return {name: np.array([one[name] for one in drawn]) for name in drawn[0]}


def interval(values: NDArray[np.float64], estimate: float) -> tuple[float, float] | None:
    """Where the figure lies in ``SHARE`` of the draws, corrected for their bias: a resample lacks
    rare classes, whose figures then are no part of the mean (Efron and Tibshirani, section 14.3,
    without acceleration). Of a figure that no draw has, there is none.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    normal = NormalDist()
    below = float(np.mean(values < estimate) + np.mean(values == estimate) / 2)
    edge = 0.5 / len(values)
    bias = 2 * normal.inv_cdf(min(max(below, edge), 1 - edge))
    reach = normal.inv_cdf((1 + SHARE) / 2)
    shares = [100 * normal.cdf(bias + side * reach) for side in (-1, 1)]
    low, high = np.percentile(values, shares)
    return float(low), float(high)
