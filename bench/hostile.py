"""What do good clients notice of bad ones?

``python -m bench.hostile [--duration 10] [--idle 5000] [--dribbling 200] [--floods 4]``

A few clients classify in closed loops, first alone, then beside each kind of bad client, then
beside all at once: connections that say nothing, headers and bodies of which one byte comes a
second, and chunked bodies of a gigabyte, sent again a second after each refusal. The bad clients
run in processes of their own, on the same cores as the server, so what they spend themselves counts
against the server too.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from rich.console import Console
from rich.table import Table

from bench.server import Server, serving
from service.api.connections import raise_descriptor_limit
from service.bench.client import Client, Reply
from service.bench.command import read_pictures
from service.bench.load import Tally, closed_loop
from service.bench.report import describe_machine, distribution
from service.settings import DEMO_REPOSITORY

SCENES = DEMO_REPOSITORY.parent / "scenes"
PATH = "/v1/classify"
FLOOD_BYTES = 2**30
CHUNK = b"10000\r\n" + bytes(2**16) + b"\r\n"
CONNECTS_AT_ONCE = 50
SETTLE_S = 1.0
START_S = 120.0
STOP_S = 10.0

Attack = Callable[[str, int], Awaitable[None]]
"""One bad client's connection to (host, port), from its opening to its end."""


@dataclass(frozen=True)
class Load:
    """How long each part takes, and how many there are of whom."""

    duration_s: float
    clients: int
    counts: dict[str, int]


def main() -> None:
    """Start a server, attack it, print what the good clients saw, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--repository", type=Path, default=DEMO_REPOSITORY)
    parser.add_argument("--images", type=Path, default=SCENES)
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of each part")
    parser.add_argument("--clients", type=int, default=4, help="good ones")
    parser.add_argument("--idle", type=int, default=5000)
    parser.add_argument("--dribbling", type=int, default=200, help="of headers, and of bodies")
    parser.add_argument("--floods", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("hostile.json"))
    asked = parser.parse_args()
    dribbling = {"dribbling headers": asked.dribbling, "dribbling bodies": asked.dribbling}
    counts = {"idle": asked.idle, **dribbling, "1 GB bodies": asked.floods}
    load = Load(asked.duration, asked.clients, counts)
    with serving(asked.repository) as server:
        uvloop.run(server.wait_until_ready())
        pictures = [data for data, _ in read_pictures(asked.images)]
        parts = measure(server, pictures, load, each_and_all(counts))
    report = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "clients": asked.clients,
        "parts": parts,
    }
    asked.out.write_text(json.dumps(report, indent=2) + "\n")
    Console().print(tabulate(parts))


def each_and_all(kinds: Iterable[str]) -> list[tuple[str, ...]]:
    """Nobody, each kind alone, all of them, and nobody again."""
    return [(), *((kind,) for kind in kinds), tuple(kinds), ()]


def measure(
    server: Server, pictures: Sequence[bytes], load: Load, parts_beside: list[tuple[str, ...]]
) -> list[dict[str, Any]]:
    """What the good clients saw in each part, beside bad clients of the kinds that it names."""
    parts = []
    for beside in parts_beside:
        with ExitStack() as stack:
            for kind in beside:
                stack.enter_context(attacking(server.url, kind, load.counts[kind]))
            tally = uvloop.run(_classify(server.url, pictures, load))
        bad = {kind: load.counts[kind] for kind in beside}
        parts.append(
            {
                "beside": bad,
                "answered": len(tally.latencies_s),
                "errors": dict(tally.errors),
                "latency_s": distribution(tally.latencies_s),
            }
        )
    return parts


def tabulate(parts: list[dict[str, Any]]) -> Table:
    """A row for each part; milliseconds, and p99 against that of the good clients alone."""
    table = Table("beside", "answered", "errors", "p50 ms", "p99 ms", "of normal")
    normal_s = parts[0]["latency_s"].get("p99")
    for part in parts:
        listed = ", ".join(f"{count} {kind}" for kind, count in part["beside"].items())
        p50_s, p99_s = (part["latency_s"].get(name, float("nan")) for name in ("p50", "p99"))
        ratio = f"{p99_s / normal_s:.2f}" if normal_s else "-"
        errors = ", ".join(f"{count} {kind}" for kind, count in part["errors"].items())
        figures = f"{p50_s * 1e3:.1f}", f"{p99_s * 1e3:.1f}", ratio
        table.add_row(listed or "nobody", str(part["answered"]), errors, *figures)
    return table


async def _classify(url: str, pictures: Sequence[bytes], load: Load) -> Tally:
    client = Client(url, {}, 60.0)
    requests = itertools.cycle(
        [client.compose("POST", PATH, data, "image/jpeg") for data in pictures]
    )

    async def send(index: int) -> Reply:
        return await client.send(next(requests))

    await closed_loop(send, Tally(), load.clients, min(SETTLE_S, load.duration_s))
    tally = Tally()
    await closed_loop(send, tally, load.clients, load.duration_s)
    client.close()
    return tally


@contextmanager
def attacking(url: str, kind: str, count: int) -> Iterator[None]:
    """So many bad clients of one kind, all connected before the block begins.

    Raises:
        TimeoutError: they could not connect.
    """
    context = multiprocessing.get_context("spawn")
    connected = context.Event()
    process = context.Process(target=_attack, args=(url, kind, count, connected), daemon=True)
    process.start()
    try:
        if not connected.wait(START_S):
            raise TimeoutError(f"{count} clients of kind {kind!r} did not connect")
        yield
    finally:
        process.terminate()
        process.join(STOP_S)


def _attack(url: str, kind: str, count: int, connected: Event) -> None:
    raise_descriptor_limit(count)
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    uvloop.run(_attack_forever(ATTACKS[kind], parts.hostname, parts.port, count, connected))


async def _attack_forever(
    attack: Attack, host: str, port: int, count: int, connected: Event
) -> None:
    missing = count

    async def begin() -> None:
        nonlocal missing
        begun = asyncio.ensure_future(attack(host, port))
        await asyncio.sleep(0.01)
        missing -= 1
        if missing == 0:
            connected.set()
        while True:
            with contextlib.suppress(OSError, EOFError, RuntimeError):  # uvloop's closed transport
                await begun
            await asyncio.sleep(1)
            begun = asyncio.ensure_future(attack(host, port))

    async with asyncio.TaskGroup() as clients:
        for index in range(count):
            clients.create_task(begin())
            if index % CONNECTS_AT_ONCE == CONNECTS_AT_ONCE - 1:
                await asyncio.sleep(0.02)


async def _say_nothing(host: str, port: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    await reader.read()
    writer.close()


async def _dribble_headers(host: str, port: int) -> None:
    await _dribble(host, port, f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nX-Slow: ")


async def _dribble_body(host: str, port: int) -> None:
    start = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\n"
    await _dribble(host, port, start + "Content-Length: 1000000\r\n\r\n")


async def _dribble(host: str, port: int, start: str) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(start.encode())
    ended = asyncio.ensure_future(reader.read())
    while not ended.done():
        writer.write(b"a")
        await asyncio.wait([ended], timeout=1)
    writer.close()


async def _flood(host: str, port: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(
        f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/jpeg\r\n"
        "Transfer-Encoding: chunked\r\n\r\n".encode()
    )
    for _ in range(FLOOD_BYTES // 2**16):  # whatever the server says meanwhile
        writer.write(CHUNK)
        await writer.drain()
    await reader.read()
    writer.close()


ATTACKS: dict[str, Attack] = {
    "idle": _say_nothing,
    "dribbling headers": _dribble_headers,
    "dribbling bodies": _dribble_body,
    "1 GB bodies": _flood,
}


if __name__ == "__main__":
    main()
