"""The routes for whoever operates the server: health and metrics."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.serving import Serving

router = APIRouter()

_NOT_YET: dict[int | str, dict[str, Any]] = {
    503: {"description": "Not (yet, or any more)", "content": {"application/json": {}}}
}
_EXPOSITION: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {}}}}
}


@router.get("/livez", responses=_NOT_YET)
@router.get("/v2/health/live", responses=_NOT_YET)
async def livez(request: Request) -> Response:
    """200 while the device finishes passes, of requests or of the probes that an idle worker runs,
    and while a worker loads its models; 503 once it has not for ``liveness_s``. It does not depend
    on load.
    """
    serving: Serving = request.state.serving
    live = serving.link.state.passes(serving.settings.liveness_s)
    return JSONResponse({"live": live}, 200 if live else 503)


@router.get("/readyz", responses=_NOT_YET)
@router.get("/health", responses=_NOT_YET)
@router.get("/healthz", responses=_NOT_YET)
@router.get("/ping", responses=_NOT_YET)
@router.get("/v2/health/ready", responses=_NOT_YET)
async def readyz(request: Request) -> Response:
    """200 when a picture sent now would be run: the worker is there, a model has run (every one, at
    the first start), and the server is not about to stop.
    """
    serving: Serving = request.state.serving
    ready = serving.link.state.answers() and not serving.draining
    headers = {} if ready else {"Retry-After": "1"}
    return JSONResponse({"ready": ready}, 200 if ready else 503, headers)


@router.get("/startupz", responses=_NOT_YET)
async def startupz(request: Request) -> Response:
    """200 once the worker has been ready; before that 503 and the phase it is in. ``phases`` tells
    how many seconds each took, or has taken so far.
    """
    serving: Serving = request.state.serving
    state, started = serving.link.state, serving.link.was_ready
    ends_s = [began_s for _, began_s in state.phases[1:]] + [time.monotonic()]
    phases = [
        {"phase": phase, "elapsed_s": round(end_s - began_s, 3)}
        for (phase, began_s), end_s in zip(state.phases, ends_s, strict=False)
        if phase != "ready"
    ]
    phase = "started" if started else state.phase
    content = {"started": started, "phase": phase, "phases": phases}
    return JSONResponse(content, 200 if started else 503)


@router.get("/metrics", responses=_EXPOSITION, response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus text of all processes of this server."""
    serving: Serving = request.state.serving
    if serving.settings.metrics_access == "off":
        raise HTTPException(404)
    # Tens of milliseconds where there are many processes, for which requests must not wait.
    text = await asyncio.to_thread(serving.metrics.render)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
