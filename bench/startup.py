"""How long a server takes to its first 200 of /readyz, and where the time goes.

``python -m bench.startup [--repository DIR] [--starts 5] [--out FILE]``

The first start finds an empty cache of compiled models, the others what the first one left there.
Seconds on the clock say what a user waits for; processor seconds of all processes together hardly
change when others use the machine.
"""

import argparse
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import IO, Any

import psutil

from bench.server import START_S, STOP_S
from service.settings import DEMO_REPOSITORY

POLL_S = 0.005
STEP = re.compile(r"starting|(compiling|warming up) \S+|ready")
"""What the worker says when it enters a phase."""


@dataclass
class Start:
    """One start; seconds count from the moment before ``exec``."""

    ready_s: float
    cpu_s: float
    phases_s: dict[str, float]
    """How long each part took; parts of different processes overlap."""


def main() -> None:
    """Start the server again and again, and print the median of each phase."""
    parser = argparse.ArgumentParser(description="Seconds until /readyz answers 200.")
    parser.add_argument("--repository", type=Path, default=DEMO_REPOSITORY)
    parser.add_argument("--starts", type=int, default=5, help="starts with a filled cache")
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="startup-") as cache:
        first, *again = [start(arguments.repository, cache) for _ in range(1 + arguments.starts)]
    middle = median_of(again or [first])
    show(first, middle)
    figures = {
        "repository": arguments.repository.name,
        "cores": len(os.sched_getaffinity(0)),
        "first": vars(first),
        "again_median": vars(middle),
        "again": [vars(one) for one in again],
    }
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def start(repository: Path, cache: str) -> Start:
    """One start of a server with its default settings but for the cache."""
    command = [sys.executable, "-c", "from service.cli import main; main()", "serve"]
    command += ["--port", "0", "--repository", str(repository), "--cache", cache]
    with tempfile.TemporaryFile("w+") as log:
        began_s = time.time()
        with running(command, log) as process:
            assert process.stdout is not None
            announced = process.stdout.readline()
            if " at http://" not in announced:
                raise RuntimeError(f"the server did not start; run: {' '.join(command)}")
            wait_until_ready(announced.rsplit("/", 1)[1].strip())
            ready_s = time.time()
            parent = psutil.Process(process.pid)
            spent = [one.cpu_times() for one in (parent, *parent.children(recursive=True))]
        log.seek(0)
        lines = [json.loads(line) for line in log if line.startswith("{")]
    cpu_s = sum(times.user + times.system for times in spent)
    return Start(ready_s - began_s, cpu_s, phases_of(lines, began_s, ready_s))


@contextmanager
def running(command: list[str], log: IO[str]) -> Iterator["subprocess.Popen[str]"]:
    """The process, ended by its own id at the end of the block."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def wait_until_ready(address: str) -> None:
    """Ask every few milliseconds.

    Raises:
        TimeoutError: it is not ready after START_S.
    """
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        connection = http.client.HTTPConnection(address, timeout=START_S)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        finally:
            connection.close()
        time.sleep(POLL_S)
    raise TimeoutError(f"{address} is not ready after {START_S:g} s")


def phases_of(lines: list[dict[str, Any]], began_s: float, ready_s: float) -> dict[str, float]:
    """Seconds of each phase, from what the processes log when they enter one."""
    supervisor, worker, api = (
        [line | {"at_s": seconds_of(line["time"]) - began_s} for line in lines if line["role"] == r]
        for r in ("supervisor", "worker", "api 0")
    )
    verified = supervisor[0]
    spawned_s = verified["at_s"] - verified["took_s"]
    phases = {
        "supervisor: imports, socket": spawned_s,
        "supervisor: verify bundles": verified["took_s"],
        "worker: imports": worker[0]["at_s"] - worker[0]["waited_s"] - spawned_s,
        "worker: wait for verification": worker[0]["waited_s"],
        "api: imports": api[0]["at_s"] - api[0]["waited_s"] - spawned_s,
        "api: wait for verification": api[0]["waited_s"],
        "api: application": api[1]["at_s"] - api[0]["at_s"],
    }
    steps = [(line["at_s"], step) for line in worker if (step := STEP.match(line["message"]))]
    for (at_s, step), (next_s, _) in pairwise(steps):
        label = f"worker: {step[0]}" if step[0] != "starting" else "worker: choose what runs"
        phases[label] = phases.get(label, 0.0) + next_s - at_s
    ready_at_s = steps[-1][0]
    phases["from the worker's word to /readyz"] = ready_s - began_s - ready_at_s
    return phases


def seconds_of(stamp: str) -> float:
    """Of a log line's time, since 1970."""
    return datetime.fromisoformat(stamp).timestamp()


def median_of(starts: list[Start]) -> Start:
    """The median of every figure by itself."""
    return Start(
        median(one.ready_s for one in starts),
        median(one.cpu_s for one in starts),
        {name: median(one.phases_s[name] for one in starts) for name in starts[0].phases_s},
    )


def show(first: Start, again: Start) -> None:
    """A table: the first start, and the median of those that found its cache."""
    rows = [("until /readyz answers 200", first.ready_s, again.ready_s)]
    rows += [("processor time, all processes", first.cpu_s, again.cpu_s)]
    rows += [(name, first.phases_s[name], again.phases_s[name]) for name in again.phases_s]
    print(f"{'seconds':40}{'empty cache':>12}{'again':>8}")
    for name, one, other in rows:
        print(f"{name:40}{one:12.3f}{other:8.3f}")


if __name__ == "__main__":
    main()
