"""The ASGI application: middleware, routes, error handlers, and what they share."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import TypedDict

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import browsers, huggingface, models, oip, ops, page, tasks
from service.api.browsers import cross_origin, protect
from service.api.openapi import announce_problems, describe_keys
from service.api.problems import install_handlers, refuse
from service.api.security import Access, BodyLimit, access_rules
from service.api.serving import Serving
from service.bundle import load_repository
from service.errors import ServiceError
from service.lifeline import DRAIN
from service.metrics import Metrics
from service.settings import Settings
from service.telemetry import Telemetry, open_telemetry
from service.tracing import Trace, start_trace
from service.worker.links import connect
from service.worker.pulse import pulse_beside
from service.worker.served import read_served, served_file

# A process that replaces a dead one finds requests waiting, and must know first that they can run.
FIRST_WORD_S = 1.0

_access = logging.getLogger("saccade.access")


class State(TypedDict):
    """What the lifespan hands to every request as ``request.state``."""

    serving: Serving


def create_app(
    settings: Settings, endpoint: str, metrics: Metrics, devices: Sequence[str] = ()
) -> FastAPI:
    """The application of one API process; ``endpoint`` is where the worker listens, or the first of
    several, one for each of the ``devices``.

    Raises:
        BadBundle: the repository cannot be read.
    """
    served = served_file(endpoint)
    bundles = read_served(served)
    if bundles is None:
        bundles = load_repository(settings.repository)
    tasks_of = {bundle.manifest.name: bundle.manifest.tasks for bundle in bundles}
    metrics.prepare(version("saccade"), tasks_of)
    telemetry = open_telemetry(settings.otlp_endpoint)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        link = connect(endpoint, devices, lambda state: serving.hear(state))
        serving = Serving(settings, bundles, link, metrics, served)
        asyncio.get_running_loop().add_signal_handler(DRAIN, serving.drain)
        await link.start()
        await link.hear(FIRST_WORD_S)
        pulse = pulse_beside(endpoint, os.getpid())
        pulse.begin()
        beating = asyncio.create_task(pulse.beat_forever(), name="pulse")
        yield State(serving=serving)
        beating.cancel()
        await link.close()
        serving.close()
        if telemetry is not None:
            await asyncio.to_thread(telemetry.close)

    return assemble(settings, metrics, lifespan, telemetry)


def assemble(
    settings: Settings,
    metrics: Metrics,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[State]],
    telemetry: Telemetry | None = None,
) -> FastAPI:
    """Routes and middleware around whatever ``lifespan`` provides."""
    rules = access_rules(settings)
    app = FastAPI(
        title="Saccade",
        docs_url=None,  # our own, with a policy
        redoc_url=None,
        summary="Vision transformers over HTTP: an image goes in, an answer comes out.",
        version=version("saccade"),
        lifespan=lifespan,
        middleware=[
            Middleware(RequestContext, metrics=metrics, telemetry=telemetry),
            *cross_origin(settings),  # before access: browsers ask for leave without a key
            Middleware(Access, **rules),
            Middleware(
                BodyLimit,
                max_bytes=settings.max_body_bytes,
                max_total_bytes=max(settings.max_queue_bytes, settings.max_body_bytes),
            ),
            Middleware(PictureRoutes, handlers=tasks.handlers()),
        ],
    )
    install_handlers(app)
    announce_problems(app)
    for door in (tasks, huggingface, oip, models, ops, browsers, page):
        app.include_router(door.router)
    if rules["callers"]:
        describe_keys(app)
    return app


class RequestContext:
    """ASGI middleware: gives each request its trace, and tells log, metrics and, where there is
    one, the collector of traces how it ended.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, telemetry: Telemetry | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with ``state.trace`` set; the response carries its request id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id, traceparent = (
            headers[name].decode("latin-1") if name in headers else None
            for name in (b"x-request-id", b"traceparent")
        )
        trace = start_trace(request_id, traceparent)
        scope["state"]["trace"] = trace
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                protect(message["headers"])
                if scope["state"]["serving"].draining:  # so that its next request goes elsewhere
                    message["headers"].append((b"connection", b"close"))
                message["headers"].append((b"x-request-id", trace.request_id.encode()))
                if trace.task is not None:
                    message["headers"].append((b"server-timing", trace.server_timing().encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._record(scope, trace, status)

    def _record(self, scope: Scope, trace: Trace, status: int) -> None:
        seconds = time.monotonic() - trace.started_s
        if trace.task is not None:
            model = trace.model or "none"
            self._metrics.requests.labels(model, trace.task, str(status)).inc()
            self._metrics.request_seconds.labels(model, trace.task).observe(seconds)
            if self._telemetry is not None:
                self._telemetry.tell(trace, scope["method"], scope["path"], status)
        level = logging.INFO if trace.task is not None else logging.DEBUG
        if not _access.isEnabledFor(level):
            return
        facts = {
            "request_id": trace.request_id,
            "trace_id": trace.trace_id,
            "client": scope["state"].get("client"),
            "model": trace.model,
            "status": status,
            "seconds": round(seconds, 6),
            "batch_sizes": trace.batch_sizes,
            "stages_s": {stage: round(value, 6) for stage, value in trace.stages_s.items()},
        }
        _access.log(
            level, "%s %s %d", scope["method"], scope["path"], status, extra={"facts": facts}
        )


class PictureRoutes:
    """ASGI middleware: takes POSTs of pictures past FastAPI's own layers to their handlers.

    The handlers read the request themselves, so nothing is lost, and routing, dependencies and exit
    stacks cost more than all that a classification does on the event loop. FastAPI has the same
    routes, for the documentation and for other methods.
    """

    def __init__(
        self, app: ASGIApp, handlers: Mapping[str, Callable[[Request], Awaitable[Response]]]
    ) -> None:
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on what is no picture."""
        handler = self._handlers.get(scope["path"]) if scope["type"] == "http" else None
        if handler is None or scope["method"] != "POST":
            if scope["type"] == "http" and scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}  # FastAPI has no HEAD; uvicorn sends no body
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await handler(request)
        except ServiceError as error:
            response = refuse(error, request)
        await response(scope, receive, send)
