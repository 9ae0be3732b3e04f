"""Who asks: clients that behave, and those that send nonsense, dribble, leave or send too much."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httptools

from bench.faults.outcomes import Event, Outcome, Substance, judge, substance_of
from service.bench.client import Client, Reply

SHARES = {
    "good": 0.80,
    "bad": 0.06,
    "leaving": 0.06,
    "hurried": 0.04,
    "slow": 0.02,
    "oversized": 0.02,
}
"""Of all requests; ``hurried`` ones give the server HURRY_MS."""
HURRY_MS = 100
SLOW_PIECES, SLOW_PAUSE_S = 4, 0.25
LEAVES_WITHIN_S = 0.1
UNHURRIED = ("good", "slow")
"""Kinds whose pictures have all the time that the server gives; none of them may be late."""
TIMEOUT_S = 60.0  # beyond the server's own deadline: an answer that never comes is lost
CLIENT_LEFT = 499
MOST_EXAMPLES = 10  # of answers that were not what they should be
PNG_OF_900_MEGAPIXELS = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
)


@dataclass(frozen=True)
class Picture:
    """Encoded bytes, their media type, and where to send them."""

    path: str
    data: bytes
    media_type: str


class Traffic:
    """Several clients of one server, none of which honours a refusal; every end is in ``events``.

    Call ``learn`` first, while the server has nothing else to do: the answers of then are what
    later ones are held to.
    """

    def __init__(self, url: str, pictures: list[Picture], clients: list[Client], seed: int) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = parts.hostname, parts.port
        self._clients = clients
        self._pictures = pictures
        compose = clients[0].compose
        self._good = [compose("POST", one.path, one.data, one.media_type) for one in pictures]
        self._hurried = [
            compose("POST", f"{one.path}&timeout_ms={HURRY_MS}", one.data, one.media_type)
            for one in pictures
        ]
        self._bad = _nonsense(clients[0], pictures[0])
        self._oversized = _too_much(clients[0], pictures[0])
        self._random = random.Random(seed)
        self._kinds = self._random.choices(list(SHARES), list(SHARES.values()), k=10_000)
        self._ways: dict[str, Callable[[int], Awaitable[tuple[Reply, Outcome]]]] = {
            "good": self._ask,
            "bad": self._ask_nonsense,
            "leaving": self._ask_and_leave,
            "hurried": self._ask_in_a_hurry,
            "slow": self._ask_slowly,
            "oversized": self._ask_too_much,
        }
        self._known: list[Substance] = []
        self.events: list[Event] = []
        self.examples: list[str] = []

    async def learn(self) -> None:
        """Ask about every picture, alone."""
        for request in self._good:
            reply = await self._clients[0].send(request)
            if reply.status != 200:
                raise RuntimeError(f"a good picture got {reply.status}: {reply.body[:500]!r}")
            self._known.append(substance_of(reply.body))

    async def send_good(self, index: int) -> Reply:
        """Request number ``index`` of a load that holds nothing but good pictures."""
        return await self._send("good", index)

    async def send_mixed(self, index: int) -> Reply:
        """Request number ``index`` of the mixture."""
        return await self._send(self._kinds[index % len(self._kinds)], index)

    def close(self) -> None:
        """Close the connections that wait for a next request."""
        for client in self._clients:
            client.close()

    async def _send(self, kind: str, index: int) -> Reply:
        sent_s = time.perf_counter()

        def note(status: str, outcome: Outcome) -> None:
            ended_s = time.perf_counter()
            self.events.append(Event(kind, status, outcome, ended_s, ended_s - sent_s))

        try:
            reply, outcome = await self._ways[kind](index)
        except (OSError, httptools.HttpParserError) as error:
            note(type(error).__name__, "lost")
            raise
        note("left" if outcome == "left" else str(reply.status), outcome)
        if outcome in ("lost", "wrong") and len(self.examples) < MOST_EXAMPLES:
            said = reply.body[:400].decode(errors="replace")
            self.examples.append(f"{kind}: {reply.status} {said}")
        return reply

    def _client(self, index: int) -> Client:
        return self._clients[index % len(self._clients)]

    async def _ask(self, index: int) -> tuple[Reply, Outcome]:
        which = index % len(self._good)
        reply = await self._client(index).send(self._good[which])
        return reply, judge(reply, {200, 504}, self._known[which])

    async def _ask_in_a_hurry(self, index: int) -> tuple[Reply, Outcome]:
        which = index % len(self._hurried)
        reply = await self._client(index).send(self._hurried[which])
        return reply, judge(reply, {200, 504}, self._known[which])

    async def _ask_nonsense(self, index: int) -> tuple[Reply, Outcome]:
        request, status = self._bad[index % len(self._bad)]
        reply = await self._client(index).send(request)
        return reply, judge(reply, {status})

    async def _ask_too_much(self, index: int) -> tuple[Reply, Outcome]:
        reply = await self._client(index).send(self._oversized[index % len(self._oversized)])
        return reply, judge(reply, {413})

    async def _ask_and_leave(self, index: int) -> tuple[Reply, Outcome]:
        _, writer = await asyncio.open_connection(*self._address)
        writer.write(self._good[index % len(self._good)])
        await asyncio.sleep(self._random.uniform(0, LEAVES_WITHIN_S))
        writer.transport.abort()
        return Reply(CLIENT_LEFT, "", b""), "left"

    async def _ask_slowly(self, index: int) -> tuple[Reply, Outcome]:
        which = index % len(self._good)
        async with asyncio.timeout(TIMEOUT_S):
            reply = await _dribble(self._address, self._good[which])
        return reply, judge(reply, {200, 504}, self._known[which])


async def _dribble(address: tuple[str, int], request: bytes) -> Reply:
    """Send the body in pieces with pauses, unless the answer comes before the last of them."""
    head, _, body = request.partition(b"\r\n\r\n")
    size = -(-len(body) // SLOW_PIECES)
    reader, writer = await asyncio.open_connection(*address)
    answering = asyncio.create_task(_read_all(reader))
    try:
        writer.write(head + b"\r\nConnection: close\r\n\r\n")
        for start in range(0, len(body), size):
            await asyncio.wait((answering,), timeout=SLOW_PAUSE_S)
            if answering.done():
                break
            writer.write(body[start : start + size])
        answer = await answering
    finally:
        answering.cancel()
        writer.close()
    top, found, content = answer.partition(b"\r\n\r\n")
    if not found:
        raise ConnectionResetError("the server closed the connection")
    return Reply(int(top.split(b" ", 2)[1]), "", content)


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    """All that came, even if the server broke the connection after its answer."""
    answer = b""
    try:
        while chunk := await reader.read(2**16):
            answer += chunk
    except ConnectionError:
        pass
    return answer


def _nonsense(client: Client, good: Picture) -> list[tuple[bytes, int]]:
    """Requests that are the client's fault, with the status that says which."""
    path, data, kind = good.path, good.data, good.media_type
    task = path.partition("?")[0]
    return [
        (client.compose("POST", path, data[: len(data) // 2], kind), 400),
        (client.compose("POST", path, b"no picture at all", kind), 415),
        (client.compose("POST", path + "&threshold=7", data, kind), 422),
        (client.compose("POST", task + "?model=no-such-model", data, kind), 404),
    ]


def _too_much(client: Client, good: Picture) -> list[bytes]:
    """A picture of 900 megapixels in 33 bytes, and a body that is announced as a terabyte."""
    whole = client.compose("POST", good.path, good.data, good.media_type)
    announced = b"Content-Length: %d" % len(good.data)
    return [
        client.compose("POST", good.path, PNG_OF_900_MEGAPIXELS, "image/png"),
        # The connection must not be used again, as what comes next would be more of that body.
        whole.replace(announced, b"Content-Length: %d\r\nConnection: close" % 2**40, 1),
    ]
