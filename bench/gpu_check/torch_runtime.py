"""A torch runtime for measuring: the bar that engines must beat, and a way to measure our
definitions where no other library is.

The arithmetic is that of engines (``export.typed``), with weights that are cast once. On a GPU a
batch is replayed as a CUDA graph.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from export.heads.entry import Entry
from export.typed import Typed

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Measured(nn.Module):
    """uint8 pixels (B, H, W, 3) to the network's raw outputs, in one precision."""

    def __init__(self, network: nn.Module, precision: str, takes_sizes: bool = False) -> None:
        super().__init__()
        self.entry = Entry(1 / 255, MEAN, STD)
        self.network = CastOnce(network, precision) if precision != "fp32" else network
        self.takes_sizes = takes_sizes

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        given = [self.entry(images)]
        if self.takes_sizes:
            size = torch.tensor(images.shape[1:3], dtype=torch.int32, device=images.device)
            given.append(size.expand(images.shape[0], 2))
        named: dict[str, Tensor] = self.network(*given)
        return named


class CastOnce(Typed):
    """As ``Typed``, but with weights that lie there in half precision, as in an engine."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__(model, precision)
        given = dict(model.named_parameters())
        self._stored = [f"cast_{index}" for index in range(len(self.cast))]
        for stored, name in zip(self._stored, self.cast, strict=True):
            self.register_buffer(stored, given[name].detach().to(self.dtype), persistent=False)

    def cast_weights(self) -> Mapping[str, Tensor]:
        """See ``Typed.cast_weights``."""
        return {
            name: getattr(self, stored)
            for stored, name in zip(self._stored, self.cast, strict=True)
        }


class TorchRuntime:
    """One network for batches of one size: exported, compiled, and on a GPU captured.

    ``backend`` is torch.compile's; None runs what was exported as it is.

    Raises:
        RuntimeError: torch cannot export, compile or run it.
    """

    def __init__(
        self, measured: Measured, images: Tensor, backend: str | None = "inductor"
    ) -> None:
        self.images = images
        with torch.no_grad():
            program = torch.export.export(measured, (images,), strict=False)
            module: Any = program.module()
            self._call = module if backend is None else torch.compile(module, backend=backend)
            self._outputs = self._warm_up()
        self._graph = self._capture() if images.is_cuda else None

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """One batch; the outputs are overwritten by the next."""
        if self._graph is not None:
            self.images.copy_(images, non_blocking=True)
            self._graph.replay()
            return self._outputs
        with torch.no_grad():
            named: dict[str, Tensor] = self._call(images)
        return named

    def replay(self) -> None:
        """The batch that lies there, without waiting for it."""
        if self._graph is None:
            self.run(self.images)
        else:
            self._graph.replay()

    def _warm_up(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for _ in range(3):
            named = self._call(self.images)
        return named

    def _capture(self) -> "torch.cuda.CUDAGraph":
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.no_grad(), torch.cuda.graph(graph):
            self._outputs = self._call(self.images)
        return graph


def times_s(runtime: TorchRuntime, rounds: int, at_most_s: float) -> Sequence[float]:
    """Seconds of each of ``rounds`` batches on the GPU, by its own clock, or of fewer that fill
    ``at_most_s``.
    """
    runtime.replay()
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    first = _seconds_of_one(runtime)
    rounds = max(3, min(rounds, int(at_most_s / max(first, 1e-6))))
    events[0].record()
    for event in events[1 : rounds + 1]:
        runtime.replay()
        event.record()
    torch.cuda.synchronize()
    return [one.elapsed_time(next_) / 1000 for one, next_ in pairwise(events[: rounds + 1])]


def _seconds_of_one(runtime: TorchRuntime) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    runtime.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def difference(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, as a share of the spread of what is expected."""
    wanted = expected.double()
    return float((found.double() - wanted).square().mean().sqrt() / wanted.std())


def matrix_peak_tflops(sizes: Sequence[int] = (4096, 8192, 16384), rounds: int = 10) -> float:
    """The most bf16 multiply-adds a second that square products reach here, times two."""
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            a @ b
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(rounds):
            a @ b
        end.record()
        torch.cuda.synchronize()
        best = max(best, 2 * size**3 * rounds / (start.elapsed_time(end) / 1000) / 1e12)
    return best
