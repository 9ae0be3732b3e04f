"""The server against the bare loop, interleaved in one run: what serving costs.

    python -m bench.server_vs_bare [--repository DIR] [--images DIR] [--out FILE]

Each round measures every loop once, so that whatever else the machine does falls on all of them;
ratios are taken within a round, and their median over the rounds is reported. The bare loops get
what they can use: the runtime in the streams that the server runs, decoding threads beside it or a
thread for every stream, a picture at a time or the server's batch. The limit of a round is the best
of them. The server's share includes the clients, which run on the same cores.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from bench.bare import BareLoop, Pace
from bench.peers.picture import draw
from bench.server import Server, serving
from service.bench.client import Client, Reply
from service.bench.command import read_pictures
from service.bench.load import Tally, closed_loop
from service.bench.report import describe_machine
from service.bundle import Bundle, load_repository
from service.settings import DEMO_REPOSITORY

CONCURRENCY = (1, 8, 32)
WARM_S = 1.0
TIMEOUT_S = 60.0

Figures = dict[str, float]
"""``images_per_s``, ``latency_s`` (median) and ``cpu_s`` (per image) of one loop in one round."""
Loops = dict[str, Callable[[float], Figures]]


def main() -> None:
    """Measure every model of the repository (or one), print tables, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.server_vs_bare")
    parser.add_argument("--repository", type=Path, default=DEMO_REPOSITORY)
    parser.add_argument("--images", type=Path, help="a folder; else a drawn 500 x 375 photograph")
    parser.add_argument("--model", help="only this one")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--duration", type=float, default=1.0, help="seconds per loop and round")
    parser.add_argument("--out", type=Path, default=Path("server_vs_bare.json"))
    asked = parser.parse_args()
    bundles = load_repository(asked.repository)
    pictures = read_pictures(asked.images) if asked.images else [(draw(), "image/jpeg")]
    models = []
    with serving(asked.repository) as server:
        uvloop.run(server.wait_until_ready())
        for bundle in bundles:
            if asked.model in (None, bundle.manifest.name):
                models.append(measure(server, bundle, pictures, asked.rounds, asked.duration))
                Console().print(*tabulate(models[-1]))
    report = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "images": {
            "files": len(pictures),
            "mean_bytes": round(statistics.mean(len(data) for data, _ in pictures)),
        },
        "rounds": asked.rounds,
        "duration_s": asked.duration,
        "models": models,
    }
    asked.out.write_text(json.dumps(report, indent=2) + "\n")


def measure(
    server: Server,
    bundle: Bundle,
    pictures: list[tuple[bytes, str]],
    rounds: int,
    duration_s: float,
) -> dict[str, Any]:
    """Figures of every loop, round by round, and medians of the ratios within a round."""
    bare = BareLoop(bundle, [data for data, _ in pictures], os.cpu_count() or 1)
    shapes = {"bare": bare.sequential, "pipelined": bare.pipelined, "parallel": bare.parallel}
    if bare.plan.streams == 1:
        del shapes["parallel"]  # the same as bare
    bare_loops: Loops = {
        f"{name}, batch {batch}": partial(_figures, shape, batch)
        for name, shape in shapes.items()
        for batch in sorted({1, bare.batch})
    }
    server_loops: Loops = {
        f"server, {count} at a time": partial(load, server, bundle, pictures, count)
        for count in CONCURRENCY
    }
    loops = bare_loops | server_loops
    for loop in loops.values():
        loop(WARM_S)
    found: dict[str, list[Figures]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            found[name].append(loop(duration_s))
    limits = [
        max(found[name][index]["images_per_s"] for name in bare_loops) for index in range(rounds)
    ]
    return {
        "model": bundle.manifest.name,
        "choice": str(bare.choice),
        "streams": bare.plan.streams,
        "batch": bare.batch,
        "tuned": bare.plan.untuned is None,
        "loops": {
            name: {key: _median(row[key] for row in rows) for key in rows[0]} | {"rounds": rows}
            for name, rows in found.items()
        },
        "of_the_limit": {
            name: _median(
                row["images_per_s"] / limit for row, limit in zip(found[name], limits, strict=True)
            )
            for name in server_loops
        },
        "added_latency_s": _median(
            ours["latency_s"] - theirs["latency_s"]
            for ours, theirs in zip(
                found[f"server, {CONCURRENCY[0]} at a time"], found["bare, batch 1"], strict=True
            )
        ),
        "ratios": {
            name: {
                other: {
                    key: _median(a[key] / b[key] for a, b in zip(found[name], rows, strict=True))
                    for key in ("images_per_s", "latency_s", "cpu_s")
                }
                for other, rows in found.items()
                if other in bare_loops
            }
            for name in server_loops
        },
    }


def _figures(shape: Callable[[int, float], Pace], batch: int, duration_s: float) -> Figures:
    return asdict(shape(batch, duration_s))


def load(
    server: Server,
    bundle: Bundle,
    pictures: list[tuple[bytes, str]],
    concurrency: int,
    duration_s: float,
) -> Figures:
    """One closed loop on the server.

    Raises:
        RuntimeError: a request failed, so that the figures would compare unequal work.
    """
    tally = Tally()
    path = f"/v1/{bundle.manifest.tasks[0]}?model={bundle.manifest.name}"

    async def drive() -> None:
        client = Client(server.url, {}, TIMEOUT_S)
        requests = [client.compose("POST", path, data, kind) for data, kind in pictures]

        async def send(index: int) -> Reply:
            return await client.send(requests[index % len(requests)])

        await closed_loop(send, tally, concurrency, duration_s)
        client.close()
        await asyncio.sleep(0)  # lets the connections go

    server_cpu_s, client_cpu_s = server.cpu_s(), time.process_time()
    uvloop.run(drive())
    server_cpu_s, client_cpu_s = server.cpu_s() - server_cpu_s, time.process_time() - client_cpu_s
    if tally.errors:
        raise RuntimeError(f"requests failed at {concurrency} at a time: {dict(tally.errors)}")
    return {
        "images_per_s": tally.requests / tally.wall_s,
        "latency_s": statistics.median(tally.latencies_s),
        "cpu_s": server_cpu_s / tally.requests,
        "client_cpu_s": client_cpu_s / tally.requests,
    }


def tabulate(model: dict[str, Any]) -> tuple[Table, Table]:
    """Medians of every loop, and the server's throughput, latency and processor time over the bare
    loop's.
    """
    title = f"{model['model']}, {model['choice']}"
    plain = Table("loop", "images/s", "median ms", "CPU ms / image", title=title)
    for name, figures in model["loops"].items():
        milliseconds = (f"{figures[key] * 1000:.2f}" for key in ("latency_s", "cpu_s"))
        plain.add_row(name, f"{figures['images_per_s']:.1f}", *milliseconds)
    names = list(model["ratios"])
    ratios = Table("throughput over", *names, title=f"{title}: server / bare")
    for other in model["ratios"][names[0]]:
        ratios.add_row(
            other, *(f"{model['ratios'][name][other]['images_per_s']:.2f}" for name in names)
        )
    limit = (f"{model['of_the_limit'][name]:.2f}" for name in names)
    ratios.add_row("the limit", *limit, style="bold")
    added_ms = model["added_latency_s"] * 1000
    ratios.caption = f"Added to the median latency of a picture alone: {added_ms:.2f} ms"
    return plain, ratios


def _median(values: Any) -> float:
    return round(statistics.median(values), 6)


if __name__ == "__main__":
    main()
