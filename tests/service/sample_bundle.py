"""A small bundle on disk, for tests that need a repository and no runtime."""

import hashlib
import json
from pathlib import Path
from typing import Any

SIDE, CLASSES, PATCH, LAYERS, HEADS = 8, 3, 4, 2, 2
PATCHES = (SIDE // PATCH) ** 2
FILES = {"model.onnx": b"the serving graph", "explain.onnx": b"the explain graph"}


def manifest_of(name: str = "tiny", version: str = "1", **changes: Any) -> dict[str, Any]:
    """The manifest as a JSON document; ``changes`` replace its members."""
    canvas = {"height": SIDE, "width": SIDE}
    images = _tensor("images", "uint8", -1, SIDE, SIDE, 3)
    outputs = [
        _tensor("scores", "float32", -1, CLASSES),
        _tensor("embedding", "float32", -1, 4),
        _tensor("attention", "float32", -1, HEADS, PATCHES),
    ]
    explained = [
        _tensor("attention", "float32", -1, LAYERS, HEADS, PATCHES),
        _tensor("rollout", "float32", -1, PATCHES),
    ]
    graphs = [
        _graph("model.onnx", "serve", [images], outputs),
        _graph("explain.onnx", "explain", [images, _tensor("query", "int64", -1)], explained),
    ]
    raw = [_layer("attention", index=index, heads=HEADS) for index in range(LAYERS)]
    raw[-1]["served"] = "attention"
    return {
        "schema_version": 1,
        "name": name,
        "version": version,
        "family": "vit",
        "tasks": ["classify", "embed", "attention"],
        "geometry": {
            "nominal": canvas,
            "resize": {"mode": "squash", **canvas},
            "placement": "stretch",
        },
        "graphs": graphs,
        "files": {
            file: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
            for file, data in FILES.items()
        },
        "labels": [{"id": i, "name": label} for i, label in enumerate(("ant", "bee", "cat"))],
        "activation": "softmax",
        "defaults": {"top_k": 2, "threshold": 0.0},
        "explain": {
            "kinds": [
                {"name": "raw", "query": "token", "layers": raw},
                {"name": "rollout", "query": "token", "layers": [_layer("rollout", heads=0)]},
            ],
            "prefix_tokens": ["class"],
        },
        "provenance": {"source": "random", "sha256": "0", "architecture": "vit", "exporter": {}},
        "parameters": 10,
        "macs": 20,
    } | changes


PAD = {
    "nominal": {"height": SIDE, "width": SIDE},
    "resize": {"mode": "shortest_edge", "shortest_edge": SIDE, "longest_edge": SIDE},
    "placement": "pad",
}
"""A geometry under which the longer edge of a picture is that of the canvas."""


def detector_of(name: str = "boxes", **changes: Any) -> dict[str, Any]:
    """The manifest of a detector of ants, bees and cats with four queries."""
    rows = [_tensor(f, "float32", -1, 4) for f in ("scores", "logits")]
    rows += [_tensor(i, "int32", -1, 4) for i in ("classes", "queries")]
    outputs = [*rows, _tensor("boxes", "float32", -1, 4, 4)]
    return _of_one_graph(name, "detect", outputs, [], changes)


def segmenter_of(name: str = "masks", **changes: Any) -> dict[str, Any]:
    """The manifest of a segmenter with four queries and masks of 4 x 4 cells; ants and bees are
    things, "sky" is stuff.
    """
    outputs = [
        _tensor("logits", "float32", -1, 4, CLASSES + 1),
        _tensor("masks", "float32", -1, 4, 4, 4),
        _tensor("panoptic_map", "int32", -1, 4, 4),
        _tensor("panoptic_classes", "int32", -1, 4),
        _tensor("panoptic_scores", "float32", -1, 4),
        _tensor("instance_masks", "uint8", -1, 4, 4, 4),
        _tensor("instance_classes", "int32", -1, 4),
        _tensor("instance_scores", "float32", -1, 4),
        _tensor("instance_queries", "int32", -1, 4),
        _tensor("semantic_map", "int32", -1, 4, 4),
    ]
    labels = [("ant", True), ("bee", True), ("sky", False)]
    segments = {
        "labels": [
            {"id": 10 + i, "name": label, "isthing": thing}
            for i, (label, thing) in enumerate(labels)
        ],
        "segmentation": {
            "rule": "mask2former",
            "modes": ["panoptic", "instance", "semantic"],
            "threshold": 0.5,
            "overlap_threshold": 0.75,
            "detail": "fast",
        },
    }
    thresholds = [_tensor(name, "float32", -1) for name in ("threshold", "overlap_threshold")]
    return _of_one_graph(name, "segment", outputs, thresholds, segments | changes)


def _of_one_graph(
    name: str, task: str, outputs: list[Any], inputs: list[Any], changes: dict[str, Any]
) -> dict[str, Any]:
    images = _tensor("images", "uint8", -1, SIDE, SIDE, 3)
    if changes.get("geometry", {}).get("placement") == "pad":
        inputs = [*inputs, _tensor("sizes", "int32", -1, 2)]
    graph = _graph("model.onnx", "serve", [images, *inputs], outputs)
    own: dict[str, Any] = {
        "graphs": [graph],
        "tasks": [task],
        "explain": None,
        "activation": None,
        "defaults": {"top_k": 100, "threshold": 0.5},
    }
    return manifest_of(name, **(own | changes))


def write_bundle(repository: Path, manifest: dict[str, Any]) -> Path:
    """Write manifest and files below ``repository``; returns the version folder."""
    folder = repository / manifest["name"] / manifest["version"]
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _graph(file: str, kind: str, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    return {
        "file": file,
        "kind": kind,
        "canvas": {"height": SIDE, "width": SIDE},
        "precision": "fp32",
        "inputs": inputs,
        "outputs": outputs,
    }


def _layer(output: str, **changes: Any) -> dict[str, Any]:
    return {"output": output, "stride": PATCH} | changes


def _tensor(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "role": name, "dtype": dtype, "shape": list(shape)}
