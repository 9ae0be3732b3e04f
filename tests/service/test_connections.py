"""Connections that cost more than they should: how long each may be waited for, and how many there
may be.
"""

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from service.api import connections
from service.api.connections import (
    MAX_FRAMING_BYTES,
    STALL_S,
    Guard,
    GuardedProtocol,
    Limits,
    Phase,
)
from service.api.schemas.base import Problem

PATIENCE_S = 20.0
GET = b"GET /answer HTTP/1.1\r\nHost: test\r\n\r\n"
LIMITS = Limits(connections=100, idle_s=75, header_s=10, body_s=30, swallow_bytes=1_000_000)

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Listener:
    """A guarded server with a clock that moves when told."""

    limits: Limits = LIMITS
    now_s: float = 0.0
    closed: list[str] = field(default_factory=list)
    tasks: set[Any] = field(default_factory=set)
    clients: list[Client] = field(default_factory=list)
    port: int = 0
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.guard = Guard(self.limits, self.closed.append, lambda: self.now_s)
        self.may_answer.set()

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """/read reads the body first, /large answers much, /refuse and the rest read nothing."""
        if scope["path"] == "/read":
            while (message := await receive()).get("more_body", False):
                pass
            if message["type"] == "http.disconnect":
                return
        await self.may_answer.wait()
        status = 413 if scope["path"] == "/refuse" else 200
        body = bytes(32 * 2**20) if scope["path"] == "/large" else b"done"
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def connect(self) -> Client:
        client = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(client)
        return client

    def waiting(self, phase: Phase) -> list[GuardedProtocol]:
        return list(self.guard._queues[phase])

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.guard.expire()


@asynccontextmanager
async def listening(limits: Limits = LIMITS) -> AsyncIterator[Listener]:
    listener = Listener(limits)
    config = Config(listener.app, interface="asgi3", lifespan="off", log_config=None, ws="none")
    state = ServerState()
    listener.tasks = state.tasks
    server = await asyncio.get_running_loop().create_server(
        lambda: listener.guard.protocol(config, state, {}), "127.0.0.1", 0
    )
    listener.port = server.sockets[0].getsockname()[1]
    try:
        yield listener
    finally:
        server.close()
        for _, writer in listener.clients:
            writer.transport.abort()
        for connection in list(state.connections):
            cast(GuardedProtocol, connection)._wire.abort()
        await asyncio.sleep(0.01)  # what is aborted is lost in the next round of the loop


async def until(condition: Callable[[], object]) -> None:
    """Wait for what the server does when it comes to it; ``run`` bounds the wait."""
    while not condition():  # noqa: ASYNC110, the server does not tell
        await asyncio.sleep(0.01)


async def send_until_reset(writer: asyncio.StreamWriter, most: int) -> int:
    """Send zeros until the server has hung up, at most so many; how many were sent."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < most:
            writer.write(bytes(2**18))
            await writer.drain()
            sent += 2**18
    return sent


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await scenario()

    uvloop.run(bounded())


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by lower-case name, and body of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, body


async def ask(client: Client, request: bytes = GET) -> int:
    client[1].write(request)
    return (await answer_of(client[0]))[0]


def post(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()


def test_headers_that_dribble_are_answered_408_when_their_time_is_up() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            reader, writer = await listener.connect()
            writer.write(b"GET / HTTP/1.1\r\nX-Slow: ")
            await until(lambda: listener.waiting(Phase.HEADERS))
            listener.pass_time(6)
            writer.write(b"more")
            listener.pass_time(3.9)
            assert listener.closed == []
            listener.pass_time(0.2)
            status, headers, body = await answer_of(reader)
            assert (status, headers["connection"]) == (408, "close")
            problem = Problem.model_validate_json(body)
            assert (problem.status, problem.code) == (408, "slow_headers")
            assert problem.request_id == headers["x-request-id"]
            assert listener.closed == ["slow_headers"]
            assert await reader.read() == b""

    run(scenario)


def test_a_connection_that_says_nothing_is_closed_and_one_that_asks_in_time_is_not() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            silent, asking = await listener.connect(), await listener.connect()
            assert await ask(asking) == 200
            listener.pass_time(70)
            assert await ask(asking) == 200
            listener.pass_time(70)
            assert await silent[0].read() == b""
            assert listener.closed == ["idle"]
            assert await ask(asking) == 200
            listener.pass_time(76)
            assert await asking[0].read() == b""

    run(scenario)


def test_line_breaks_alone_do_not_keep_a_connection() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            reader, writer = await listener.connect()
            assert await ask((reader, writer)) == 200
            for _ in range(4):
                writer.write(b"\r\n")
                await asyncio.sleep(0.01)
                listener.pass_time(19)
            assert await reader.read() == b""

    run(scenario)


def test_a_body_that_dribbles_is_cut_off() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            reader, writer = await listener.connect()
            writer.write(post("/read", "Content-Length: 100"))
            await until(lambda: listener.waiting(Phase.BODY))
            listener.pass_time(31)
            assert listener.closed == ["slow_body"]
            assert await reader.read() == b""
            await until(lambda: not listener.tasks)

    run(scenario)


def test_past_the_limit_the_connection_idle_for_longest_gives_way() -> None:
    async def scenario() -> None:
        async with listening(Limits(2, 75, 10, 30, 1000)) as listener:
            first, second = await listener.connect(), await listener.connect()
            assert [await ask(second), await ask(first)] == [200, 200]
            third = await listener.connect()
            assert await ask(third) == 200
            assert await second[0].read() == b""
            assert listener.closed == ["crowded"]
            assert [await ask(first), await ask(third)] == [200, 200]

    run(scenario)


def test_where_everybody_waits_for_us_a_newcomer_is_refused_and_told() -> None:
    async def scenario() -> None:
        async with listening(Limits(1, 75, 10, 30, 1000)) as listener:
            listener.may_answer.clear()
            first = await listener.connect()
            first[1].write(GET)
            await until(lambda: listener.tasks)
            second = await listener.connect()
            status, headers, body = await answer_of(second[0])
            assert (status, headers["retry-after"]) == (503, "1")
            assert Problem.model_validate_json(body).code == "overloaded"
            assert await second[0].read() == b""
            assert listener.closed == ["refused"]
            listener.may_answer.set()
            assert (await answer_of(first[0]))[0] == 200

    run(scenario)


@pytest.mark.parametrize(
    "framing",
    [
        pytest.param(b"GET / HTTP/1.1\r\nX-Large: ", id="a header"),
        pytest.param(b"GET /", id="the path"),
    ],
)
def test_endless_headers_are_answered_431(framing: bytes) -> None:
    async def scenario() -> None:
        async with listening() as listener:
            reader, writer = await listener.connect()
            writer.write(framing)
            for _ in range(MAX_FRAMING_BYTES // 4096 + 1):
                writer.write(b"a" * 4096)
                await asyncio.sleep(0)
            status, _, body = await answer_of(reader)
            assert status == 431
            assert json.loads(body)["code"] == "headers_too_large"
            assert listener.closed == ["large_headers"]

    run(scenario)


@pytest.mark.parametrize("endless", [b"0\r\nX-Trailer: ", b"1;extension="])
def test_what_surrounds_a_chunked_body_is_bounded(endless: bytes) -> None:
    async def scenario() -> None:
        async with listening() as listener:
            reader, writer = await listener.connect()
            writer.write(post("/read", "Transfer-Encoding: chunked") + b"1\r\na\r\n" + endless)
            writer.write(b"a" * 2**20)  # more than one read of the loop, which may hold the body
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await answer_of(reader)
            assert listener.closed == ["large_headers"]

    run(scenario)


def test_small_chunks_are_no_offence() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            client = await listener.connect()
            body = b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n"
            assert await ask(client, post("/read", "Transfer-Encoding: chunked") + body) == 200
            assert await ask(client) == 200
            assert listener.closed == []

    run(scenario)


def test_an_answer_before_the_whole_body_arrives_and_ends_the_connection() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            reader, writer = await listener.connect()
            writer.write(post("/refuse", "Transfer-Encoding: chunked") + b"186a0\r\n" + bytes(50))
            status, headers, _ = await answer_of(reader)
            assert (status, headers["connection"]) == (413, "close")
            assert await reader.read() == b""  # it said so at once, and does not reset:
            writer.write(bytes(100_000))
            await writer.drain()
            listener.pass_time(2.1)
            assert await send_until_reset(writer, 2**26) < 2**26

    run(scenario)


def test_of_a_refused_body_no_more_is_read_than_a_good_one_may_have() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            reader, writer = await listener.connect()
            writer.write(post("/refuse", f"Content-Length: {2**30}"))
            assert (await answer_of(reader))[0] == 413
            sent = await send_until_reset(writer, 2**30)
            assert sent < 2**26  # the limit, and what the kernel holds

    run(scenario)


def test_a_whole_body_that_the_answer_did_not_need_keeps_the_connection() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            client = await listener.connect()
            assert await ask(client, post("/refuse", "Content-Length: 3") + b"abc") == 413
            assert await ask(client) == 200

    run(scenario)


def test_an_answer_that_the_client_does_not_take_is_given_up() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            _, writer = await listener.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n")
            await until(lambda: listener.waiting(Phase.STALLED))
            (stalled,) = listener.waiting(Phase.STALLED)
            while (left := stalled._wire.get_write_buffer_size()) != stalled._unsent_bytes:
                stalled._unsent_bytes = left  # the kernel has taken its part
                await asyncio.sleep(0.05)
            listener.pass_time(STALL_S + 1)
            assert listener.closed == ["stalled"]

    run(scenario)


def test_a_client_that_takes_its_answer_slowly_gets_all_of_it() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            reader, writer = await listener.connect()
            writer.write(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            (slow,) = listener.waiting(Phase.STALLED)
            for _ in range(4):
                unsent = slow._wire.get_write_buffer_size()
                await reader.readexactly(8 * 2**20)
                await until(lambda: slow._wire.get_write_buffer_size() < max(1, unsent))  # noqa: B023
                listener.pass_time(STALL_S - 1)
            assert await ask((reader, writer)) == 200

    run(scenario)


def test_what_is_no_http_gets_a_problem_document() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            reader, writer = await listener.connect()
            writer.write(b"\x16\x03\x01 hello\r\n\r\n")
            status, headers, body = await answer_of(reader)
            assert (status, headers["content-type"]) == (400, "application/problem+json")
            assert json.loads(body)["code"] == "invalid_http"
            assert listener.closed == ["malformed"]

    run(scenario)


def test_requests_in_one_packet_are_answered_in_turn() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            reader, writer = await listener.connect()
            writer.write(GET + post("/read", "Content-Length: 3") + b"abc" + GET)
            assert [(await answer_of(reader))[0] for _ in range(3)] == [200, 200, 200]
            listener.pass_time(76)
            assert await reader.read() == b""

    run(scenario)


def test_at_the_end_only_a_request_that_is_here_is_waited_for() -> None:
    async def scenario() -> None:
        async with listening() as listener:
            listener.may_answer.clear()
            asking, idle, dribbling = [await listener.connect() for _ in range(3)]
            asking[1].write(post("/read", "Content-Length: 3") + b"ab")
            dribbling[1].write(b"GET / HT")
            await until(lambda: listener.waiting(Phase.BODY) and listener.waiting(Phase.HEADERS))
            for phase in (Phase.IDLE, Phase.HEADERS, Phase.BODY):
                (connection,) = listener.waiting(phase)
                connection.shutdown()
            assert [await idle[0].read(), await dribbling[0].read()] == [b"", b""]
            asking[1].write(b"c")
            listener.may_answer.set()
            status, headers, _ = await answer_of(asking[0])
            assert (status, headers["connection"]) == (200, "close")
            assert await asking[0].read() == b""

    run(scenario)


def test_open_files_are_allowed_up_to_the_hard_limit_and_connections_fit_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    assert connections.raise_descriptor_limit(500) == 500
    assert connections.raise_descriptor_limit(4096) == 872
    assert asked == [(1000, 1000)] * 2
