"""What several test files need and what is costly: real servers, and the folder of shared data."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
SACCADE = Path(sys.executable).parent / "saccade"
PATIENCE_S = 60.0

settings.register_profile("long", max_examples=3_000, deadline=None)  # of each fuzz test


SIDE_BY_SIDE = ("export", "models")
"""Folders whose files may run beside each other; others share servers, and run in one process."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what pytest-xdist may run at once: files that compute, beside the tests with servers."""
    for item in items:
        alone = item.path.parent.name in SIDE_BY_SIDE
        item.add_marker(pytest.mark.xdist_group(item.path.name if alone else "servers"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread_of_torch_beside_others() -> None:
    """Two processes on two cores must not each run on both."""
    torch = sys.modules.get("torch")
    if torch is not None and "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@dataclass
class Server:
    """A running ``saccade serve`` and how to reach it."""

    url: str
    process: "subprocess.Popen[str]"
    log: Path

    def children(self, role: str) -> list[psutil.Process]:
        """Its processes whose title begins with ``role``."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in below if " ".join(child.cmdline()).startswith(role)]

    def wait_until(self, path: str, status: int) -> None:
        """Ask a route of a real process until it answers with ``status``."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            if httpx.get(self.url + path, timeout=10).status_code == status:
                return
            time.sleep(0.02)
        raise AssertionError(f"{path} did not answer {status}: {self.log.read_text()}")


@pytest.fixture(scope="session", autouse=True)
def _compiled_models_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers and workers under test leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SACCADE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@contextmanager
def running_server(*flags: str) -> Iterator[Server]:
    """Start ``saccade serve`` on a free port, wait until it is ready, and stop it by its own id."""
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".log"))
        process = stack.enter_context(
            subprocess.Popen(
                [str(SACCADE), "serve", "--port", "0", *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        )
        assert process.stdout is not None
        try:
            match = re.search(r"https?://\S+", process.stdout.readline())
            assert match, Path(log.name).read_text()
            server = Server(match[0], process, Path(log.name))
            server.wait_until("/readyz", 200)
            yield server
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Servers with the given flags, stopped at the end of the test."""
    with ExitStack() as stack:
        yield lambda *flags: stack.enter_context(running_server(*flags))


@pytest.fixture(scope="session")
def demo_server() -> Iterator[Server]:
    """One server of the demo models, for tests that do it no harm."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def demo_scenes() -> dict[str, Any]:
    """The sample scenes' truth, by file name; "path" is added to each."""
    folder = ROOT / "service" / "demo" / "scenes"
    scenes: dict[str, Any] = json.loads((folder / "scenes.json").read_text())
    return {name: truth | {"path": folder / name} for name, truth in scenes.items()}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared pictures and expected numbers; a test that needs it skips without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data")
    return folder
