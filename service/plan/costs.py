"""What a request costs on one replica, from what ``saccade tune`` and ``saccade plan --measure``
found out about its machine.

Work is counted in seconds of a thread that has the machine to itself. ``paces`` say how much of it
the cores do in a second while so many threads are busy: two hyper-threads do less than two cores.
Threads share the cores evenly, so each advances at ``pace / threads``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.tuning import REST_CPU_S, Around, Entry, Layout, Profile

LEAST_CROWDED, MOST_CROWDED = 0.5, 1.5
"""Beyond these the profile and the measurement are not of the same state of a machine."""


@dataclass(frozen=True)
class Costs:
    """One model on one replica. ``work_s[b - 1]`` is the work of each of the ``threads`` that share
    a batch of b, ``lone`` the work and the threads of a picture with nothing beside it, where that
    has a runtime of its own.

    ``rest_s`` are quantiles of the wall time of a request outside its batch, ``jitter`` of the time
    of a batch, relative to its median. Of the rest the part ``before`` comes before the queue, and
    the part ``on_cores`` occupies a core; ``beside_s`` is processor time after the answer.
    ``client_s`` is the processor time of a client on the same cores. ``crowded`` is what more
    threads than cores do, relative to as many as there are cores.
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
        return float(np.mean(_between(self.rest_s, 200)))

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
        return _at(self.rest_s, at)

    def draw_jitter(self, at: np.ndarray) -> np.ndarray:
        """What to multiply the time of a batch with, at places of the distribution."""
        return _at(self.jitter, at)


def costs_of(
    profile: Profile, entry: Entry, around: Around | None, clients_here: bool = False
) -> Costs:
    """The costs of a canvas of a model on the machine that was measured; ``clients_here`` are on
    its cores, as they are when it is measured.

    Without ``around`` the rest of a request is what ``saccade tune`` takes it for.
    """
    on_device, cores = entry.device != "cpu", profile.machine.cores
    paces = tuple(map(float, range(1, cores + 1))) if on_device else _paces(cores, entry.grid)
    layout = _layout(entry, entry.streams, entry.threads)
    threads = max(1, entry.threads // entry.streams)
    plain = Costs(paces, entry.streams, threads, entry.batch, (1.0,), on_device=on_device)
    all_threads = entry.streams * threads
    pace = 1.0 if on_device else plain.pace(all_threads) / all_threads
    alone = _layout(entry, 1, entry.lone_threads) if entry.lone_threads else None
    # What a batch costs in a server beyond what it costs in a loop: stacking, waking threads, cold
    # caches. A lone picture tells.
    lone_s = layout.latency_s if alone is None else alone.latency_s
    median_s = _middle(around.infer_s) if around else lone_s
    extra_s = max(0.0, median_s - lone_s)
    work_s = tuple((seconds + extra_s) * pace for seconds in _batch_seconds(layout, entry.batch))
    lone = None
    if alone is not None:
        share = plain.pace(alone.threads) / alone.threads
        lone = (alone.latency_s + extra_s) * share, alone.threads
    fields = vars(plain) | {"work_s": work_s, "lone": lone}
    if around is None:
        return Costs(**fields)
    rest_s = float(np.mean(_between(around.rest_s, 200)))
    found = Costs(
        **fields
        | {
            "client_s": around.client_s,
            "rest_s": tuple(around.rest_s),
            "jitter": tuple(second / median_s for second in around.infer_s),
            "before": around.before,
            "on_cores": min(1.0, around.cpu_s / rest_s),
            "beside_s": max(0.0, around.cpu_s - rest_s),
            "processes": around.processes,
            "decoders": around.decoders,
        }
    )
    # Caches that decoding and the model take from each other, and turns of many threads on few
    # cores: what a full server does tells how much that comes to.
    crowded = min(max(around.full_per_s / found.capacity, LEAST_CROWDED), MOST_CROWDED)
    client_s = around.client_s if clients_here else 0.0
    return replace(found, crowded=crowded, client_s=client_s)


def _layout(entry: Entry, streams: int, threads: int) -> Layout:
    for layout in entry.grid:
        if (layout.streams, layout.threads) == (streams, threads):
            return layout
    return entry.grid[0]


def _paces(cores: int, grid: Sequence[Layout]) -> tuple[float, ...]:
    """By how much several threads do more than one: what streams of one thread each reached."""
    alone_s = next((one.latency_s for one in grid if (one.streams, one.threads) == (1, 1)), None)
    known = {1: 1.0}
    for layout in grid:
        if alone_s is not None and layout.streams == layout.threads > 1:
            reached = layout.streams * alone_s / layout.points[0].seconds
            known[layout.streams] = min(max(reached, 1.0), float(layout.streams))
    known.setdefault(cores, known[max(known)] / max(known) * cores)
    counts = sorted(known)
    found = np.interp(range(1, cores + 1), counts, [known[count] for count in counts])
    return tuple(float(one) for one in np.maximum.accumulate(found))


def _batch_seconds(layout: Layout, most: int) -> list[float]:
    """By batch size from 1; between those measured in a straight line, beyond in proportion."""
    sizes = [point.batch for point in layout.points]
    seconds = [point.seconds for point in layout.points]
    found = np.interp(range(1, most + 1), sizes, seconds)
    last, last_s = sizes[-1], seconds[-1]
    return [
        float(one) if size <= last else last_s * size / last
        for size, one in enumerate(found, start=1)
    ]


def _at(quantiles: Sequence[float], at: np.ndarray) -> np.ndarray:
    if len(quantiles) == 1:
        return np.full(len(at), quantiles[0])
    return np.interp(at, np.linspace(0, 1, len(quantiles)), quantiles)


def _between(quantiles: Sequence[float], count: int) -> np.ndarray:
    return _at(quantiles, (np.arange(count) + 0.5) / count)


def _middle(quantiles: Sequence[float]) -> float:
    return float(_at(quantiles, np.array([0.5]))[0])
