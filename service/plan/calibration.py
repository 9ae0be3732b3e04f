"""From what ``saccade tune`` and ``saccade plan --measure`` found out about a machine to costs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.plan.costs import MAX_QUEUE, Costs, quantiles_at
from service.plan.replica import Replica, Seen
from service.tuning import Around, Entry, Layout, Profile

CLIENTS = 32
"""At a time, of a full server."""
PICTURES = 1500  # of a simulated full server
LEAST_CROWDED = 0.5
"""Below it the profile and the measurement are not of the same state of a machine."""
HALVINGS = 7


def costs_of(
    profile: Profile,
    entry: Entry,
    around: Around | None,
    clients_here: bool = False,
    max_queue: int = MAX_QUEUE,
) -> Costs:
    """The costs of a canvas of a model on the machine that was measured; ``clients_here`` are on
    its cores, as they are when it is measured.

    Without ``around`` the rest of a request is what ``saccade tune`` takes it for.
    """
    on_device, cores = entry.device != "cpu", profile.machine.cores
    paces = tuple(map(float, range(1, cores + 1))) if on_device else _paces(cores, entry.grid)
    layout = _layout(entry, entry.streams, entry.threads)
    threads = max(1, entry.threads // entry.streams)
    plain = Costs(
        paces, entry.streams, threads, entry.batch, (1.0,), on_device=on_device, max_queue=max_queue
    )
    all_threads = entry.streams * threads
    pace = 1.0 if on_device else plain.pace(all_threads) / all_threads
    alone = _layout(entry, 1, entry.lone_threads) if entry.lone_threads else None
    # What a batch costs in a server beyond what it costs in a loop: stacking, waking threads, cold
    # caches. A lone picture tells.
    lone_s = layout.latency_s if alone is None else alone.latency_s
    median_s = _median(around.infer_s) if around else lone_s
    extra_s = max(0.0, median_s - lone_s)
    work_s = tuple((seconds + extra_s) * pace for seconds in _batch_seconds(layout, entry.batch))
    lone = None
    if alone is not None:
        share = plain.pace(alone.threads) / alone.threads
        lone = (alone.latency_s + extra_s) * share, alone.threads
    fields = vars(plain) | {"work_s": work_s, "lone": lone}
    if around is None:
        return Costs(**fields)
    rest_s = replace(plain, rest_s=tuple(around.rest_s)).rest_mean_s
    found = Costs(
        **fields
        | {
            "client_s": around.client_s,
            "rest_s": tuple(around.rest_s),
            "jitter": tuple(second / median_s for second in around.infer_s),
            "before": around.before,
            "on_cores": min(1.0, around.cpu_s / rest_s),
            "beside_s": max(0.0, around.cpu_s - rest_s),
            "processes": around.processes,
            "decoders": around.decoders,
        }
    )
    crowded = _crowded(found, around.full_per_s)
    client_s = around.client_s if clients_here else 0.0
    return replace(found, crowded=crowded, client_s=client_s)


def full_rate(costs: Costs, clients: int = CLIENTS, pictures: int = PICTURES) -> float:
    """Pictures a second that a simulated replica answers to so many clients that each ask again as
    soon as they have an answer.
    """
    seen, again = Seen(), 0

    def ask_again() -> None:
        nonlocal again
        again += 1

    replica = Replica(costs, seen, on_answer=ask_again)
    for _ in range(clients):
        replica.arrive(0.0)
    while len(seen.latencies_s) < pictures:
        replica.advance(replica.next_s)
        while again:
            again -= 1
            replica.arrive(replica.now_s)
    return pictures / replica.now_s


def _crowded(costs: Costs, full_per_s: float) -> float:
    """What threads beyond the cores do at most, so that a simulated full server is as fast as the
    measured one. It is caches and turns that they take from each other, so never a gain.
    """
    low, high = LEAST_CROWDED, 1.0
    if full_rate(costs) <= full_per_s:
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if full_rate(replace(costs, crowded=middle)) <= full_per_s:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _layout(entry: Entry, streams: int, threads: int) -> Layout:
    for layout in entry.grid:
        if (layout.streams, layout.threads) == (streams, threads):
            return layout
    return entry.grid[0]


def _paces(cores: int, grid: Sequence[Layout]) -> tuple[float, ...]:
    """By how much several threads do more than one: what streams of one thread each reached."""
    alone_s = next((one.latency_s for one in grid if (one.streams, one.threads) == (1, 1)), None)
    known = {1: 1.0}
    for layout in grid:
        if alone_s is not None and layout.streams == layout.threads > 1:
            reached = layout.streams * alone_s / layout.points[0].seconds
            known[layout.streams] = min(max(reached, 1.0), float(layout.streams))
    known.setdefault(cores, known[max(known)] / max(known) * cores)
    counts = sorted(known)
    found = np.interp(range(1, cores + 1), counts, [known[count] for count in counts])
    return tuple(float(one) for one in np.maximum.accumulate(found))


def _batch_seconds(layout: Layout, most: int) -> list[float]:
    """By batch size from 1; between those measured in a straight line, beyond in proportion."""
    sizes = [point.batch for point in layout.points]
    seconds = [point.seconds for point in layout.points]
    found = np.interp(range(1, most + 1), sizes, seconds)
    last, last_s = sizes[-1], seconds[-1]
    return [
        float(one) if size <= last else last_s * size / last
        for size, one in enumerate(found, start=1)
    ]


def _median(quantiles: Sequence[float]) -> float:
    return float(quantiles_at(quantiles, np.array([0.5]))[0])
