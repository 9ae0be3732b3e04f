"""Load on a running server: a closed loop by wrk, and more than it can take by h2load."""

import json
import math
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.peers import FOLDER, Launch

TIMEOUT_S = 60
PATIENCE_S = 60.0
MARK = "FIGURES "
OVERLOAD = 1.5
"""Offered rate over what the server can do."""
CLIENTS = 512
"""Connections of the overload: more than any of the queues is long by default."""
ERRORS = ("status", "connect", "read", "write", "timeout")
GENERATORS = {"wrk": "wrk", "h2load": "nghttp2-client"}


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
    """Answered 429 or 503."""
    errors: int
    """Every other failure."""
    wall_s: float


def check_generators(overload: bool) -> None:
    """Raise LoadError, naming the package, for a generator that is not installed."""
    for command, package in GENERATORS.items():
        if shutil.which(command) is None and (overload or command == "wrk"):
            raise LoadError(f"{command} is not installed; on Debian: apt install {package}")


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
    return read_wrk(_run(argv, duration_s + TIMEOUT_S + PATIENCE_S))


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


def overload(launch: Launch, body: Path, log: Path, rate: float, duration_s: float) -> Load:
    """``rate`` requests a second, whatever comes back, as far as CLIENTS connections can hold them;
    of twice ``duration_s`` the second half counts, when queues are as full as they get.

    A connection waits for its answer before it sends the next request, so that a server which
    queues everything is in the end offered what it can do, with CLIENTS requests waiting.

    Raises:
        LoadError: h2load failed.
    """
    seconds = max(math.ceil(2 * duration_s), 2)
    argv = ["h2load", "--h1", "--threads", "1", "--clients", str(CLIENTS)]
    argv += ["--rps", f"{rate / CLIENTS:.4f}", "--duration", str(seconds)]
    argv += ["--data", str(body), "--log-file", str(log)]
    for header, value in launch.body.headers.items():
        argv += ["--header", f"{header}: {value}"]
    log.unlink(missing_ok=True)
    started_s = time.time()
    _run([*argv, launch.url], seconds + PATIENCE_S)
    return read_h2load(log.read_text(), started_s + seconds / 2, seconds / 2)


def read_h2load(log: str, from_s: float, wall_s: float) -> Load:
    """The figures of what was answered after ``from_s`` (since the epoch), by a log of requests:
    when each began, its status, and how long it took, in µs.
    """
    rows = [tuple(int(part) for part in line.split("\t")[:3]) for line in log.splitlines()]
    counted = [(status, took) for began, status, took in rows if began + took >= from_s * 1e6]
    statuses = Counter(status for status, _ in counted)
    latencies_s = [took / 1e6 for status, took in counted if status == 200]
    refused = statuses[429] + statuses[503]
    ranks = np.percentile(latencies_s or [math.nan], (50, 95, 99), method="inverted_cdf")
    return Load(
        requests_per_s=len(latencies_s) / wall_s,
        p50_s=float(ranks[0]),
        p95_s=float(ranks[1]),
        p99_s=float(ranks[2]),
        refused=refused,
        errors=len(counted) - len(latencies_s) - refused,
        wall_s=wall_s,
    )


def _run(argv: list[str], timeout_s: float) -> str:
    try:
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise LoadError(f"{argv[0]} did not end within {timeout_s:.0f} s") from None
    if ended.returncode != 0:
        raise LoadError(f"{argv[0]} ended with {ended.returncode}: {ended.stderr or ended.stdout}")
    return ended.stdout
