"""The quick estimate: a bulk-service queue with Poisson arrivals.

The server takes what waits, up to a whole batch, as soon as it is free, and never waits for company
(the general bulk-service rule with a least batch of one: Neuts 1967, Annals of Mathematical
Statistics 38, 759-770). What waits at the begins of batches is a Markov chain, which is solved in
numbers; pictures that come while a batch runs see it at an even time within that batch.

Several streams are one server that is as many times as fast, with the time of a whole batch for
each picture in it. Cores that decode meanwhile are in the mean: batches take longer by what other
threads take. The simulation needs neither of these.
"""

import math
from dataclasses import dataclass

import numpy as np

from service.plan.costs import Costs

PLACES = 8  # within a batch at which pictures come
ROUNDS = 3  # until what slows each other agrees
LONGEST = 240  # pictures that wait, at most


@dataclass(frozen=True)
class Estimate:
    """Percentiles in seconds and the mean batch; infinite and the largest where the queue grows
    without end.
    """

    p50_s: float
    p99_s: float
    mean_batch: float


def estimate(costs: Costs, rate: float) -> Estimate:
    """One replica at so many pictures a second."""
    if rate >= costs.capacity:
        return Estimate(math.inf, math.inf, float(costs.batch))
    busy, slower = 0.0, 1.0
    for _ in range(ROUNDS):
        decoding = _poisson(rate * costs.rest_cpu_s * slower, 16)
        seconds = np.array(
            [
                sum(share * costs.batch_s(size, beside) for beside, share in enumerate(decoding))
                for size in range(1, costs.batch + 1)
            ]
        )
        turn_s = seconds / costs.streams
        if rate * turn_s[-1] / costs.batch >= 0.999:
            return Estimate(math.inf, math.inf, float(costs.batch))
        waiting = _waiting_at_begin(turn_s, rate)
        sizes = np.minimum(np.arange(len(waiting)), costs.batch)
        mean_batch = float(waiting @ sizes)
        # A request shares the cores with the batches of others, for as much of the time as these
        # run, and with the requests that are decoded meanwhile.
        busy = min(1.0, rate * float(waiting @ turn_s[np.maximum(sizes, 1) - 1]) / mean_batch)
        threads = 0 if costs.on_device else costs.streams * costs.threads
        slower = sum(
            share * (at * (n + 1) / costs.pace(n + 1))
            for beside, share in enumerate(decoding)
            for n, at in ((beside + threads, busy), (beside, 1 - busy))
        )
    latency_s, weight = _sojourns(turn_s, seconds, waiting, rate)
    rest_s = costs.draw_rest_s((np.arange(9) + 0.5) / 9)
    rest_s = (rest_s * costs.on_cores + costs.client_s) * slower + rest_s * (1 - costs.on_cores)
    whole_s = (latency_s[:, None] + rest_s).ravel()
    p50, p99 = _quantiles(whole_s, np.repeat(weight / 9, 9), (0.5, 0.99))
    return Estimate(p50, p99, mean_batch)


def _waiting_at_begin(turn_s: np.ndarray, rate: float) -> np.ndarray:
    """The distribution of how many wait when a batch begins, itself included."""
    most = len(turn_s)
    moves = np.zeros((LONGEST + 1, LONGEST + 1))
    for count in range(1, LONGEST + 1):
        size = min(count, most)
        left = count - size
        come = _poisson(rate * turn_s[size - 1], LONGEST + 1 - left)
        moves[count, left:] = come
        moves[count, LONGEST] += 1 - come.sum()
        moves[count, 1] += moves[count, 0]  # idle until the next comes, which runs alone
        moves[count, 0] = 0
    moves[0, 1] = 1
    system = moves.T - np.eye(LONGEST + 1)
    system[-1] = 1
    right = np.zeros(LONGEST + 1)
    right[-1] = 1
    return np.maximum(np.linalg.solve(system, right), 0)


def _sojourns(
    turn_s: np.ndarray, seconds: np.ndarray, waiting: np.ndarray, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds from coming into the queue to the end of the batch, and how likely each is."""
    most = len(turn_s)
    found, weights = [], []
    idle_share = 0.0
    for count, share in enumerate(waiting):
        if share < 1e-6 or not count:
            continue
        size = min(count, most)
        left, turn = count - size, turn_s[size - 1]
        if not left:
            idle_share += share * math.exp(-rate * turn)
        for place in (np.arange(PLACES) + 0.5) / PLACES:
            come = _poisson(rate * turn * place, max(8, int(rate * turn * 3) + 12))
            ahead = left + np.arange(len(come))
            wait_s = turn * (1 - place) + (ahead // most) * turn_s[-1]
            own = np.minimum(ahead % most + 1 + rate * wait_s, most)
            found.append(wait_s + np.interp(own, np.arange(1, most + 1), seconds))
            weights.append(come * share * rate * turn / PLACES)
    found.append(np.array([seconds[0]]))
    weights.append(np.array([idle_share]))  # one picture for each time that all is idle
    weight = np.concatenate(weights)
    return np.concatenate(found), weight / weight.sum()


def _poisson(mean: float, count: int) -> np.ndarray:
    """Chances of 0, 1, ... count - 1."""
    if mean <= 0:
        return np.eye(1, count)[0]
    numbers = np.arange(count)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.maximum(numbers[1:], 1)))])
    return np.exp(numbers * math.log(mean) - mean - logs)


def _quantiles(values: np.ndarray, weights: np.ndarray, ranks: tuple[float, ...]) -> list[float]:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    places = np.minimum(np.searchsorted(reached, ranks), len(values) - 1)
    return [float(value) for value in values[order][places]]
