"""Both ends of the Unix sockets between API processes and a worker.

Messages are those of ``wire``. A killed process loses its sockets at once, so the other end needs
no heartbeats to know. What this replaced, ZeroMQ, hands every message to a thread of its own and
back at both ends, which cost more than all the rest of a small request's way.
"""

import asyncio
import contextlib
import logging
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from service.worker import wire
from service.worker.runtimes.base import Arrays

SEND_BUFFER_BYTES = 4 << 20  # or what the kernel allows: a picture should go in one piece
BACKLOG = 64
RECEIVED_TOGETHER = 64
FRAMES_AT_ONCE = 64  # the kernel takes up to 1024

_log = logging.getLogger(__name__)

Received = tuple[bytes, wire.Header, Arrays]


class Line:
    """The worker's end of one connection; any thread may send, one receives."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.socket = connected
        self.name = b""
        self._reader = wire.Reader()
        self._lock = threading.Lock()
        self._unsent: deque[wire.Frame] = deque()

    def receive(self) -> Iterator[tuple[wire.Header, Arrays]]:
        """What has come so far, up to a bound.

        Raises:
            ConnectionError: the other end is gone.
        """
        received = 0
        while received < RECEIVED_TOGETHER:
            try:
                count = self.socket.recv_into(self._reader.buffer)
            except BlockingIOError:
                return
            if not count:
                raise ConnectionResetError("closed by its other end")
            if (message := self._reader.filled(count)) is not None:
                received += 1
                yield message

    def send(self, frames: list[wire.Frame]) -> bool:
        """Send what the kernel takes now; whether that was all. ``flush`` sends the rest."""
        with self._lock:
            behind = bool(self._unsent)
            self._unsent.extend(frames)
            return False if behind else self._send_unsent()

    def flush(self) -> bool:
        """Go on with what could not be sent; whether nothing is left."""
        with self._lock:
            return self._send_unsent()

    def _send_unsent(self) -> bool:
        unsent = self._unsent
        while unsent:
            frames = [unsent[i] for i in range(min(len(unsent), FRAMES_AT_ONCE))]
            try:
                sent = self.socket.sendmsg(frames)
            except BlockingIOError:
                return False
            except OSError:  # whoever receives hears of it, too
                unsent.clear()
                return True
            while unsent and sent >= len(unsent[0]):
                sent -= len(unsent.popleft())
            if sent:
                unsent[0] = memoryview(unsent[0])[sent:]
        return True

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            self._unsent.clear()
            self.socket.close()


class Switchboard:
    """The worker's end of all connections. A line has a name once its first message, a ``hello``,
    has given it one.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # a killed predecessor's
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(path))
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self._awake, self._alarm = socket.socketpair()
        self._awake.setblocking(False)
        self._alarm.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._awake, selectors.EVENT_READ)
        self._lines: dict[bytes, Line] = {}
        self._unflushed: deque[Line] = deque()

    @property
    def peers(self) -> list[bytes]:
        """Names of those who are connected."""
        return list(self._lines)

    def wait(self, timeout_s: float) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for what comes, or for ``wake``; ``receive`` takes what this returns."""
        return self._selector.select(timeout_s)

    def receive(
        self,
        events_of: list[tuple[selectors.SelectorKey, int]],
        hang_up: Callable[[bytes], None],
    ) -> Iterator[Received]:
        """Yield (peer, header, arrays) of each message; ``hang_up`` is told who is gone."""
        for key, events in events_of:
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._awake:
                self._awake.recv(4096)
            else:
                line: Line = key.data
                if events & selectors.EVENT_WRITE and line.flush():
                    self._selector.modify(line.socket, selectors.EVENT_READ, line)
                if events & selectors.EVENT_READ:
                    yield from self._receive(line, hang_up)
        while self._unflushed:
            self._watch_writing(self._unflushed.popleft())

    def send(self, peer: bytes, header: wire.Header, arrays: Arrays | None = None) -> None:
        """Answer a peer, from any thread; to one that is gone nothing is sent."""
        line = self._lines.get(peer)
        if line is not None and not line.send(wire.pack(header, arrays)):
            self._unflushed.append(line)
            self.wake()

    def wake(self) -> None:
        """Let ``wait`` return, from any thread."""
        with contextlib.suppress(OSError):  # it is being woken often enough, or has ended
            self._alarm.send(b"!")

    def close(self) -> None:
        """Hang up all lines, and answer none any more."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Line):
                key.data.close()
        self._selector.close()
        for one in (self._listener, self._awake, self._alarm):
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):  # it has left again
            connected, _ = self._listener.accept()
            self._selector.register(connected, selectors.EVENT_READ, Line(connected))

    def _receive(self, line: Line, hang_up: Callable[[bytes], None]) -> Iterator[Received]:
        try:
            for header, arrays in line.receive():
                if header["type"] == "hello":
                    line.name = bytes.fromhex(header["name"])
                    self._lines[line.name] = line
                yield line.name, header, arrays
        except ConnectionError:
            self._selector.unregister(line.socket)
            self._lines.pop(line.name, None)
            line.close()
            hang_up(line.name)

    def _watch_writing(self, line: Line) -> None:
        with contextlib.suppress(KeyError, ValueError):  # it is gone
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(line.socket, both, line)


class Caller(asyncio.BufferedProtocol):
    """The end of an API process; ``lost`` is set when the worker's is gone."""

    def __init__(self, hear: Callable[[wire.Header, Arrays], None]) -> None:
        self.lost = asyncio.Event()
        self._hear = hear
        self._reader = wire.Reader()
        self._transport: asyncio.Transport | None = None

    def send(self, header: wire.Header, arrays: Arrays | None = None) -> None:
        """Never waits: admission bounds what is on its way."""
        if self._transport is not None and not self.lost.is_set():
            self._transport.writelines(wire.pack(header, arrays))

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's says nothing of it

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            if (message := self._reader.filled(nbytes)) is not None:
                self._hear(*message)
        except Exception:
            _log.exception("message from the worker")  # a bug of ours; the line goes on

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


async def call(path: Path, hear: Callable[[wire.Header, Arrays], None]) -> Caller:
    """Connect to the worker that listens at ``path``.

    Raises:
        OSError: none does, at the moment.
    """
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        connected.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connected, os.fspath(path))
        _, caller = await loop.create_unix_connection(lambda: Caller(hear), sock=connected)
    except BaseException:
        connected.close()
        raise
    return caller
