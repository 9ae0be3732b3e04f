"""From the ends of requests to what the run is judged by."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench.faults.injection import HANG, Fault, Held, Look
from bench.faults.outcomes import Event
from bench.faults.traffic import UNHURRIED

NOTICED_WITHIN_S = 1.0  # a fault stops the answers at once, but for those already on their way
UNREADY_WITHIN_S = 8.0  # a worker that is silent is given some seconds before it counts as lost
CUT_WITHIN_S = 1.0
BREAKS = {"ConnectionResetError", "BrokenPipeError", "ConnectionAbortedError"}

LEAST_GOODPUT = 0.9
MOST_GROWTH = 1.05
MOST_RECOVERY_S = 3.0


@dataclass(frozen=True)
class Run:
    """Traffic for a while: from when to when, what became of it, and what was done meanwhile."""

    started_s: float
    ended_s: float
    events: Sequence[Event]
    faults: Sequence[Fault] = ()
    looks: Sequence[Look] = ()
    not_sent: int = 0

    def goodput(self) -> float:
        """Good pictures answered per second, outside of recoveries."""
        windows = self.recoveries()
        answered = [
            at_s
            for at_s in answered_at(self.events)
            if self.started_s <= at_s <= self.ended_s
            and not any(began_s <= at_s < ended_s for began_s, ended_s in windows)
        ]
        inside = [(began_s, min(ended_s, self.ended_s)) for began_s, ended_s in windows]
        undisturbed_s = self.ended_s - self.started_s - covered_s(inside)
        return len(answered) / undisturbed_s if undisturbed_s > 0 else 0.0

    def recoveries(self) -> list[tuple[float, float]]:
        """From each fault until the server was ready and good answers flowed again."""
        times = answered_at(self.events)
        return [
            (
                fault.at_s,
                max(recovered_at(fault.at_s, times), ready_at(fault.at_s, self.looks)),
            )
            for fault in self.faults
        ]

    def judged(self) -> list[Event]:
        """The events; connections that broke with a killed API process are ``cut``, not lost."""
        killed_s = [fault.at_s for fault in self.faults if fault.kind == "API process killed"]
        return [
            dataclasses.replace(event, outcome="cut")
            if event.status in BREAKS
            and any(at_s <= event.at_s <= at_s + CUT_WITHIN_S for at_s in killed_s)
            else event
            for event in self.events
        ]

    def by_kind(self) -> dict[str, dict[str, Any]]:
        """Requests, statuses and outcomes of each kind of client, and of all."""
        events = self.judged()
        kinds = {kind: [e for e in events if e.kind == kind] for kind in _seen(events)}
        return {
            kind: {
                "sent": len(found),
                "statuses": dict(sorted(Counter(e.status for e in found).items())),
                "outcomes": dict(Counter(e.outcome for e in found)),
            }
            for kind, found in {**kinds, "all": events}.items()
        }


def answered_at(events: Iterable[Event]) -> list[float]:
    """When pictures of well-behaved clients were answered, in order."""
    return sorted(e.at_s for e in events if e.kind == "good" and e.outcome == "answered")


def recovered_at(fault_s: float, answered_s: Sequence[float]) -> float:
    """The end of the longest silence that the fault can have begun; infinite if it never ended."""
    silences = [
        (after_s - before_s, after_s)
        for before_s, after_s in pairwise([-math.inf, *answered_s, math.inf])
        if after_s >= fault_s and before_s <= fault_s + NOTICED_WITHIN_S
    ]
    return max((min(length_s, after_s - fault_s), after_s) for length_s, after_s in silences)[1]


def ready_at(fault_s: float, looks: Sequence[Look]) -> float:
    """When the server was ready again after it had said that it was not; ``fault_s`` if it did not
    say so, infinite if it never was.
    """
    unready_s = next(
        (o.at_s for o in looks if fault_s <= o.at_s <= fault_s + UNREADY_WITHIN_S and not o.ready),
        None,
    )
    if unready_s is None:
        return fault_s
    return next((look.at_s for look in looks if look.at_s > unready_s and look.ready), math.inf)


def covered_s(windows: Iterable[tuple[float, float]]) -> float:
    """Seconds in at least one of the windows."""
    total_s, reached_s = 0.0, -math.inf
    for began_s, ended_s in sorted(windows):
        total_s += max(0.0, ended_s - max(began_s, reached_s))
        reached_s = max(reached_s, ended_s)
    return total_s


def verdict(calm: Run, faulty: Run, before: Held, after: Held) -> list[dict[str, Any]]:
    """Each figure that the run is judged by, what is allowed, and whether it holds."""
    kinds = faulty.by_kind()
    outcomes = kinds["all"]["outcomes"]
    late = sum(kinds[kind]["outcomes"].get("late", 0) for kind in UNHURRIED if kind in kinds)
    ratio = faulty.goodput() / calm.goodput() if calm.goodput() else 0.0
    slowest_s = max(
        (
            ended_s - began_s
            for fault, (began_s, ended_s) in zip(faulty.faults, faulty.recoveries(), strict=True)
            if fault.kind != HANG  # how long it may hang is a setting
        ),
        default=0.0,
    )
    memory = after.memory_bytes / before.memory_bytes
    descriptors = after.descriptors / before.descriptors
    return [
        _at_most("lost", outcomes.get("lost", 0), 0),
        _at_most("wrong", outcomes.get("wrong", 0), 0),
        _at_most("late, of those in no hurry", late, 0),
        _at_most("memory after / before", round(memory, 3), MOST_GROWTH),
        _at_most("descriptors after / before", round(descriptors, 3), MOST_GROWTH),
        _at_most("slowest recovery from a kill, s", round(slowest_s, 2), MOST_RECOVERY_S),
        {
            "figure": "goodput outside recoveries / undisturbed",
            "found": round(ratio, 3),
            "allowed": f"at least {LEAST_GOODPUT:g}",
            "holds": ratio >= LEAST_GOODPUT,
        },
    ]


def _at_most(figure: str, found: float, limit: float) -> dict[str, Any]:
    return {
        "figure": figure,
        "found": found if math.isfinite(found) else None,
        "allowed": f"at most {limit:g}",
        "holds": found <= limit,
    }


def _seen(events: Iterable[Event]) -> list[str]:
    return list(dict.fromkeys(event.kind for event in events))
