"""The loops that a server is measured against: decode, place, run, and nothing else."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from service.bundle import Bundle
from service.images import ImageLimits
from service.pictures import graph_inputs, prepare
from service.settings import Settings
from service.tuning import UNTUNED_BATCH, load_tuning, plan_for, this_machine
from service.worker.runtimes.base import Arrays, Runtime
from service.worker.runtimes.choose import candidates, open_runtime

LIMITS = ImageLimits()


@dataclass(frozen=True)
class Pace:
    """What a loop reached; ``latency_s`` is the median of one image, or of one batch."""

    images_per_s: float
    latency_s: float
    cpu_s: float
    """Processor seconds per image, over all threads."""


class BareLoop:
    """One bundle in this process, in the runtime, precision and streams that the server would
    choose: tuned, if the repository is.
    """

    def __init__(self, bundle: Bundle, pictures: list[bytes], decode_threads: int) -> None:
        self._manifest = bundle.manifest
        self._pictures = pictures
        self._decode_threads = decode_threads
        self.choice = candidates(bundle)[0]
        tuning = load_tuning(Settings(repository=bundle.folder.parent.parent))
        self.plan = plan_for(bundle, self.choice, tuning, this_machine())
        self.batch = max(self.plan.batches.values(), default=UNTUNED_BATCH)
        self._runtimes = {
            str(canvas): open_runtime(
                bundle, "serve", canvas, self.choice, self.plan.threads, streams=self.plan.streams
            )
            for canvas in bundle.manifest.canvases
        }
        self._lone = self._runtimes
        if self.plan.lone_threads:
            self._lone = {
                str(canvas): open_runtime(
                    bundle, "serve", canvas, self.choice, self.plan.lone_threads
                )
                for canvas in bundle.manifest.canvases
            }

    def sequential(self, batch: int, duration_s: float) -> Pace:
        """Decode ``batch`` pictures one after the other, then run them together; and again. A
        single one runs as the server would run a lone one.
        """
        runtimes = self._lone if batch == 1 else self._runtimes
        return self._drive(self._prepared(), batch, duration_s, runtimes)

    def parallel(self, batch: int, duration_s: float) -> Pace:
        """The same in as many threads as the runtime has streams."""
        cpu_s = time.process_time()
        with ThreadPoolExecutor(self.plan.streams) as threads:
            loops = [
                threads.submit(self._drive, self._prepared(), batch, duration_s, self._runtimes)
                for _ in range(self.plan.streams)
            ]
            paces = [loop.result() for loop in loops]
        cpu_s = time.process_time() - cpu_s
        rate = sum(pace.images_per_s for pace in paces)
        latency_s = float(np.mean([pace.latency_s for pace in paces]))
        return Pace(rate, latency_s, cpu_s / (rate * duration_s))

    def pipelined(self, batch: int, duration_s: float) -> Pace:
        """Decode in threads, two batches ahead, while the runtime runs."""
        with ThreadPoolExecutor(self._decode_threads) as threads:
            pending: deque[Future[tuple[str, Arrays]]] = deque()
            endless = cycle(self._pictures)

            def prepared() -> Iterator[tuple[str, Arrays]]:
                while True:
                    while len(pending) < 2 * batch + self._decode_threads:
                        pending.append(threads.submit(self._prepare, next(endless)))
                    yield pending.popleft().result()

            try:
                return self._drive(prepared(), batch, duration_s, self._runtimes)
            finally:
                for future in pending:
                    future.cancel()

    def _drive(
        self,
        prepared: Iterator[tuple[str, Arrays]],
        batch: int,
        duration_s: float,
        runtimes: dict[str, Runtime],
    ) -> Pace:
        """Group by canvas, as any batch must, and run every group that is full."""
        waiting: dict[str, list[Arrays]] = {canvas: [] for canvas in self._runtimes}
        images = 0
        latencies_s = []
        cpu_s = time.process_time()
        started_s = last_s = time.perf_counter()
        while last_s < started_s + duration_s:
            canvas, inputs = next(prepared)
            waiting[canvas].append(inputs)
            if len(waiting[canvas]) < batch:
                continue
            items = waiting[canvas]
            runtimes[canvas].run(
                {name: np.stack([item[name] for item in items]) for name in inputs}
            )
            images += batch
            items.clear()
            now_s = time.perf_counter()
            latencies_s.append(now_s - last_s)
            last_s = now_s
        wall_s = last_s - started_s
        cpu_s = time.process_time() - cpu_s
        return Pace(images / wall_s, float(np.median(latencies_s)), cpu_s / images)

    def _prepared(self) -> Iterator[tuple[str, Arrays]]:
        return map(self._prepare, cycle(self._pictures))

    def _prepare(self, data: bytes) -> tuple[str, Arrays]:
        picture = prepare(data, self._manifest, LIMITS)
        return str(picture.placement.canvas), graph_inputs(picture, self._manifest)
