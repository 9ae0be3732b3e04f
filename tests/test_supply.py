"""What is installed and what is opened: exact versions, and nothing that runs when it is read."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.pin import FILES, closure, dependencies
from tests.test_layering import sources

ROOT = Path(__file__).parents[1]
PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLE_TO_THEIR_CHILDREN = {"multiprocessing", "concurrent.futures.ProcessPoolExecutor"}
"""What the training tools may use, and nothing that serves."""


def pinned_lines(extra: str) -> list[str]:
    text = (ROOT / "deploy" / FILES[extra]).read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def pins(extra: str) -> dict[str, str]:
    return dict(line.split("==") for line in pinned_lines(extra))


@pytest.mark.parametrize("extra", FILES)
def test_every_dependency_of_an_image_is_pinned_to_a_version_that_it_allows(extra: str) -> None:
    pinned = pins(extra)
    wrong = [
        str(wanted)
        for wanted in dependencies(extra)
        if pinned.get(canonicalize_name(wanted.name), "none") not in wanted.specifier
    ]
    assert wrong == []


@pytest.mark.parametrize("extra", FILES)
def test_constraints_are_exact_versions_in_order_and_nothing_else(extra: str) -> None:
    lines = pinned_lines(extra)
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line)] == []
    assert lines == sorted(lines, key=lambda line: line.split("==")[0])


@pytest.mark.parametrize("extra", FILES)
def test_an_image_has_what_its_settings_and_commands_ask_for(extra: str) -> None:
    """Else ``--otlp-endpoint`` would end the start, and ``saccade pull`` do nothing."""
    wanted = {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "obstore", "fsspec"}
    assert wanted <= pins(extra).keys()


def test_what_serves_brings_nothing_that_trains_converts_or_tests() -> None:
    others = {"torch", "transformers", "onnx", "pytest"}
    assert not others & pins("cpu").keys()
    assert not others & pins("gpu").keys()
    assert "torch" in pins("export")


def test_images_share_the_versions_of_what_they_share() -> None:
    cpu = pins("cpu")
    for extra in ("gpu", "export"):
        other = pins(extra)
        assert {name for name in cpu.keys() & other.keys() if cpu[name] != other[name]} == set()


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
    """The Dockerfile's stages by name, in order."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    return {part.split()[2]: part for part in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]}


@pytest.mark.parametrize("target", FILES)
def test_an_image_installs_what_is_pinned_and_runs_without_root(target: str) -> None:
    build, image = stages()[f"build-{target}"], stages()[target]
    assert re.search(
        rf"pip install .*--requirement deploy/{re.escape(FILES[target])}$", build, re.M
    )
    assert "pip check" in build, "the list is complete"
    assert "pip" not in image, "what is run is installed elsewhere"
    assert re.findall(r"^USER (\S+)", image, flags=re.MULTILINE) == ["10001"]


def test_a_build_that_names_no_target_makes_the_image_for_processors() -> None:
    assert list(stages())[-1] == "cpu"


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
