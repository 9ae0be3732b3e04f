"""Several workers behind one line, each of which does what a test says."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.errors import DeadlineExceeded, NotReady, Quarantined
from service.worker.link import Result, WorkerLink, WorkerState
from service.worker.links import WorkerLinks, connect, merged
from tests.service.test_link import GROUP, FakeWorker, endpoint_of, pixels, run

DEVICES = ["cuda:0", "cuda:1"]
ABOUT: dict[str, Any] = {
    "type": "status",
    "ready": True,
    "passed_s": None,
    "phases": [["ready", 1.0]],
}


async def serve(worker: FakeWorker, version: str) -> None:
    """Have a worker tell that it serves a version."""
    models = {"vit": {"version": version}}
    await worker.send(**ABOUT, phase="ready", models=models)


class Lines:
    """A line to two workers, and what it said of their state."""

    def __init__(self, folders: list[Path]) -> None:
        self.states: asyncio.Queue[WorkerState] = asyncio.Queue()
        listening = [endpoint_of(folder) for folder in folders]
        self.links = WorkerLinks(listening, DEVICES, self.states.put_nowait)

    async def until(self, **devices: bool) -> WorkerState:
        """The first state in which the workers answer as told."""
        wanted = {name.replace("_", ":"): answers for name, answers in devices.items()}
        while (state := await self.states.get()).devices != wanted:
            pass
        return state

    def infer(self, value: int, within_s: float = 50.0) -> "asyncio.Task[Result]":
        deadline_s = time.monotonic() + within_s
        return asyncio.create_task(self.links.infer(GROUP, pixels(value), deadline_s))


@asynccontextmanager
async def two(tmp_path: Path) -> AsyncIterator[tuple[Lines, list[Path], list[FakeWorker]]]:
    """A line that has heard that both of its workers are ready."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    workers = [FakeWorker(folder) for folder in folders]
    lines = Lines(folders)
    await lines.links.start()
    try:
        for worker in workers:
            await welcome(worker)
        await lines.until(cuda_0=True, cuda_1=True)
        yield lines, folders, workers
    finally:
        await lines.links.close()
        for worker in workers:
            worker.die()


async def welcome(worker: FakeWorker) -> None:
    await worker.hear_hello()
    await serve(worker, "1")


async def jobs_of(worker: FakeWorker, count: int) -> list[int]:
    return [(await worker.receive())[0]["id"] for _ in range(count)]


def test_pictures_go_to_the_least_loaded_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (lines, _, (first, second)):
            asked = [lines.infer(value) for value in range(4)]
            ids, others = await jobs_of(first, 2), await jobs_of(second, 2)
            assert lines.links.in_flight == 4
            for job_id in ids:
                await first.answer(job_id, 0.5)
            done: set[asyncio.Task[Result]] = set()
            while len(done) < 2:
                done, _ = await asyncio.wait(set(asked) - done, return_when=asyncio.FIRST_COMPLETED)
                done = {task for task in asked if task.done()}
            more = [lines.infer(value) for value in (5, 6)]  # the second still has two
            ids = await jobs_of(first, 2)
            for job_id in ids:
                await first.answer(job_id, 0.25)
            for job_id in others:
                await second.answer(job_id, 0.75)
            results = await asyncio.gather(*asked, *more)
            found = sorted(float(result.outputs["scores"][0]) for result in results)
            assert found == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]

    run(scenario())


def test_what_a_lost_worker_had_goes_to_another_which_runs_the_suspect_alone(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (lines, _, (first, second)):
            first_of_all = [lines.infer(value) for value in range(4)]
            ran, waited = await jobs_of(first, 2)
            first.run(ran)
            await jobs_of(second, 2)
            first.die()
            state = await lines.until(cuda_0=False, cuda_1=True)
            assert state.ready
            assert state.models == {"vit": {"version": "1"}}
            moved = [(await second.receive())[0] for _ in range(2)]
            assert [header["alone"] for header in moved] == [True, False]
            assert [header["accepted"] for header in moved] == [True, True]
            for job_id in [header["id"] for header in moved]:
                await second.answer(job_id, 0.5)
            for job_id in (1, 2):
                await second.answer(job_id, 0.75)
            results = await asyncio.gather(*first_of_all)
            assert sorted(float(r.outputs["scores"][0]) for r in results) == [0.5, 0.5, 0.75, 0.75]
            assert waited != ran

    run(scenario())


def test_a_picture_that_kills_a_worker_of_each_device_is_refused_by_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (lines, folders, (first, second)):
            asked = lines.infer(13)
            header, _ = await first.receive()
            first.run(header["id"])
            first.die()
            header, _ = await second.receive()
            assert header["alone"]
            second.run(header["id"])
            second.die()
            with pytest.raises(Quarantined):
                await asked
            again = FakeWorker(folders[1])
            await welcome(again)
            await lines.until(cuda_0=False, cuda_1=True)
            with pytest.raises(Quarantined):
                await lines.infer(13)
            asked = lines.infer(14)
            header, _ = await again.receive()
            await again.answer(header["id"], 0.5)
            assert (await asked).outputs["scores"] == [0.5]
            again.die()

    run(scenario())


def test_what_waits_while_all_are_away_goes_to_the_first_that_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (lines, folders, (first, second)):
            first.die()
            second.die()
            state = await lines.until(cuda_0=False, cuda_1=False)
            assert (state.ready, state.phase) == (False, "the worker died and is being restarted")
            asked = [lines.infer(value) for value in (1, 2)]
            late = lines.infer(3, within_s=0.01)
            with pytest.raises(DeadlineExceeded):
                await late
            back = FakeWorker(folders[1])
            await welcome(back)
            for job_id in await jobs_of(back, 2):
                await back.answer(job_id, 0.5)
            assert [r.batch_size for r in await asyncio.gather(*asked)] == [1, 1]
            back.die()

    run(scenario())


def test_a_picture_goes_where_the_version_runs_that_it_was_prepared_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (lines, _, (_first, second)):
            await serve(second, "2")
            while lines.links.versions("vit") != ["1", "2"]:
                await lines.states.get()
            deadline_s = time.monotonic() + 50
            group = GROUP._replace(version="2")
            asked = [
                asyncio.create_task(lines.links.infer(group, pixels(n), deadline_s))
                for n in range(3)
            ]
            for job_id in await jobs_of(second, 3):
                await second.answer(job_id, 0.5)
            assert len(await asyncio.gather(*asked)) == 3

    run(scenario())


def test_a_change_is_made_by_one_worker_and_answered_when_the_others_have_followed(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (lines, _, workers):
            change = asyncio.create_task(lines.links.change("load", "vit", "2"))
            header, _ = await workers[0].receive()
            assert (header["type"], header["model"], header["version"]) == ("load", "vit", "2")
            await serve(workers[0], "2")
            await workers[0].send(type="done", id=header["id"])
            while lines.links.versions("vit") != ["2", "1"]:
                await lines.states.get()
            assert not change.done()
            await serve(workers[1], "2")
            await change

    run(scenario())


def test_nothing_can_be_changed_while_all_are_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (lines, _, workers):
            for worker in workers:
                worker.die()
            await lines.until(cuda_0=False, cuda_1=False)
            with pytest.raises(NotReady, match="being restarted"):
                await lines.links.change("unload", "vit")

    run(scenario())


def test_together_they_are_ready_if_any_is_and_a_model_has_failed_only_if_none_has_it() -> None:
    now_s = time.monotonic()
    away = WorkerState(phase="the worker died and is being restarted", passed_s=5.0)
    ready = WorkerState(True, "ready", {"vit": {"version": "1"}}, now_s, ["detr"], passed_s=3.0)
    other = WorkerState(True, "ready", {"detr": {"version": "2"}}, now_s - 1, passed_s=4.0)
    both = merged([ready, other], DEVICES)
    assert (both.ready, both.failed, both.passed_s, both.heard_s) == (True, [], 4.0, now_s)
    assert both.models == {"vit": {"version": "1"}, "detr": {"version": "2"}}
    assert both.devices == {"cuda:0": True, "cuda:1": True}
    one = merged([away, ready], DEVICES)
    assert (one.ready, one.failed, one.passed_s, one.phase) == (True, ["detr"], 5.0, "ready")
    assert one.devices == {"cuda:0": False, "cuda:1": True}
    none = merged([away, WorkerState()], DEVICES)
    assert (none.ready, none.answers(), none.phase) == (False, False, away.phase)


def test_one_device_has_a_plain_line(tmp_path: Path) -> None:
    assert isinstance(connect(endpoint_of(tmp_path), ["cpu"], lambda state: None), WorkerLink)
    assert isinstance(connect(endpoint_of(tmp_path), DEVICES, lambda state: None), WorkerLinks)
