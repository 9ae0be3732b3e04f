"""The graphs of a bundle in every runtime and precision that runs here, interleaved in one process.

    python -m bench.precisions REPOSITORY [--model NAME] [--batches 1,8] [--rounds N] [--out FILE]

Every round runs each of them once, so that whatever else the machine does falls on all; ratios to
fp32 in ONNX Runtime are taken within a round, and their median is reported. int8 takes part where
``saccade models quantize`` has added it; what was not proven is measured all the same.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from service.bench.report import describe_machine
from service.bundle import Bundle, load_repository
from service.worker.runtimes.base import Arrays, Runtime, example_inputs
from service.worker.runtimes.choose import (
    FASTEST_FIRST,
    ON_REQUEST,
    Choice,
    open_runtime,
    supports,
)

BASE = Choice("onnxruntime", "fp32")


@dataclass
class Contender:
    """One compiled graph and its times, a round each."""

    choice: Choice
    runtime: Runtime
    times_s: list[float] = field(default_factory=list)


def main() -> None:
    """Measure every model of a repository (or one), print tables, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.precisions")
    parser.add_argument("repository", type=Path)
    parser.add_argument("--model", help="only this one")
    parser.add_argument("--batches", default="1,8", help="pictures at a time, like 1,8")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="0: the libraries' own choice")
    parser.add_argument("--out", type=Path, default=Path("precisions.json"))
    asked = parser.parse_args()
    batches = [int(number) for number in asked.batches.split(",")]
    models = []
    for bundle in load_repository(asked.repository):
        if asked.model in (None, bundle.manifest.name):
            models.append(measure(bundle, batches, asked.rounds, asked.threads))
            Console().print(tabulate(models[-1]))
    report = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "rounds": asked.rounds,
        "models": models,
    }
    asked.out.write_text(json.dumps(report, indent=2) + "\n")


def measure(bundle: Bundle, batches: list[int], rounds: int, threads: int) -> dict[str, Any]:
    """Times and ratios of one model at its default canvas."""
    canvas = bundle.manifest.canvases[0]
    contenders = [
        Contender(choice, open_runtime(bundle, "serve", canvas, choice, threads))
        for choice in (BASE, *FASTEST_FIRST, *ON_REQUEST)
        if runs(bundle, choice)
    ]
    contenders = list({contender.choice: contender for contender in contenders}.values())
    results = []
    for batch in batches:
        inputs = _inputs(contenders[0].runtime, batch)
        for contender in contenders:
            contender.runtime.run(inputs)
            contender.times_s.clear()
        for _ in range(rounds):
            for contender in contenders:
                started_s = time.perf_counter()
                contender.runtime.run(inputs)
                contender.times_s.append(time.perf_counter() - started_s)
        results += [_result(batch, one, contenders[0]) for one in contenders]
    manifest = bundle.manifest
    return {"model": manifest.name, "canvas": str(canvas), "macs": manifest.macs, "runs": results}


def runs(bundle: Bundle, choice: Choice) -> bool:
    """Whether this machine and this bundle have it."""
    graph = bundle.manifest.graph("serve", bundle.manifest.canvases[0], choice.precision)  # type: ignore[arg-type]
    return graph is not None and supports(choice) is None


def tabulate(model: dict[str, Any]) -> Table:
    """One line per runtime and batch."""
    table = Table(title=f"{model['model']} {model['canvas']}", title_justify="left")
    for name in ("batch", "runtime", "ms a batch", "images/s", "times onnxruntime fp32"):
        table.add_column(name, justify="left" if name == "runtime" else "right")
    for run in model["runs"]:
        table.add_row(
            str(run["batch"]),
            f"{run['runtime']} {run['precision']}",
            f"{run['median_s'] * 1e3:.1f}",
            f"{run['batch'] / run['median_s']:.1f}",
            f"{run['ratio']:.2f}",
        )
    return table


def _inputs(runtime: Runtime, batch: int) -> Arrays:
    """Noise: time does not depend on what a picture shows."""
    inputs = example_inputs(runtime, batch)
    random = np.random.default_rng(0)
    inputs["images"] = random.integers(0, 256, inputs["images"].shape, dtype=np.uint8)
    if "sizes" in inputs:
        inputs["sizes"][:] = inputs["images"].shape[1:3]
    return inputs


def _result(batch: int, one: Contender, base: Contender) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(one.times_s, base.times_s, strict=True)]
    return {
        "batch": batch,
        "runtime": one.choice.runtime,
        "precision": one.choice.precision,
        "median_s": statistics.median(one.times_s),
        "ratio": statistics.median(ratios),
    }


if __name__ == "__main__":
    main()
