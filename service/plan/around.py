"""Measures what a request costs around its batch, with a server of this machine that gets one at a
time, and what it does when it is full.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httptools
import numpy as np
import uvloop

from service.bench.client import Client, Reply
from service.bench.load import Tally, closed_loop
from service.bench.report import stage_means
from service.errors import StartError
from service.plan.calibration import CLIENTS
from service.settings import load_settings
from service.tuning import Around, Entry

START_S, STOP_S, TIMEOUT_S = 300.0, 60.0, 60.0
WARM_S = 1.0
LEAST_REQUESTS = 20
REST_S = 0.01
"""Between requests that come one at a time: cores and caches go cold in it, as they do where
requests come by chance.
"""
FULL = 0.5
"""Of the time, for a full server."""
BEFORE = ("wait", "decode", "preprocess")
AFTER = ("postprocess", "encode")
QUANTILES = np.linspace(0, 99, 34)  # in percent, as in ``Around``


@dataclass(frozen=True)
class Started:
    """A server that was started here."""

    url: str
    pid: int


@contextmanager
def started(repository: Path, tuning: Path, entry: Entry) -> Iterator[Started]:
    """A server of one model of the repository, in the arithmetic of its entry, as long as the block
    lasts.

    Raises:
        StartError: it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="saccade-plan-") as folder:
        # Alone, as other models may not have been proven in that arithmetic.
        (Path(folder) / entry.model).symlink_to((repository / entry.model).resolve())
        with _serving(Path(folder), tuning, entry) as server:
            yield server


@contextmanager
def _serving(repository: Path, tuning: Path, entry: Entry) -> Iterator[Started]:
    flags = {
        "port": "0",
        "host": "127.0.0.1",
        "repository": str(repository),
        "tuning": str(tuning),
        "runtime": entry.runtime,
        "precision": entry.precision,
    }
    command = [sys.executable, "-c", "from service.cli import main; main()", "serve"]
    command += [word for name, value in flags.items() for word in (f"--{name}", value)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            if " at http" not in first:
                raise StartError("no server starts here; saccade doctor may say why")
            found = Started(first.split(" at ")[1].strip(), process.pid)
            _wait_until_ready(found.url, process)
            yield found
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def measure(
    server: Started, path: str, pictures: list[tuple[bytes, str]], seconds: float
) -> Around:
    """One request after the other to a route for so long, then many at a time.

    Raises:
        StartError: the server refuses the pictures, or answers too few.
    """
    tally = Tally()

    async def drive(duration_s: float, clients: int = 1) -> None:
        client = Client(server.url, {}, TIMEOUT_S)
        requests = [client.compose("POST", path, data, kind) for data, kind in pictures]

        async def send(index: int) -> Reply:
            return await client.send(requests[index % len(requests)])

        rest_s = REST_S if clients == 1 else 0.0
        await closed_loop(send, tally, clients, duration_s, rest_s=rest_s)
        client.close()

    uvloop.run(drive(WARM_S))
    _check(tally, 1)
    tally = Tally()
    api_s, client_s = cpu_s(server.pid), time.process_time()
    uvloop.run(drive(seconds))
    api_s, client_s = cpu_s(server.pid) - api_s, time.process_time() - client_s
    _check(tally, LEAST_REQUESTS)
    alone, tally = tally, Tally()
    uvloop.run(drive(seconds * FULL, CLIENTS))
    _check(tally, 1)
    full_per_s = len(tally.latencies_s) / tally.wall_s
    api_s, client_s = (spent_s / alone.requests for spent_s in (api_s, client_s))
    return around_of(alone, pictures, api_s, client_s, full_per_s)


def around_of(
    tally: Tally,
    pictures: list[tuple[bytes, str]],
    cpu_s: float,
    client_s: float,
    full_per_s: float,
) -> Around:
    """What a tally of one request at a time says; ``cpu_s`` and ``client_s`` are processor time of
    each request, in the server's HTTP processes and in the client, ``full_per_s`` what many reach.
    """
    infer_s = [stage_means([timing])["infer"] for timing in tally.timings]
    latencies_s = zip(tally.latencies_s, infer_s, strict=True)
    rest_s = [max(latency_s - own_s - client_s, 1e-6) for latency_s, own_s in latencies_s]
    means = stage_means(tally.timings)
    before_s, after_s = (sum(means.get(stage, 0.0) for stage in names) for names in (BEFORE, AFTER))
    other_s = max(statistics.mean(rest_s) - before_s - after_s, 0.0)
    settings = load_settings()
    return Around(
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        requests=tally.requests,
        mean_bytes=round(statistics.mean(len(data) for data, _ in pictures)),
        processes=settings.http_processes(),
        decoders=settings.decoders(),
        rest_s=[float(value) for value in np.percentile(rest_s, QUANTILES)],
        infer_s=[float(value) for value in np.percentile(infer_s, QUANTILES)],
        before=(before_s + other_s / 2) / (before_s + after_s + other_s),
        cpu_s=cpu_s or statistics.mean(rest_s),
        client_s=client_s,
        full_per_s=full_per_s,
    )


def _check(tally: Tally, least: int) -> None:
    if tally.errors:
        raise StartError(f"the server refuses the pictures: {dict(tally.errors)}")
    if len(tally.latencies_s) < least:
        raise StartError(
            f"only {len(tally.latencies_s)} requests were answered; measure for longer with "
            "--seconds"
        )


def _wait_until_ready(url: str, process: "subprocess.Popen[str]") -> None:
    """Raises: StartError: that took longer than START_S, or the server has ended."""
    deadline_s = time.monotonic() + START_S

    async def ask() -> bool:
        client = Client(url, {}, TIMEOUT_S)
        try:
            return (await client.send(client.compose("GET", "/readyz"))).status == 200
        except (OSError, httptools.HttpParserError):
            return False
        finally:
            client.close()

    while not uvloop.run(ask()):
        if time.monotonic() > deadline_s or process.poll() is not None:
            raise StartError(
                "the server does not get ready; saccade doctor may say why, or: saccade serve"
            )
        time.sleep(0.2)


def cpu_s(pid: int, proc: Path = Path("/proc")) -> float:
    """Processor seconds of the HTTP and decoding processes below a supervisor; 0 where the system
    does not tell.
    """
    ticks, below = 0, {pid}
    for folder in sorted((f for f in proc.glob("[0-9]*")), key=lambda f: int(f.name)):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) in below and title.startswith(("saccade api", "saccade decoder")):
            below.add(int(folder.name))
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
