"""Our definitions in torch on the GPU: the bar that engines must beat."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bench.gpu_check.rows import (
    LEAST_S,
    ROUNDS,
    Room,
    Row,
    attempt,
    engine,
    needs,
    needs_gpu,
    parity,
    skipped,
)


@dataclass(frozen=True)
class Subject:
    """A network of ``models.zoo`` with random weights, at a canvas, in batches; ``tuned`` are those
    of its engine, each of which takes long to build.
    """

    name: str
    canvas: tuple[int, int]
    batches: tuple[int, ...]
    tuned: tuple[int, ...]
    takes_sizes: bool = False


SUBJECTS = (
    Subject("vit-b16-224", (224, 224), (1, 8, 64, 256), (1, 64)),
    Subject("swin-b-224", (224, 224), (1, 8, 64), (1, 64)),
    Subject("detr-r50", (800, 1344), (1, 4, 8), (1, 8), takes_sizes=True),
    Subject("mask2former-r50", (800, 1344), (1, 4), (1, 4)),
)
LARGEST_ERROR = {"fp32": 1e-3, "bf16": 0.1}
"""Of torch on the GPU against fp32 on the CPU, as a share of the spread of an output."""


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
