"""A real classifier that some pictures hang, and that others drive out of memory."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.service.sample_bundle import SIDE, manifest_of

FOREVER = 2**60
HUGE = 2**44

_PROVEN = {
    "runtime": "onnxruntime",
    "precision": "fp32",
    "canvas": {"height": SIDE, "width": SIDE},
    "images": 1,
    "max_error": 0.0,
    "rms_error": 0.0,
    "cosine": 1.0,
    "top1_agreement": 1.0,
}


def write_poisonous(repository: Path) -> None:
    """A bundle called ``poisonous``: its scores are the mean red, green and blue.

    A batch with a picture whose red is 255 never ends. One with two or more whose green is 255 asks
    for more memory than any machine has; one such picture alone does not.
    """
    model = poisonous_graph().SerializeToString()
    facts = {"sha256": hashlib.sha256(model).hexdigest(), "size_bytes": len(model)}
    manifest = manifest_of("poisonous", tasks=["classify"], explain=None, activation="softmax")
    serving = manifest["graphs"][0]
    serving["outputs"] = serving["outputs"][:1]
    manifest |= {"graphs": [serving], "files": {"model.onnx": facts}, "parity": [_PROVEN]}
    folder = repository / "poisonous" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def poisonous_graph() -> onnx.ModelProto:
    """``images`` (N, 8, 8, 3) uint8 to ``scores`` (N, 3), see ``write_poisonous``."""
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        node("ReduceMean", ["pixels"], ["means"], axes=[1, 2], keepdims=0),
        node("Div", ["means", "full"], ["bright"]),
        node("Equal", ["bright", "one"], ["is_full"]),
        node("Cast", ["is_full"], ["counted"], to=TensorProto.INT64),
        node("ReduceSum", ["counted", "rows"], ["totals"], keepdims=0),
        node("Split", ["totals"], ["red", "green", "blue"], axis=0),
        node("Mul", ["red", "forever"], ["trips"]),
        node("Loop", ["trips", "", "nothing"], ["looped"], body=_endless()),
        node("Sub", ["green", "first"], ["beyond"]),
        node("Max", ["beyond", "zero"], ["too_many"]),
        node("Mul", ["too_many", "huge"], ["length"]),
        node("Expand", ["nothing_long", "length"], ["hog"]),
        node("ReduceSum", ["hog", "rows"], ["hogged"], keepdims=0),
        node("Add", ["bright", "looped"], ["after_loop"]),
        node("Add", ["after_loop", "hogged"], ["scores"]),
    ]
    constants: dict[str, Any] = {
        "full": np.float32(255),
        "one": np.float32(1),
        "rows": np.array([0]),
        "forever": np.array([FOREVER]),
        "huge": np.array([HUGE]),
        "first": np.array([1]),
        "zero": np.array([0]),
        "nothing": np.float32(0),
        "nothing_long": np.zeros(1, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "poisonous",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _endless() -> onnx.GraphProto:
    """The body of a loop that keeps its value and only ends by its number of trips."""
    value = helper.make_tensor_value_info
    return helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still"]),
            helper.make_node("Identity", ["before"], ["after"]),
        ],
        "endless",
        [
            value("trip", TensorProto.INT64, []),
            value("go_on", TensorProto.BOOL, []),
            value("before", TensorProto.FLOAT, []),
        ],
        [value("still", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, [])],
    )
