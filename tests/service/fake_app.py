"""The HTTP application around a link that answers by the colour of the picture."""

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from service.api.app import State, assemble
from service.api.serving import Serving
from service.bundle import Bundle, Manifest
from service.metrics import Metrics
from service.settings import Settings
from service.worker.link import Result, WorkerLink, WorkerState
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group
from tests.service.sample_bundle import HEADS, LAYERS, PATCHES, manifest_of

RUNNING = {"tiny": {"version": "1", "runtime": "fake", "precision": "bf16", "device": "cpu"}}


def picture(red: int = 0, green: int = 0, blue: int = 0, size: tuple[int, int] = (12, 6)) -> bytes:
    """A PNG of one colour; ``size`` is (width, height)."""
    file = io.BytesIO()
    Image.new("RGB", size, (red, green, blue)).save(file, "PNG")
    return file.getvalue()


class FakeLink:
    """Ready at once; red is an ant, green a bee, blue a cat, unless ``answer`` holds the outputs of
    every picture. ``before`` may wait or raise.
    """

    def __init__(self) -> None:
        self.state = WorkerState(True, "ready", RUNNING)
        self.was_ready = True
        self.asked: list[tuple[Group, Arrays, float]] = []
        self.wanted: list[tuple[str, ...] | None] = []
        self.clients: list[str] = []
        self.priorities: list[int] = []
        self.answer: Arrays | None = None
        self.before: Callable[[], Awaitable[None]] | None = None

    async def infer(
        self,
        group: Group,
        inputs: Arrays,
        deadline_s: float,
        outputs: tuple[str, ...] | None = None,
        client: str = "",
        priority: int = 0,
    ) -> Result:
        self.asked.append((group, inputs, deadline_s))
        self.wanted.append(outputs)
        self.clients.append(client)
        self.priorities.append(priority)
        if self.before is not None:
            await self.before()
        if self.answer is not None:
            found = self.answer
        elif group.graph == "explain":
            maps = np.arange(LAYERS * HEADS * PATCHES).reshape(LAYERS, HEADS, PATCHES)
            found = {"attention": maps / 100, "rollout": np.arange(PATCHES) / 10}
        else:
            colour = inputs["images"].reshape(-1, 3).mean(axis=0)
            found = {
                "scores": colour / 255,
                "embedding": np.array([3.0, 4.0, 0.0, 0.0]),
                "attention": np.arange(HEADS * PATCHES).reshape(HEADS, PATCHES) / 100,
            }
        answer = {
            name: array if array.dtype.kind in "iu" else array.astype(np.float32)
            for name, array in found.items()
            if outputs is None or name in outputs
        }
        return Result(answer, batch_size=1, queue_s=0.002, infer_s=0.003, precision="bf16")


class FakeApp:
    """An application and what is behind it."""

    def __init__(self, manifests: list[dict[str, Any]] | None = None, **settings: Any) -> None:
        self.link, self.metrics = FakeLink(), Metrics()
        self.settings = Settings(**settings)
        self.bundles = [
            Bundle(folder=Path("nowhere"), manifest=Manifest.model_validate(manifest))
            for manifest in manifests or [manifest_of()]
        ]
        tasks_of = {bundle.manifest.name: bundle.manifest.tasks for bundle in self.bundles}
        self.metrics.prepare(version("saccade"), tasks_of)
        self.app = assemble(self.settings, self.metrics, self.lifespan)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[State]:
        serving = Serving(self.settings, self.bundles, cast(WorkerLink, self.link), self.metrics)
        yield State(serving=serving)
        serving.close()

    def client(self) -> TestClient:
        """To be used with ``with``; unexpected errors come back as responses."""
        return TestClient(self.app, raise_server_exceptions=False)

    async def call(
        self,
        path: str,
        headers: dict[str, str],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        state: State | None = None,
    ) -> list[dict[str, Any]]:
        """One POST in ASGI's own messages, for what no client library can be made to do."""
        if state is None:
            async with self.lifespan(self.app) as state:
                return await self.call(path, headers, receive, state)
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": dict(state),
        }
        await self.app(scope, cast(Any, receive), send)
        return sent
