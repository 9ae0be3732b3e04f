"""Batches on a GPU: copied in, run and copied out in streams of their own, so that of three
consecutive ones each can be doing one of these.
"""

import ctypes
import functools
import logging
import queue
import threading
import weakref
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

from service.engines import BatchRange
from service.worker.runtimes.base import Arrays
from service.worker.runtimes.buckets import LANES, Bucket, Layout, bucket_for, cut, layout, sizes
from service.worker.runtimes.tensorrt.cuda import Context, CudaError, Pinned
from service.worker.runtimes.tensorrt.plans import Engine, Enqueue, check_profiles, size_of

_log = logging.getLogger(__name__)


class TensorRt:
    """A plan on one device.

    ``ranges`` are the batches that its profiles take. Pictures are filled up to the next batch of a
    short list (see ``bucket_for``); every such batch of every lane has its buffers, its context and
    its CUDA graph from the start on, so that no request waits for one to be made.

    Raises:
        BadBundle: the plan does not take the batches that the manifest says.
        CudaError: the device has no memory for that.
    """

    name = "tensorrt"
    threads = 1

    def __init__(
        self,
        engine: Engine,
        context: Context,
        ranges: Sequence[BatchRange],
        precision: str,
        device: str,
        lanes: int = LANES,
    ) -> None:
        check_profiles(engine, ranges)
        self.precision, self.device, self.streams = precision, device, lanes
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.ranges = list(ranges)
        self.most = max(one.most for one in ranges)
        self.captured = 0
        self._engine = engine
        self._context = context = context.part()
        weakref.finalize(self, context.release)
        self._order = threading.Lock()
        context.enter()
        self._in, self._run, self._out = (context.stream() for _ in range(3))
        scratch = context.device_memory(engine.scratch_bytes)  # one batch runs at a time
        self._idle: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for _ in range(lanes):
            lane = _Lane(engine, context, self.most)
            for batches in ranges:
                for size in sizes(batches):
                    bucket = bucket_for(ranges, size)
                    self.captured += lane.prepare(engine, bucket, scratch, self._run)
            self._idle.put(lane)
        _log.info("%d of the engine's batches are CUDA graphs", self.captured)

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        """See ``Runtime.run``; more pictures than the largest batch are run one batch after
        another.
        """
        count = len(next(iter(inputs.values())))
        names = [name for name in self.outputs if wanted is None or name in wanted]
        parts, start = [], 0
        for size in cut(self.ranges, count):
            rows = {name: array[start : start + size] for name, array in inputs.items()}
            parts.append(self._run_batch(rows, size, names))
            start += size
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def times_s(self, batch: int, rounds: int) -> list[float]:
        """Seconds of each of ``rounds`` batches of so many pictures on the device, by its own
        clock: nothing is copied, and between two of them nothing waits for the host. Batches of
        others wait meanwhile.
        """
        self._context.enter()
        bucket, lane, marks = bucket_for(self.ranges, batch), self._idle.get(), self._context.part()
        try:
            passed = [marks.timer() for _ in range(rounds + 1)]
            with self._order:
                marks.record(passed[0], self._run)
                for mark in passed[1:]:
                    lane.enqueue(self._run, bucket)
                    marks.record(mark, self._run)
            marks.wait_for(passed[-1])
            return [marks.elapsed_s(first, last) for first, last in pairwise(passed)]
        finally:
            marks.release()
            self._idle.put(lane)

    def _run_batch(self, inputs: Arrays, count: int, names: list[str]) -> Arrays:
        self._context.enter()
        bucket = bucket_for(self.ranges, count)
        lane = self._idle.get()
        try:
            lane.fill(inputs, bucket.batch)
            lane.copy_in(self._in, bucket.batch)
            with self._order:  # what enters the middle stream comes out in the same order
                lane.run(self._run, bucket)
            lane.copy_out(self._out, bucket.batch, count, names)
            return lane.answer(bucket.batch, count, names)
        finally:
            self._idle.put(lane)


class _Lane:
    """The buffers of a batch that is under way, and how it is run at each size."""

    def __init__(self, engine: Engine, context: Context, most: int) -> None:
        self._context = context
        self._signatures = engine.inputs, engine.outputs
        largest = [layout(side, most) for side in self._signatures]
        self._hosts: list[Pinned] = [context.host_memory(one.size_bytes) for one in largest]
        self._devices = [context.device_memory(one.size_bytes) for one in largest]
        self._copied, self._ran, self._done = (context.event() for _ in range(3))
        self._layouts: dict[int, tuple[Layout, Layout]] = {}
        self._enqueue: dict[int, Enqueue] = {}
        self._kept: list[Enqueue] = []  # captured graphs need the contexts that these hold

    def prepare(
        self, engine: Engine, bucket: Bucket, scratch: int, stream: ctypes.c_void_p
    ) -> bool:
        """Make all that a batch size takes, with a run to warm it; whether it is a CUDA graph."""
        inputs, outputs = (layout(side, bucket.batch) for side in self._signatures)
        self._layouts[bucket.batch] = inputs, outputs
        addresses = {
            name: base + place.offset
            for base, one in zip(self._devices, (inputs, outputs), strict=True)
            for name, place in one.places.items()
        }
        enqueue = engine.prepare(bucket, addresses, scratch, stream)
        self._kept.append(enqueue)
        self.copy_in(stream, bucket.batch)  # zeros, rather than what lay there
        enqueue(stream)  # outside of the capture, as the library asks
        try:
            graph = self._context.captured(stream, enqueue)
        except (CudaError, RuntimeError) as error:
            _log.info("batches of %d are run without a CUDA graph: %s", bucket.batch, error)
            self._enqueue[bucket.batch] = enqueue
            return False
        self._enqueue[bucket.batch] = functools.partial(self._context.replay, graph)
        return True

    def fill(self, inputs: Arrays, batch: int) -> None:
        """Write the pictures into pinned memory; rows beyond them keep what they held, and nobody
        sees what becomes of those.
        """
        for name, place in self._layouts[batch][0].places.items():
            dtype, _ = signature = self._signatures[0][name]
            target = self._hosts[0].view(place.offset, dtype, size_of(signature, batch))
            target[: len(inputs[name])] = inputs[name]

    def copy_in(self, stream: ctypes.c_void_p, batch: int) -> None:
        """All inputs in one copy."""
        size = self._layouts[batch][0].size_bytes
        self._context.copy_in(self._devices[0], self._hosts[0].address, size, stream)
        self._context.record(self._copied, stream)

    def run(self, stream: ctypes.c_void_p, bucket: Bucket) -> None:
        """Once the inputs are there."""
        self._context.wait_in(stream, self._copied)
        self.enqueue(stream, bucket)
        self._context.record(self._ran, stream)

    def enqueue(self, stream: ctypes.c_void_p, bucket: Bucket) -> None:
        """Put a batch into a stream as it lies there, inputs and all."""
        self._enqueue[bucket.batch](stream)

    def copy_out(
        self, stream: ctypes.c_void_p, batch: int, count: int, names: Sequence[str]
    ) -> None:
        """These outputs of the first ``count`` pictures, once they are there; masks that nobody
        asked for would keep the bus busy for longer than the batch runs.
        """
        self._context.wait_in(stream, self._ran)
        for name in names:
            place = self._layouts[batch][1].places[name]
            self._context.copy_out(
                self._hosts[1].address + place.offset,
                self._devices[1] + place.offset,
                place.size_bytes // batch * count,
                stream,
            )
        self._context.record(self._done, stream)

    def answer(self, batch: int, count: int, names: Sequence[str]) -> Arrays:
        """Wait for the outputs, and take them out of the memory that the next batch writes to."""
        self._context.wait_for(self._done)
        found = {}
        for name in names:
            dtype, _ = signature = self._signatures[1][name]
            offset = self._layouts[batch][1].places[name].offset
            found[name] = self._hosts[1].view(offset, dtype, size_of(signature, count)).copy()
        return found
