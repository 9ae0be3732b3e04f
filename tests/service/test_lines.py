"""Sockets between processes: what is sent arrives, whatever the kernel's buffers hold."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvloop

from service.worker import wire
from service.worker.lines import Caller, Received, Switchboard, call
from service.worker.runtimes.base import Arrays

PATIENCE_S = 30.0
MEGABYTES = np.arange(6 << 20, dtype=np.uint8)  # more than any socket's buffer holds

Heard = tuple[wire.Header, Arrays]


class Worker:
    """A switchboard in a thread, that sends back what it gets."""

    def __init__(self, path: Path) -> None:
        self.gone: list[bytes] = []
        self.board = Switchboard(path)
        self._ends = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._ends = True
        self.board.wake()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def answer(self, received: Received) -> None:
        self.board.send(*received)

    def _serve(self) -> None:
        while not self._ends:
            for received in self.board.receive(self.board.wait(PATIENCE_S), self.gone.append):
                self.answer(received)
        self.board.close()


@contextmanager
def worker(path: Path) -> Iterator[Worker]:
    one = Worker(path)
    try:
        yield one
    finally:
        one.close()


async def connected(path: Path, name: bytes) -> tuple[Caller, "asyncio.Queue[Heard]"]:
    heard: asyncio.Queue[Heard] = asyncio.Queue()
    caller = await call(path, lambda *message: heard.put_nowait(message))
    caller.send({"type": "hello", "name": name.hex()})
    assert (await within_patience(heard))[0] == {"type": "hello", "name": name.hex()}
    return caller, heard


async def within_patience(heard: "asyncio.Queue[Heard]") -> Heard:
    return await asyncio.wait_for(heard.get(), PATIENCE_S)


def test_messages_of_any_size_come_back_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        caller, heard = await connected(tmp_path / "w", b"a")
        sizes = [0, 1, 15, 16, 17, 70_000, len(MEGABYTES), 3]
        for number, size in enumerate(sizes):
            caller.send({"type": "echo", "id": number}, {"x": MEGABYTES[:size]})
        for number, size in enumerate(sizes):
            header, arrays = await within_patience(heard)
            assert header["id"] == number
            assert np.array_equal(arrays["x"], MEGABYTES[:size])
        caller.close()

    with worker(tmp_path / "w"):
        uvloop.run(scenario())


def test_each_peer_gets_its_own_answers_and_a_slow_reader_keeps_nobody_waiting(
    tmp_path: Path,
) -> None:
    async def scenario(one: Worker) -> None:
        slow, slow_heard = await connected(tmp_path / "w", b"slow")
        quick, quick_heard = await connected(tmp_path / "w", b"quick")
        assert sorted(one.board.peers) == [b"quick", b"slow"]
        for number in range(4):  # sent by another thread, while nobody reads
            one.board.send(b"slow", {"type": "big", "id": number}, {"x": MEGABYTES})
        quick.send({"type": "echo", "id": 9})
        assert (await within_patience(quick_heard))[0]["id"] == 9
        ids = [(await within_patience(slow_heard))[0]["id"] for _ in range(4)]
        assert ids == [0, 1, 2, 3]
        slow.close()
        quick.close()

    with worker(tmp_path / "w") as one:
        uvloop.run(scenario(one))


def test_a_peer_that_leaves_is_told_and_what_is_sent_to_it_is_dropped(tmp_path: Path) -> None:
    async def scenario(one: Worker) -> None:
        caller, _ = await connected(tmp_path / "w", b"one")
        one.board.send(b"one", {"type": "big"}, {"x": MEGABYTES})
        caller.close()
        until_s = time.monotonic() + PATIENCE_S
        while one.gone != [b"one"]:
            assert time.monotonic() < until_s
            await asyncio.sleep(0.001)
        assert one.board.peers == []
        one.board.send(b"one", {"type": "late"}, {"x": MEGABYTES})
        other, _ = await connected(tmp_path / "w", b"other")
        assert one.board.peers == [b"other"]
        other.close()

    with worker(tmp_path / "w") as one:
        uvloop.run(scenario(one))


def test_the_end_of_the_worker_is_heard_at_once_and_its_successor_takes_the_same_path(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        first = Worker(tmp_path / "w")
        caller, _ = await connected(tmp_path / "w", b"one")
        first.close()
        await asyncio.wait_for(caller.lost.wait(), PATIENCE_S)
        caller.send({"type": "late"})  # and no error
        with pytest.raises(ConnectionRefusedError):
            await call(tmp_path / "w", lambda *_: None)
        with worker(tmp_path / "w"):
            again, _ = await connected(tmp_path / "w", b"one")
            again.close()

    uvloop.run(scenario())


def test_where_no_worker_ever_listened_the_call_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        uvloop.run(call(tmp_path / "w", lambda *_: None))
