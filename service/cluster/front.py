"""The HTTP part of a server as one replica among many: decodes, asks the engines, answers."""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, cast

from service.api.app import State, assemble
from service.api.serving import Serving
from service.bundle import load_repository
from service.cluster.link import EngineLink, Engines
from service.metrics import Metrics
from service.settings import Settings
from service.telemetry import open_telemetry
from service.worker.link import WorkerLink

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]
"""An ASGI application."""


def create_front(settings: Settings, engines: Engines, metrics: Metrics) -> App:
    """The application of one HTTP replica.

    Raises:
        BadBundle: the repository cannot be read.
    """
    bundles = load_repository(settings.repository)
    tasks_of = {bundle.manifest.name: bundle.manifest.tasks for bundle in bundles}
    metrics.prepare(version("saccade"), tasks_of)
    telemetry = open_telemetry(settings.otlp_endpoint)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[State]:
        link = EngineLink(engines, metrics, lambda state: serving.hear(state))
        serving = Serving(settings, bundles, cast(WorkerLink, link), metrics)
        await link.start()
        await link.hear()  # requests come as soon as we are here, and must find us ready
        yield State(serving=serving)
        await link.close()
        serving.close()
        if telemetry is not None:
            telemetry.close()

    return _with_state(assemble(settings, metrics, lifespan, telemetry))


def _with_state(app: App) -> App:
    """Hand the state of the lifespan to each request, where the server does not."""
    state: dict[str, Any] = {}

    async def stateful(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"] = state
        else:
            scope["state"] = dict(state)
        await app(scope, receive, send)

    return stateful
