"""The scheduler: what runs together, in which order, and what never runs."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.errors import Overloaded
from service.worker.scheduler import Batch, Group, Job, Scheduler

SMALL, LARGE = Group("vit", "serve", "8x8"), Group("vit", "serve", "16x16")
EXPLAIN = Group("vit", "explain", "8x8")
BEST = {SMALL: 4, LARGE: 2, EXPLAIN: 1}
STREAMS = {SMALL: 2, LARGE: 1, EXPLAIN: 1}


@dataclass
class Clock:
    """Seconds that pass only when a test says so."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def scheduler(
    clock: Clock, max_jobs: int = 100, max_bytes: int = 10_000, streams: int | None = None
) -> Scheduler:
    """With as many streams for every group, or else those of STREAMS."""
    of = STREAMS.__getitem__ if streams is None else lambda group: streams
    return Scheduler(max_jobs, max_bytes, BEST.__getitem__, of, clock)


def job(number: int, group: Group = SMALL, size_bytes: int = 1, **fields: Any) -> Job:
    pixels = np.zeros(size_bytes, np.uint8)
    return Job((b"peer", number), group, {"images": pixels}, **({"deadline_s": 1e9} | fields))


def numbers(jobs: list[Job]) -> list[int]:
    return [job.id[1] for job in jobs]


def test_an_empty_queue_gives_an_empty_batch() -> None:
    assert scheduler(Clock(), streams=9).next_batch() == Batch([], [])


def test_a_single_job_runs_at_once_and_waits_for_no_company() -> None:
    queue = scheduler(Clock(), streams=9)
    queue.admit(job(1))
    assert numbers(queue.next_batch().jobs) == [1]
    assert (len(queue), queue.waiting_bytes) == (0, 0)


def test_a_lone_job_is_one_with_nothing_running_or_waiting_beside_it() -> None:
    queue = scheduler(Clock(), streams=2)
    queue.admit(job(1))
    assert queue.next_batch().lone
    queue.admit(job(2))
    assert not queue.next_batch().lone, "another runs"
    for _ in range(2):
        queue.finish(SMALL)
    queue.admit(job(3))
    queue.admit(job(4))
    assert not queue.next_batch().lone, "two together"


def test_a_batch_takes_the_oldest_of_its_group_up_to_the_best_size() -> None:
    queue = scheduler(Clock(), streams=9)
    for number in range(6):
        queue.admit(job(number))
    assert [numbers(queue.next_batch().jobs) for _ in range(3)] == [[0, 1, 2, 3], [4, 5], []]


def test_the_group_of_the_oldest_job_goes_first_and_no_batch_mixes_groups() -> None:
    queue = scheduler(Clock(), streams=9)
    for number, group in enumerate([SMALL, LARGE, EXPLAIN, SMALL, LARGE, EXPLAIN]):
        queue.admit(job(number, group))
    taken = [numbers(queue.next_batch().jobs) for _ in range(4)]
    assert taken == [[0, 3], [1, 4], [2], [5]]


def test_a_busy_group_does_not_starve_another() -> None:
    queue = scheduler(Clock(), streams=9)
    for number in range(8):
        queue.admit(job(number))
    queue.admit(job(100, LARGE))
    served = []
    for number in range(8, 16):  # the busy group is refilled before every batch
        queue.admit(job(number))
        served += numbers(queue.next_batch().jobs)
        if 100 in served:
            break
    assert served == [0, 1, 2, 3, 4, 5, 6, 7, 100]


def test_a_full_queue_refuses_by_count_with_both_numbers() -> None:
    queue = scheduler(Clock(), max_jobs=2, streams=9)
    queue.admit(job(1))
    queue.admit(job(2))
    with pytest.raises(Overloaded, match="2 pictures wait, 2 may") as refused:
        queue.admit(job(3))
    assert refused.value.facts == {"waiting": 2, "limit": 2}
    assert numbers(queue.next_batch().jobs) == [1, 2]


def test_a_full_queue_refuses_by_bytes_and_takes_what_still_fits() -> None:
    queue = scheduler(Clock(), max_bytes=10)
    queue.admit(job(1, size_bytes=6))
    with pytest.raises(Overloaded, match="6 bytes wait, 10 may"):
        queue.admit(job(2, size_bytes=5))
    queue.admit(job(3, size_bytes=4))
    assert queue.waiting_bytes == 10
    assert numbers(queue.next_batch().jobs) == [1, 3]


def test_room_is_free_again_once_a_job_is_taken_or_cancelled() -> None:
    queue = scheduler(Clock(), max_jobs=1)
    queue.admit(job(1))
    assert queue.cancel((b"peer", 1))
    queue.admit(job(2))
    queue.next_batch()
    queue.admit(job(3))
    assert numbers(queue.next_batch().jobs) == [3]


def test_a_cancelled_job_never_runs_and_frees_its_pixels_at_once() -> None:
    queue = scheduler(Clock(), streams=9)
    cancelled = job(2, size_bytes=50)
    for waiting in (job(1), cancelled, job(3)):
        queue.admit(waiting)
    assert queue.cancel(cancelled.id)
    assert queue.waiting_bytes == 2
    assert cancelled.inputs == {}
    assert not queue.cancel(cancelled.id)
    assert numbers(queue.next_batch().jobs) == [1, 3]


def test_only_the_peer_that_sent_a_job_can_cancel_it() -> None:
    queue = scheduler(Clock(), streams=9)
    queue.admit(job(1))
    assert not queue.cancel((b"other", 1))
    assert numbers(queue.next_batch().jobs) == [1]
    assert not queue.cancel((b"peer", 1))


def test_late_jobs_are_handed_back_and_take_no_place_in_the_batch() -> None:
    clock = Clock()
    queue = scheduler(clock, streams=9)
    for number in range(6):
        queue.admit(job(number, deadline_s=5.0 if number in (0, 2) else 9.0))
    clock.now_s = 5.0
    batch = queue.next_batch()
    assert numbers(batch.jobs) == [1, 3, 4, 5]
    assert numbers(batch.late) == [0, 2]
    assert queue.waiting_bytes == 0


def test_late_jobs_of_one_group_do_not_hold_up_another() -> None:
    clock = Clock()
    queue = scheduler(clock, streams=9)
    queue.admit(job(1, deadline_s=1.0))
    queue.admit(job(2, LARGE))
    clock.now_s = 2.0
    batch = queue.next_batch()
    assert (numbers(batch.jobs), numbers(batch.late)) == ([2], [1])


def test_a_job_that_must_run_alone_shares_no_batch() -> None:
    queue = scheduler(Clock(), streams=9)
    for number in range(5):
        queue.admit(job(number, alone=number in (1, 2)))
    taken = [numbers(queue.next_batch().jobs) for _ in range(4)]
    assert taken == [[0], [1], [2], [3, 4]]


def test_a_job_remembers_when_it_was_admitted() -> None:
    clock = Clock(7.5)
    queue = scheduler(clock, streams=9)
    queue.admit(job(1))
    clock.now_s = 9.0
    assert queue.next_batch().jobs[0].admitted_s == 7.5


def test_a_group_runs_at_most_as_many_batches_at_once_as_it_has_streams() -> None:
    queue = scheduler(Clock())
    for number in range(12):
        queue.admit(job(number))
    assert [numbers(queue.next_batch().jobs) for _ in range(3)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [],
    ]
    queue.finish(SMALL)
    assert numbers(queue.next_batch().jobs) == [8, 9, 10, 11]


def test_a_group_without_a_free_stream_lets_the_next_oldest_run() -> None:
    queue = scheduler(Clock())
    for number in range(4):
        queue.admit(job(number, LARGE))
    queue.admit(job(4, EXPLAIN))
    queue.admit(job(5))
    assert [numbers(queue.next_batch().jobs) for _ in range(4)] == [[0, 1], [4], [5], []]
    queue.finish(LARGE)
    assert numbers(queue.next_batch().jobs) == [2, 3]


def test_a_flood_of_one_model_does_not_starve_another() -> None:
    flood, other = SMALL, Group("detr", "serve", "8x8")
    queue = Scheduler(100, 10_000, lambda group: 4, lambda group: 2, Clock())
    number = 0
    waited = []
    for patient in range(1000, 1010):
        for _ in range(20):  # 20 of the flood are always there before it
            queue.admit(job(number, flood))
            number += 1
        queue.admit(job(patient, other))
        batches = 0
        while True:  # one worker thread: a batch ends before the next is taken
            batches += 1
            taken = queue.next_batch().jobs
            queue.finish(taken[0].group)
            if taken[0].id[1] == patient:
                break
            for _ in taken:
                queue.admit(job(number, flood))
                number += 1
        waited.append(batches)
        while queue.next_batch().jobs:
            queue.finish(flood)
    assert waited == [6] * 10, "the five batches of those before it, then its own"


def test_late_jobs_of_a_group_that_may_not_run_are_handed_back_all_the_same() -> None:
    clock = Clock()
    queue = scheduler(clock)
    queue.admit(job(1, LARGE))
    queue.next_batch()
    queue.admit(job(2, LARGE, deadline_s=1.0))
    clock.now_s = 1.0
    batch = queue.next_batch()
    assert (numbers(batch.jobs), numbers(batch.late)) == ([], [2])


class Queueing(RuleBasedStateMachine):
    """Any sequence of arrivals, cancellations, batches and passing time, against a plain list."""

    MAX_JOBS, MAX_BYTES = 8, 40

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue = scheduler(self.clock, self.MAX_JOBS, self.MAX_BYTES)
        self.waiting: list[Job] = []
        self.running: Counter[Group] = Counter()
        self.gone: set[int] = set()
        self.patience: dict[int, int] = {}
        self.count = 0

    @rule(
        group=st.sampled_from([SMALL, LARGE, EXPLAIN]),
        size_bytes=st.integers(0, 12),
        patience_s=st.integers(0, 4),
        alone=st.booleans(),
    )
    def admit(self, group: Group, size_bytes: int, patience_s: int, alone: bool) -> None:
        self.count += 1
        deadline_s = self.clock.now_s + patience_s
        new = job(self.count, group, size_bytes, deadline_s=deadline_s, alone=alone)
        bytes_then = sum(job.size_bytes for job in self.waiting) + size_bytes
        if len(self.waiting) < self.MAX_JOBS and bytes_then <= self.MAX_BYTES:
            self.queue.admit(new)
            self.patience[self.count] = len(self.waiting) + 1
            self.waiting.append(new)
        else:
            with pytest.raises(Overloaded):
                self.queue.admit(new)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.waiting))
        assert self.queue.cancel(chosen.id)
        self.waiting.remove(chosen)
        self.gone.add(chosen.id[1])

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def cancel_what_is_gone(self, data: st.DataObject) -> None:
        assert not self.queue.cancel((b"peer", data.draw(st.sampled_from(sorted(self.gone)))))

    @rule(seconds=st.integers(1, 3))
    def let_time_pass(self, seconds: int) -> None:
        self.clock.now_s += seconds

    @rule()
    def next_batch(self) -> None:
        jobs, late, _ = self.queue.next_batch()
        now_s = self.clock.now_s
        assert all(job.deadline_s <= now_s for job in late)
        live = [job for job in self.waiting if job.deadline_s > now_s]
        able = [job for job in live if self.running[job.group] < STREAMS[job.group]]
        if not live:
            assert sorted(numbers(late)) == numbers(self.waiting)
        assert jobs == (self.expected(able) if able else [])
        if jobs:
            self.running[jobs[0].group] += 1
            assert self.running[jobs[0].group] <= STREAMS[jobs[0].group]
            self.lose_patience(able)
        taken = {*numbers(jobs), *numbers(late)}
        assert len(taken) == len(jobs) + len(late)
        assert not taken & self.gone
        self.gone |= taken
        self.waiting = [job for job in self.waiting if job.id[1] not in taken]

    @precondition(lambda self: self.running.total())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(sorted(self.running.elements())))
        self.running[group] -= 1
        self.queue.finish(group)

    def lose_patience(self, able: list[Job]) -> None:
        """A job waits for at most one batch of its group's turns per job that came before it."""
        for waiting in able:
            self.patience[waiting.id[1]] -= 1
            assert self.patience[waiting.id[1]] >= 0

    def expected(self, live: list[Job]) -> list[Job]:
        """The oldest live job's group by arrival; a lone job ends the batch before or after it."""
        same = [job for job in live if job.group == live[0].group]
        if same[0].alone:
            return same[:1]
        until = next((index for index, job in enumerate(same) if job.alone), len(same))
        return same[: min(until, BEST[live[0].group])]

    @invariant()
    def counts_are_right(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.waiting_bytes == sum(job.size_bytes for job in self.waiting)

    def teardown(self) -> None:
        for group in self.running.elements():
            self.queue.finish(group)
        self.running.clear()
        while self.waiting:  # nothing is lost: everything comes out in the end
            before = len(self.waiting)
            self.next_batch()
            assert len(self.waiting) < before
            for group in self.running.elements():
                self.queue.finish(group)
            self.running.clear()
        assert self.queue.next_batch() == Batch([], [])


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True
)
