"""From tallies to figures: percentiles, stage means, the table and the machine they hold for."""

import os
import platform
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from service.bench.load import Tally

PERCENTILES = (50, 90, 95, 99)


def summarize(tally: Tally, cpu_s: float) -> dict[str, Any]:
    """The figures of one run; ``cpu_s`` is the processor time of the load generator itself."""
    wall_s = max(tally.wall_s, 1e-9)
    found = {
        "wall_s": round(tally.wall_s, 3),
        "requests": tally.requests,
        "images_per_s": round(len(tally.latencies_s) / wall_s, 2),
        "latency_s": distribution(tally.latencies_s),
        "errors": dict(tally.errors),
        "stages_s": stage_means(tally.timings),
        "generator_cores": round(cpu_s / wall_s, 3),
    }
    if tally.lags_s:
        found["sender_lag_s"] = distribution(tally.lags_s)
    return found


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Mean, percentiles and maximum; a percentile is the smallest value that so many reach.

    That is the nearest rank: a value that occurred, never one between two.
    """
    if not values:
        return {}
    ranks = np.percentile(values, PERCENTILES, method="inverted_cdf")
    named = {f"p{rank}": float(value) for rank, value in zip(PERCENTILES, ranks, strict=True)}
    whole = {"mean": float(np.mean(values)), **named, "max": float(max(values))}
    return {name: round(value, 6) for name, value in whole.items()}


def stage_means(timings: Sequence[str]) -> dict[str, float]:
    """Mean seconds by stage of ``Server-Timing`` headers, in the order in which they are named."""
    found: dict[str, list[float]] = defaultdict(list)
    for timing in timings:
        for part in timing.split(","):
            name, mark, milliseconds = part.strip().partition(";dur=")
            if mark:
                found[name].append(float(milliseconds) / 1000)
    return {name: round(sum(values) / len(values), 6) for name, values in found.items()}


def tabulate(runs: list[dict[str, Any]]) -> tuple[Table, Table]:
    """What the clients saw and what the server says of it; a row per run, milliseconds."""
    columns = (*(f"p{rank}" for rank in PERCENTILES), "max")
    seen = Table("load", "images/s", *columns, "errors", title="Latency of good answers, ms")
    stages = list(dict.fromkeys(stage for run in runs for stage in run["stages_s"]))
    said = Table("load", *stages, title="Stages by Server-Timing, mean ms")
    for run in runs:
        load = f"{run['concurrency']} at a time" if "concurrency" in run else f"{run['rate']:g} / s"
        errors = ", ".join(f"{count} x {kind}" for kind, count in run["errors"].items()) or "none"
        figures = (_milliseconds(run["latency_s"].get(name)) for name in columns)
        seen.add_row(load, f"{run['images_per_s']:.1f}", *figures, errors)
        said.add_row(load, *(_milliseconds(run["stages_s"].get(stage)) for stage in stages))
    return seen, said


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def describe_machine() -> dict[str, Any]:
    """Processor, cores this process may use, system and Python."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": cores,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
