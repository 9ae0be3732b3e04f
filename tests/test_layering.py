"""The import rules of the tree: offline and online meet only in a bundle on disk."""

import ast
import itertools
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("models", "export", "service", "bench", "saccade_client")
RUNTIMES = {
    "onnxruntime": ("onnx", "onnx_cuda"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt/library",),
    "tensorrt_rtx": ("tensorrt/library",),
    "pynvml": ("nvml",),
}
"""Libraries that not every installation has, and the files that speak to each."""
OFFLINE = ("torch", "torchvision", "transformers", "timm", "safetensors", "onnx", "onnxscript")
HTTP = ("fastapi", "starlette", "uvicorn")
MOVERS = ("fsspec", "obstore")
FILE_LIBRARIES = ("safetensors", "huggingface_hub", "yaml")  # the last for what the second raises
SEEN_BY_EXPORT = (
    *("bundle", "explain", "images", "geometry", "resize", "tasks", "worker.runtimes", "errors"),
    *("agreement", "engines", "evaluate", "parity"),
)
SEEN_BY_CLIENT = ("saccade_client", "httpx", "numpy", "PIL", "pycocotools", "supervision")
LAZY = {("service/commands/offline.py", "export")}
"""(file, package) that may be imported inside a function, and nowhere else."""
QUANTIZER = ("export/to_int8.py", "onnxruntime.quantization")
"""What makes int8 graphs comes with a runtime, but runs nothing that serves."""
TORCH_RUNTIME = "bench/gpu_check/torch_runtime.py", ("export.heads.entry", "export.typed")
"""What measures our definitions in torch computes as the graphs of engines do."""
RAY = "service/cluster/application.py"
IN_RAYS_PROXY = "service/cluster/proxy.py", "starlette"
"""A middleware, which Ray's own HTTP server takes."""
ENVIRONMENT_READERS = {
    "service/settings.py": "the settings themselves",
    "service/supervisor.py": "hands its own environment on to its children",
    "bench/peers/engine.py": "other servers, which our settings know nothing of",
}


def imports_of(path: str, source: str) -> Iterator[tuple[str, bool]]:
    """(Dotted name, whether a function holds it) of every import; relative ones are resolved."""
    package = path.split("/")[:-1]
    tree = ast.parse(source)
    inside = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for below in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", id(node) in inside


def is_under(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def forbidden(path: str, name: str, lazy: bool) -> str | None:
    """Why a file may not import a dotted name; None if it may."""
    folder, top = path.split("/")[0], name.split(".")[0]
    if path == QUANTIZER[0] and is_under(name, QUANTIZER[1]):
        return None
    if path == TORCH_RUNTIME[0] and is_under(name, *TORCH_RUNTIME[1]):
        return None
    if top in RUNTIMES and folder != "bench":
        own = [f"service/worker/runtimes/{name}.py" for name in RUNTIMES[top]]
        return None if path in own else f"{top} belongs in {' and '.join(own)}"
    if top in ("export", "bench") and folder != top:
        return None if lazy and (path, top) in LAZY else f"nobody imports {top}"
    if top == "ray" and folder != "bench":
        return None if path == RAY else f"ray belongs in {RAY}"
    if (path, top) == IN_RAYS_PROXY:
        return None
    if top in MOVERS and not path.startswith("service/distribution/"):
        return f"{top} belongs in service/distribution"
    if top in HTTP and not path.startswith(("service/api/", "bench/peers/")):
        return f"{top} belongs in service/api"
    if folder == "models":
        return _forbidden_in_models(path, top)
    if folder == "saccade_client":
        known = top in (*SEEN_BY_CLIENT, *sys.stdlib_module_names)
        return None if known else "the client knows nothing of the server"
    if top == "saccade_client":
        allowed = path.startswith(("service/predict/", "service/evaluate/"))
        return None if allowed else "only batch work uses the client"
    if folder == "service" and top in (*OFFLINE, "models"):
        return f"service knows nothing of {top}"
    if folder == "export" and top == "service":
        seen = [f"service.{module}" for module in SEEN_BY_EXPORT]
        return None if is_under(name, *seen) else f"export sees of service only {seen}"
    return None


def _forbidden_in_models(path: str, top: str) -> str | None:
    if top in ("models", "torch", *sys.stdlib_module_names):
        return None
    if path.startswith("models/checkpoints/") and top in FILE_LIBRARIES:
        return None
    return "models are plain PyTorch"


def violations(path: str, source: str) -> list[str]:
    found = []
    for name, lazy in imports_of(path, source):
        why = forbidden(path, name, lazy)
        if why is not None:
            found.append(f"{path} imports {name}: {why}")
    return found


def sources() -> dict[str, str]:
    paths = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def environment_reads(source: str) -> list[int]:
    """Lines that touch the environment, however it was imported."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"):
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            lines += [
                node.lineno for alias in node.names if alias.name.startswith(("environ", "getenv"))
            ]
    return lines


def test_every_file_keeps_the_import_rules() -> None:
    files = sources()
    assert {"service/cli.py", "models/vit.py", "export/heads/entry.py"} <= files.keys()
    assert [line for path, source in files.items() for line in violations(path, source)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("service/api/app.py", "import torch"),
        ("service/tasks/detect.py", "from models.vit import ViT"),
        ("service/tasks/detect.py", "from export import heads"),
        ("service/commands/offline.py", "from export.cli import export"),
        ("service/supervisor.py", "def start():\n    from export.cli import export"),
        ("service/commands/bench.py", "def bench():\n    import bench"),
        ("service/worker/process.py", "from starlette.requests import Request"),
        ("service/worker/models.py", "import onnxruntime as ort"),
        ("service/cluster/engine.py", "from ray import serve"),
        ("service/cluster/front.py", "from starlette.requests import Request"),
        ("service/worker/runtimes/onnx.py", "import openvino"),
        ("service/bundle.py", "import fsspec"),
        ("service/worker/runtimes/openvino.py", "import onnx"),
        ("export/proof.py", "import onnxruntime"),
        ("export/proof.py", "from onnxruntime.quantization import quantize_static"),
        ("export/to_int8.py", "import onnxruntime"),
        ("export/proof.py", "from service.settings import Settings"),
        ("export/proof.py", "from service import settings"),
        ("export/proof.py", "from service.worker.scheduler import Job"),
        ("export/proof.py", "import service"),
        ("models/vit.py", "import numpy as np"),
        ("models/vit.py", "from safetensors.torch import load_file"),
        ("models/checkpoints/vit.py", "from service.bundle import Manifest"),
        ("models/checkpoints/vit.py", "from export import heads"),
        ("service/api/tasks.py", "from ...models import vit"),
        ("bench/bare.py", "from fastapi import FastAPI"),
        ("saccade_client/results.py", "from service.bundle import Task"),
        ("saccade_client/client.py", "import pydantic"),
        ("service/api/app.py", "from saccade_client import Client"),
    ],
)
def test_the_rule_catches_a_violation(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("service/commands/offline.py", "def export():\n    from export.cli import export"),
        ("service/worker/runtimes/onnx.py", "import onnxruntime as ort"),
        ("service/api/app.py", "from fastapi import FastAPI"),
        ("service/api/app.py", "from . import models"),
        ("service/cluster/application.py", "from ray import serve"),
        ("service/cluster/proxy.py", "from starlette.middleware import Middleware"),
        ("bench/peers/fastapi/pool.py", "from fastapi import FastAPI"),
        ("export/proof.py", "from service.worker.runtimes.choose import Choice"),
        ("export/to_int8.py", "from onnxruntime.quantization import quantize_static"),
        ("export/proof.py", "from service import bundle\nfrom models.vit import ViT"),
        ("models/checkpoints/files.py", "import safetensors.torch\nimport huggingface_hub"),
        ("models/vit.py", "import math\nimport torch\nfrom .layers import Block"),
        ("saccade_client/client.py", "import time\nimport httpx\nfrom saccade_client import masks"),
        ("service/predict/command.py", "from saccade_client import AsyncClient"),
        ("service/evaluate/scorers.py", "from saccade_client import results"),
        ("export/demo/measure.py", "from service.evaluate.panoptic import PanopticQuality"),
    ],
)
def test_the_rule_lets_through_what_is_allowed(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_the_environment_is_read_in_the_settings_only() -> None:
    readers = {path for path, source in sources().items() if environment_reads(source)}
    assert readers == set(ENVIRONMENT_READERS)


@pytest.mark.parametrize(
    "source",
    ["import os\nos.environ['A']", "import os\nos.getenv('A')", "from os import environ as e"],
)
def test_a_read_of_the_environment_is_seen(source: str) -> None:
    assert len(environment_reads(source)) == 1


def test_nothing_at_top_level_is_called_like_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *itertools.chain.from_iterable(extras)]
    imported_as = {"pillow": "PIL", "onnxruntime_gpu": "onnxruntime"}
    names = set()
    for requirement in wanted:
        name = requirement.partition(">")[0].partition(";")[0].partition("[")[0].strip()
        name = name.replace("-", "_")
        names |= {name, imported_as.get(name, name)}
    ours = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert {"service", "models", "export"} <= ours
    assert {"fastapi", "torch", "PIL"} <= names
    assert ours & ((names - {"saccade"}) | sys.stdlib_module_names) == set()


def test_every_module_of_the_service_imports_without_what_is_offline() -> None:
    libraries = {
        f"service.worker.runtimes.{name}": lib for lib, names in RUNTIMES.items() for name in names
    }
    del libraries["service.worker.runtimes.tensorrt/library"]  # looks for them when it is called
    libraries["service.cluster.application"] = "ray"
    modules = [
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in sources()
        if path.startswith("service/")
    ]
    modules = [
        module
        for module in modules
        if module not in libraries or find_spec(libraries[module]) is not None
    ]
    assert len(modules) > 30
    program = f"""
        import importlib, sys

        class Blocked(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {(*OFFLINE, "models", "export", "bench")!r}:
                    raise ModuleNotFoundError(f"{{name}} is offline", name=name)
                return None

        sys.meta_path.insert(0, Blocked())
        for module in {modules!r}:
            importlib.import_module(module)
        print(len({modules!r}))
    """
    ended = subprocess.run(
        [sys.executable, "-c", "import importlib.abc\n" + textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{len(modules)}\n"
