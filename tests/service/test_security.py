"""What bodies may cost, one by one and together."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.api.security import BodyLimit
from service.errors import Overloaded, TooLarge

SCOPE: Scope = {"type": "http", "headers": [], "state": {}}


async def unused(message: Message) -> None:
    raise AssertionError(message)


def chunks(*sizes: int) -> Receive:
    messages = [
        {"type": "http.request", "body": bytes(size), "more_body": index < len(sizes) - 1}
        for index, size in enumerate(sizes)
    ]

    async def receive() -> Message:
        return messages.pop(0)

    return receive


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass


def test_a_body_may_be_as_large_as_the_limit_and_not_a_byte_larger() -> None:
    limit = BodyLimit(read_all, max_bytes=10, max_total_bytes=100)
    asyncio.run(limit(SCOPE, chunks(4, 6), unused))
    with pytest.raises(TooLarge, match="11 bytes or more; at most 10"):
        asyncio.run(limit(SCOPE, chunks(4, 7, 1), unused))


def test_bodies_in_progress_are_bounded_together_and_given_back_when_answered() -> None:
    async def scenario() -> None:
        read, answered = asyncio.Event(), asyncio.Event()

        async def hold(scope: Scope, receive: Receive, send: Send) -> None:
            await read_all(scope, receive, send)
            read.set()
            await answered.wait()

        limit = BodyLimit(hold, max_bytes=10, max_total_bytes=15)
        first = asyncio.create_task(limit(SCOPE, chunks(10), unused))
        await read.wait()
        with pytest.raises(Overloaded, match="16 bytes; at most 15"):
            await limit(SCOPE, chunks(6), unused)
        answered.set()
        await first
        await limit(SCOPE, chunks(10), unused)

    asyncio.run(scenario())


def test_what_was_fetched_for_a_request_counts_with_its_body() -> None:
    async def fetch(scope: Scope, receive: Receive, send: Send) -> None:
        await read_all(scope, receive, send)
        scope["state"]["hold_bytes"](4)
        scope["state"]["hold_bytes"](3)

    limit = BodyLimit(fetch, max_bytes=10, max_total_bytes=100)
    asyncio.run(limit(dict(SCOPE), chunks(3), unused))
    with pytest.raises(TooLarge, match="11 bytes or more; at most 10"):
        asyncio.run(limit(dict(SCOPE), chunks(4), unused))
