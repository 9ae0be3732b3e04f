"""What a request costs on one replica.

Work is counted in seconds of a thread that has the machine to itself. ``paces`` say how much of it
the cores do in a second while so many threads are busy: two hyper-threads do less than two cores.
Threads share the cores evenly, so each advances at ``pace / threads``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.settings import Settings
from service.tuning import REST_CPU_S

MAX_QUEUE: int = Settings.model_fields["max_queue"].default


@dataclass(frozen=True)
class Costs:
    """One model on one replica. ``work_s[b - 1]`` is the work of each of the ``threads`` that share
    a batch of b, ``lone`` the work and the threads of a picture with nothing beside it, where that
    has a runtime of its own.

    ``rest_s`` are quantiles of the wall time of a request outside its batch, ``jitter`` of the time
    of a batch, relative to its median, in the runtime that a picture alone has. Of the rest the
    part ``before`` comes before the queue, and the part ``on_cores`` occupies a core; ``beside_s``
    is processor time after the answer. ``client_s`` is the processor time of a client on the same
    cores. ``crowded`` is what more threads than cores do, relative to as many as there are cores;
    ``max_queue`` is the setting.
    """

    paces: tuple[float, ...]
    streams: int
    threads: int
    batch: int
    work_s: tuple[float, ...]
    lone: tuple[float, int] | None = None
    rest_s: tuple[float, ...] = (REST_CPU_S,)
    jitter: tuple[float, ...] = (1.0,)
    before: float = 0.8
    on_cores: float = 1.0
    beside_s: float = 0.0
    client_s: float = 0.0
    processes: int = 2
    decoders: int = 1
    on_device: bool = False
    crowded: float = 1.0
    max_queue: int = MAX_QUEUE

    @property
    def cores(self) -> int:
        """Of one replica."""
        return len(self.paces)

    def pace(self, threads: float) -> float:
        """Work that the cores do in a second while so many threads are busy."""
        if threads <= 1:
            return threads
        if threads >= self.cores:
            beyond = min(threads - self.cores, 1.0)
            return self.paces[-1] * (1 + beyond * (self.crowded - 1))
        below = int(threads)
        step = self.paces[below] - self.paces[below - 1]
        return self.paces[below - 1] + (threads - below) * step

    def batch_s(self, size: int, beside: float = 0.0) -> float:
        """Seconds of a batch with every stream busy and so many other threads ``beside``."""
        if self.on_device:
            return self.work_s[size - 1]
        threads = self.streams * self.threads + beside
        return self.work_s[size - 1] * threads / self.pace(threads)

    @property
    def rest_mean_s(self) -> float:
        """Wall time outside the batch, in the mean."""
        return float(np.mean(quantiles_at(self.rest_s, (np.arange(200) + 0.5) / 200)))

    @property
    def rest_cpu_s(self) -> float:
        """Work of a core for each picture, outside its batch."""
        return self.rest_mean_s * self.on_cores + self.beside_s + self.client_s

    @property
    def capacity(self) -> float:
        """Pictures a second beyond which the queue grows without end."""
        sizes = range(1, self.batch + 1)
        if self.on_device:
            best = max(self.streams * size / self.batch_s(size) for size in sizes)
            return min(best, self.paces[-1] * self.crowded / self.rest_cpu_s)
        picture_s = min(self.threads * self.work_s[size - 1] / size for size in sizes)
        by_streams = max(self.streams * size / self.batch_s(size) for size in sizes)
        full = self.paces[-1] * self.crowded
        return min(by_streams, full / (picture_s + self.rest_cpu_s))

    def draw_rest_s(self, at: np.ndarray) -> np.ndarray:
        """Wall times outside the batch, at places of their distribution from 0 to 1."""
        return quantiles_at(self.rest_s, at)

    def draw_jitter(self, at: np.ndarray) -> np.ndarray:
        """What to multiply the time of a batch with, at places of the distribution."""
        return quantiles_at(self.jitter, at)


def quantiles_at(quantiles: Sequence[float], at: np.ndarray) -> np.ndarray:
    """A distribution, given by quantiles at even steps, at places from 0 to 1."""
    if len(quantiles) == 1:
        return np.full(len(at), quantiles[0])
    return np.interp(at, np.linspace(0, 1, len(quantiles)), quantiles)
