"""The fewest replicas that keep a target: guessed by the queueing model, decided by simulation."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import StartError
from service.plan.costs import Costs
from service.plan.estimate import estimate
from service.plan.fleet import Outcome, Traffic, simulate

PICTURES = 16_000  # of each fleet tried
DECIDING = 40_000  # of the one that is told of
LEAST_LOAD = 0.05
"""Of the capacity; a target that needs less of it is too near to the time of a picture alone."""
NEAR = 0.02  # fleets are told apart up to this share of their size


@dataclass(frozen=True)
class Target:
    """``spare`` replicas may be down and all but one in a hundred are still answered in ``p99_s``,
    at ``headroom`` (a share) above the rate of the traffic.
    """

    traffic: Traffic
    p99_s: float
    balancer: str = "random"
    spare: int = 0
    headroom: float = 0.0


@dataclass(frozen=True)
class Answer:
    """How many replicas, and what they do: ``alone`` a picture with nothing beside it, ``usual``
    all replicas at the rate asked for, ``worst`` those that are left of them at the highest rate.
    """

    replicas: int
    utilisation: float
    alone: Outcome
    usual: Outcome
    worst: Outcome


def find(costs: Costs, target: Target, whole: bool = False) -> Answer:
    """The fewest replicas for a target; ``whole`` simulates every one of them in the end.

    Raises:
        StartError: no number of replicas is enough.
    """
    alone = simulate(costs, Traffic(costs.capacity / 1000), 1, pictures=4000)
    if alone.p99_s > target.p99_s:
        raise StartError(_out_of_reach(costs, alone, target.p99_s))
    rate = target.traffic.rate * (1 + target.headroom)
    highest = Traffic(rate, target.traffic.burst)
    most = math.ceil(rate / costs.capacity / LEAST_LOAD)

    def try_out(count: int, pictures: int) -> Outcome | None:
        """What so many do; None where that is not enough."""
        if rate >= count * costs.capacity:
            return None
        found = simulate(costs, highest, count, target.balancer, pictures)
        return found if found.p99_s <= target.p99_s and not found.refused else None

    count = _fewest(lambda count: try_out(count, PICTURES) is not None, _guess(costs, rate, target))
    while (worst := try_out(count, DECIDING)) is None:
        count += max(1, int(count * NEAR))
        if count > most:
            raise StartError(
                f"{target.p99_s * 1000:.0f} ms are too near to the time of a picture alone "
                f"({alone.p99_s * 1000:.0f} ms for 99 of 100): replicas would have to be idle for "
                f"more than {1 - LEAST_LOAD:.0%} of the time. Allow more with --p99, or serve the "
                "model faster"
            )
    replicas = count + target.spare
    sample = replicas if whole else None
    pictures = max(DECIDING, 500 * replicas) if whole else DECIDING
    usual = simulate(costs, target.traffic, replicas, target.balancer, pictures, sample)
    used = target.traffic.rate / (replicas * costs.capacity)
    return Answer(replicas, used, alone, usual, worst)


def _guess(costs: Costs, rate: float, target: Target) -> int:
    """What the queueing model says, where it says anything."""
    low, high = rate / costs.capacity, rate / costs.capacity / LEAST_LOAD
    for _ in range(7):
        middle = math.sqrt(low * high)
        if estimate(costs, rate / middle).p99_s <= target.p99_s:
            high = middle
        else:
            low = middle
    return max(1, math.ceil(high))


def _fewest(enough: Callable[[int], bool], guess: int) -> int:
    """The least number that is enough, where all above it are, sought from a guess; more than can
    be needed if none was found.
    """
    low, high = 0, guess
    if enough(guess):
        while high > 1:
            lower = max(1, int(high * 0.85))
            if not enough(lower):
                low = lower
                break
            high = lower
    else:
        for _ in range(24):
            low, high = high, math.ceil(high * 1.15) + (high < 8)
            if enough(high):
                break
    while high - low > max(1, int(high * NEAR)):
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _out_of_reach(costs: Costs, alone: Outcome, p99_s: float) -> str:
    work_s, threads = costs.lone or (costs.work_s[0], costs.threads)
    model_s = work_s if costs.on_device else work_s * threads / costs.pace(threads)
    times = (alone.p50_s, alone.p99_s, model_s, costs.rest_mean_s)
    whole_ms, slowest_ms, model_ms, rest_ms = (f"{seconds * 1000:.1f}" for seconds in times)
    return (
        f"no number of replicas answers 99 of 100 within {p99_s * 1000:g} ms: a picture with "
        f"nothing beside it takes {whole_ms} ms (99 of 100: {slowest_ms}), of which {model_ms} are "
        f"the model and {rest_ms} decoding and HTTP. Only a faster machine, precision or runtime, "
        "or a smaller model or canvas helps; docs/tuning.md has what may be traded"
    )
