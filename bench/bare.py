"""The loop that a server is measured against: decode, place, run, and nothing else."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from service.bundle import Bundle
from service.geometry import Size, choose_canvas, place, to_canvas
from service.images import ImageLimits, decode
from service.worker.runtimes.base import Array
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
    """One bundle in this process, in the runtime and precision that the server would choose."""

    def __init__(self, bundle: Bundle, pictures: list[bytes], decode_threads: int) -> None:
        self._manifest = bundle.manifest
        self._pictures = pictures
        self._decode_threads = decode_threads
        self.choice = candidates(bundle)[0]
        self._runtimes = {
            str(canvas): open_runtime(bundle, "serve", canvas, self.choice)
            for canvas in bundle.manifest.canvases
        }

    def sequential(self, batch: int, duration_s: float) -> Pace:
        """Decode ``batch`` pictures one after the other, then run them together; and again."""
        prepared = (self._prepare(data) for data in self._endless())
        return self._drive(prepared, batch, duration_s)

    def pipelined(self, batch: int, duration_s: float) -> Pace:
        """Decode in threads, two batches ahead, while the runtime runs."""
        with ThreadPoolExecutor(self._decode_threads) as threads:
            pending: deque[Future[tuple[str, Array]]] = deque()
            endless = self._endless()

            def prepared() -> Iterator[tuple[str, Array]]:
                while True:
                    while len(pending) < 2 * batch + self._decode_threads:
                        pending.append(threads.submit(self._prepare, next(endless)))
                    yield pending.popleft().result()

            try:
                return self._drive(prepared(), batch, duration_s)
            finally:
                for future in pending:
                    future.cancel()

    def _drive(self, prepared: Iterator[tuple[str, Array]], batch: int, duration_s: float) -> Pace:
        """Group by canvas, as any batch must, and run every group that is full."""
        waiting: dict[str, list[Array]] = {canvas: [] for canvas in self._runtimes}
        images = 0
        latencies_s = []
        cpu_s = time.process_time()
        started_s = last_s = time.perf_counter()
        while last_s < started_s + duration_s:
            canvas, pixels = next(prepared)
            waiting[canvas].append(pixels)
            if len(waiting[canvas]) < batch:
                continue
            self._runtimes[canvas].run({"images": np.stack(waiting[canvas])})
            images += batch
            waiting[canvas].clear()
            now_s = time.perf_counter()
            latencies_s.append(now_s - last_s)
            last_s = now_s
        wall_s = last_s - started_s
        cpu_s = time.process_time() - cpu_s
        return Pace(images / wall_s, float(np.median(latencies_s)), cpu_s / images)

    def _prepare(self, data: bytes) -> tuple[str, Array]:
        upright = decode(data, LIMITS)
        size = Size(height=upright.height, width=upright.width)
        geometry = self._manifest.geometry
        canvas = choose_canvas(geometry, size, self._manifest.canvases)
        return str(canvas), to_canvas(upright, place(geometry, size, canvas))

    def _endless(self) -> Iterator[bytes]:
        while True:
            yield from self._pictures
