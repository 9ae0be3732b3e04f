"""Load on a running server: closed loops by wrk, and more than it can take by our own client."""

import asyncio
import json
import math
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.peers.peers import FOLDER, Launch
from service.bench.client import Client
from service.bench.load import Tally, arrivals, open_loop

TIMEOUT_S = 60
ENDING_S = 60.0
PATIENCE_S = 10.0
MARK = "FIGURES "
OVERLOAD = 1.5
"""Offered rate over what the server can do."""
ERRORS = ("status", "connect", "read", "write", "timeout")


class LoadError(Exception):
    """The load generator is missing, or said something that is no figure."""


@dataclass(frozen=True)
class Load:
    """What the clients saw; latencies of answers of any status in ``closed``, of good ones in
    ``overload``.
    """

    requests_per_s: float
    """Good answers."""
    p50_s: float
    p95_s: float
    p99_s: float
    refused: int
    """Answered 429 or 503; among the errors where wrk counts."""
    errors: int
    """Every other failure."""
    wall_s: float


def check_wrk() -> None:
    """Raise LoadError, naming the package, where wrk is not installed."""
    if shutil.which("wrk") is None:
        raise LoadError("wrk is not installed; on Debian: apt install wrk")


def closed(launch: Launch, body: Path, concurrency: int, duration_s: float) -> Load:
    """``concurrency`` clients that each send the next request when the last is answered.

    Raises:
        LoadError: wrk failed.
    """
    argv = ["wrk", "--threads", "1", "--connections", str(concurrency)]
    argv += ["--duration", f"{max(math.ceil(duration_s), 1)}s", "--timeout", f"{TIMEOUT_S}s"]
    argv += ["--script", str(FOLDER / "post.lua"), launch.url, "--", str(body)]
    for header, value in launch.body.headers.items():
        argv += [header, value]
    return read_wrk(_run(argv, duration_s + TIMEOUT_S + ENDING_S))


def read_wrk(output: str) -> Load:
    """The figures in what wrk printed.

    Raises:
        LoadError: there are none.
    """
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    if not lines:
        raise LoadError(f"wrk printed no figures but: {output[-500:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    good = found["answers"] - found["status"]
    return Load(
        requests_per_s=good / found["wall_s"],
        p50_s=found["p50_s"],
        p95_s=found["p95_s"],
        p99_s=found["p99_s"],
        refused=0,
        errors=sum(found[kind] for kind in ERRORS),
        wall_s=found["wall_s"],
    )


def overload(launch: Launch, rate: float, duration_s: float) -> Load:
    """``rate`` requests a second from independent users, whatever comes back.

    Latency counts from when a request was due. A user waits no longer than PATIENCE_S.
    """
    tally = Tally()
    body = launch.body
    others = {name: value for name, value in body.headers.items() if name != "Content-Type"}

    async def drive() -> None:
        client = Client(f"http://127.0.0.1:{launch.port}", others, PATIENCE_S)
        request = client.compose("POST", launch.path, body.data, body.headers["Content-Type"])
        await open_loop(lambda _: client.send(request), tally, arrivals(rate, duration_s))
        client.close()
        await asyncio.sleep(0)  # lets the connections go

    uvloop.run(drive())
    return read_tally(tally)


def read_tally(tally: Tally) -> Load:
    """The figures of an open loop."""
    ranks = (math.nan,) * 3
    if tally.latencies_s:
        ranks = np.percentile(tally.latencies_s, (50, 95, 99), method="inverted_cdf").tolist()
    refused = tally.errors["429"] + tally.errors["503"]
    return Load(
        requests_per_s=len(tally.latencies_s) / tally.wall_s,
        p50_s=ranks[0],
        p95_s=ranks[1],
        p99_s=ranks[2],
        refused=refused,
        errors=tally.errors.total() - refused,
        wall_s=tally.wall_s,
    )


def _run(argv: list[str], timeout_s: float) -> str:
    try:
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise LoadError(f"{argv[0]} did not end within {timeout_s:.0f} s") from None
    if ended.returncode != 0:
        raise LoadError(f"{argv[0]} ended with {ended.returncode}: {ended.stderr or ended.stdout}")
    return ended.stdout
