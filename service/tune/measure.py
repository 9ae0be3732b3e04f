"""Times one canvas of a model in several layouts, interleaved, so that whatever else the machine
does falls on all of them; medians over the rounds count.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from service.bundle import Manifest
from service.cores import physical_cores, usable_cores
from service.geometry import Size
from service.tune.pick import GAIN
from service.tuning import Layout, Point
from service.worker.runtimes.base import Arrays, Runtime, example_inputs

BATCHES = (1, 2, 4, 8, 16, 32)
ROUNDS = 5
LONGEST_S = 2.0
"""Nobody waits for a batch that takes longer; a single picture may."""
MEMORY_SHARE = 3
"""A batch is the last where this many times the memory that it took is no longer free."""


def layouts_of_this_machine() -> list[tuple[int, int]]:
    """Streams and threads to try, the simplest first: one stream of one thread, the cores shared by
    1, 2, 4, 8 streams or one each, and where cores have hyper-threads, one stream without those.
    """
    cores, physical = usable_cores(), physical_cores()
    streams = {count for count in (1, 2, 4, 8, physical, cores) if count <= cores}
    return sorted({(1, 1), (1, physical), *((count, cores) for count in streams)})


class Inputs:
    """Batches of a canvas: noise for pixels, whole pictures, the thresholds of the manifest."""

    def __init__(self, manifest: Manifest, canvas: Size) -> None:
        self._pixels = np.random.default_rng(0)
        self._known: dict[str, object] = {"sizes": (canvas.height, canvas.width)}
        if manifest.segmentation is not None:
            for name in ("threshold", "overlap_threshold"):
                self._known[name] = getattr(manifest.segmentation, name)

    def make(self, runtime: Runtime, batch: int) -> Arrays:
        """What the graph takes."""
        inputs = example_inputs(runtime, batch)
        for name, array in inputs.items():
            if name in self._known:
                array[...] = self._known[name]
        inputs["images"] = self._pixels.integers(0, 256, inputs["images"].shape, dtype=np.uint8)
        return inputs


@dataclass
class Contender:
    """One layout of one canvas, compiled; by batch, the seconds of all its runs, and of every slice
    the images per second and the processor seconds per image.
    """

    runtime: Runtime
    inputs: Inputs
    alone_s: list[float] = field(default_factory=list)
    busy_s: dict[int, list[float]] = field(default_factory=dict)
    paces: dict[int, list[float]] = field(default_factory=dict)
    cpu_s: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.runtime.streams)
        self._batches: dict[int, Arrays] = {}

    def close(self) -> None:
        """Stop its threads."""
        self._threads.shutdown()

    def warm_up(self, batch: int) -> None:
        """Run the batch in every stream; what it takes to be slow the first time is over then."""
        self._batches[batch] = self.inputs.make(self.runtime, batch)
        for _ in range(2):
            self._in_every_stream(batch, 0)

    def run_alone(self, duration_s: float) -> None:
        """One picture after the other, in one stream."""
        self.alone_s += _repeat(self.runtime, self._batches[1], duration_s)

    def run_busy(self, batch: int, duration_s: float) -> None:
        """Batch after batch in every stream."""
        cpu_s = time.process_time()
        taken = self._in_every_stream(batch, duration_s)
        cpu_s = time.process_time() - cpu_s
        images = batch * sum(len(stream) for stream in taken)
        self.cpu_s.setdefault(batch, []).append(cpu_s / images)
        self.busy_s.setdefault(batch, []).extend(second for stream in taken for second in stream)
        pace = sum(batch * len(stream) / sum(stream) for stream in taken)
        self.paces.setdefault(batch, []).append(pace)

    def point(self, batch: int) -> Point:
        """What a batch size came to so far.

        Images per second are not taken from the median run: where other work interrupts, most
        short runs escape it and no long one does, and small batches would look too good.
        """
        return Point(
            batch=batch,
            seconds=median(self.busy_s[batch]),
            images_per_s=median(self.paces[batch]),
            cpu_s=median(self.cpu_s[batch]),
        )

    def layout(self) -> Layout:
        """Everything measured."""
        return Layout(
            streams=self.runtime.streams,
            threads=self.runtime.threads,
            latency_s=median(self.alone_s),
            points=[self.point(batch) for batch in self.busy_s],
        )

    def _in_every_stream(self, batch: int, duration_s: float) -> list[list[float]]:
        """Seconds of every run, by stream."""
        jobs = [
            self._threads.submit(_repeat, self.runtime, self._batches[batch], duration_s)
            for _ in range(self.runtime.streams)
        ]
        return [job.result() for job in jobs]


def measure(
    contenders: Sequence[Contender],
    seconds: float,
    report: Callable[[float], None],
    batches: Sequence[int] = BATCHES,
) -> list[Layout]:
    """Layouts of one canvas, ``seconds`` for each point of the grid; ``report`` hears the share
    done. The first round finds out how far batches are worth trying, the others repeat it.
    """
    slice_s = seconds / ROUNDS
    for contender in contenders:
        _explore(contender, slice_s, batches)
    report(1 / ROUNDS)
    for done in range(2, ROUNDS + 1):
        for contender in contenders:
            contender.run_alone(slice_s)
        for batch in batches:
            for contender in contenders:
                if batch in contender.busy_s:
                    contender.run_busy(batch, slice_s)
        report(done / ROUNDS)
    return [contender.layout() for contender in contenders]


def available_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> float:
    """Memory that may still be taken, on the machine and in the container, whose limit counts files
    in memory that go when they must.
    """
    free = [float("inf")]
    try:
        lines = [line.split() for line in meminfo.read_text().splitlines()]
        free += [int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"]
        limit, used = ((cgroup / f"memory.{name}").read_text() for name in ("max", "current"))
        free.append(int(limit) - int(used) + _files_in_memory(cgroup / "memory.stat"))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        pass
    return min(free)


def _files_in_memory(stat: Path) -> int:
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(line[1]) for line in lines if line[0] == "inactive_file")


def _explore(contender: Contender, slice_s: float, batches: Sequence[int]) -> None:
    """Grow the batch until two sizes in a row bring no more than GAIN, or it gets too large."""
    best = idle = 0.0
    for batch in batches:
        before = available_bytes()
        try:
            contender.warm_up(batch)
        except Exception:  # of any library: too little memory, most likely
            if batch == batches[0]:
                raise
            return
        if batch == batches[0]:
            contender.run_alone(slice_s)
        contender.run_busy(batch, slice_s)
        point, left = contender.point(batch), available_bytes()
        idle = 0 if point.images_per_s > best * (1 + GAIN) else idle + 1
        best = max(best, point.images_per_s)
        too_large = point.seconds * 2 > LONGEST_S or (before - left) * MEMORY_SHARE > left
        if idle == 2 or too_large:
            return


def _repeat(runtime: Runtime, inputs: Arrays, duration_s: float) -> list[float]:
    """Seconds of every run, at least one."""
    taken: list[float] = []
    started_s = last_s = time.perf_counter()
    while not taken or last_s < started_s + duration_s:
        runtime.run(inputs)
        now_s = time.perf_counter()
        taken.append(now_s - last_s)
        last_s = now_s
    return taken
