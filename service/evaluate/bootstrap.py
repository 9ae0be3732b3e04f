"""How far a score would move had other pictures of the same kind been drawn.

Percentile bootstrap over pictures (Efron and Tibshirani 1993, chapter 13).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
"""How often each picture was drawn (N,)."""
Figures = dict[str, float]
RESAMPLES = 1000
SHARE = 0.95
SEED = 20_260_701


def resample(
    pictures: int, measure: Callable[[Weights], Figures], resamples: int = RESAMPLES
) -> dict[str, NDArray[np.float64]]:
    """Every figure of ``resamples`` draws with replacement, each (R,).

    Draws are the same for the same number of pictures, so that two models are compared on the same
    ones.
    """
    rng = np.random.default_rng(SEED)
    chances = np.full(pictures, 1 / max(pictures, 1))
    drawn = [
        measure(rng.multinomial(pictures, chances).astype(np.float64)) for _ in range(resamples)
    ]
    return {name: np.array([one[name] for one in drawn]) for name in drawn[0]}


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle ``SHARE`` of the values."""
    tail = 50 * (1 - SHARE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
