"""What to do when a batch does not fit into memory: smaller ones, for a while."""

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
LOWERED_S = 60.0

# What libraries say, in lower case; none of them has a class of its own for it.
_PHRASES = (
    "bad_alloc",
    "bad allocation",
    "cannot allocate memory",
    "could not allocate",
    "failed to allocate",
    "out of memory",
    "out_of_memory",
    "cublas_status_alloc_failed",
    "unable to allocate",
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, as Python, ONNX Runtime, OpenVINO or CUDA say it."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return any(phrase in text for phrase in _PHRASES)


class Lowered(Generic[Key]):
    """Limits that hold for LOWERED_S after a batch of that size failed; ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limits: dict[Key, tuple[int, float]] = {}

    def lower(self, key: Key, limit: int) -> None:
        """From now on no more than ``limit`` at once."""
        self._limits[key] = self.limit(key, limit), self._clock() + LOWERED_S

    def limit(self, key: Key, best: int) -> int:
        """``best``, or what is possible at the moment if that is less."""
        if key not in self._limits:
            return best
        limit, until_s = self._limits[key]
        if self._clock() >= until_s:
            del self._limits[key]
            return best
        return min(limit, best)
