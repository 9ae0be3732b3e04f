"""What is done to the processes of a server, and what they hold at rest."""

import asyncio
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httptools
import psutil

from bench.server import Server
from service.bench.client import Client

HANG = "worker stopped"
FAULTS = {
    "worker killed": ("saccade worker", signal.SIGKILL),
    HANG: ("saccade worker", signal.SIGSTOP),
    "API process killed": ("saccade api", signal.SIGKILL),
}
"""Title of the victim, and the signal it gets."""
LOOK_S = 0.05
PROBE_TIMEOUT_S = 5.0
SETTLE_S = 3.0  # what is freed a moment after the last answer is not held


@dataclass(frozen=True, slots=True)
class Fault:
    """One of ``FAULTS``, and when it was done."""

    kind: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Look:
    """Whether the server said that it was ready when it was asked at ``at_s``."""

    at_s: float
    ready: bool


@dataclass(frozen=True, slots=True)
class Held:
    """Of all processes of a server: memory with shared pages counted once, and descriptors."""

    memory_bytes: int
    descriptors: int


def schedule(every_s: Mapping[str, float], duration_s: float) -> list[tuple[float, str]]:
    """When to do what, by fault and its period; a period of 0 is never."""
    due = [
        (number * period, kind)
        for kind, period in every_s.items()
        if period > 0
        for number in range(1, int(duration_s / period) + 1)
        if number * period < duration_s
    ]
    return sorted(due)


async def inject(server: Server, due: list[tuple[float, str]], done: list[Fault]) -> None:
    """Do what is due, in seconds from now, and note it in ``done``."""
    started_s = time.perf_counter()
    for offset_s, kind in due:
        await asyncio.sleep(max(0.0, started_s + offset_s - time.perf_counter()))
        title, number = FAULTS[kind]
        victim = await _find(server, title)
        done.append(Fault(kind, time.perf_counter()))
        victim.send_signal(number)


async def watch_readiness(url: str, seen: list[Look]) -> None:
    """Ask the server again and again, each time anew, whether it is ready, until cancelled."""
    while True:
        client = Client(url, {}, PROBE_TIMEOUT_S)
        asked_s = time.perf_counter()
        try:
            reply = await client.send(client.compose("GET", "/readyz"))
        except (OSError, httptools.HttpParserError):
            seen.append(Look(asked_s, False))
        else:
            seen.append(Look(asked_s, reply.status == 200))
        finally:
            client.close()
        await asyncio.sleep(LOOK_S)


async def held_at_rest(server: Server) -> Held:
    """What the processes hold when nobody has asked anything for a while."""
    await asyncio.sleep(SETTLE_S)
    return held(server)


def held(server: Server) -> Held:
    """What the processes hold now."""
    memory_bytes = descriptors = 0
    for process in server.processes():
        try:
            memory_bytes += process.memory_full_info().pss
            descriptors += process.num_fds()
        except psutil.NoSuchProcess:
            continue  # it died between the two looks
    return Held(memory_bytes, descriptors)


async def _find(server: Server, title: str) -> psutil.Process:
    while True:
        for process in server.processes():
            try:
                if " ".join(process.cmdline()).startswith(title):
                    return process
            except psutil.NoSuchProcess:
                continue
        await asyncio.sleep(LOOK_S)  # its successor is about to start
