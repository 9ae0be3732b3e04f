"""Does the planner say what a server does? Prediction and measurement of latency under load.

    python -m bench.plan_check [--model NAME] [--rounds 3] [--duration 9] [--out FILE]
                               [--plot FILE.svg] [--page FILE.md]

Each model is tuned, then a server of it is loaded in rounds: one request at a time (what
``saccade plan --measure`` measures), 32 at a time (its capacity), and open loops of Poisson
arrivals at shares of that capacity. What is measured in a round falls on all alike, whatever else
the machine does. Latencies of all rounds are pooled. The clients run on the same cores, and their
processor time, measured one request at a time too, is part of the prediction.
"""

import argparse
import asyncio
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from rich.console import Console

from bench.peers.graphs import VARIANTS, build
from bench.peers.picture import draw
from service.bench.client import Client, Reply
from service.bench.load import Tally, arrivals, open_loop
from service.bench.report import describe_machine, distribution
from service.bundle import load_repository
from service.plan.around import TIMEOUT_S, Started, measure, started
from service.plan.calibration import costs_of
from service.plan.command import Asked, choose
from service.plan.costs import Costs
from service.plan.estimate import estimate
from service.plan.fleet import Traffic, simulate
from service.plan.replica import Replica, Seen
from service.settings import DEMO_REPOSITORY
from service.tuning import FILE, Around

Found = dict[str, Any]

MODELS = ("vit-scenes", "swin-scenes", "vit-tiny")
SHARES = (0.2, 0.4, 0.6, 0.8)
PART = 0.5  # of the duration, for one request at a time
WITHIN = {"p50": 0.15, "p99": 0.25}
SIMULATED = 40_000
FLEET = 2000
BEGIN, END = "<!-- plan.json -->\n", "<!-- end -->\n"
WORK = Path("build/plan")


def main() -> None:
    """Measure, compare, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.plan_check", description=__doc__)
    parser.add_argument("--model", action="append", help=f"repeatable; without: {MODELS}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=9.0, help="seconds of a load and round")
    parser.add_argument("--tune-seconds", type=float, default=0.6)
    parser.add_argument("--work", type=Path, default=WORK, help="for exported networks")
    parser.add_argument("--out", type=Path, default=Path("plan.json"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--page", type=Path, help="put the table there")
    asked = parser.parse_args()
    began_s = time.monotonic()
    models = [
        check(_repository(name, asked.work), name, asked.rounds, asked.duration, asked.tune_seconds)
        for name in asked.model or MODELS
    ]
    report = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began_s),
        "machine": describe_machine(),
        "picture_bytes": len(draw()),
        "rounds": asked.rounds,
        "duration_s": asked.duration,
        "models": models,
        "simulator": speed(),
    }
    asked.out.write_text(json.dumps(report, indent=2) + "\n")
    if asked.plot is not None:
        plot(report, asked.plot)
    if asked.page is not None:
        asked.page.write_text(put(asked.page.read_text(), section(report)))
    Console(soft_wrap=True).print(table(report), markup=False, highlight=False)


def check(repository: Path, name: str, rounds: int, duration_s: float, tune_s: float) -> Found:
    """Figures of one model: what was measured, and what is said of it."""
    pictures = [(draw(), "image/jpeg")]
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        tuning = Path(folder) / FILE
        _tune(repository, name, tune_s, tuning)
        profile, entry = choose(Asked(repository, tuning, model=name))
        task = next(b for b in load_repository(repository) if b.manifest.name == name).manifest
        path = f"/v1/{task.tasks[0]}?model={name}"
        with started(repository, tuning, entry) as server:
            low, loads = _rounds(server, path, pictures, rounds, duration_s)
    around = merge(low)
    costs = costs_of(profile, entry, around, clients_here=True)
    capacity = around.full_per_s
    return {
        "model": name,
        "runtime": entry.runtime,
        "precision": entry.precision,
        "streams": entry.streams,
        "threads": entry.threads,
        "batch": entry.batch,
        "capacity": {
            "measured": round(capacity, 2),
            "of_the_profile": round(costs.capacity / costs.crowded, 2),
            "rounds": [round(one.full_per_s, 2) for one in low],
        },
        "costs": {**vars(costs), "rest_mean_s": costs.rest_mean_s},
        "points": [compare(costs, capacity, *load) for load in loads],
        "curve": [_curve(costs, share, capacity) for share in np.arange(0.05, 0.86, 0.1)],
    }


def speed() -> Found:
    """Processor seconds of the simulation of a million pictures, every replica of a fleet."""
    costs = Costs((1.0, 1.7), 2, 1, 8, tuple(0.004 + 0.01 * size for size in range(1, 9)))
    traffic = Traffic(FLEET * 0.7 * costs.capacity)
    found: Found = {"replicas": FLEET}
    for balancer in ("random", "least-outstanding"):
        began_s = time.process_time()
        simulate(costs, traffic, FLEET, balancer, FLEET * 50, sample=FLEET)
        found[balancer] = round((time.process_time() - began_s) / (FLEET * 50) * 1e6, 1)
    return found


def compare(costs: Costs, capacity: float, tally: Tally, due_s: list[list[float]]) -> Found:
    """One load: what the clients saw, what the planner says of such a rate, of the very arrivals,
    and what the quick estimate says.
    """
    rate = sum(map(len, due_s)) / sum(one[-1] for one in due_s)
    measured = distribution(tally.latencies_s)
    predicted = simulate(costs, Traffic(rate), 1, pictures=SIMULATED)
    quick = estimate(costs, rate)
    said = {"p50": predicted.p50_s, "p99": predicted.p99_s}
    off = {name: said[name] / measured[name] - 1 for name in WITHIN}
    return {
        "rate": round(rate, 3),
        "utilisation": round(rate / capacity, 4),
        "requests": tally.requests,
        "errors": dict(tally.errors),
        "measured_s": measured,
        "predicted_s": {name: round(value, 6) for name, value in said.items()},
        "replayed_s": replay(costs, due_s),
        "estimated_s": {"p50": quick.p50_s, "p99": quick.p99_s},
        "off": {name: round(value, 4) for name, value in off.items()},
        "within": {name: abs(off[name]) <= bound for name, bound in WITHIN.items()},
        "mean_batch": round(predicted.mean_batch, 3),
        "lag_p99_s": distribution(tally.lags_s)["p99"],
    }


def replay(costs: Costs, due_s: list[list[float]]) -> Found:
    """The simulation of the arrivals that were sent, so that chance in them falls on both."""
    seen = Seen()
    for seed, times_s in enumerate(due_s):
        replica = Replica(costs, seen, seed)
        for now_s in times_s:
            replica.arrive(now_s)
        replica.advance(math.inf)
    return {name: distribution(seen.latencies_s)[name] for name in WITHIN}


def merge(rounds: Sequence[Around]) -> Around:
    """The median of each figure over the rounds."""
    fields: Found = {
        name: statistics.median(getattr(one, name) for one in rounds)
        for name in ("before", "cpu_s", "client_s", "full_per_s")
    }
    for name in ("rest_s", "infer_s"):
        rows = zip(*(getattr(one, name) for one in rounds), strict=True)
        fields[name] = [statistics.median(row) for row in rows]
    fields["requests"] = sum(one.requests for one in rounds)
    return rounds[0].model_copy(update=fields)


def table(report: Found) -> str:
    """Rows for the page: milliseconds, predicted beside measured."""
    lines = [
        "| network | of capacity | images/s "
        "| p50 measured | predicted | p99 measured | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in report["models"]:
        for point in model["points"]:
            cells = [model["model"], f"{point['utilisation']:.0%}", f"{point['rate']:.1f}"]
            for name in WITHIN:
                measured_s, said_s = point["measured_s"][name], point["predicted_s"][name]
                off = f"{said_s / measured_s - 1:+.0%}"
                cells += [f"{measured_s * 1000:.1f}", f"{said_s * 1000:.1f} ({off})"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def section(report: Found) -> str:
    """What the page shows of a report."""
    points = [point for model in report["models"] for point in model["points"]]
    kept = {name: sum(point["within"][name] for point in points) for name in WITHIN}
    bounds = ", ".join(
        f"{count} of {len(points)} within {WITHIN[name]:.0%} of the measured {name}"
        for name, count in kept.items()
    )
    return (
        f"Predictions: {bounds} ({report['machine']['processor']}, {report['machine']['cores']} "
        f"cores, {report['started'][:10]}). Milliseconds:\n\n{table(report)}\n"
        f"Simulating every one of {report['simulator']['replicas']} replicas takes "
        f"{report['simulator']['random']:.0f} s of a core for a million images, "
        f"{report['simulator']['least-outstanding']:.0f} where the balancer looks for the fewest "
        "under way.\n\n"
        "![latency by share of the capacity, predicted and measured](pictures/plan.svg)\n"
    )


def put(page: str, rows: str) -> str:
    """The page with other rows between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no {BEGIN.strip()} ... {END.strip()}")
    return before + BEGIN + rows + END + after


def plot(report: Found, path: Path) -> None:
    """Latency by utilisation, a panel for each model: lines are predicted, points measured.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    models = report["models"]
    figure = Figure(figsize=(5 * len(models), 4), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        shares = [point["utilisation"] for point in model["curve"]]
        for color, (name, within) in zip(("C0", "C3"), WITHIN.items(), strict=True):
            said_ms = np.array([point[name] for point in model["curve"]]) * 1000
            panel.plot(shares, said_ms, color=color, label=f"{name}, predicted")
            band = said_ms / (1 + within), said_ms / (1 - within)
            panel.fill_between(shares, *band, color=color, alpha=0.12)
            measured_ms = [point["measured_s"][name] * 1000 for point in model["points"]]
            at = [point["utilisation"] for point in model["points"]]
            panel.plot(at, measured_ms, "o", color=color, label=f"{name}, measured")
        panel.set_title(f"{model['model']}, {model['capacity']['measured']:.0f} images/s")
        panel.set_xlabel("share of the measured capacity")
        panel.set_ylabel("latency, ms")
        panel.set_yscale("log")
        panel.grid(alpha=0.3, which="both")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path)


def _curve(costs: Costs, share: float, capacity: float) -> Found:
    found = simulate(costs, Traffic(share * capacity), 1, pictures=SIMULATED // 4)
    return {"utilisation": round(share, 3), "p50": found.p50_s, "p99": found.p99_s}


def _rounds(
    server: Started, path: str, pictures: list[tuple[bytes, str]], rounds: int, duration_s: float
) -> tuple[list[Around], list[tuple[Tally, list[list[float]]]]]:
    """By round, one at a time and the capacity; by share of that, all rounds' open loops."""
    low: list[Around] = []
    loads: list[tuple[Tally, list[list[float]]]] = [(Tally(), []) for _ in SHARES]
    client = Client(server.url, {}, TIMEOUT_S)
    request = client.compose("POST", path, *pictures[0])

    async def send(_: int) -> Reply:
        return await client.send(request)

    async def load(index: int, turn: int) -> None:
        tally, sent = loads[index]
        due_s = arrivals(SHARES[index] * low[turn].full_per_s, duration_s, 100 * turn + index)
        sent.append(due_s)
        await open_loop(send, tally, due_s)

    async def close() -> None:
        client.close()

    for turn in range(rounds):
        low.append(measure(server, path, pictures, duration_s * PART))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for index in range(len(SHARES)):
                runner.run(load(index, turn))
            runner.run(close())
    return low, loads


def _tune(repository: Path, name: str, seconds: float, out: Path) -> None:
    """In a process of its own, as its memory is to be free again."""
    words = ["--repository", str(repository), "--model", name, "--seconds", str(seconds)]
    program = "from service.cli import main; main()"
    command = [sys.executable, "-c", program, "tune", *words, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _repository(name: str, work: Path) -> Path:
    return build(name, work).repository if name in VARIANTS else DEMO_REPOSITORY


if __name__ == "__main__":
    main()
