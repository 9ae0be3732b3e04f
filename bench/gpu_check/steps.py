"""What is checked, one process each: a step yields rows, and whatever stands in its way is a row.

A row has a ``kind``: machine, tests, peak, parity, engine, server, skipped or failed. Only what a
step needs is imported by it: a bare machine has torch and a driver, and perhaps no more.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from service.devices import find_gpus

Row = dict[str, Any]
Step = Callable[["Room"], Iterator[Row]]

PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "tensorrt", "tensorrt-cu13", "onnx")
ROOT = Path(__file__).parents[2]
MARK = "pytest.mark.gpu"
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

    def served(self) -> Path:
        """The models, with engines where there are any."""
        return self.engines if self.engines.exists() else self.models


@dataclass(frozen=True)
class Subject:
    """A network of ``models.zoo`` with random weights, at a canvas, in batches."""

    name: str
    canvas: tuple[int, int]
    batches: tuple[int, ...]
    takes_sizes: bool = False


SUBJECTS = (
    Subject("vit-b16-224", (224, 224), (1, 8, 64, 256)),
    Subject("swin-b-224", (224, 224), (1, 8, 64)),
    Subject("detr-r50", (800, 1344), (1, 4, 8), takes_sizes=True),
    Subject("mask2former-r50", (800, 1344), (1, 4)),
)
LARGEST_ERROR = {"fp32": 1e-3, "bf16": 0.1}
"""Of torch on the GPU against fp32 on the CPU, as a share of the spread of an output."""


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


def measure_torch(room: Room) -> Iterator[Row]:
    """Our definitions in torch: parity with the CPU, then batches as CUDA graphs, compiled."""
    needs_gpu()
    needs("torch")
    for subject in SUBJECTS:
        if room.left_s() < LEAST_S:
            yield skipped(f"torch {subject.name}", "the time was over")
        else:
            yield from attempt(f"torch {subject.name}", subject_rows(room, subject))


def subject_rows(room: Room, subject: Subject) -> Iterator[Row]:
    """Parity and speed of one network in each precision."""
    import torch

    from bench.gpu_check.torch_runtime import Measured

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    macs = macs_of(subject)
    generator = torch.manual_seed(0)
    images = torch.randint(0, 256, (1, *subject.canvas, 3), dtype=torch.uint8, generator=generator)
    network = network_of(subject).eval()
    with torch.no_grad():
        expected = Measured(network, "fp32", subject.takes_sizes)(images)["logits"]
    network.cuda()
    for precision in ("bf16", "fp32"):
        measured = Measured(network, precision, subject.takes_sizes).cuda()
        rows = torch_rows(room, subject, measured, precision, images, expected, macs)
        yield from attempt(f"torch {precision} {subject.name}", rows)


def network_of(subject: Subject) -> Any:
    """The network with random weights, on the default device."""
    import torch

    from models import zoo

    config = replace(zoo.ZOO[subject.name].config, canvas=subject.canvas)
    with torch.device("meta"):
        kind: Any = type(zoo.build(subject.name))
    return kind(config)


def macs_of(subject: Subject) -> int:
    """Multiply-accumulates of one picture at its canvas."""
    import torch

    from models.macs import count_macs

    with torch.device("meta"):
        sizes = [torch.zeros(1, 2, dtype=torch.int32)] if subject.takes_sizes else []
        images = torch.zeros(1, 3, *subject.canvas)
        return count_macs(network_of(subject).eval(), images, *sizes)


def torch_rows(
    room: Room,
    subject: Subject,
    measured: Any,
    precision: str,
    images: Any,
    expected: Any,
    macs: int,
) -> Iterator[Row]:
    """Parity and speed of one network in one precision."""
    import torch

    from bench.gpu_check.torch_runtime import TorchRuntime, difference, times_s

    with torch.no_grad():
        error = difference(measured(images.cuda())["logits"].cpu(), expected)
    yield parity("torch", precision, subject.name, "logits", error, LARGEST_ERROR[precision])
    for batch in subject.batches if precision == "bf16" else subject.batches[:1]:
        if room.left_s() < LEAST_S:
            yield skipped(f"torch {precision} {subject.name}, batch {batch}", "the time was over")
            return
        runtime = TorchRuntime(measured, images.cuda().repeat(batch, 1, 1, 1))
        spent_s = times_s(runtime, ROUNDS, 2.0)
        yield engine("torch", precision, subject.name, subject.canvas, batch, spent_s, macs)
        del runtime
        torch.cuda.empty_cache()


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


def measure_server(room: Room) -> Iterator[Row]:
    """The whole server on the GPU with JPEG bodies, at several numbers of clients."""
    needs_gpu()
    for name in ("fastapi", "uvicorn", "uvloop", "onnxruntime"):
        needs(name)
    yield from server_rows(room, "cuda:0", 5.0)


def server_rows(room: Room, device: str, duration_s: float) -> Iterator[Row]:
    """A server of the models on a device."""
    import uvloop

    from bench.server import serving
    from service.bundle import load_repository

    repository = room.served()
    with serving(repository, "--device", device) as server:
        uvloop.run(server.wait_until_ready())
        runtimes = uvloop.run(served_by(server.url))

        def served(bundle: Any, clients: int) -> Iterator[Row]:
            for row in load_rows(server, bundle, clients, duration_s):
                yield row | {"runtime": runtimes[bundle.manifest.name]}

        for bundle in load_repository(repository):
            for clients in (1, 32, 128):
                what = f"server {bundle.manifest.name}, {clients} clients"
                if room.left_s() < LEAST_S:
                    yield skipped(what, "the time was over")
                else:
                    yield from attempt(what, served(bundle, clients))


async def served_by(url: str) -> dict[str, str]:
    """Runtime, precision and device of each model, as the server says."""
    from service.bench.client import Client

    client = Client(url, {}, 60.0)
    try:
        reply = await client.send(client.compose("GET", "/v1/models"))
    finally:
        client.close()
    return {
        one["name"]: f"{one['runtime']} {one['precision']} on {one['device']}"
        for one in json.loads(reply.body)["models"]
    }


def load_rows(server: Any, bundle: Any, clients: int, duration_s: float) -> Iterator[Row]:
    """One closed loop of clients."""
    import asyncio

    import uvloop

    from bench.peers.picture import draw
    from service.bench.client import Client, Reply
    from service.bench.load import Tally, closed_loop
    from service.bench.report import distribution, stage_means

    tally, body = Tally(), draw()
    task = bundle.manifest.tasks[0]

    async def drive() -> None:
        client = Client(server.url, {}, 60.0)
        path = f"/v1/{task}?model={bundle.manifest.name}"
        request = client.compose("POST", path, body, "image/jpeg")

        async def send(index: int) -> Reply:
            return await client.send(request)

        await closed_loop(send, tally, clients, duration_s)
        client.close()
        await asyncio.sleep(0)

    uvloop.run(drive())
    if tally.errors:
        raise RuntimeError(f"requests failed: {dict(tally.errors)}")
    yield {
        "kind": "server",
        "model": bundle.manifest.name,
        "clients": clients,
        "images_per_s": round(tally.requests / tally.wall_s, 1),
        "latency_s": distribution(tally.latencies_s),
        "stages_s": stage_means(tally.timings),
    }


STEPS: dict[str, tuple[Step, float]] = {
    "machine": (look_at_machine, 20),
    "peak": (measure_peak, 30),
    "tests": (run_tests, 90),
    "torch": (measure_torch, 190),
    "onnxruntime": (measure_onnxruntime, 60),
    "tensorrt": (measure_tensorrt, 120),
    "server": (measure_server, 90),
}
"""In this order, each with the most seconds that it may take."""


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
) -> Row:
    """A row of speed: the median batch."""
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
    }


def skipped(what: str, why: str) -> Row:
    """A row that says what was not done."""
    return {"kind": "skipped", "what": what, "why": why}


def failed(what: str, why: str) -> Row:
    """A row that says what went wrong."""
    return {"kind": "failed", "what": what, "why": why}


def installed(package: str) -> str | None:
    """Its version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """As the kernel's module says it."""
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", file.read_text())
    except OSError:
        return None
    return found[1] if found else None


def demo_repository() -> Path:
    """Of the bundled demo models."""
    return ROOT / "service" / "demo" / "repository"


def run_step(name: str, room: Room, out: Path) -> None:
    """Write the rows of a step, one a line, each as soon as it is there."""
    with out.open("w", encoding="utf-8") as lines:
        for row in attempt(name, STEPS[name][0](room)):
            lines.write(json.dumps(row) + "\n")
            lines.flush()
