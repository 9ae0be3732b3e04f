"""HTTP/1.1 over kept-alive connections, cheap enough not to compete with the server it measures."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

from service.errors import BadSettings


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; ``server_timing`` is that header as it came, empty where there was none."""

    status: int
    server_timing: str
    body: bytes


class Client:
    """Requests to one server, each on a connection of its own while it runs.

    ``headers`` go with every request. ``timeout_s`` bounds connecting and answering together.
    ``source`` is the address of this machine to connect from; the system chooses if it is None.

    Raises:
        BadSettings: ``url`` is not http://host[:port] or https://host[:port], or a header holds a
            line break.
    """

    def __init__(
        self, url: str, headers: dict[str, str], timeout_s: float, source: str | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadSettings(f"{url!r} is no address of a server; it looks like http://host:8000")
        if any("\n" in text or "\r" in text for pair in headers.items() for text in pair):
            raise BadSettings("a header must not hold a line break")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Host": parts.netloc, **headers}
        self._timeout_s = timeout_s
        self._source = None if source is None else (source, 0)
        self._idle: list[_Connection] = []

    def compose(self, method: str, path: str, body: bytes = b"", kind: str = "") -> bytes:
        """A request as it goes over the wire; ``kind`` is the body's media type."""
        headers = dict(self._headers)
        if body:
            headers |= {"Content-Type": kind, "Content-Length": str(len(body))}
        lines = [f"{method} {self._prefix}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    async def send(self, request: bytes) -> Reply:
        """The answer to a composed request.

        Raises:
            OSError: it cannot connect, the connection broke, or time ran out (TimeoutError).
            httptools.HttpParserError: the answer is not HTTP.
        """
        connection = None
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = self._take_idle() or await self._connect()
                reply = await connection.exchange(request)
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        if not connection.closed:
            self._idle.append(connection)
        return reply

    def close(self) -> None:
        """Close the connections that no request uses."""
        while self._idle:
            self._idle.pop().close()

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            _Connection, self._host, self._port, ssl=self._tls, local_addr=self._source
        )
        return connection


class _Connection(asyncio.Protocol):
    """One exchange at a time; the parser calls the methods ``on_...``."""

    def __init__(self) -> None:
        self.closed = False
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Reply] | None = None
        self._timing = ""
        self._chunks: list[bytes] = []

    async def exchange(self, request: bytes) -> Reply:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.closed = True
        self._transport.close()

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionResetError("the server closed the connection"))

    def on_message_begin(self) -> None:
        self._timing, self._chunks = "", []

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"server-timing":
            self._timing = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            status = self._parser.get_status_code()
            self._answer.set_result(Reply(status, self._timing, b"".join(self._chunks)))

    def _fail(self, error: Exception) -> None:
        self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
