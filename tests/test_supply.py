"""What is installed and what is opened: exact versions, and nothing that runs when it is read."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.pin import closure, serving_dependencies
from tests.test_layering import sources

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "deploy" / "constraints.txt"
PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLE_TO_THEIR_CHILDREN = {"multiprocessing", "concurrent.futures.ProcessPoolExecutor"}
"""What the training tools may use, and nothing that serves."""


def pins() -> dict[str, str]:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("wanted", serving_dependencies(), ids=lambda wanted: wanted.name)
def test_every_dependency_of_serving_is_pinned_to_a_version_that_it_allows(
    wanted: Requirement,
) -> None:
    pinned = pins()[canonicalize_name(wanted.name)]
    assert pinned in wanted.specifier


def test_constraints_are_exact_versions_in_order_and_nothing_else() -> None:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line)] == []
    assert lines == sorted(lines, key=lambda line: line.split("==")[0])
    assert not {"torch", "transformers", "onnx", "pytest"} & pins().keys()


def test_the_closure_follows_dependencies_and_the_extras_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {
        "server": SimpleNamespace(
            version="1.0",
            requires=["Parser>=2", "fast; extra == 'speed'", "slow; extra == 'other'"],
        ),
        "parser": SimpleNamespace(version="2.1", requires=["server", "old; python_version < '3'"]),
        "fast": SimpleNamespace(version="3.0", requires=None),
    }
    monkeypatch.setattr("deploy.pin.distribution", installed.__getitem__)
    assert closure([Requirement("server")]) == {"server": "1.0", "parser": "2.1"}
    everything = closure([Requirement("server[speed]"), Requirement("x; sys_platform == 'none'")])
    assert everything == {"server": "1.0", "parser": "2.1", "fast": "3.0"}


def hazards(path: str, source: str) -> Iterator[str]:
    """Each place where reading a file or a message could run what somebody put into it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                name = f"{module}.{alias.name}".strip(".")
                serves = path.startswith("service/")
                if name.split(".")[0] in PICKLERS or (serves and _is_under_a_pickler(name)):
                    yield f"{path}:{node.lineno} imports {name}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            arguments = {word.arg: ast.unparse(word.value) for word in node.keywords}
            unsafe = (
                (called == "torch.load" and arguments.get("weights_only") != "True")
                or arguments.get("allow_pickle", "False") != "False"
                or called in ("eval", "exec", "yaml.load", "yaml.unsafe_load")
                or called.endswith((".recv_pyobj", ".send_pyobj"))
            )
            if unsafe:
                yield f"{path}:{node.lineno} calls {called}"


def _is_under_a_pickler(name: str) -> bool:
    return any(name == own or name.startswith(own + ".") for own in PICKLE_TO_THEIR_CHILDREN)


def stages() -> dict[str, str]:
    """The Dockerfile's stages by name."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    return {part.split()[2]: part for part in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]}


def test_the_image_installs_what_is_pinned_and_serves_without_root() -> None:
    build, serve = stages()["build"], stages()["cpu"]
    assert re.search(r"pip install .*--constraint deploy/constraints\.txt '\.\[cpu\]'", build)
    assert "pip install" not in serve, "what serves has no installer to run"
    assert re.findall(r"^USER (\S+)", serve, flags=re.MULTILINE) == ["10001"]
    assert serve.index("\nUSER ") < serve.index("\nENTRYPOINT ")


def test_nothing_that_is_read_can_run() -> None:
    files = sources()
    assert {"service/bundle.py", "export/demo/training/loop.py"} <= files.keys()
    assert [hazard for path, source in files.items() for hazard in hazards(path, source)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("service/worker/wire.py", "import pickle"),
        ("export/repository.py", "from pickle import loads"),
        ("models/vit.py", "import torch\ntorch.load(path)"),
        ("models/vit.py", "import torch\ntorch.load(path, weights_only=False)"),
        ("export/proof.py", "import numpy as np\nnp.load(path, allow_pickle=True)"),
        ("service/worker/link.py", "socket.recv_pyobj()"),
        ("service/images.py", "import multiprocessing"),
        ("service/images.py", "from multiprocessing import shared_memory"),
        ("service/images.py", "from concurrent.futures import ProcessPoolExecutor"),
        ("service/cli.py", "eval(text)"),
        ("models/checkpoints/files.py", "import yaml\nyaml.load(text)"),
    ],
)
def test_a_hazard_is_seen(path: str, source: str) -> None:
    assert len(list(hazards(path, source))) == 1


def test_what_reads_no_pickle_is_let_through() -> None:
    source = (
        "import torch, numpy as np\n"
        "torch.load(path, weights_only=True)\n"
        "np.load(path)\n"
        "np.save(file, array, allow_pickle=False)\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
    )
    assert list(hazards("service/images.py", source)) == []
