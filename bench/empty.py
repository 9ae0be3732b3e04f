"""A network of next to no arithmetic, so that decoding and serving are all the work: the mean
colour of the picture, times a matrix, are the logits of a thousand classes.
"""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.bundle import (
    MANIFEST,
    File,
    Graph,
    Label,
    Manifest,
    Parity,
    Provenance,
    Tensor,
    digest_of,
)
from service.geometry import Geometry, Resize, Size
from service.worker.runtimes.base import Array, Arrays
from service.worker.runtimes.choose import FASTEST_FIRST, check_graph, open_graph, supports

CANVAS = Size(height=224, width=224)
CLASSES = 1000
SEED = 0
OPSET, IR_VERSION = 20, 10
PROOF_PICTURES = 8
FILE = "model.onnx"
ROOT = Path(__file__).parents[1]
OPENED = "from service.cli import main; main()"


def write_bundle(folder: Path, fast: bool = False) -> None:
    """The network as a bundle, ``folder`` being <repository>/<name>/<version>; proven in fp32 in
    every runtime that is installed. ``fast`` as in ``choose_pixels``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    onnx.save(_serving_graph(), path)
    sides = [-1, CANVAS.height, CANVAS.width, 3]
    graph = Graph(
        file=FILE,
        kind="serve",
        canvas=CANVAS,
        precision="fp32",
        inputs=[Tensor(name="images", role="images", dtype="uint8", shape=sides)],
        outputs=[
            Tensor(name=name, role=name, dtype="float32", shape=[-1, CLASSES])
            for name in ("scores", "logits")
        ],
    )
    squash = Resize(mode="squash", height=CANVAS.height, width=CANVAS.width)
    digest = digest_of(path)
    manifest = Manifest(
        name=folder.parent.name,
        version=folder.name,
        family="empty",
        tasks=["classify"],
        geometry=Geometry(nominal=CANVAS, resize=squash, placement="stretch"),
        graphs=[graph],
        files={FILE: File(sha256=digest, size_bytes=path.stat().st_size)},
        labels=[Label(id=index, name=f"class {index}") for index in range(CLASSES)],
        activation="softmax",
        parity=_prove(path, graph),
        provenance=Provenance(
            source="python -m bench.empty",
            revision=datetime.now(UTC).date().isoformat(),
            sha256=digest,
            architecture="MeanColour",
            exporter={"onnx": onnx.__version__},
            pictures=f"{PROOF_PICTURES} pictures of noise",
            note="Made to measure servers; it recognises nothing.",
        ),
        parameters=4 * CLASSES,
        macs=3 * CLASSES,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    if fast:
        choose_pixels(folder, "fast")


def choose_pixels(folder: Path, pixels: Literal["exact", "fast"]) -> None:
    """Have a bundle say that its pixels are exact, or fast with what that changes.

    In a process of its own: what measures belongs to the exporter, and takes much memory.

    Raises:
        subprocess.CalledProcessError: it changes too much; the process has said so.
    """
    repository, name = str(folder.parents[1].resolve()), folder.parent.name
    wanted = ["models", "pixels", repository, name, pixels]
    subprocess.run([sys.executable, "-c", OPENED, *wanted], check=True, cwd=ROOT)


def write_foreign(path: Path) -> None:
    """The same network as others export it: normalised ``pixel_values`` (N, 3, H, W) to logits."""
    weight, bias = _weights()
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weight", "bias"], ["logits"]),
    ]
    tensors = {"axes": np.array([2, 3]), "weight": weight, "bias": bias}
    sides: list[str | int] = ["N", 3, CANVAS.height, CANVAS.width]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(_model(nodes, ("pixel_values", TensorProto.FLOAT, sides), ["logits"], tensors), path)


def _serving_graph() -> onnx.ModelProto:
    weight, bias = _weights()
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["normalised"]),
        helper.make_node("Gemm", ["normalised", "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    tensors = {
        "axes": np.array([1, 2]),
        "factor": np.array(1 / 127.5, dtype=np.float32),
        "offset": np.array(-1, dtype=np.float32),
        "weight": weight,
        "bias": bias,
    }
    sides: list[str | int] = ["N", CANVAS.height, CANVAS.width, 3]
    return _model(nodes, ("images", TensorProto.UINT8, sides), ["scores", "logits"], tensors)


def _weights() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    source = np.random.default_rng(SEED)
    shapes = (3, CLASSES), (CLASSES,)
    weight, bias = (source.standard_normal(shape).astype(np.float32) for shape in shapes)
    return weight, bias


def _model(
    nodes: list[onnx.NodeProto],
    taken: tuple[str, int, list[str | int]],
    given: list[str],
    tensors: dict[str, Array],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "empty",
        [helper.make_tensor_value_info(*taken)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", CLASSES]) for name in given],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _prove(path: Path, graph: Graph) -> list[Parity]:
    """Figures against the same formula in numpy, in double precision."""
    source = np.random.default_rng(SEED + 1)
    shape = (PROOF_PICTURES, CANVAS.height, CANVAS.width, 3)
    # Of different brightness, as the mean of noise alone is always the same.
    brightest = np.linspace(32, 256, PROOF_PICTURES)[:, None, None, None]
    images = (source.random(shape) * brightest).astype(np.uint8)
    expected = _reference(images)
    proven = []
    for choice in FASTEST_FIRST:
        if choice.precision != "fp32" or supports(choice) is not None:
            continue
        runtime = open_graph(path, choice)
        check_graph(path, graph, runtime)
        found = runtime.run({"images": images})
        alone = [
            runtime.run({"images": images[i : i + 1]})["scores"][0] for i in range(len(images))
        ]
        errors = np.abs(found["scores"] - expected["scores"])
        agreeing = found["scores"].argmax(axis=1) == expected["scores"].argmax(axis=1)
        proven.append(
            Parity(
                runtime=cast(Any, choice.runtime),
                precision="fp32",
                canvas=CANVAS,
                images=len(images),
                max_error=float(errors.max()),
                rms_error=float(np.sqrt(np.mean(errors**2))),
                cosine=float(_cosines(found["logits"], expected["logits"]).min()),
                top1_agreement=float(np.mean(agreeing)),
                batch_error=float(np.abs(found["scores"] - np.stack(alone)).max()),
            )
        )
    return proven


def _reference(images: Array) -> Arrays:
    weight, bias = _weights()
    normalised = images.mean(axis=(1, 2), dtype=np.float64) / 127.5 - 1
    logits = normalised @ weight.astype(np.float64) + bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {"logits": logits, "scores": powers / powers.sum(axis=1, keepdims=True)}


def _cosines(left: Array, right: Array) -> Array:
    left, right = (a - a.mean(axis=1, keepdims=True) for a in (left, right))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: Array = (left * right).sum(axis=1) / lengths
    return cosines
