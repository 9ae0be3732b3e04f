"""Does a server keep its word while it is overloaded and its processes die?

``python -m bench.faults [--duration 120] [--load 2.0] [--kill-worker-every 15] ...``

Mixed traffic (good, nonsense, slow, leaving, hurried, oversized) from several clients that honour
no refusal, at a multiple of the rate that was measured first; then the same with faults. Every good
answer is held to the one that the same picture got before. Prints one table, writes JSON, and exits
with 1 where a figure is not what it has to be.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from bench.faults.figures import Run, verdict
from bench.faults.injection import Fault, Look, held_at_rest, inject, schedule, watch_readiness
from bench.faults.traffic import TIMEOUT_S, Picture, Traffic
from bench.server import Server, serving
from service.bench.client import Client
from service.bench.command import read_pictures
from service.bench.load import NOT_SENT, Tally, arrivals, closed_loop, open_loop
from service.bench.report import describe_machine, distribution
from service.bundle import load_repository
from service.settings import DEMO_REPOSITORY

SCENES = DEMO_REPOSITORY.parent / "scenes"
NOT_ANSWERED = ("refused", "late", "cut", "lost", "wrong")
MOST_LISTED = 100  # of what was not answered as it should be
WIDTH = 130  # of the table, whatever is told of a terminal
CONCURRENCY = 32  # while the capacity is measured


@dataclass(frozen=True)
class Plan:
    """How long, how much, and which fault every so many seconds (0: never)."""

    duration_s: float = 120.0
    calm_s: float = 30.0
    load: float = 2.0
    clients: int = 4
    every_s: dict[str, float] = dataclasses.field(default_factory=lambda: {"worker killed": 15.0})


def main() -> None:
    """Start a server, try it, print and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--repository", type=Path, default=DEMO_REPOSITORY)
    parser.add_argument("--images", type=Path, default=SCENES)
    parser.add_argument("--duration", type=float, default=120.0, help="seconds with faults")
    parser.add_argument("--calm", type=float, default=30.0, help="seconds without, before")
    parser.add_argument("--load", type=float, default=2.0, help="times the capacity")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--kill-worker-every", type=float, default=15.0, help="seconds; 0: never")
    parser.add_argument("--stop-worker-every", type=float, default=0.0, help="it hangs (SIGSTOP)")
    parser.add_argument("--kill-api-every", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=Path("faults.json"))
    parser.add_argument("flags", nargs="*", help="of saccade serve, after --")
    asked = parser.parse_args()
    plan = Plan(
        asked.duration,
        asked.calm,
        asked.load,
        asked.clients,
        {
            "worker killed": asked.kill_worker_every,
            "worker stopped": asked.stop_worker_every,
            "API process killed": asked.kill_api_every,
        },
    )
    with serving(asked.repository, *asked.flags) as server:
        pictures = questions(asked.repository, asked.images)
        report = uvloop.run(try_server(server, pictures, plan))
    asked.out.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    sys.exit(not all(line["holds"] for line in report["verdict"]))


def questions(repository: Path, images: Path) -> list[Picture]:
    """Every picture for the first task of every model, models in turn."""
    paths = [
        f"/v1/{bundle.manifest.tasks[0]}?model={bundle.manifest.name}"
        for bundle in load_repository(repository)
    ]
    pictures = read_pictures(images)
    return [Picture(path, data, kind) for data, kind in pictures for path in paths]


async def try_server(server: Server, pictures: list[Picture], plan: Plan) -> dict[str, Any]:
    """Measure the capacity, then the load without faults, then with them."""
    await server.wait_until_ready()
    # Each from an address of its own, where the system has a network of them for itself.
    sources = [f"127.0.0.{1 + n}" if sys.platform == "linux" else None for n in range(plan.clients)]
    clients = [Client(server.url, {}, TIMEOUT_S, source) for source in sources]
    traffic = Traffic(server.url, pictures, clients, seed=0)
    await traffic.learn()
    capacity = Tally()
    await closed_loop(traffic.send_good, capacity, CONCURRENCY, plan.calm_s / 2)
    rate = len(capacity.latencies_s) / capacity.wall_s
    load = plan.load * rate
    calm = await _drive(traffic, load, plan.calm_s)
    traffic.close()
    before = await held_at_rest(server)
    faulty = await _drive(traffic, load, plan.duration_s, server, plan.every_s)
    traffic.close()
    after = await held_at_rest(server)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "plan": dataclasses.asdict(plan),
        "capacity_per_s": round(rate, 1),
        "offered_per_s": round(load, 1),
        "undisturbed": _described(calm),
        "disturbed": _described(faulty),
        "examples": traffic.examples,
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
        "verdict": verdict(calm, faulty, before, after),
    }


async def _drive(
    traffic: Traffic,
    rate: float,
    duration_s: float,
    victim: Server | None = None,
    every_s: Mapping[str, float] | None = None,
) -> Run:
    """Send for so long, whatever becomes of it, and wait for the last answer; meanwhile do to the
    ``victim`` what is due.
    """
    faults: list[Fault] = []
    looks: list[Look] = []
    beside: list[asyncio.Task[None]] = []
    if victim is not None:
        due = schedule(every_s or {}, duration_s)
        beside.append(asyncio.create_task(inject(victim, due, faults)))
        beside.append(asyncio.create_task(watch_readiness(victim.url, looks)))
    traffic.events, tally = [], Tally()
    started_s = time.perf_counter()
    try:
        await open_loop(traffic.send_mixed, tally, arrivals(rate, duration_s))
    finally:
        for task in beside:
            task.cancel()
    for ended in await asyncio.gather(*beside, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
    ended_s = started_s + duration_s
    return Run(started_s, ended_s, traffic.events, faults, looks, tally.errors[NOT_SENT])


def _described(run: Run) -> dict[str, Any]:
    recoveries = zip(run.faults, run.recoveries(), strict=True)
    return {
        "goodput_per_s": round(run.goodput(), 1),
        "latency_s": distribution([e.took_s for e in run.events if e.outcome == "answered"]),
        "not_sent": run.not_sent,
        "kinds": run.by_kind(),
        "faults": [
            {
                "kind": fault.kind,
                "at_s": round(fault.at_s - run.started_s, 2),
                "recovered_after_s": _rounded(ended_s - began_s),
            }
            for fault, (began_s, ended_s) in recoveries
        ],
        "not_answered": [
            {
                "kind": event.kind,
                "status": event.status,
                "outcome": event.outcome,
                "sent_at_s": round(event.at_s - event.took_s - run.started_s, 2),
                "took_s": round(event.took_s, 2),
            }
            for event in run.judged()
            if event.outcome in ("cut", "lost", "wrong")
        ][:MOST_LISTED],
    }


def _rounded(seconds: float) -> float | None:
    """None, which JSON has a word for, where it never ended."""
    return round(seconds, 2) if math.isfinite(seconds) else None


def print_report(report: dict[str, Any]) -> None:
    """The disturbed traffic by kind of client, then each figure beside what is allowed."""
    disturbed = report["disturbed"]
    statuses = list(disturbed["kinds"]["all"]["statuses"])
    title = (
        f"{report['offered_per_s']} requests/s offered, {report['capacity_per_s']} possible; "
        f"good answers/s: {report['undisturbed']['goodput_per_s']} without faults, "
        f"{disturbed['goodput_per_s']} between them"
    )
    table = Table("clients", "sent", *statuses, *NOT_ANSWERED, title=title)
    for kind, row in sorted(disturbed["kinds"].items(), key=lambda item: item[0] == "all"):
        counts = [row["statuses"].get(status, 0) for status in statuses]
        counts += [row["outcomes"].get(outcome, 0) for outcome in NOT_ANSWERED]
        table.add_row(kind, str(row["sent"]), *(str(count or "") for count in counts))
    console = Console(width=WIDTH)
    console.print(table)
    recovered = [f"{f['kind']} {f['recovered_after_s'] or 'never'} s" for f in disturbed["faults"]]
    console.print(f"recoveries: {', '.join(recovered) or 'none'}; not sent {disturbed['not_sent']}")
    for example in report["examples"]:
        console.print(example, markup=False)
    for line in report["verdict"]:
        mark = "holds" if line["holds"] else "FAILS"
        console.print(f"{mark}  {line['figure']}: {line['found']} ({line['allowed']})")


if __name__ == "__main__":
    main()
