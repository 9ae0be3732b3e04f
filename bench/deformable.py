"""Deformable attention by GridSample against the same by gathers, in the runtimes of the CPU.

One encoder layer's attention at one size, random weights. The forms take turns, so that whatever
else the machine does slows all of them; compare the ratios, not the milliseconds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from torch import Tensor, nn

from models.deformable import DeformableAttention, Sampling

FORMS: tuple[Sampling, ...] = ("grid_sample", "gather")
HINTS = {"openvino fp32": "f32", "openvino bf16": "bf16"}

Run = Callable[[], np.ndarray]


class Layer(nn.Module):
    """The attention of every cell to places around it, as a graph with one input."""

    def __init__(self, canvas: tuple[int, int], dim: int, form: Sampling) -> None:
        super().__init__()
        grids = [(canvas[0] // stride, canvas[1] // stride) for stride in (8, 16, 32, 64)]
        self.attn = DeformableAttention(dim, dim // 32, len(grids), 4, grids, form)
        middles = []
        for height, width in grids:
            down, across = (
                (torch.arange(height) + 0.5) / height,
                (torch.arange(width) + 0.5) / width,
            )
            y, x = torch.meshgrid(down, across, indexing="ij")
            middles.append(torch.stack([x, y], dim=-1).flatten(0, 1))
        self.middles = nn.Buffer(torch.cat(middles)[None, :, None].repeat(1, 1, len(grids), 1))

    def forward(self, cells: Tensor) -> dict[str, Tensor]:  # (B, S, D)
        reference = self.middles.expand(cells.shape[0], -1, -1, -1)
        return {"attended": self.attn(cells, reference, cells)}


def runners(path: Path, cells: np.ndarray, threads: int) -> dict[str, Run]:
    """The graph in each runtime, by its name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: dict[str, Run] = {"onnxruntime fp32": lambda: session.run(None, {"cells": cells})[0]}
    for name, precision in HINTS.items():
        hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.Core().compile_model(path, "CPU", hints)
        found[name] = lambda compiled=compiled: compiled({"cells": cells})["attended"]  # type: ignore[misc]
    return found


def measure(canvas: tuple[int, int], dim: int, rounds: int, threads: int) -> None:
    """Print, for each runtime, the median time of both forms, their ratio, and the error of each
    against torch in fp32, as a share of the output's standard deviation.
    """
    torch.manual_seed(0)
    layers = {form: Layer(canvas, dim, form).eval() for form in FORMS}
    layers["gather"].load_state_dict(layers["grid_sample"].state_dict())
    for weight in ("offsets", "weights"):  # at their initial value of zero, every query is the same
        drawn = torch.randn_like(getattr(layers["gather"].attn, weight).weight) / dim**0.5
        for layer in layers.values():
            getattr(layer.attn, weight).weight.data.copy_(drawn)
    cells = torch.randn(2, layers["gather"].middles.shape[1], dim)
    with torch.no_grad():
        expected = layers["grid_sample"](cells[:1])["attended"].numpy()
    runs: dict[str, dict[Sampling, Run]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form, layer in layers.items():
            path = Path(folder) / f"{form}.onnx"
            torch.onnx.export(
                layer,
                (cells[:1],),
                path,
                input_names=["cells"],
                output_names=["attended"],
                opset_version=18,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
            for runtime, run in runners(path, cells[:1].numpy(), threads).items():
                runs.setdefault(runtime, {})[form] = run
    print(f"{cells.shape[1]} cells of width {dim}, {threads} threads, median of {rounds} rounds")
    print(f"{'':18}{'GridSample':>16}{'gather':>12}{'ratio':>8}{'rms error of each':>24}")
    for runtime, forms in runs.items():
        errors = [np.sqrt(((run() - expected) ** 2).mean()) for run in forms.values()]
        times: dict[Sampling, list[float]] = {form: [] for form in forms}
        for _ in range(rounds):
            for form, run in forms.items():
                start = time.perf_counter()
                run()
                times[form].append(time.perf_counter() - start)
        first, second = (statistics.median(spent) * 1000 for spent in times.values())
        shares = "".join(f"{error / expected.std():12.1e}" for error in errors)
        print(f"{runtime:18}{first:13.1f} ms{second:9.1f} ms{second / first:8.2f}{shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--canvas", type=int, nargs=2, default=(512, 640), metavar=("H", "W"))
    parser.add_argument("--dim", type=int, default=256, help="width, in heads of 32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    measure(tuple(options.canvas), options.dim, options.rounds, options.threads)


if __name__ == "__main__":
    main()
