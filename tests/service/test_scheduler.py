"""The scheduler: what runs together, in which order, and what never runs."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.errors import DeadlineExceeded, Overloaded
from service.worker.scheduler import Batch, Bounds, Group, Job, Scheduler

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
    clock: Clock,
    max_jobs: int = 100,
    max_bytes: int = 10_000,
    streams: int | None = None,
    of_model: Bounds | None = None,
) -> Scheduler:
    """With as many streams for every group, or else those of STREAMS."""
    bounds = Bounds(max_jobs, max_bytes)

    def streams_of(group: Group) -> int:
        return STREAMS.get(group, 1) if streams is None else streams

    return Scheduler(
        bounds, of_model or bounds, lambda group: BEST.get(group, 4), streams_of, clock
    )


def job(number: int, group: Group = SMALL, size_bytes: int = 1, **fields: Any) -> Job:
    pixels = np.zeros(size_bytes, np.uint8)
    return Job((b"peer", number), group, {"images": pixels}, **({"deadline_s": 1e9} | fields))


def numbers(jobs: list[Job]) -> list[int]:
    return [job.id[1] for job in jobs]


def test_a_priority_puts_a_picture_ahead_of_its_own_clients_and_of_nobody_elses() -> None:
    waiting = scheduler(Clock(), streams=9)
    for number, priority in enumerate((0, 2, 1, 2, 0)):
        waiting.admit(job(number, EXPLAIN, client="one", priority=priority))
    for number in (5, 6):
        waiting.admit(job(number, EXPLAIN, client="other"))
    order = [numbers(waiting.next_batch().jobs)[0] for _ in range(7)]
    assert [number for number in order if number < 5] == [2, 1, 3, 0, 4]
    assert order[:4] == [2, 5, 1, 6]


def test_a_priority_counts_among_all_models_that_a_client_asks() -> None:
    waiting = scheduler(Clock(), streams=9)
    waiting.admit(job(0, SMALL))
    waiting.admit(job(1, LARGE, priority=1))
    assert numbers(waiting.next_batch().jobs) == [1]
    assert numbers(waiting.next_batch().jobs) == [0]


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
        queue.finish([job(0)])
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


def test_a_job_that_is_cancelled_while_it_runs_is_marked_once() -> None:
    queue = scheduler(Clock(), streams=9)
    queue.admit(job(1))
    jobs = queue.next_batch().jobs
    assert not jobs[0].left
    assert queue.cancel((b"peer", 1)) == "infer"
    assert jobs[0].left
    assert queue.cancel((b"peer", 1)) is None
    queue.finish(jobs)
    assert queue.cancel((b"peer", 1)) is None


def test_a_process_that_is_gone_takes_all_its_jobs_with_it() -> None:
    queue = scheduler(Clock(), streams=9)
    mine = [Job((b"gone", number), SMALL, {}, 1e9) for number in range(6)]
    for waiting in mine:
        queue.admit(waiting)
    running = queue.next_batch().jobs
    queue.admit(job(1))
    assert Counter(queue.cancel_all(b"gone")) == {"queue": 2, "infer": 4}
    assert [waiting.left for waiting in running] == [True] * 4
    assert numbers(queue.next_batch().jobs) == [1]


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
    queue.finish([job(0)])
    assert numbers(queue.next_batch().jobs) == [8, 9, 10, 11]


def test_a_group_without_a_free_stream_lets_the_next_oldest_run() -> None:
    queue = scheduler(Clock())
    for number in range(4):
        queue.admit(job(number, LARGE))
    queue.admit(job(4, EXPLAIN))
    queue.admit(job(5))
    assert [numbers(queue.next_batch().jobs) for _ in range(4)] == [[0, 1], [4], [5], []]
    queue.finish([job(0, LARGE)])
    assert numbers(queue.next_batch().jobs) == [2, 3]


def test_a_flood_of_one_model_does_not_starve_another() -> None:
    flood, other = SMALL, Group("detr", "serve", "8x8")
    queue = scheduler(Clock(), streams=2)
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
            queue.finish(taken)
            if taken[0].id[1] == patient:
                break
            for _ in taken:
                queue.admit(job(number, flood))
                number += 1
        waited.append(batches)
        while queue.next_batch().jobs:
            queue.finish([job(0, flood)])
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


def of(client: str, number: int, group: Group = SMALL, **fields: Any) -> Job:
    return job(number, group, client=client, **fields)


def drain(queue: Scheduler) -> list[list[int]]:
    """Batches one after another until nothing is left."""
    taken = []
    while jobs := queue.next_batch().jobs:
        taken.append(numbers(jobs))
        queue.finish(jobs)
    return taken


def test_the_places_of_a_batch_go_round_the_clients_oldest_first_of_each() -> None:
    queue = scheduler(Clock())
    for number in range(5):
        queue.admit(of("greedy", number))
    queue.admit(of("other", 10))
    queue.admit(of("other", 11))
    queue.admit(of("third", 20))
    assert drain(queue) == [[0, 10, 20, 1], [11, 2, 3, 4]]


def test_more_clients_than_places_take_turns_batch_by_batch() -> None:
    queue = scheduler(Clock())
    for client in range(6):
        for turn in range(2):
            queue.admit(of(f"client {client}", 10 * client + turn))
    assert drain(queue) == [[0, 10, 20, 30], [40, 50, 1, 11], [21, 31, 41, 51]]


def test_a_flood_of_one_client_leaves_another_its_turn_whatever_model_it_asks() -> None:
    queue = scheduler(Clock())
    for number in range(40):
        queue.admit(of("flood", number))
    queue.admit(of("patient", 100, LARGE))
    assert drain(queue)[:3] == [[0, 1, 2, 3], [100], [4, 5, 6, 7]]


def test_a_client_of_two_models_does_not_lose_the_one_to_a_flood_of_the_other() -> None:
    """Both keep a light model busy; whenever the heavy one is free, it is the flood's turn."""
    queue = scheduler(Clock())
    numbers_of = iter(range(1000))
    for client in ("flood", "both"):
        for group in (EXPLAIN, SMALL):
            for _ in range(4):
                queue.admit(of(client, next(numbers_of), group))
    served: Counter[tuple[str, Group]] = Counter()
    for _ in range(40):
        jobs = queue.next_batch().jobs
        for waiting in jobs:
            served[waiting.client, waiting.group] += 1
            queue.admit(of(waiting.client, next(numbers_of), waiting.group))
        queue.finish(jobs)
    assert abs(served["flood", EXPLAIN] - served["both", EXPLAIN]) <= 1
    assert served["both", EXPLAIN] >= 5


def test_a_full_queue_makes_room_for_who_holds_less_by_the_newest_of_who_holds_most() -> None:
    queue = scheduler(Clock(), max_jobs=4)
    for number in range(4):
        queue.admit(of("greedy", number))
    displaced = queue.admit(of("modest", 10))
    assert displaced is not None
    assert displaced.job.id[1] == 3
    assert not displaced.job.inputs  # its pixels go at once, though its place in the line stays
    assert isinstance(displaced.error, Overloaded)
    assert "4 of the 4 pictures in it are this client's" in str(displaced.error)
    assert numbers([queue.admit(of("modest", 11)).job]) == [2]  # type: ignore[union-attr]
    for client in ("greedy", "modest"):  # two each: nobody holds more than his share
        with pytest.raises(Overloaded, match="4 pictures wait, 4 may"):
            queue.admit(of(client, 20))
    assert drain(queue) == [[0, 10, 1, 11]]


def test_room_is_made_by_bytes_too_where_one_job_is_enough() -> None:
    queue = scheduler(Clock(), max_bytes=100)
    for number in range(10):
        queue.admit(of("greedy", number, size_bytes=10))
    displaced = queue.admit(of("modest", 10, size_bytes=9))
    assert displaced is not None
    assert displaced.job.id[1] == 9
    with pytest.raises(Overloaded, match="99 bytes wait, 100 may"):
        queue.admit(of("modest", 11, size_bytes=12))
    assert queue.waiting_bytes == 99


def test_a_job_larger_than_all_that_may_wait_is_refused() -> None:
    queue = scheduler(Clock(), max_bytes=100)
    with pytest.raises(Overloaded, match="0 bytes wait, 100 may"):
        queue.admit(job(1, size_bytes=101))
    queue.admit(job(2, size_bytes=100))
    assert drain(queue) == [[2]]


def test_a_full_queue_makes_room_for_another_model_where_clients_hold_the_same() -> None:
    queue = scheduler(Clock(), max_jobs=4)
    other = Group("detr", "serve", "8x8")
    for number in range(4):
        queue.admit(job(number))
    displaced = queue.admit(job(10, other))
    assert displaced is not None
    assert displaced.job.id[1] == 3
    assert queue.admit(job(11, other)) is not None
    with pytest.raises(Overloaded):
        queue.admit(job(12, other))
    assert sorted(drain(queue)) == [[0, 1], [10, 11]]


def test_no_model_waits_with_more_than_its_bounds() -> None:
    queue = scheduler(Clock(), max_jobs=10, of_model=Bounds(2, 8))
    other = Group("detr", "serve", "8x8")
    queue.admit(job(1))
    queue.admit(job(2, LARGE))
    with pytest.raises(Overloaded, match="2 pictures of 'vit' wait, 2 may") as refused:
        queue.admit(job(3))
    assert refused.value.facts == {"waiting": 2, "limit": 2}
    queue.admit(job(4, other, size_bytes=5))
    with pytest.raises(Overloaded, match="5 bytes of 'detr' wait, 8 may"):
        queue.admit(job(5, other, size_bytes=4))
    queue.admit(job(6, other, size_bytes=3))
    assert len(queue) == 4


def test_within_the_bounds_of_a_model_who_holds_most_of_it_makes_room() -> None:
    queue = scheduler(Clock(), max_jobs=10, of_model=Bounds(2, 100))
    queue.admit(of("greedy", 1))
    queue.admit(of("greedy", 2))
    queue.admit(of("greedy", 3, Group("detr", "serve", "8x8")))  # newer, and would make no room
    displaced = queue.admit(of("modest", 4))
    assert displaced is not None
    assert displaced.job.id[1] == 2


def test_what_is_late_makes_room_before_anybody_else() -> None:
    clock = Clock()
    queue = scheduler(clock, max_jobs=3)
    for number in range(3):
        queue.admit(job(number, deadline_s=5.0 if number == 1 else 9.0))
    clock.now_s = 5.0
    displaced = queue.admit(job(4))
    assert displaced is not None
    assert displaced.job.id[1] == 1
    assert isinstance(displaced.error, DeadlineExceeded)
    assert drain(queue) == [[0, 2, 4]]


def test_what_another_worker_had_accepted_is_neither_refused_nor_displaced() -> None:
    queue = scheduler(Clock(), max_jobs=2)
    for number in range(5):
        queue.admit(of("greedy", number, accepted=True))
    with pytest.raises(Overloaded, match="5 pictures wait, 2 may"):
        queue.admit(of("modest", 10))
    assert drain(queue) == [[0, 1, 2, 3], [4]]


def retry_after_of(queue: Scheduler, refused: Job) -> float:
    with pytest.raises(Overloaded) as error:
        queue.admit(refused)
    return error.value.retry_after_s


def test_who_is_refused_is_told_when_the_queue_will_be_empty_at_the_rate_measured() -> None:
    clock = Clock()
    queue = scheduler(clock, max_jobs=20)
    for number in range(20):
        queue.admit(job(number))
    assert retry_after_of(queue, job(99)) == 1.0, "nothing was measured yet"
    for batch in range(3):
        taken = queue.next_batch().jobs
        clock.now_s += 4.0  # four pictures in four seconds
        queue.finish(taken)
        for number in range(4):
            queue.admit(job(100 + 4 * batch + number))
    assert retry_after_of(queue, job(99)) == pytest.approx(20.0)
    clock.now_s += 1000.0  # nothing moves any more
    assert retry_after_of(queue, job(99)) == 60.0


def test_a_pause_without_work_does_not_slow_the_measured_rate() -> None:
    clock = Clock()
    queue = scheduler(clock, max_jobs=20)
    for _ in range(3):
        clock.now_s += 100.0
        for number in range(4):
            queue.admit(job(number))
        taken = queue.next_batch().jobs
        clock.now_s += 1.0
        queue.finish(taken)
    for number in range(20):
        queue.admit(job(number + 10))
    assert retry_after_of(queue, job(99)) == pytest.approx(5.0)


class Queueing(RuleBasedStateMachine):
    """Any sequence of arrivals, cancellations, batches and passing time, against a plain list."""

    MAX_JOBS, MAX_BYTES = 8, 40
    MODEL_BOUNDS = Bounds(8, 40)
    CLIENTS: tuple[str, ...] = ("only",)

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue = scheduler(
            self.clock, self.MAX_JOBS, self.MAX_BYTES, of_model=self.MODEL_BOUNDS
        )
        self.waiting: list[Job] = []
        self.running: list[list[Job]] = []
        self.gone: set[int] = set()
        self.patience: dict[int, int] = {}
        self.count = 0

    @rule(
        group=st.sampled_from([SMALL, LARGE, EXPLAIN]),
        size_bytes=st.integers(0, 12),
        patience_s=st.integers(0, 4),
        alone=st.booleans(),
        data=st.data(),
    )
    def admit(
        self, group: Group, size_bytes: int, patience_s: int, alone: bool, data: st.DataObject
    ) -> None:
        self.count += 1
        client = data.draw(st.sampled_from(self.CLIENTS))
        deadline_s = self.clock.now_s + patience_s
        new = job(self.count, group, size_bytes, deadline_s=deadline_s, alone=alone, client=client)
        late = [job for job in self.waiting if job.deadline_s <= self.clock.now_s]
        if self.has_room(new):
            assert self.queue.admit(new) is None
        elif any(self.has_room(new, job) for job in late):
            displaced = self.queue.admit(new)
            assert displaced is not None
            assert displaced.job in late
            self.lose(displaced.job)
        elif len(self.CLIENTS) == 1:
            with pytest.raises(Overloaded):
                self.queue.admit(new)
            return
        else:
            try:
                displaced = self.queue.admit(new)
            except Overloaded:
                return
            assert displaced is not None
            assert self.has_room(new, displaced.job)
            assert self.share(displaced.job.client) > self.share(client)
            self.lose(displaced.job)
        own = sum(job.client == client for job in self.waiting)
        self.patience[self.count] = len(self.CLIENTS) ** 2 * (own + 1)
        self.waiting.append(new)

    def has_room(self, new: Job, without: Job | None = None) -> bool:
        rest = [job for job in self.waiting if job is not without]
        size_bytes = sum(job.size_bytes for job in rest) + new.size_bytes
        return len(rest) < self.MAX_JOBS and size_bytes <= self.MAX_BYTES

    def share(self, client: str) -> float:
        own = [job for job in self.waiting if job.client == client]
        return max(len(own) / self.MAX_JOBS, sum(job.size_bytes for job in own) / self.MAX_BYTES)

    def lose(self, lost: Job) -> None:
        self.waiting.remove(lost)
        self.gone.add(lost.id[1])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.waiting))
        assert self.queue.cancel(chosen.id) == "queue"
        self.lose(chosen)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def cancel_what_is_gone(self, data: st.DataObject) -> None:
        assert not self.queue.cancel((b"peer", data.draw(st.sampled_from(sorted(self.gone)))))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cancel_what_runs(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from([job for jobs in self.running for job in jobs]))
        expected = None if chosen.left else "infer"
        assert self.queue.cancel(chosen.id) == expected
        assert chosen.left

    @rule(seconds=st.integers(1, 3))
    def let_time_pass(self, seconds: int) -> None:
        self.clock.now_s += seconds

    @rule()
    def next_batch(self) -> None:
        jobs, late, _ = self.queue.next_batch()
        now_s = self.clock.now_s
        assert all(job.deadline_s <= now_s for job in late)
        live = [job for job in self.waiting if job.deadline_s > now_s]
        able = [job for job in live if self.batches_of(job.group) < STREAMS[job.group]]
        if not live:
            assert sorted(numbers(late)) == numbers(self.waiting)
        assert bool(jobs) == bool(able)
        if jobs:
            self.check(jobs, able)
            self.running.append(jobs)
            self.lose_patience(able)
        assert len({*numbers(jobs), *numbers(late)}) == len(jobs) + len(late)
        for taken in late:
            self.lose(taken)
        for taken in jobs:
            self.waiting.remove(taken)

    def check(self, jobs: list[Job], able: list[Job]) -> None:
        assert jobs == self.expected(able)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.end(data.draw(st.integers(0, len(self.running) - 1)))

    def end(self, index: int) -> None:
        jobs = self.running.pop(index)
        self.queue.finish(jobs)
        self.gone |= set(numbers(jobs))

    def batches_of(self, group: Group) -> int:
        return sum(jobs[0].group == group for jobs in self.running)

    def lose_patience(self, able: list[Job]) -> None:
        """With one client a job waits for at most one batch of its group's turns per job that came
        before it; with several, see the scheduler.
        """
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
        while self.running:
            self.end(0)
        while self.waiting:  # nothing is lost: everything comes out in the end
            before = len(self.waiting)
            self.next_batch()
            assert len(self.waiting) < before
            while self.running:
                self.end(0)
        assert self.queue.next_batch() == Batch([], [])


class Sharing(Queueing):
    """The same with three clients: who gets what is fair, whatever the order."""

    CLIENTS = ("a", "b", "c")

    def check(self, jobs: list[Job], able: list[Job]) -> None:
        group = jobs[0].group
        assert all(job.group == group for job in jobs)
        assert len(jobs) <= BEST[group]
        assert len(jobs) == 1 or not any(job.alone for job in jobs)
        same = [job for job in able if job.group == group]
        got = Counter(job.client for job in jobs)
        for client in self.CLIENTS:
            own = [job for job in same if job.client == client]
            assert [job for job in jobs if job.client == client] == own[: got[client]], (
                "oldest first"
            )
            if len(own) > got[client] and not own[got[client]].alone and not jobs[0].alone:
                assert len(jobs) == BEST[group], "a place was left empty"
                assert got[client] >= max(got.values()) - 1, "another got two places more"


TestQueueing = Queueing.TestCase
TestSharing = Sharing.TestCase
TestQueueing.settings = TestSharing.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True
)
