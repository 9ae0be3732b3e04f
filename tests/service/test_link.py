"""The API's end of the line, against a worker that does what each test says."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import (
    CannotLoad,
    DeadlineExceeded,
    NotReady,
    Overloaded,
    Quarantined,
    RuntimeFailed,
    ServerError,
    WorkerLost,
)
from service.worker import wire
from service.worker.link import Result, WorkerLink, WorkerState
from service.worker.pulse import pulse_beside
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group

GROUP = Group("vit", "serve", "2x2")
RUNNING = {"vit": {"runtime": "openvino", "precision": "bf16", "device": "cpu"}}


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def pixels(value: int) -> Arrays:
    return {"images": np.full((2, 2, 3), value, np.uint8)}


class FakeWorker:
    """The other end of the line, message by message."""

    def __init__(self, folder: Path) -> None:
        path = folder / "w"
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.setblocking(False)
        self._lines: list[socket.socket] = []
        self._reader = wire.Reader()
        self.peer = b""
        self.passed_s: float | None = None
        self._pulse = pulse_beside(endpoint_of(folder))
        self._pulse.begin()

    async def accept(self) -> None:
        """Speak to the next that calls from now on."""
        self._lines.append((await asyncio.get_running_loop().sock_accept(self._listener))[0])

    async def receive(self) -> tuple[dict[str, Any], Arrays]:
        if not self._lines:
            await self.accept()
        while True:
            loop = asyncio.get_running_loop()
            count = await loop.sock_recv_into(self._lines[-1], self._reader.buffer)
            assert count, "the link hung up"
            if (message := self._reader.filled(count)) is not None:
                return message

    async def send(self, arrays: Arrays | None = None, **header: Any) -> None:
        await self.send_bytes(*wire.pack(header, arrays))

    async def send_bytes(self, *frames: wire.Frame) -> None:
        await asyncio.get_running_loop().sock_sendall(self._lines[-1], b"".join(frames))

    async def status(self, ready: bool, phase: str = "ready") -> None:
        about: dict[str, Any] = {"passed_s": self.passed_s, "phases": [[phase, 1.0]]}
        models = RUNNING if ready else {}
        await self.send(type="status", ready=ready, phase=phase, models=models, **about)

    async def hear_hello(self) -> None:
        header, _ = await self.receive()
        assert header["type"] == "hello"
        self.peer = bytes.fromhex(header["name"])

    async def welcome(self) -> None:
        await self.hear_hello()
        await self.status(ready=True)

    async def answer(self, job_id: int, value: float, batch_size: int = 1) -> None:
        outputs = {"scores": np.array([value], np.float32)}
        timing = {"batch_size": batch_size, "queue_s": 0.25, "infer_s": 0.5, "precision": "bf16"}
        await self.send(outputs, type="result", id=job_id, **timing)

    def run(self, *ids: int) -> None:
        """Have these jobs of the last peer run, until the end of this worker."""
        self._pulse.run(1.0, [(self.peer, job_id) for job_id in ids])

    def die(self) -> None:
        self._listener.close()
        for line in self._lines:
            line.close()
        self._pulse.close()


class Line:
    """A link and what it said of the worker's state."""

    def __init__(self, folder: Path) -> None:
        self.states: asyncio.Queue[WorkerState] = asyncio.Queue()
        self.link = WorkerLink(endpoint_of(folder), self.states.put_nowait)

    async def until(self, ready: bool) -> WorkerState:
        while (state := await self.states.get()).ready != ready:
            pass
        assert self.link.state.ready == ready
        return state

    def infer(self, value: int, within_s: float = 50.0) -> "asyncio.Task[Result]":
        deadline_s = time.monotonic() + within_s
        return asyncio.create_task(self.link.infer(GROUP, pixels(value), deadline_s))


def endpoint_of(folder: Path) -> str:
    return f"ipc://{folder}/w"


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[Line, FakeWorker]]:
    """A link that has heard that its worker is ready."""
    worker, line = FakeWorker(folder), Line(folder)
    await line.link.start()
    try:
        await worker.welcome()
        await line.until(ready=True)
        yield line, worker
    finally:
        await line.link.close()
        worker.die()


async def successor(folder: Path, line: Line, dead: FakeWorker) -> FakeWorker:
    """The dead worker's replacement, as soon as the link knows of both events."""
    dead.die()
    await line.until(ready=False)
    worker = FakeWorker(folder)
    await worker.welcome()
    await line.until(ready=True)
    return worker


async def die_of_what_comes(folder: Path, line: Line, worker: FakeWorker, times: int) -> FakeWorker:
    """The last of the workers that ran the picture that comes and died of it."""
    for _ in range(times):
        header, _ = await worker.receive()
        worker.run(header["id"])
        worker = await successor(folder, line, worker)
    return worker


def test_a_picture_goes_out_and_its_result_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            state = line.link.state
            phases = [("ready", 1.0)]
            told = WorkerState(True, "ready", RUNNING, state.heard_s, phases=phases, untried=True)
            assert state == told
            assert state.answers()
            asked = line.infer(7)
            header, arrays = await worker.receive()
            assert (header["type"], header["alone"]) == ("infer", False)
            assert header["outputs"] is None
            named = (header[name] for name in ("model", "graph", "canvas", "version"))
            assert tuple(named) == GROUP
            assert 0 < header["deadline_s"] - time.monotonic() <= 50
            assert np.array_equal(arrays["images"], pixels(7)["images"])
            assert line.link.in_flight == 1
            await worker.answer(header["id"], 0.75, batch_size=3)
            result = await asked
            assert result.outputs["scores"].tolist() == [0.75]
            assert (result.batch_size, result.queue_s, result.infer_s) == (3, 0.25, 0.5)
            assert result.precision == "bf16"
            assert line.link.in_flight == 0

    run(scenario())


def test_the_outputs_to_bring_back_are_named_on_the_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            deadline_s = time.monotonic() + 50
            asking = line.link.infer(GROUP, pixels(7), deadline_s, ("boxes", "scores"))
            asked = asyncio.create_task(asking)
            header, _ = await worker.receive()
            assert header["outputs"] == ["boxes", "scores"]
            await worker.answer(header["id"], 0.75)
            await asked

    run(scenario())


def test_answers_in_another_order_find_their_callers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            asked = [line.infer(value) for value in range(4)]
            received = [await worker.receive() for _ in asked]
            for header, arrays in reversed(received):
                await worker.answer(header["id"], float(arrays["images"][0, 0, 0]))
            results = await asyncio.gather(*asked)
            assert [result.outputs["scores"][0] for result in results] == [0, 1, 2, 3]

    run(scenario())


def test_an_error_comes_back_as_itself_with_facts_and_retry_after(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            asked = [line.infer(0), line.infer(1), line.infer(2)]
            ids = [(await worker.receive())[0]["id"] for _ in asked]
            error: dict[str, Any] = {"type": "error", "facts": {"waiting": 8}, "message": "full"}
            await worker.send(**error, kind="Overloaded", id=ids[0], retry_after_s=2.5)
            await worker.send(**error, kind="RuntimeFailed", id=ids[1])
            await worker.send(**error, kind="OfANewerRelease", id=ids[2])
            overloaded, failed, unknown = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(overloaded, Overloaded)
            assert (str(overloaded), overloaded.facts) == ("full", {"waiting": 8})
            assert overloaded.retry_after_s == 2.5
            assert isinstance(failed, RuntimeFailed)
            assert type(unknown) is ServerError

    run(scenario())


def test_leaving_takes_the_picture_off_the_queue(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            asked = line.infer(0)
            header, _ = await worker.receive()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert (await worker.receive())[0] == {"type": "cancel", "id": header["id"]}
            assert line.link.in_flight == 0

    run(scenario())


def test_a_deadline_ends_the_wait_even_if_the_worker_is_silent(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, _):
            for within_s in (0.01, -1.0):
                with pytest.raises(DeadlineExceeded):
                    await line.infer(0, within_s)
            assert line.link.in_flight == 0

    run(scenario())


def test_nothing_is_sent_before_the_worker_is_ready_and_the_phase_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker, line = FakeWorker(tmp_path), Line(tmp_path)
        assert line.link.state.phase == "waiting for the worker"
        await line.link.start()
        await worker.hear_hello()
        await worker.status(ready=False, phase="compiling vit")
        assert (await line.until(ready=False)).phase == "compiling vit"
        asked = line.infer(5)
        with pytest.raises(DeadlineExceeded):
            await line.infer(6, 0.01)
        assert not line.link.was_ready
        await worker.status(ready=True)
        await line.until(ready=True)
        assert line.link.was_ready
        header, arrays = await worker.receive()  # the first message since hello
        assert arrays["images"][0, 0, 0] == 5
        await worker.answer(header["id"], 0)
        await asked
        await line.link.close()
        worker.die()

    run(scenario())


def test_a_dead_worker_is_noticed_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            worker.die()
            state = await line.until(ready=False)
            assert "died" in state.phase
            assert state.models == {}
            assert line.link.was_ready

    run(scenario())


def test_a_picture_that_was_running_is_sent_to_the_successor_to_run_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, first):
            asked = line.infer(9)
            before, _ = await first.receive()
            first.run(before["id"])
            second = await successor(tmp_path, line, first)
            again, arrays = await second.receive()
            assert again == before | {"alone": True, "accepted": True}
            assert np.array_equal(arrays["images"], pixels(9)["images"])
            await second.answer(again["id"], 0.5)
            assert (await asked).outputs["scores"].tolist() == [0.5]
            second.die()

    run(scenario())


def test_a_picture_that_was_running_in_two_deaths_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            asked = line.infer(9)
            worker = await die_of_what_comes(tmp_path, line, worker, times=2)
            with pytest.raises(Quarantined, match="died 2 times"):
                await asked
            sentinel = line.infer(1)  # the next message is this one: the refused is not sent again
            header, arrays = await worker.receive()
            assert arrays["images"][0, 0, 0] == 1
            await worker.answer(header["id"], 0)
            await sentinel
            worker.die()

    run(scenario())


def test_a_picture_that_only_waited_has_no_part_in_the_deaths(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            asked = line.infer(9)
            for _ in range(3):
                header, _ = await worker.receive()
                assert header["alone"] is False
                worker = await successor(tmp_path, line, worker)
            header, _ = await worker.receive()
            await worker.answer(header["id"], 0.5)
            assert (await asked).outputs["scores"].tolist() == [0.5]
            worker.die()

    run(scenario())


def test_every_picture_reaches_the_successor_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, first):
            asked = [line.infer(value) for value in range(3)]
            for _ in asked:
                await first.receive()
            second = await successor(tmp_path, line, first)
            await second.status(ready=True)  # said every second: no reason to send again
            await line.until(ready=True)
            asked.append(line.infer(3))
            received = [await second.receive() for _ in asked]
            assert [int(arrays["images"][0, 0, 0]) for _, arrays in received] == [0, 1, 2, 3]
            for header, _ in received:
                await second.answer(header["id"], 0)
            await asyncio.gather(*asked)
            second.die()

    run(scenario())


def test_what_was_cancelled_while_the_worker_was_away_is_not_sent_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, first):
            leaving, staying = line.infer(1), line.infer(2)
            await first.receive()
            await first.receive()
            first.die()
            await line.until(ready=False)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            second = FakeWorker(tmp_path)
            seen: list[tuple[dict[str, Any], Arrays]] = []
            while not seen or seen[-1][0]["type"] != "infer":
                seen.append(await second.receive())
                if seen[-1][0]["type"] == "hello":
                    await second.status(ready=True)
            assert seen[-1][1]["images"][0, 0, 0] == 2
            await second.answer(seen[-1][0]["id"], 0)
            await staying
            second.die()

    run(scenario())


def test_messages_that_concern_nobody_or_make_no_sense_are_survived(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            asked = line.infer(0)
            header, _ = await worker.receive()
            await worker.answer(999, 1.0)
            await worker.send(type="error", id=999, kind="NotReady", message="x", facts={})
            for nonsense in (b"not json", b'{"type": "result", "arrays": [["x", "<f4", [1]]]}'):
                await worker.send_bytes(wire.PREFIX.pack(len(nonsense), 0), nonsense)
            await worker.answer(header["id"], 0.5)
            await worker.answer(header["id"], 0.75)  # a second answer changes nothing
            assert (await asked).outputs["scores"].tolist() == [0.5]

    run(scenario())


def test_closing_fails_what_is_pending_and_refuses_what_comes(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker, line = FakeWorker(tmp_path), Line(tmp_path)
        await line.link.start()
        await worker.welcome()
        await line.until(ready=True)
        asked = line.infer(0)
        await worker.receive()
        await line.link.close()
        with pytest.raises(WorkerLost, match="shutting down"):
            await asked
        with pytest.raises(NotReady, match="shutting down"):
            await line.infer(0)
        worker.die()

    run(scenario())


def test_a_change_is_asked_for_and_its_end_or_error_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            loading = asyncio.create_task(line.link.change("load", "vit", "2"))
            header, _ = await worker.receive()
            assert header == {"type": "load", "id": header["id"], "model": "vit", "version": "2"}
            await worker.send(type="done", id=header["id"])
            await loading
            unloading = asyncio.create_task(line.link.change("unload", "vit"))
            header, _ = await worker.receive()
            error: dict[str, Any] = {"kind": "CannotLoad", "message": "damaged", "facts": {}}
            await worker.send(type="error", id=header["id"], **error)
            with pytest.raises(CannotLoad, match="damaged"):
                await unloading

    run(scenario())


def test_a_change_that_the_worker_dies_of_is_not_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, first):
            loading = asyncio.create_task(line.link.change("load", "vit", "2"))
            await first.receive()
            second = await successor(tmp_path, line, first)
            with pytest.raises(WorkerLost, match="died during the change"):
                await loading
            asked = line.infer(1)
            header, _ = await second.receive()
            assert header["type"] == "infer", "and nothing before"
            await second.answer(header["id"], 0)
            await asked
            second.die()

    run(scenario())


def test_nothing_can_be_changed_while_the_worker_is_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            worker.die()
            await line.until(ready=False)
            with pytest.raises(NotReady, match="died"):
                await line.link.change("load", "vit")

    run(scenario())


def test_models_that_should_be_served_and_cannot_be_are_known(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            about: dict[str, Any] = {"phase": "ready", "passed_s": None, "phases": []}
            await worker.send(type="status", ready=True, models={}, failed=["vit"], **about)
            while (state := await line.states.get()).failed != ["vit"]:
                pass
            assert line.link.state.failed == state.failed

    run(scenario())


def test_a_picture_is_known_to_have_run_though_no_message_of_it_came(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            running, waiting = line.infer(1), line.infer(2)
            header, _ = await worker.receive()
            await worker.receive()
            pulse = pulse_beside(endpoint_of(tmp_path))
            pulse.run(1.0, [(worker.peer, header["id"]), (b"another", header["id"] + 1)])
            second = await successor(tmp_path, line, worker)
            alone = [(await second.receive())[0]["alone"] for _ in range(2)]
            assert alone == [True, False]
            running.cancel()
            waiting.cancel()
            pulse.close()
            second.die()

    run(scenario())


def test_what_was_condemned_is_refused_at_once_by_every_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            asked = line.infer(9)
            worker = await die_of_what_comes(tmp_path, line, worker, times=2)
            with pytest.raises(Quarantined):
                await asked
            with pytest.raises(Quarantined, match="Another picture will do"):
                await line.infer(9)
            other = Line(tmp_path)
            await other.link.start()
            await worker.accept()
            await worker.welcome()
            await other.until(ready=True)
            with pytest.raises(Quarantined):
                await other.infer(9)
            assert line.link.in_flight == other.link.in_flight == 0
            await other.link.close()
            worker.die()

    run(scenario())


def test_a_worker_that_is_ready_again_without_having_died_gets_nothing_twice(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            first = line.infer(1)
            await worker.receive()
            await worker.status(ready=False, phase="no model can be loaded")
            await line.until(ready=False)
            second = line.infer(2)
            await worker.status(ready=True)
            await line.until(ready=True)
            header, arrays = await worker.receive()
            assert arrays["images"][0, 0, 0] == 2
            assert header["accepted"]
            for asked in (first, second):
                asked.cancel()

    run(scenario())


def test_the_last_pass_is_remembered_while_workers_come_and_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with connected(tmp_path) as (line, worker):
            assert line.link.state.passes(1.0), "nothing has run yet, so nothing was missed"
            worker.passed_s = time.monotonic() - 100
            await worker.status(ready=True)
            while line.link.state.passed_s is None:
                await line.states.get()
            second = await successor(tmp_path, line, worker)
            assert line.link.state.passed_s == worker.passed_s
            assert line.link.state.passes(99), "the second may load for as long as it takes"
            for _ in range(3):
                second = await successor(tmp_path, line, second)
            assert (line.link.state.passes(99), line.link.state.passes(200)) == (False, True)
            second.passed_s = time.monotonic()
            await second.status(ready=True)
            while not line.link.state.passes(99):
                await line.states.get()
            third = await successor(tmp_path, line, second)
            assert line.link.state.untried
            third.die()

    run(scenario())


def test_who_waits_for_the_first_word_hears_it_or_does_not_wait_forever(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker, line = FakeWorker(tmp_path), Line(tmp_path)
        await line.link.start()
        await line.link.hear(0.01)
        assert not line.link.state.ready
        hearing = asyncio.create_task(line.link.hear(50))
        await worker.welcome()
        await hearing
        assert line.link.state.ready
        await line.link.close()
        worker.die()

    run(scenario())
