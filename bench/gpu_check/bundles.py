"""Exported models on the GPU: in ONNX Runtime, and in engines of TensorRT that are built for it."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

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
    """TensorRT engines of the models: built, gated and measured."""
    needs_gpu()
    needs("tensorrt")
    from service.worker.runtimes.choose import ON_GPUS

    choices = [one for one in ON_GPUS if one.runtime == "tensorrt"]
    if not choices:
        raise Skip("this release has no runtime for TensorRT engines")
    yield from engine_builds(room)
    yield from bundle_rows(room, choices)


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

    for bundle in load_repository(room.served()):
        for choice in choices:
            here = replace(choice, device="cuda:0")
            what = f"{here.runtime} {here.precision} {bundle.manifest.name}"
            if room.left_s() < LEAST_S:
                yield skipped(what, "the time was over")
            elif (why := obstacle(bundle, here)) is not None:
                yield skipped(what, why)
            else:
                yield from attempt(what, runtime_rows(bundle, here))


def runtime_rows(bundle: Any, choice: Any) -> Iterator[Row]:
    """What one bundle computes in one choice against the CPU, and how fast."""
    from service.worker.runtimes import numbers
    from service.worker.runtimes.choose import Choice, open_runtime

    manifest = bundle.manifest
    canvas = manifest.canvases[0]
    runtime = open_runtime(bundle, "serve", canvas, choice)
    reference = open_runtime(bundle, "serve", canvas, Choice("onnxruntime", "fp32"))
    pictures = numbers.example_pictures(runtime)
    found, expected = runtime.run(pictures), reference.run(pictures)
    for name in found:
        if name in numbers.RAW:
            error = numbers.difference(found[name], expected[name])
            allowed = numbers.LARGEST_ERROR[choice.precision]
            yield parity(choice.runtime, choice.precision, manifest.name, name, error, allowed)
    for batch in (1, 8, 64):
        inputs = {name: array[:1].repeat(batch, axis=0) for name, array in pictures.items()}
        for _ in range(5):
            runtime.run(inputs)
        spent_s = []
        for _ in range(ROUNDS):
            began_s = time.perf_counter()
            runtime.run(inputs)
            spent_s.append(time.perf_counter() - began_s)
        sides = (canvas.height, canvas.width)
        yield engine(
            choice.runtime, choice.precision, manifest.name, sides, batch, spent_s, manifest.macs
        )
