"""A map of numbers as runs of equal ones along its rows. Where a map is flat they are few, and to
count, measure or renumber it takes a step for each run instead of one for each pixel.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from service.worker.runtimes.base import Array


@dataclass(frozen=True)
class Runs:
    """A map of ``shape`` (H, W): ``values`` (R,) and the ``starts`` (R,) of their runs, counted
    from the top left pixel row by row. No run leaves its row.
    """

    shape: tuple[int, int]
    values: NDArray[np.uint16]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, drawn: NDArray[np.uint16]) -> Self:
        """The runs of a map (H, W)."""
        begins = np.ones(drawn.shape, dtype=bool)
        np.not_equal(drawn[:, 1:], drawn[:, :-1], out=begins[:, 1:])
        starts = np.flatnonzero(begins)
        return cls((drawn.shape[0], drawn.shape[1]), drawn.ravel()[starts], starts)

    @property
    def lengths(self) -> NDArray[np.int64]:  # (R,)
        """Pixels of each run."""
        return np.diff(self.starts, append=self.shape[0] * self.shape[1])

    def areas(self, count: int) -> NDArray[np.int64]:
        """Pixels of each value below ``count`` (count,)."""
        found = np.bincount(self.values, weights=self.lengths, minlength=count)
        return found.astype(np.int64)  # exact: double precision holds whole numbers up to 2 ** 53

    def boxes(self, count: int) -> Array:
        """The smallest box of each value below ``count``: left, top, width, height (count, 4). Only
        those of values that occur mean anything.
        """
        rows, columns = np.divmod(self.starts, self.shape[1])
        least = np.full((2, count), max(self.shape))
        most = np.zeros((2, count), dtype=np.int64)
        for axis, firsts, lasts in ((0, columns, columns + self.lengths), (1, rows, rows + 1)):
            np.minimum.at(least[axis], self.values, firsts)
            np.maximum.at(most[axis], self.values, lasts)
        return np.concatenate([least, most - least]).T

    def renumbered(self, table: NDArray[np.uint16]) -> Self:
        """With ``table[value]`` in place of each value."""
        return type(self)(self.shape, table[self.values], self.starts)

    def drawn(self) -> NDArray[np.uint16]:  # (H, W)
        """The map again."""
        return np.repeat(self.values, self.lengths).reshape(self.shape)
