"""What runs in Ray's HTTP proxy: a request whose replica dies is sent to another one.

Ray itself repeats only requests that no replica has begun with; all others end as a bare 500. What
this server does may be repeated: it changes nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 64 * 2**20
"""Of a body that is kept to be sent again; a larger one is sent once."""
MAX_TRIES = 4
FIRST_PAUSE_S = 0.1


def middlewares() -> list[Middleware]:
    """What ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names."""
    return [Middleware(RepeatLost)]


class RepeatLost:
    """ASGI middleware: asks again for as long as there is no answer, not even a refusal."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, again and again if need be."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, answered = _Body(receive), False

        async def noting(message: Message) -> None:
            nonlocal answered
            answered = True
            if message["type"] == "http.response.start":
                message = {**message, "headers": _one_request_id(message["headers"])}
            await send(message)

        for tries in range(MAX_TRIES):
            # Ray writes into the scope, where the next try must find what the client sent.
            copy = {**scope, "headers": list(scope["headers"])}
            await self._app(copy, body.replay(), noting)
            if answered or not body.repeatable:
                return
            await asyncio.sleep(FIRST_PAUSE_S * 3**tries)


def _one_request_id(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Ray adds its own after ours, which is the one in our logs."""
    kept, seen = [], False
    for name, value in headers:
        known, seen = seen, seen or name == b"x-request-id"
        if not (known and name == b"x-request-id"):
            kept.append((name, value))
    return kept


class _Body:
    """The messages of a request, kept while they come so that they can be read again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._held_bytes = 0
        self.repeatable = True
        """Whether all that came is still here, and so is the client."""

    def replay(self) -> Receive:
        """What reads it from the start."""
        messages = self._read()

        async def receive() -> Message:
            return await anext(messages)

        return receive

    async def _read(self) -> AsyncIterator[Message]:
        for message in list(self._messages):
            yield message
        while True:
            message = await self._receive()
            self._keep(message)
            yield message

    def _keep(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            self.repeatable = False
            return
        self._held_bytes += len(message.get("body", b""))
        if self._held_bytes > MOST_BYTES:
            self.repeatable = False
            self._messages.clear()
        elif self.repeatable:
            self._messages.append(message)
