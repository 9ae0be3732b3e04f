"""Rows, of which the report is made, and what every step needs to fill them.

A row has a ``kind``: machine, tests, peak, parity, engine, server, skipped or failed.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.devices import find_gpus

Row = dict[str, Any]

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "service" / "demo" / "repository"
"""The bundled demo models."""

ROUNDS = 100
LEAST_S = 10.0
"""With less time left nothing more is begun."""


class Skip(Exception):
    """A step, or a part of it, cannot be done here; the message says why."""


@dataclass(frozen=True)
class Room:
    """Where a step may write, until when it may go on, by ``time.time()``, and whose models it
    measures.
    """

    work: Path
    until_s: float
    models: Path

    def left_s(self) -> float:
        """Seconds that are left."""
        return self.until_s - time.time()

    @property
    def engines(self) -> Path:
        """The models with engines, once those have been built."""
        return self.work / "engines"

    @property
    def full_size(self) -> Path:
        """The networks with random weights, with engines."""
        return self.work / "full-size"

    def measured(self) -> Path:
        """The models, with engines where there are any."""
        return self.engines if self.engines.exists() else self.models

    def served(self) -> Path:
        """What the server is measured with: in place of the demo's models networks of full size,
        where they have engines.
        """
        found = self.models == DEMO and any(self.full_size.glob("*/*/*.plan"))
        return self.full_size if found else self.measured()


def attempt(what: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; what is raised on the way becomes the last one."""
    try:
        yield from rows
    except Skip as reason:
        yield skipped(what, str(reason))
    except ModuleNotFoundError as error:
        yield skipped(what, f"{error.name} is not installed")
    except Exception as error:
        yield failed(what, f"{type(error).__name__}: {error}"[:2000])


def needs(package: str) -> None:
    """Go on only if something of this name can be imported.

    Raises:
        Skip: it cannot.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise Skip(f"{package} is not installed")


def needs_gpu() -> None:
    """Go on only with a GPU.

    Raises:
        Skip: there is none; the driver says why.
    """
    fault = find_gpus().fault
    if fault is not None:
        raise Skip(fault)


def parity(
    runtime: str, precision: str, model: str, output: str, error: float, allowed: float
) -> Row:
    """A row of parity; ``error`` is a share of the output's spread."""
    row = {"kind": "parity", "runtime": runtime, "precision": precision, "model": model}
    return row | {
        "output": output,
        "error": float(f"{error:.3g}"),
        "allowed": allowed,
        "agrees": error <= allowed,
    }


def engine(
    runtime: str,
    precision: str,
    model: str,
    canvas: tuple[int, int],
    batch: int,
    spent_s: Any,
    macs: int,
    pipelined: float | None = None,
) -> Row:
    """A row of speed: the median batch; ``pipelined`` are the pictures a second of batches that
    overlap, with copies.
    """
    median_s = statistics.median(spent_s)
    ordered = sorted(spent_s)
    return {
        "kind": "engine",
        "runtime": runtime,
        "precision": precision,
        "model": model,
        "canvas": f"{canvas[0]}x{canvas[1]}",
        "batch": batch,
        "median_s": median_s,
        "p99_s": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "images_per_s": round(batch / median_s, 1),
        "tflops": round(2 * macs * batch / median_s / 1e12, 2),
        **({} if pipelined is None else {"pipelined_images_per_s": round(pipelined, 1)}),
    }


def skipped(what: str, why: str) -> Row:
    """A row that says what was not done."""
    return {"kind": "skipped", "what": what, "why": why}


def failed(what: str, why: str) -> Row:
    """A row that says what went wrong."""
    return {"kind": "failed", "what": what, "why": why}
