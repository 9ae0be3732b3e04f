"""How fast a queue is worked off, and so when it is worth coming back."""

import math

LEAST_S, MOST_S = 1.0, 60.0
_MEMORY_S = 10.0  # what was finished that long ago counts a third of what was finished now


class DrainRate:
    """Pictures or requests finished per second of the time in which there were any."""

    def __init__(self) -> None:
        self._finished = 0.0
        self._busy_s = 0.0
        self._since_s = 0.0

    def begin(self, now_s: float) -> None:
        """There is work again, after a pause that does not count."""
        self._since_s = now_s

    def finish(self, count: int, now_s: float) -> None:
        """So many more are done, all of them at work since the last call."""
        spent_s = now_s - self._since_s
        kept = math.exp(-spent_s / _MEMORY_S)
        self._finished = self._finished * kept + count
        self._busy_s = self._busy_s * kept + spent_s
        self._since_s = now_s

    def per_second(self, now_s: float) -> float:
        """The rate while there is work; 0 before anything was measured.

        Time since the last that was finished counts, so that a queue that stands still is not told
        for one that moves.
        """
        busy_s = self._busy_s + now_s - self._since_s
        return self._finished / busy_s if self._finished and busy_s > 0 else 0.0


def retry_after_s(waiting: int, per_second: float) -> float:
    """When what waits now will have been worked off; the least where nobody knows."""
    if per_second <= 0:
        return LEAST_S
    return min(max(waiting / per_second, LEAST_S), MOST_S)
