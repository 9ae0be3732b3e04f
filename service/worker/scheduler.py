"""Which jobs run together, and when: of the groups that may run, that of the oldest job, up to its
best batch, never waiting for company.

A group may run while fewer of its batches are running than it has streams. So no group waits for
another as long as it is the oldest with a stream to spare, and a flood of one model cannot hold up
another: a job is in one of the next N + 1 batches that its group may run, where N jobs came before
it.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from service.bundle import GraphKind
from service.errors import Overloaded
from service.worker.runtimes.base import Arrays


class Group(NamedTuple):
    """Jobs of one group have the same graph and shapes, so they can share a batch."""

    model: str
    graph: GraphKind
    canvas: str


@dataclass(slots=True)
class Job:
    """One picture to run. ``deadline_s`` is on the clock of the scheduler, jobs that must run
    ``alone`` share no batch, and ``outputs`` are those to send back, None for all.
    """

    id: tuple[bytes, int]
    group: Group
    inputs: Arrays
    deadline_s: float
    alone: bool = False
    outputs: tuple[str, ...] | None = None
    admitted_s: float = 0.0
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = sum(array.nbytes for array in self.inputs.values())


class Batch(NamedTuple):
    """What ``next_batch`` took off the queue: jobs to run, and jobs whose deadline had passed;
    ``lone`` is a single job with nothing running or waiting beside it.
    """

    jobs: list[Job]
    late: list[Job]
    lone: bool = False


class Scheduler:
    """A bounded queue; not thread-safe, the worker holds a lock around it.

    ``best_batch`` says how many jobs of a group to run together, ``streams`` how many of its
    batches at once; ``clock`` gives seconds.
    """

    def __init__(
        self,
        max_jobs: int,
        max_bytes: int,
        best_batch: Callable[[Group], int],
        streams: Callable[[Group], int],
        clock: Callable[[], float],
    ) -> None:
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._best_batch = best_batch
        self._streams = streams
        self._clock = clock
        self._order = itertools.count()
        # Jobs by arrival; each group keeps (arrival, job), so the oldest head names the next group.
        self._groups: dict[Group, deque[tuple[int, Job]]] = {}
        self._waiting: dict[tuple[bytes, int], Job] = {}
        self._running: Counter[Group] = Counter()
        self.waiting_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, job: Job) -> None:
        """Put a job at the end of its group's queue.

        Raises:
            Overloaded: the queue is full by count or by bytes.
        """
        if len(self._waiting) >= self._max_jobs:
            raise Overloaded(
                f"the queue is full: {len(self._waiting)} pictures wait, {self._max_jobs} may",
                waiting=len(self._waiting),
                limit=self._max_jobs,
            )
        if self.waiting_bytes + job.size_bytes > self._max_bytes:
            raise Overloaded(
                f"the queue is full: {self.waiting_bytes} bytes wait, {self._max_bytes} may",
                waiting=self.waiting_bytes,
                limit=self._max_bytes,
            )
        job.admitted_s = self._clock()
        self._groups.setdefault(job.group, deque()).append((next(self._order), job))
        self._waiting[job.id] = job
        self.waiting_bytes += job.size_bytes

    def cancel(self, job_id: tuple[bytes, int]) -> bool:
        """Forget a waiting job; False if it is not waiting (it runs, has run, or never came)."""
        job = self._waiting.get(job_id)
        if job is None:
            return False
        self._take(job)
        job.inputs = {}  # its place in the queue goes later, its pixels now
        return True

    def next_batch(self) -> Batch:
        """The oldest jobs of the oldest group that may run; empty when there is none.

        Who takes jobs says so with ``finish`` when they have run.
        """
        late: list[Job] = []
        now_s = self._clock()
        group = self._oldest_group(now_s, late)
        if group is None:
            return Batch([], late)
        self._running[group] += 1
        jobs = self._collect(group, now_s, late)
        beside = len(self._waiting) + self._running.total() - 1
        return Batch(jobs, late, lone=len(jobs) == 1 and not beside)

    def finish(self, group: Group) -> None:
        """A batch of this group has run: its stream is free again."""
        self._running[group] -= 1

    def _collect(self, group: Group, now_s: float, late: list[Job]) -> list[Job]:
        jobs: list[Job] = []
        queue, limit = self._groups[group], self._best_batch(group)
        while len(jobs) < limit and self._skip_dead(queue, now_s, late):
            job = queue[0][1]
            if job.alone and jobs:
                break
            queue.popleft()
            self._take(job)
            jobs.append(job)
            if job.alone:
                break
        return jobs

    def _oldest_group(self, now_s: float, late: list[Job]) -> Group | None:
        for group in list(self._groups):
            if not self._skip_dead(self._groups[group], now_s, late):
                del self._groups[group]
        able = [group for group in self._groups if self._running[group] < self._streams(group)]
        return min(able, key=lambda group: self._groups[group][0][0], default=None)

    def _skip_dead(self, queue: deque[tuple[int, Job]], now_s: float, late: list[Job]) -> bool:
        """Drop cancelled and late jobs from the head; whether one to run is left."""
        while queue:
            job = queue[0][1]
            if self._waits(job) and job.deadline_s > now_s:
                return True
            queue.popleft()
            if self._take(job):
                late.append(job)
        return False

    def _waits(self, job: Job) -> bool:
        return self._waiting.get(job.id) is job

    def _take(self, job: Job) -> bool:
        if not self._waits(job):
            return False
        del self._waiting[job.id]
        self.waiting_bytes -= job.size_bytes
        return True
