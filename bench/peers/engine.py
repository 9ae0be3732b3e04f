"""What every peer does with a picture, so that they differ in how they serve and in nothing else.

Peers import this from their own environments: numpy, Pillow and the runtime that is asked for.
"""

import io
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE_PX = 224
BEST = 5
VARIABLE = "PEER_{}"
"""Name of the environment variable of an option, which is set by the command that starts peers."""

Array = NDArray[Any]
Answer = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Options:
    """What a peer is told when it is started.

    ``runtime`` "onnxruntime" takes a graph of ``pixel_values`` and runs it in fp32; "openvino"
    takes the ``images`` of a bundle of Saccade's, in bf16 where the processor has it. ``workers``
    processes run a model each, on ``threads`` threads.
    """

    runtime: str
    graph: str
    port: int
    workers: int
    threads: int
    max_batch: int = 8
    wait_s: float = 0.005
    timeout_s: int = 60

    def to_environment(self) -> dict[str, str]:
        """The variables from which ``read_options`` reads the same again."""
        return {VARIABLE.format(name.upper()): str(value) for name, value in vars(self).items()}


def read_options() -> Options:
    """The options that this process was started with."""
    kinds = {"runtime": str, "graph": str, "wait_s": float}
    names = Options.__dataclass_fields__
    return Options(
        **{name: kinds.get(name, int)(os.environ[VARIABLE.format(name.upper())]) for name in names}
    )


class Engine:
    """One model in this process; may be used by several threads."""

    def __init__(self, options: Options) -> None:
        self._runtime = options.runtime
        kind = OnnxRuntime if options.runtime == "onnxruntime" else OpenVino
        self._model: OnnxRuntime | OpenVino = kind(options.graph, options.threads)

    def decode(self, data: bytes) -> Array:
        """A picture as the graph takes it; see ``decode``."""
        return decode(data, self._runtime)

    def run(self, pictures: Sequence[Array]) -> list[Answer]:
        """The answers to decoded pictures, run as one batch."""
        return [top(scores) for scores in self._model.scores(np.stack(pictures))]

    def classify(self, data: bytes) -> Answer:
        """The answer to one picture."""
        return self.run([self.decode(data)])[0]


def decode(data: bytes, runtime: str) -> Array:
    """A picture as a graph takes it; raises what Pillow raises.

    For "onnxruntime" normalised to -1 .. 1 (3, H, W), as transformers' ViTImageProcessor does;
    for "openvino" as it is (H, W, 3), as the graph does the rest.
    """
    with Image.open(io.BytesIO(data)) as picture:
        squashed = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
    rgb = np.asarray(squashed)
    if runtime == "openvino":
        return rgb
    pixels = rgb.transpose(2, 0, 1) * np.float32(1 / 127.5)
    pixels -= np.float32(1)
    return pixels


class OnnxRuntime:
    """A graph as others export it: ``pixel_values`` (N, 3, H, W) to ``logits`` (N, K)."""

    def __init__(self, graph: str, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def scores(self, batch: Array) -> Array:
        """Probabilities (N, K)."""
        logits = self._session.run(["logits"], {"pixel_values": batch})[0]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


class OpenVino:
    """A serving graph of Saccade's: ``images`` (N, H, W, 3) uint8 to ``scores`` (N, K)."""

    def __init__(self, graph: str, threads: int) -> None:
        import openvino as ov

        core = ov.Core()
        bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # each worker would pin its threads to the same core
        }
        self._request = core.compile_model(graph, "CPU", config).create_infer_request()
        self._lock = threading.Lock()

    def scores(self, batch: Array) -> Array:
        """Probabilities (N, K)."""
        with self._lock:
            self._request.infer({"images": batch}, share_inputs=True)
            scores: Array = self._request.get_tensor("scores").data.copy()
        return scores


def top(scores: Array) -> Answer:
    """The best classes of one picture, best first."""
    some = np.argpartition(scores, -BEST)[-BEST:]
    best = some[np.argsort(-scores[some])]
    return {"top": [{"class": int(k), "score": round(float(scores[k]), 6)} for k in best]}
