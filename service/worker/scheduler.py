"""Which jobs may wait, which run together, and when: never waiting for company.

Clients take turns. The one whose turn it is names the group of its oldest job that may run, and
goes to the end of the turns; the places of that group's batch, up to its best size, go round its
clients, oldest first of each. A group may run while fewer of its batches are running than it has
streams.

So no flood holds up anybody else. With one client jobs run by arrival, and a job is in one of the
next N + 1 batches that its group may run, where N jobs came before it. With C clients it is in one
of the next C * C * (N + 1), where N jobs of its own client came before it, however many others did.

What waits is bounded by count and by bytes, in all and for each model. Where there is no room, who
holds most makes it.
"""

import bisect
import itertools
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from service.bundle import GraphKind
from service.errors import DeadlineExceeded, Overloaded, ServiceError
from service.worker.drain import DrainRate, retry_after_s
from service.worker.runtimes.base import Arrays


class Group(NamedTuple):
    """Jobs of one group have the same graph and shapes, so they can share a batch; without a
    ``version`` they take the one that is served when they run.
    """

    model: str
    graph: GraphKind
    canvas: str
    version: str = ""


@dataclass(slots=True)
class Job:
    """One picture to run. ``deadline_s`` is on the clock of the scheduler, jobs that must run
    ``alone`` share no batch, and ``outputs`` are those to send back, None for all.

    ``client`` is who takes turns with others. Of its own jobs those of ``priority`` 1 come first,
    then those of 2 and so on, and those of 0 last: nobody gets ahead of others by it. A job that
    was ``accepted`` before, by a worker that died, is not asked for room again. Once it runs,
    ``left`` says that nobody waits for it.
    """

    id: tuple[bytes, int]
    group: Group
    inputs: Arrays
    deadline_s: float
    alone: bool = False
    outputs: tuple[str, ...] | None = None
    client: str = ""
    priority: int = 0
    accepted: bool = False
    left: bool = False
    arrival: int = 0
    admitted_s: float = 0.0
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = sum(array.nbytes for array in self.inputs.values())

    @property
    def rank(self) -> float:
        """Its place among the jobs of its client; least first."""
        return self.priority or math.inf


class Batch(NamedTuple):
    """What ``next_batch`` took off the queue: jobs to run, and jobs whose deadline had passed;
    ``lone`` is a single job with nothing running or waiting beside it.
    """

    jobs: list[Job]
    late: list[Job]
    lone: bool = False


class Bounds(NamedTuple):
    """How much may wait."""

    jobs: int
    size_bytes: int


class Displaced(NamedTuple):
    """A job that was taken off the queue for another, and what to tell its client."""

    job: Job
    error: ServiceError


@dataclass(slots=True)
class _Held:
    """What waits, of all or of somebody."""

    jobs: int = 0
    size_bytes: int = 0

    def count(self, job: Job, sign: Literal[1, -1] = 1) -> None:
        self.jobs += sign
        self.size_bytes += sign * job.size_bytes

    def share(self, bounds: Bounds) -> float:
        """Of what may wait, by whichever of the two bounds it fills more."""
        return max(self.jobs / bounds.jobs, self.size_bytes / bounds.size_bytes)


class Scheduler:
    """A bounded queue; not thread-safe, the worker holds a lock around it.

    ``bounds`` is for all that waits, ``model_bounds`` for each model. ``best_batch`` says how many
    jobs of a group to run together, ``streams`` how many of its batches at once; ``clock`` gives
    seconds.
    """

    def __init__(
        self,
        bounds: Bounds,
        model_bounds: Bounds,
        best_batch: Callable[[Group], int],
        streams: Callable[[Group], int],
        clock: Callable[[], float],
    ) -> None:
        self._bounds = bounds
        self._model_bounds = model_bounds
        self._room_for_any = Bounds(*map(min, bounds, model_bounds))
        self._best_batch = best_batch
        self._streams = streams
        self._clock = clock
        self._arrivals = itertools.count()
        # Jobs by group and client; clients in the order in which they get the group's places. What
        # was cancelled stays in its line until it would be next.
        self._lines: dict[Group, dict[str, deque[Job]]] = {}
        self._waiting: dict[tuple[bytes, int], Job] = {}
        self._running: dict[tuple[bytes, int], Job] = {}
        self._batches: Counter[Group] = Counter()
        self._rates: defaultdict[Group, DrainRate] = defaultdict(DrainRate)
        self._all = _Held()
        self._models: dict[str, _Held] = {}
        self._clients: dict[str, _Held] = {}  # in the order of their turns

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of all that waits."""
        return self._all.size_bytes

    def admit(self, job: Job) -> Displaced | None:
        """Put a job into its client's line, perhaps in the place of another.

        Raises:
            Overloaded: the queue is full by count or by bytes, and nobody holds more of it.
        """
        now_s = self._clock()
        displaced = None
        held, room = self._all, self._room_for_any
        fits = held.jobs < room.jobs and held.size_bytes + job.size_bytes <= room.size_bytes
        if not (fits or job.accepted) and (full := self._full(job)) is not None:
            displaced = self._make_room(job, now_s)
            if displaced is None:
                raise full
            self._take(displaced.job)
            displaced.job.inputs = {}  # as of one that is cancelled
        if job.group not in self._lines and not self._batches[job.group]:
            self._rates[job.group].begin(now_s)
        job.admitted_s = now_s
        job.arrival = next(self._arrivals)
        line = self._lines.setdefault(job.group, {}).setdefault(job.client, deque())
        if job.priority:
            bisect.insort(line, job, key=lambda one: one.rank)
        else:
            line.append(job)
        self._waiting[job.id] = job
        for held in self._holders(job):
            held.count(job)
        return displaced

    def cancel(self, job_id: tuple[bytes, int]) -> Literal["queue", "infer"] | None:
        """Forget a job whose client left; where it was, None if it has run or never came.

        One that runs is marked, so that nobody sends its answer or runs it again.
        """
        job = self._waiting.get(job_id)
        if job is not None:
            self._take(job)
            job.inputs = {}  # its place in the line goes later, its pixels now
            return "queue"
        job = self._running.get(job_id)
        if job is None or job.left:
            return None
        job.left = True
        return "infer"

    def cancel_all(self, peer: bytes) -> list[Literal["queue", "infer"]]:
        """Forget the jobs of a process that is gone; where each of them was."""
        ids = [job_id for job_id in (*self._waiting, *self._running) if job_id[0] == peer]
        return [stage for job_id in ids if (stage := self.cancel(job_id)) is not None]

    def next_batch(self) -> Batch:
        """The next jobs that may run; empty when there are none.

        Who takes jobs says so with ``finish`` when they have run.
        """
        late: list[Job] = []
        now_s = self._clock()
        self._drop_dead(now_s, late)
        group = self._take_turn()
        if group is None:
            return Batch([], late)
        jobs = self._collect(group, now_s, late)
        self._batches[group] += 1
        self._running.update((job.id, job) for job in jobs)
        beside = len(self._waiting) + self._batches.total() - 1
        return Batch(jobs, late, lone=len(jobs) == 1 and not beside)

    def finish(self, jobs: list[Job]) -> None:
        """A batch has run: its stream is free again."""
        group = jobs[0].group
        self._batches[group] -= 1
        self._rates[group].finish(len(jobs), self._clock())
        for job in jobs:
            if self._running.get(job.id) is job:
                del self._running[job.id]

    def _take_turn(self) -> Group | None:
        """The group to run next, by the client whose turn it is."""
        able = [group for group in self._lines if self._batches[group] < self._streams(group)]
        for client in self._clients if able else ():
            mine = [group for group in able if client in self._lines[group]]
            if mine:
                self._clients[client] = self._clients.pop(client)
                heads = {group: self._lines[group][client][0] for group in mine}
                return min(mine, key=lambda group: (heads[group].rank, heads[group].arrival))
        return None

    def _collect(self, group: Group, now_s: float, late: list[Job]) -> list[Job]:
        jobs: list[Job] = []
        line, limit = self._lines[group], self._best_batch(group)
        while len(jobs) < limit:
            # Who waits to run alone keeps the first place for the next batch.
            client = next(iter(line), None)
            if client is not None and jobs and line[client][0].alone:
                client = next((other for other in line if not line[other][0].alone), None)
            if client is None:
                break
            queue = line.pop(client)
            job = queue.popleft()
            self._take(job)
            jobs.append(job)
            if self._skip_dead(queue, now_s, late):
                line[client] = queue
            if job.alone:
                break
        if not line:
            del self._lines[group]
        return jobs

    def _drop_dead(self, now_s: float, late: list[Job]) -> None:
        """Leave only jobs to run in front of each line."""
        for group, line in list(self._lines.items()):
            for client in [c for c, q in line.items() if not self._skip_dead(q, now_s, late)]:
                del line[client]
            if not line:
                del self._lines[group]

    def _skip_dead(self, queue: deque[Job], now_s: float, late: list[Job]) -> bool:
        """Drop cancelled and late jobs from the front; whether one to run is left."""
        while queue:
            job = queue[0]
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
        for held in self._holders(job):
            held.count(job, -1)
        if not self._clients[job.client].jobs:
            del self._clients[job.client]
        return True

    def _holders(self, job: Job) -> tuple[_Held, _Held, _Held]:
        model, client = job.group.model, job.client
        return (
            self._all,
            self._models.get(model) or self._models.setdefault(model, _Held()),
            self._clients.get(client) or self._clients.setdefault(client, _Held()),
        )

    def _full(self, job: Job, without: Job | None = None) -> Overloaded | None:
        """Why a job has no room, be it that another's were free."""
        model = job.group.model
        rooms = (
            ("", self._all, self._bounds, without is not None),
            (
                f" of {model!r}",
                self._models.get(model, _Held()),
                self._model_bounds,
                without is not None and without.group.model == model,
            ),
        )
        for whose, held, bounds, freed in rooms:
            freed_bytes = without.size_bytes if without is not None and freed else 0
            if held.jobs + 1 - freed > bounds.jobs:
                found, limit, what = held.jobs, bounds.jobs, "pictures"
            elif held.size_bytes + job.size_bytes - freed_bytes > bounds.size_bytes:
                found, limit, what = held.size_bytes, bounds.size_bytes, "bytes"
            else:
                continue
            return Overloaded(
                f"the queue is full: {found} {what}{whose} wait, {limit} may",
                retry_after_s=self._drain_s(model if whose else None),
                waiting=found,
                limit=limit,
            )
        return None

    def _make_room(self, job: Job, now_s: float) -> Displaced | None:
        """A job that may have to go for this one: a late one, or else the newest of the client that
        holds most, or of the model if clients hold the same. Who makes room still holds as much as
        who gets it.
        """
        for late in (w for w in self._waiting.values() if w.deadline_s <= now_s):
            if self._full(job, late) is None:
                return Displaced(late, late_error())
        part = self._part(job)
        clients = {name: held.share(self._bounds) for name, held in self._clients.items()}
        models = {name: held.share(self._bounds) for name, held in self._models.items()}
        client = clients.get(job.client, 0.0)
        model = models.get(job.group.model, 0.0)
        most, largest = (max(held.values(), default=0.0) for held in (clients, models))
        if most < client + part and largest < model + part:
            return None  # nobody holds more, as is usual: no need to look at each

        def claim(waiting: Job) -> tuple[float, float, int]:
            return clients[waiting.client], models[waiting.group.model], waiting.arrival

        for greedy in sorted(self._waiting.values(), key=claim, reverse=True):
            moved = part + self._part(greedy) - 1e-9
            theirs, of_model, _ = claim(greedy)
            fairer = theirs - client >= moved or (theirs >= client and of_model - model >= moved)
            if fairer and not greedy.accepted and self._full(job, greedy) is None:
                return Displaced(greedy, self._displaced_error(greedy))
        return None

    def _part(self, job: Job) -> float:
        """How much of what may wait one job is."""
        return max(1 / self._bounds.jobs, job.size_bytes / self._bounds.size_bytes)

    def _displaced_error(self, job: Job) -> Overloaded:
        waiting, mine = len(self._waiting), self._clients[job.client].jobs
        return Overloaded(
            f"the queue is full, and {mine} of the {waiting} pictures in it are this client's: "
            "another client's or model's took the place of this one",
            retry_after_s=self._drain_s(),
            waiting=waiting,
            limit=self._bounds.jobs,
        )

    def _drain_s(self, model: str | None = None) -> float:
        """When what waits now, in all or for a model, will have run, at the rate measured."""
        now_s = self._clock()
        groups = [group for group in self._lines if model in (None, group.model)]
        rate = sum(self._rates[group].per_second(now_s) for group in groups)
        return retry_after_s((self._models[model] if model else self._all).jobs, rate)


def late_error() -> DeadlineExceeded:
    """What to tell of a job that did not run in time."""
    return DeadlineExceeded("the deadline passed while the picture was queued")
