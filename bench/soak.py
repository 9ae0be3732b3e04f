"""Does a long run need more memory than a short one?

``python -m bench.soak [--repository DIR] [--model NAME] [--images DIR] [--requests 100000]``

Memory of all processes of the server together (PSS, so that shared pages count once) after a
hundredth of the requests, and on the way until all are done. Pictures come in
turn, so that sizes change from one request to the next, and one request in fifty is refused for its
bytes.
"""

import argparse
import asyncio
import itertools
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench.server import Server, serving
from service.bench.client import Client, Reply
from service.bench.command import read_pictures
from service.bench.load import Tally, closed_loop
from service.bench.report import describe_machine
from service.bundle import load_repository
from service.settings import DEMO_REPOSITORY

SCENES = DEMO_REPOSITORY.parent / "scenes"
CONCURRENCY = 32
SLICE_S = 1.0
BAD_EVERY = 50
MARKS = (0.01, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Shares of the requests after which memory is read; the first is what the others are held to."""


def main() -> None:
    """Load a server with many requests, print its memory on the way, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--repository", type=Path, default=DEMO_REPOSITORY)
    parser.add_argument("--images", type=Path, default=SCENES)
    parser.add_argument("--model", help="the first by name where absent")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    asked = parser.parse_args()
    bundles = {b.manifest.name: b.manifest for b in load_repository(asked.repository)}
    manifest = bundles[asked.model or min(bundles)]
    path = f"/v1/{manifest.tasks[0]}?model={manifest.name}"
    with serving(asked.repository) as server:
        uvloop.run(server.wait_until_ready())
        started_s = time.monotonic()
        marks = uvloop.run(soak(server, path, read_pictures(asked.images), asked.requests))
        wall_s = time.monotonic() - started_s
    growth = marks[-1]["memory_bytes"] / marks[0]["memory_bytes"]
    report = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "request": path,
        "seconds": round(wall_s),
        "marks": marks,
        "growth": round(growth, 4),
    }
    asked.out.write_text(json.dumps(report, indent=2) + "\n")
    table = Table("requests", "memory MiB", title=f"{path}: {growth:.3f} times the memory")
    for mark in marks:
        table.add_row(str(mark["requests"]), f"{mark['memory_bytes'] / 2**20:.1f}")
    Console().print(table)


async def soak(
    server: Server, path: str, pictures: list[tuple[bytes, str]], requests: int
) -> list[dict[str, int]]:
    """Send the requests, and read the memory at each of the ``MARKS``.

    Raises:
        RuntimeError: a good picture was not answered, or a bad one was.
    """
    client = Client(server.url, {}, 60.0)
    good = itertools.cycle(client.compose("POST", path, data, kind) for data, kind in pictures)
    data, kind = pictures[0]
    bad = client.compose("POST", path, data[: len(data) // 2], kind)
    tally, marks = Tally(), []

    async def send(index: int) -> Reply:
        return await client.send(bad if index % BAD_EVERY == 0 else next(good))

    for share in MARKS:
        while tally.requests < share * requests:
            await closed_loop(send, tally, CONCURRENCY, SLICE_S)
            tally.latencies_s, tally.timings = [0.0] * len(tally.latencies_s), []
        await asyncio.sleep(1)  # what is freed a moment later is not held
        marks.append({"requests": tally.requests, "memory_bytes": memory_of(server)})
    client.close()
    unexpected = set(tally.errors) - {"400"}
    if unexpected or not tally.errors:
        raise RuntimeError(f"unexpected answers: {dict(tally.errors)}")
    return marks


def memory_of(server: Server) -> int:
    """Bytes of all processes of the server, shared pages counted once."""
    return sum(process.memory_full_info().pss for process in server.processes())


if __name__ == "__main__":
    main()
