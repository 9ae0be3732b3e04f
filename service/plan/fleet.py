"""Many replicas behind a balancer, in simulated time."""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from service.plan.costs import Costs
from service.plan.replica import Replica, Seen

Balancer = Literal["random", "round-robin", "least-outstanding"]
BALANCERS: tuple[str, ...] = get_args(Balancer)
SAMPLE = 16
"""Replicas that stand for all where each one's arrivals do not depend on the others."""
JOINT_SAMPLE = 64
"""Replicas that stand for all where the balancer compares them: with more to choose from a picture
waits no longer."""
CHUNK = 1_000_000
WARM = 0.1  # of the time, which does not count: replicas start empty


@dataclass(frozen=True)
class Traffic:
    """Pictures a second in all, and how many come at once in the mean, at the times of a Poisson
    process; the number at once is geometric.
    """

    rate: float
    burst: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What a fleet did: percentiles in seconds, batch sizes by share of the batches, the share of
    the pictures refused, and how busy its cores were.
    """

    pictures: int
    p50_s: float
    p95_s: float
    p99_s: float
    mean_batch: float
    batches: dict[int, float]
    refused: float
    busy: float


def simulate(
    costs: Costs,
    traffic: Traffic,
    replicas: int,
    balancer: str = "random",
    pictures: int = 40_000,
    sample: int | None = None,
    seed: int = 1,
) -> Outcome:
    """Send about so many ``pictures`` to a ``sample`` of the replicas; all of them where it is as
    large as the fleet.

    Behind ``random`` and ``round-robin`` what comes to one replica is a part of the whole stream
    whatever the others do, so the sample is exact. For ``least-outstanding`` it is a smaller fleet
    with its share of the stream.
    """
    joint = balancer == "least-outstanding"
    count = min(replicas, sample or (JOINT_SAMPLE if joint else SAMPLE))
    if balancer == "random" and traffic.burst == 1:  # a part of a Poisson process is one
        traffic, replicas = Traffic(traffic.rate * count / replicas), count
    seen = Seen()
    fleet = [Replica(costs, seen, seed + index) for index in range(count)]
    duration_s = pictures * replicas / (count * traffic.rate)
    if joint:
        own = Traffic(traffic.rate * count / replicas, traffic.burst)
        _feed_least(fleet, _arrivals(own, duration_s, seed), duration_s * WARM)
    else:
        _feed_parts(fleet, traffic, replicas, balancer, duration_s, seed)
    for replica in fleet:
        replica.advance(math.inf)
    return _summarize(seen, seen.busy / (count * costs.paces[-1] * duration_s))


def _feed_parts(
    fleet: list[Replica],
    traffic: Traffic,
    replicas: int,
    balancer: str,
    duration_s: float,
    seed: int,
) -> None:
    """Each replica gets its part of the stream; parts are run one replica after the other."""
    random = np.random.default_rng(seed + 1_000_003)
    turn, warm_s = 0, duration_s * WARM
    for times_s in _arrivals(traffic, duration_s, seed):
        if balancer == "round-robin":
            targets = (turn + np.arange(len(times_s))) % replicas
            turn = (turn + len(times_s)) % replicas
        else:
            targets = random.integers(replicas, size=len(times_s))
        kept = targets < len(fleet)
        targets, own_s = targets[kept], times_s[kept]
        for index, replica in enumerate(fleet):
            for now_s in own_s[targets == index].tolist():
                replica.arrive(now_s, now_s >= warm_s)


def _feed_least(fleet: list[Replica], arrivals: Iterator[np.ndarray], warm_s: float) -> None:
    """Each picture goes to a replica with the fewest under way, so all run in one time."""
    # Both heaps keep entries that no longer hold; these are skipped when they come up.
    events: list[tuple[float, int, int]] = []
    random = np.random.default_rng(len(fleet))
    ties: list[float] = []
    versions = [0] * len(fleet)
    idle = [(0, float(order), index) for index, order in enumerate(random.random(len(fleet)))]
    heapq.heapify(idle)

    def note(index: int) -> None:
        replica = fleet[index]
        versions[index] += 1
        when_s = replica.next_s
        if when_s < math.inf:
            heapq.heappush(events, (when_s, versions[index], index))
        if not ties:
            ties.extend(random.random(4096).tolist())
        heapq.heappush(idle, (replica.outstanding, ties.pop(), index))

    for times_s in arrivals:
        for now_s in times_s.tolist():
            while events and events[0][0] <= now_s:
                when_s, version, index = heapq.heappop(events)
                if version == versions[index]:
                    fleet[index].advance(when_s)
                    note(index)
            while fleet[idle[0][2]].outstanding != idle[0][0]:
                heapq.heappop(idle)
            index = heapq.heappop(idle)[2]
            fleet[index].arrive(now_s, now_s >= warm_s)
            note(index)


def _arrivals(traffic: Traffic, duration_s: float, seed: int) -> Iterator[np.ndarray]:
    """Times, in order, in pieces."""
    random = np.random.default_rng(seed)
    rate, at_s = traffic.rate / traffic.burst, 0.0
    while at_s < duration_s:
        size = min(CHUNK, int((duration_s - at_s) * rate * 1.05) + 64)
        times_s = at_s + np.cumsum(random.exponential(1 / rate, size))
        at_s = float(times_s[-1])
        times_s = times_s[times_s < duration_s]
        if traffic.burst > 1:
            times_s = np.repeat(times_s, random.geometric(1 / traffic.burst, len(times_s)))
        yield times_s


def _summarize(seen: Seen, busy: float) -> Outcome:
    if not seen.latencies_s:
        raise ValueError("no picture was answered: simulate more of them")
    p50, p95, p99 = np.percentile(seen.latencies_s, (50, 95, 99), method="inverted_cdf")
    batches = sum(seen.batches.values())
    return Outcome(
        pictures=len(seen.latencies_s),
        p50_s=float(p50),
        p95_s=float(p95),
        p99_s=float(p99),
        mean_batch=sum(size * count for size, count in seen.batches.items()) / batches,
        batches={size: seen.batches[size] / batches for size in sorted(seen.batches)},
        refused=seen.refused / (seen.refused + len(seen.latencies_s)),
        busy=busy,
    )
