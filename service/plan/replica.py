"""One replica in simulated time: the real scheduler, decoding threads, and cores that all share.

Every busy thread advances at the same pace, so the work that each has done since the start is one
number, ``_done_s``, and a task ends when that reaches what it was at its begin plus its own work.
"""

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.errors import Overloaded
from service.plan.costs import Costs
from service.worker.scheduler import Bounds, Group, Job, Scheduler

GROUP = Group("model", "serve", "canvas")
DRAWN = 4096  # random numbers at a time

End = Callable[[Any], None]


@dataclass(slots=True)
class Request:
    """One picture on its way."""

    arrived_s: float
    rest_s: float
    process: int
    counts: bool


@dataclass
class Seen:
    """What came of the requests that count; the batches are of all."""

    latencies_s: list[float] = field(default_factory=list)
    batches: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    busy: float = 0.0
    """Work done, in seconds of a thread."""


class Replica:
    """Requests come by ``arrive``, in the order of time; ``advance`` lets time pass, and
    ``on_answer`` hears of every answer.
    """

    def __init__(
        self,
        costs: Costs,
        seen: Seen,
        seed: int = 0,
        on_answer: Callable[[], None] | None = None,
    ) -> None:
        self._costs = costs
        self._seen = seen
        self._random = np.random.default_rng(seed)
        self._on_answer = on_answer
        bounds = Bounds(costs.max_queue, 2**40)
        self._scheduler = Scheduler(
            bounds,
            bounds,
            best_batch=lambda _: costs.batch,
            streams=lambda _: costs.streams,
            clock=lambda: self.now_s,
        )
        self.now_s = 0.0
        self.outstanding = 0
        self._done_s = 0.0
        self._pace = 1.0  # of each thread
        self._threads = 0
        self._paces = [costs.pace(n) / max(n, 1) for n in range(costs.cores + 2)]
        self._tasks: list[tuple[float, int, int, End, Any]] = []  # by the work done at their end
        self._timers: list[tuple[float, int, End, Any]] = []  # by time
        self._begun = 0
        self._free = [costs.decoders] * costs.processes
        self._lines: list[deque[Request]] = [deque() for _ in range(costs.processes)]
        self._numbers = 0
        self._requests: dict[int, Request] = {}  # by the number of their job
        self._rests: list[float] = []
        self._jitters: list[float] = []
        self._processes: list[int] = []
        self._delay = 1 - costs.on_cores

    @property
    def next_s(self) -> float:
        """When something ends, if nothing comes before; infinite when all is quiet."""
        when_s = self._timers[0][0] if self._timers else math.inf
        if self._tasks:
            left_s = self._tasks[0][0] - self._done_s
            when_s = min(when_s, self.now_s + max(left_s, 0.0) / self._pace)
        return when_s

    def arrive(self, now_s: float, counts: bool = True) -> None:
        """A picture comes in; what ended before is done first."""
        self.advance(now_s)
        self.outstanding += 1
        request = Request(now_s, self._draw_rest(), self._draw_process(), counts)
        self._lines[request.process].append(request)
        self._decode_next(request.process)

    def advance(self, to_s: float) -> None:
        """Let time pass, with all that ends meanwhile."""
        while (when_s := self.next_s) <= to_s and when_s < math.inf:
            self._move(when_s)
            if self._timers and self._timers[0][0] <= when_s:
                _, _, end, what = heapq.heappop(self._timers)
            else:
                # Time is rounded to its own precision, which must not keep the task from ending.
                finish_s, _, threads, end, what = heapq.heappop(self._tasks)
                self._done_s = max(self._done_s, finish_s)
                self._occupy(-threads)
            end(what)
        if to_s < math.inf:
            self._move(to_s)

    def _move(self, to_s: float) -> None:
        if self._threads:
            worked_s = (to_s - self.now_s) * self._pace
            self._done_s += worked_s
            self._seen.busy += worked_s * self._threads
        self.now_s = to_s

    def _begin(self, work_s: float, threads: int, end: End, what: Any) -> None:
        self._begun += 1
        self._occupy(threads)
        heapq.heappush(self._tasks, (self._done_s + work_s, self._begun, threads, end, what))

    def _occupy(self, threads: int) -> None:
        self._threads += threads
        count, most = self._threads, len(self._paces) - 1
        if count:
            self._pace = self._paces[count] if count <= most else self._paces[-1] * most / count

    def _decode_next(self, process: int) -> None:
        if self._free[process] and self._lines[process]:
            self._free[process] -= 1
            request = self._lines[process].popleft()
            costs = self._costs
            work_s = request.rest_s * costs.before * costs.on_cores + costs.client_s / 2
            self._begin(work_s, 1, self._decoded, request)

    def _decoded(self, request: Request) -> None:
        self._free[request.process] += 1
        self._decode_next(request.process)
        self._numbers += 1
        job = Job((b"", self._numbers), GROUP, {}, math.inf)
        try:
            self._scheduler.admit(job)
        except Overloaded:
            self.outstanding -= 1
            self._seen.refused += request.counts
            return
        self._requests[self._numbers] = request
        self._run_next()

    def _run_next(self) -> None:
        costs = self._costs
        while (batch := self._scheduler.next_batch()).jobs:
            size = len(batch.jobs)
            self._seen.batches[size] += 1
            work_s, threads = costs.work_s[size - 1], costs.threads
            if batch.lone and costs.lone is not None:
                work_s, threads = costs.lone
            if batch.lone or costs.lone is None:
                work_s *= self._draw_jitter()
            if costs.on_device:
                self._begun += 1
                end = self.now_s + work_s, self._begun, self._ran, batch.jobs
                heapq.heappush(self._timers, end)
            else:
                self._begin(work_s, threads, self._ran, batch.jobs)

    def _ran(self, jobs: list[Job]) -> None:
        self._scheduler.finish(jobs)
        costs = self._costs
        for job in jobs:
            request = self._requests.pop(job.id[1])
            work_s = request.rest_s * (1 - costs.before) * costs.on_cores + costs.client_s / 2
            self._begin(work_s, 1, self._answered, request)
        self._run_next()

    def _answered(self, request: Request) -> None:
        self.outstanding -= 1
        if request.counts:
            latency_s = self.now_s - request.arrived_s + request.rest_s * self._delay
            self._seen.latencies_s.append(latency_s)
        if self._on_answer is not None:
            self._on_answer()
        if self._costs.beside_s:
            self._begin(self._costs.beside_s, 1, _nothing, None)

    def _draw_rest(self) -> float:
        if not self._rests:
            self._rests = self._costs.draw_rest_s(self._random.random(DRAWN)).tolist()
        return self._rests.pop()

    def _draw_jitter(self) -> float:
        if not self._jitters:
            self._jitters = self._costs.draw_jitter(self._random.random(DRAWN)).tolist()
        return self._jitters.pop()

    def _draw_process(self) -> int:
        if not self._processes:
            self._processes = self._random.integers(self._costs.processes, size=DRAWN).tolist()
        return self._processes.pop()


def _nothing(_: object) -> None:
    """Nobody waits for the end of this."""
