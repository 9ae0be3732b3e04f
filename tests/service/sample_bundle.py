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
