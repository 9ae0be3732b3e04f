"""Closed and open load loops, and the tally of what they met."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httptools

from service.bench.client import Reply

MAX_REQUESTS = 500_000  # of one run, whatever its time
MAX_IN_FLIGHT = 1024  # of an open loop; what would be due beyond is counted as not sent
PAUSE_S = 0.01  # after a failed connection, so that a dead server is not hammered

NOT_SENT = "not sent"

Send = Callable[[int], Awaitable[Reply]]
"""Sends request number ``index``; raises what ``Client.send`` does."""
Clock = Callable[[], float]


@dataclass
class Tally:
    """What happened in one run; latencies and timings belong to answers of status 2xx alone.

    A refusal is fast, so counting its latency would flatter a server that refuses.
    """

    latencies_s: list[float] = field(default_factory=list)
    timings: list[str] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    wall_s: float = 0.0

    @property
    def requests(self) -> int:
        """Every request of the run, whatever became of it."""
        return len(self.latencies_s) + self.errors.total()

    async def measure(self, send: Send, index: int, due_s: float, clock: Clock) -> bool:
        """Send one request and count its end; False if there was no answer at all."""
        try:
            reply = await send(index)
        except (OSError, httptools.HttpParserError) as error:
            self.errors[type(error).__name__] += 1
            return False
        if 200 <= reply.status < 300:
            self.latencies_s.append(clock() - due_s)
            self.timings.append(reply.server_timing)
        else:
            self.errors[str(reply.status)] += 1
        return True


async def closed_loop(
    send: Send,
    tally: Tally,
    concurrency: int,
    duration_s: float,
    clock: Clock = time.perf_counter,
    rest_s: float = 0.0,
) -> None:
    """``concurrency`` callers, each sending its next request when the last was answered, after a
    rest if it takes one.
    """
    started_s = clock()
    sent = 0

    async def call() -> None:
        nonlocal sent
        while (now_s := clock()) < started_s + duration_s and sent < MAX_REQUESTS:
            sent += 1
            if not await tally.measure(send, sent - 1, now_s, clock):
                await asyncio.sleep(PAUSE_S)
            elif rest_s:
                await asyncio.sleep(rest_s)

    async with asyncio.TaskGroup() as callers:
        for _ in range(concurrency):
            callers.create_task(call())
    tally.wall_s = clock() - started_s


async def open_loop(
    send: Send, tally: Tally, due_s: Sequence[float], clock: Clock = time.perf_counter
) -> None:
    """Send each request when it is due, in seconds from the start, answered or not.

    Latency counts from the due time, so a late sender or a stalled server cannot hide the wait of
    the requests behind it (coordinated omission). How late each was sent is in ``tally.lags_s``.
    """
    started_s = clock()
    running: set[asyncio.Task[bool]] = set()
    for index, offset_s in enumerate(due_s):
        wait_s = started_s + offset_s - clock()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if len(running) >= MAX_IN_FLIGHT:
            tally.errors[NOT_SENT] += 1
            await asyncio.sleep(0)
            continue
        tally.lags_s.append(clock() - started_s - offset_s)
        task = asyncio.create_task(tally.measure(send, index, started_s + offset_s, clock))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    tally.wall_s = clock() - started_s


def arrivals(rate: float, duration_s: float, seed: int = 0) -> list[float]:
    """Due times of independent users: exponential gaps of mean ``1 / rate`` seconds."""
    source = random.Random(seed)
    due_s: list[float] = []
    at_s = source.expovariate(rate)
    while at_s < duration_s and len(due_s) < MAX_REQUESTS:
        due_s.append(at_s)
        at_s += source.expovariate(rate)
    return due_s
