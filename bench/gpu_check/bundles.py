"""Exported models on the GPU: in ONNX Runtime, and in engines of TensorRT that are built for it."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from bench.gpu_check.full_size import full_size_rows
from bench.gpu_check.rows import (
    LEAST_S,
    ROOT,
    ROUNDS,
    Room,
    Row,
    Skip,
    attempt,
    engine,
    failed,
    needs,
    needs_gpu,
    parity,
    skipped,
)


def measure_onnxruntime(room: Room) -> Iterator[Row]:
    """The models in ONNX Runtime on the GPU: proven as when they are served, then measured."""
    needs_gpu()
    needs("onnxruntime")
    from service.worker.runtimes.choose import ON_GPUS, ON_GPUS_ON_REQUEST

    yield from bundle_rows(
        room, [one for one in ON_GPUS + ON_GPUS_ON_REQUEST if one.runtime == "onnxruntime"]
    )


def measure_tensorrt(room: Room) -> Iterator[Row]:
    """TensorRT engines: of networks at full size, built and measured; of the models, built, gated
    and measured.
    """
    needs_gpu()
    needs("tensorrt")
    from service.worker.runtimes.choose import ON_GPUS

    choices = [one for one in ON_GPUS if one.runtime == "tensorrt"]
    if not choices:
        raise Skip("this release has no runtime for TensorRT engines")
    yield from full_size_rows(room)
    yield from engine_builds(room)
    yield from bundle_rows(room, choices)


def can_build() -> bool:
    """Whether engines can be built here."""
    try:
        needs_gpu()
        needs("tensorrt")
    except Skip:
        return False
    return True


def engine_builds(room: Room) -> Iterator[Row]:
    """Build an engine of every bundle that has a graph for it, in a copy of the models."""
    from service.bundle import load_repository

    shutil.copytree(room.models, room.engines, dirs_exist_ok=True)
    for bundle in load_repository(room.engines):
        name = bundle.manifest.name
        what = f"building a bf16 engine of {name}"
        if not bundle.manifest.engine_graphs(bundle.manifest.canvases[0], "bf16"):
            yield skipped(what, "the bundle has no graph for it; export it with --engine bf16")
            continue
        if room.left_s() < LEAST_S:
            yield skipped(what, "the time was over")
            continue
        command = [sys.executable, "-c", "from service.cli import main; main()", "build", name]
        command += ["--repository", str(room.engines), "--precision", "bf16", "--device", "cuda:0"]
        yield from attempt(what, build_rows(what, [*command, "--batches", "1,8,64"], room.left_s()))


def build_rows(what: str, command: list[str], at_most_s: float) -> Iterator[Row]:
    """Nothing, unless the command fails or takes too long."""
    try:
        built = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=at_most_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise Skip(f"it took more than {at_most_s:.0f} s") from None
    if built.returncode != 0:
        said = (built.stderr.strip() or built.stdout.strip()).splitlines()[-1:]
        yield failed(what, " ".join(said))


def bundle_rows(room: Room, choices: list[Any]) -> Iterator[Row]:
    """Parity and speed of every bundle in each choice, on the first GPU."""
    from service.bundle import load_repository
    from service.worker.runtimes.choose import obstacle

    for bundle in load_repository(room.measured()):
        for choice in choices:
            here = replace(choice, device="cuda:0")
            what = f"{here.runtime} {here.precision} {bundle.manifest.name}"
            if room.left_s() < LEAST_S:
                yield skipped(what, "the time was over")
            elif (why := obstacle(bundle, here)) is not None:
                yield skipped(what, why)
            else:
                yield from attempt(what, runtime_rows(bundle, here))


def runtime_rows(
    bundle: Any,
    choice: Any,
    batches: Sequence[int] = (1, 8, 64),
    allowed: Mapping[str, float] | None = None,
) -> Iterator[Row]:
    """What one bundle computes in one choice against the CPU, and how fast. ``allowed`` are the
    outputs to compare, each with the largest error; by default all that nothing was sorted for.
    """
    from service.worker.runtimes import numbers
    from service.worker.runtimes.choose import Choice, open_runtime

    manifest = bundle.manifest
    canvas = manifest.canvases[0]
    runtime = open_runtime(bundle, "serve", canvas, choice)
    reference = open_runtime(bundle, "serve", canvas, Choice("onnxruntime", "fp32"))
    pictures = numbers.example_pictures(runtime)
    found, expected = runtime.run(pictures), reference.run(pictures)
    limits = allowed or dict.fromkeys(numbers.RAW, numbers.LARGEST_ERROR[choice.precision])
    for name, limit in limits.items():
        if name in found:
            error = numbers.difference(found[name], expected[name])
            yield parity(choice.runtime, choice.precision, manifest.name, name, error, limit)
    for batch in batches:
        inputs = {name: array[:1].repeat(batch, axis=0) for name, array in pictures.items()}
        spent_s = times_s(runtime, inputs)
        rate = pipelined(runtime, inputs, AT_MOST_S)
        sides = (canvas.height, canvas.width)
        name, macs = manifest.name, manifest.macs
        yield engine(
            choice.runtime, choice.precision, name, sides, batch, spent_s, macs, pipelined=rate
        )


def times_s(runtime: Any, inputs: Any) -> list[float]:
    """Seconds of batches one after another: of an engine on the device, by its own clock; of
    other runtimes as the host sees them, with copies.
    """
    batch = len(inputs["images"])
    for _ in range(3):
        runtime.run(inputs)
    began_s = time.perf_counter()
    runtime.run(inputs)
    rounds = max(3, min(ROUNDS, int(AT_MOST_S / (time.perf_counter() - began_s))))
    if hasattr(runtime, "times_s"):
        found: list[float] = runtime.times_s(batch, rounds)
        return found
    spent_s = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        runtime.run(inputs)
        spent_s.append(time.perf_counter() - began_s)
    return spent_s


def pipelined(runtime: Any, inputs: Any, duration_s: float) -> float:
    """Pictures a second where every stream of a runtime always has a batch, with copies."""
    batch, until_s = len(inputs["images"]), time.perf_counter() + duration_s

    def run(_: int) -> int:
        done = 0
        while time.perf_counter() < until_s:
            runtime.run(inputs)
            done += batch
        return done

    began_s = time.perf_counter()
    with ThreadPoolExecutor(runtime.streams) as threads:
        done = sum(threads.map(run, range(runtime.streams)))
    return done / (time.perf_counter() - began_s)


AT_MOST_S = 1.0
"""For the batches of one size, one after another; and overlapping, as long again."""
