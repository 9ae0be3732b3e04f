"""What is checked, one process each: a step yields rows, and whatever stands in its way is a row.

Only what a step needs is imported by it: a bare machine has torch and a driver, and perhaps no
more.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.gpu_check.bundles import measure_onnxruntime, measure_tensorrt
from bench.gpu_check.networks import measure_torch
from bench.gpu_check.rows import ROOT, Room, Row, Skip, attempt, failed, needs, needs_gpu
from bench.gpu_check.serving import measure_server
from service.devices import driver_version, find_gpus

Step = Callable[[Room], Iterator[Row]]

PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "tensorrt", "tensorrt-cu13", "onnx")
MARK = "pytest.mark.gpu"


def look_at_machine(room: Room) -> Iterator[Row]:
    """The GPUs, the driver and what is installed."""
    gpus = find_gpus()
    yield {
        "kind": "machine",
        "gpus": [
            {"name": one.name, "capability": list(one.capability), "memory_bytes": one.memory_bytes}
            for one in gpus.found
        ],
        "driver": driver_version(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "python": sys.version.split()[0],
    }
    if gpus.fault is not None:
        raise Skip(gpus.fault)


def run_tests(room: Room) -> Iterator[Row]:
    """Every test that is marked ``gpu``."""
    needs_gpu()
    for name in ("pytest", "hypothesis", "httpx", "psutil", "onnx"):
        needs(name)
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if MARK in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["-W", "ignore::pytest.PytestConfigWarning"]  # pytest-timeout may be missing
    try:
        ended = subprocess.run(
            [*command, *map(str, marked)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(1.0, room.left_s()),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Skip("the tests did not end in the time that was left") from None
    last = " ".join((ended.stdout.strip() or ended.stderr.strip()).splitlines()[-1:])
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    yield {"kind": "tests", "counts": counts, "summary": last}
    if ended.returncode != 0:
        yield failed("tests marked gpu", "\n".join(ended.stdout.splitlines()[-40:]))


def measure_peak(room: Room) -> Iterator[Row]:
    """The bf16 matrix peak, against which networks are measured."""
    needs_gpu()
    needs("torch")
    from bench.gpu_check.torch_runtime import matrix_peak_tflops

    yield {"kind": "peak", "bf16_tflops": round(matrix_peak_tflops(), 1)}


def installed(package: str) -> str | None:
    """Its version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


STEPS: dict[str, tuple[Step, float]] = {
    "machine": (look_at_machine, 20),
    "peak": (measure_peak, 20),
    "tests": (run_tests, 50),
    "torch": (measure_torch, 120),
    "onnxruntime": (measure_onnxruntime, 30),
    "tensorrt": (measure_tensorrt, 170),
    "server": (measure_server, 70),
}
"""In this order, each with its share of the time, in seconds of eight minutes; what a step leaves
is shared by those after it."""


def run_step(name: str, room: Room, out: Path) -> None:
    """Write the rows of a step, one a line, each as soon as it is there."""
    with out.open("w", encoding="utf-8") as lines:
        for row in attempt(name, STEPS[name][0](room)):
            lines.write(json.dumps(row) + "\n")
            lines.flush()
