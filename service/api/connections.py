"""What a connection may cost: time for its headers, its bodies and its answers, and room for all.

uvicorn bounds none of these but the pause after an answer. Here each connection is in one phase at
a time, each phase has a queue in order of entry, and one timer looks at the oldest of each queue: a
request costs a few dictionary entries and no timer.
"""

import asyncio
import json
import logging
import resource
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MAX_FRAMING_BYTES = 64 * 1024
"""Bytes in a row that are no body: line and headers of a request, or what surrounds its chunks."""
LINGER_S = 2.0  # an answer to half a request is still on its way, and so is the other half
STALL_S = 30.0  # an answer of which the client took nothing for so long is given up
SWEEP_S = 0.1
SWEEP_MOST = 100  # closing thousands at once would keep everybody waiting
RESERVED_DESCRIPTORS = 128

REFUSALS = {
    "malformed": (400, "invalid_http"),
    "slow_headers": (408, "slow_headers"),
    "large_headers": (431, "headers_too_large"),
    "refused": (503, "overloaded"),
}
"""Status and ``code`` of what a connection is told that is closed before it is a request, by the
reason that the metrics count.
"""

_log = logging.getLogger(__name__)


class Phase(Enum):
    """What a connection is waited for."""

    IDLE = "its next request"
    HEADERS = "the rest of a request's headers"
    BODY = "the rest of a body"
    ANSWERING = "us"
    STALLED = "the client to take what we sent"
    LINGERING = "the client to notice that we answered before it had sent all"

    __hash__ = object.__hash__  # that of the name costs ten times as much


@dataclass(frozen=True)
class Limits:
    """``swallow_bytes`` of a body are read and dropped after an answer that did not need them, for
    a client that is still sending them may miss an answer on a connection that was reset.
    """

    connections: int
    idle_s: float
    header_s: float
    body_s: float
    swallow_bytes: int


class Guard:
    """All connections of one process. ``count`` hears why one was closed against its will."""

    def __init__(
        self,
        limits: Limits,
        count: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.count = count
        self._clock = clock
        self._open = 0
        self._timer: asyncio.TimerHandle | None = None
        self._patience_s = {
            Phase.IDLE: limits.idle_s,
            Phase.HEADERS: limits.header_s,
            Phase.BODY: limits.body_s,
            Phase.STALLED: STALL_S,
            Phase.LINGERING: LINGER_S,
        }
        # A dict keeps the order of entry, and lets go of any entry at once.
        self._queues: dict[Phase, dict[GuardedProtocol, float]] = {
            phase: {} for phase in self._patience_s
        }

    def protocol(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> "GuardedProtocol":
        """A guarded connection, made with the arguments that uvicorn gives its protocols."""
        return GuardedProtocol(self, config, server_state, app_state, _loop)

    def admit(self, connection: "GuardedProtocol") -> bool:
        """Make room for a connection by closing the one that has kept us waiting longest.

        False where every connection is waiting for us: then there is no room.
        """
        self._open += 1
        if self._timer is None:
            self._timer = connection.loop.call_later(SWEEP_S, self._sweep, connection.loop)
        if self._open <= self.limits.connections:
            return True
        for phase in (Phase.LINGERING, Phase.IDLE, Phase.HEADERS, Phase.BODY):
            oldest = next(iter(self._queues[phase]), None)
            if oldest is not None:
                oldest.give_up("crowded")
                return True
        return False

    def enter(self, connection: "GuardedProtocol", phase: Phase) -> None:
        """Move a connection to the end of a phase's queue."""
        self._leave(connection)
        connection.phase = phase
        if phase is not Phase.ANSWERING:  # that is bounded by the request's own deadline
            self._queues[phase][connection] = self._clock()

    def forget(self, connection: "GuardedProtocol") -> None:
        """The connection is closed."""
        self._open -= 1
        self._leave(connection)

    def expire(self) -> None:
        """Tell connections whose time is up, the oldest of each phase first."""
        for connection in list(self._expired()):
            connection.expire()

    def _leave(self, connection: "GuardedProtocol") -> None:
        queue = self._queues.get(connection.phase)
        if queue is not None:
            queue.pop(connection, None)

    def _expired(self) -> "Iterator[GuardedProtocol]":
        now_s = self._clock()
        for phase, queue in self._queues.items():
            for _, (connection, since_s) in zip(range(SWEEP_MOST), queue.items(), strict=False):
                if since_s + self._patience_s[phase] > now_s:
                    break
                yield connection

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self.expire()
        self._timer = loop.call_later(SWEEP_S, self._sweep, loop) if self._open else None


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol that tells a guard which phase it is in.

    An answer that came before the whole request ends the connection: whatever else the client
    sends is not worth reading. The parser calls the methods ``on_...``.
    """

    def __init__(
        self,
        guard: Guard,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.phase = Phase.ANSWERING
        self._guard = guard
        self._framing_bytes = 0
        self._swallowed_bytes = 0
        self._unsent_bytes = 0
        self._keep_alive = True  # what the client wants, once its request is whole
        self._stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, or answer 503."""
        self._wire = transport
        super().connection_made(cast(asyncio.Transport, _Outlet(transport, self._close)))
        if self._guard.admit(self):
            self._guard.enter(self, Phase.IDLE)
        else:
            self._refuse("refused", "too many connections; try again soon")

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave."""
        self._guard.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse it, unless nobody wants it any more."""
        if self.transport.is_closing():
            self._swallow(len(data))
            return
        self._framing_bytes += len(data)
        super().data_received(data)
        if self._framing_bytes > MAX_FRAMING_BYTES and not self.transport.is_closing():
            detail = f"a request's line and headers may have {MAX_FRAMING_BYTES} bytes"
            self._refuse("large_headers", detail)

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        super().on_message_begin()
        self._guard.enter(self, Phase.HEADERS)

    def on_headers_complete(self) -> None:
        """Until the body is whole too, any answer will be the last."""
        super().on_headers_complete()
        self._keep_alive = self.cycle.keep_alive
        self.cycle.keep_alive = False
        self._guard.enter(self, Phase.BODY)

    def on_body(self, body: bytes) -> None:
        """Only bytes that are no body count as framing."""
        self._framing_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It is our turn."""
        self._framing_bytes = 0
        if not self.transport.is_closing():
            self.cycle.keep_alive = self._keep_alive and not self._stopping
            self._guard.enter(self, Phase.ANSWERING)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is the client's turn, unless more of its requests are here already."""
        super().on_response_complete()
        if self.phase is Phase.ANSWERING and self.cycle.response_complete:
            self._guard.enter(self, Phase.IDLE)

    def pause_writing(self) -> None:
        """The client takes its answer slowly; expects to be called again when it has."""
        super().pause_writing()
        if self.phase is Phase.ANSWERING:
            self._await_flush()

    def resume_writing(self) -> None:
        """The client has taken nearly all of it."""
        super().resume_writing()
        if self.phase is Phase.STALLED and not self.transport.is_closing():
            done = self.cycle.response_complete
            self._guard.enter(self, Phase.IDLE if done else Phase.ANSWERING)

    def shutdown(self) -> None:
        """As uvicorn does it, and a request of which half is here is the last one too."""
        self._stopping = True
        super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's own timer of idle connections."""
        self.give_up("idle")

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets a problem document as well."""
        self._refuse("malformed", msg)

    def expire(self) -> None:
        """The time of the current phase is up."""
        if self.phase is Phase.HEADERS and self._busy():
            self._guard.enter(self, Phase.HEADERS)  # the answer before must get through
        elif self.phase is Phase.HEADERS:
            limit_s = self._guard.limits.header_s
            detail = f"the headers did not arrive within {limit_s:g} seconds"
            self._refuse("slow_headers", detail)
        elif self.phase is Phase.BODY:
            self.give_up("slow_body")
        elif self._wire.get_write_buffer_size() < self._unsent_bytes:  # slow, but it takes some
            self._await_flush()
        elif self.phase is Phase.IDLE:
            self.give_up("idle")
        else:
            if self.phase is Phase.STALLED:
                self._guard.count("stalled")
            self._wire.abort()

    def give_up(self, reason: str) -> None:
        """Close for good; an answer that is complete still reaches the client."""
        if not self.transport.is_closing():
            self._guard.count(reason)
            self._wire.close()
            self._await_flush()
        elif self.phase is Phase.LINGERING:
            self._wire.abort()

    def _refuse(self, reason: str, detail: str) -> None:
        """Answer if nothing else is being answered, and close."""
        self._guard.count(reason)
        if self._busy():
            self._wire.abort()
        else:
            self._answer(*REFUSALS[reason], detail)
            self._close()

    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _answer(self, status: int, code: str, detail: str) -> None:
        title, request_id = HTTPStatus(status).phrase, secrets.token_hex(8)
        facts = {"request_id": request_id, "code": code, "status": status}
        _log.debug("no request came of a connection: %s", detail, extra={"facts": facts})
        document = {
            "type": f"urn:saccade:problem:{code}",
            "title": title,
            "status": status,
            "detail": detail,
            "instance": "",  # what was asked for is not known
            "code": code,
            "request_id": request_id,
        }
        body = json.dumps(document).encode()
        lines = [
            f"HTTP/1.1 {status} {title}",
            "content-type: application/problem+json",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            *(["retry-after: 1"] if status == 503 else []),
            "connection: close",
        ]
        self._wire.write("\r\n".join([*lines, "", ""]).encode() + body)

    def _close(self) -> None:
        """Close; while a request is on its way, only once the client has had time to notice."""
        if self.transport.is_closing():
            return
        if self.phase not in (Phase.HEADERS, Phase.BODY):
            self._wire.close()
            self._await_flush()
            return
        cast(_Outlet, self.transport).closing = True
        self._unsent_bytes = self._wire.get_write_buffer_size()
        self._guard.enter(self, Phase.LINGERING)
        self.flow.resume_reading()
        if self._wire.can_write_eof():
            self._wire.write_eof()

    def _swallow(self, size: int) -> None:
        self._swallowed_bytes += size
        if self._swallowed_bytes > self._guard.limits.swallow_bytes:
            self._wire.abort()

    def _await_flush(self) -> None:
        self._unsent_bytes = self._wire.get_write_buffer_size()
        self._guard.enter(self, Phase.STALLED)


class _Outlet:
    """A transport whose ``close`` is ours, in place of the one that uvicorn would close at once."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.closing = False
        self._transport = transport
        self.close = close
        self.write = transport.write
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def is_closing(self) -> bool:
        return self.closing or self._transport.is_closing()


def raise_descriptor_limit(connections: int) -> int:
    """Allow as many open files as the system lets us; how many of ``connections`` these can be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY or hard - RESERVED_DESCRIPTORS >= connections:
        return connections
    allowed = max(1, hard - RESERVED_DESCRIPTORS)
    _log.warning(
        "the system allows %d open files: %d connections instead of %d", hard, allowed, connections
    )
    return allowed
