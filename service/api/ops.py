"""The routes for whoever operates the server: health and metrics."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.serving import Serving

router = APIRouter()


@router.head("/livez", include_in_schema=False)
@router.get("/livez")
@router.get("/v2/health/live")
async def livez() -> dict[str, bool]:
    """200 while this process answers; it never depends on load."""
    return {"live": True}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
@router.get("/health")
@router.get("/healthz")
@router.get("/ping")
@router.get("/v2/health/ready")
async def readyz(request: Request) -> Response:
    """200 when a picture sent now would be run: the worker is there and every model has run."""
    serving: Serving = request.state.serving
    ready = serving.link.state.answers()
    headers = {} if ready else {"Retry-After": "1"}
    return JSONResponse({"ready": ready}, 200 if ready else 503, headers)


@router.get("/startupz")
async def startupz(request: Request) -> Response:
    """200 once the worker has been ready; before that 503 and the phase it is in."""
    serving: Serving = request.state.serving
    started = serving.link.was_ready
    phase = "started" if started else serving.link.state.phase
    return JSONResponse({"started": started, "phase": phase}, 200 if started else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text of all processes of this server."""
    serving: Serving = request.state.serving
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def root() -> Response:
    """Send people who open the server in a browser to the documentation."""
    return RedirectResponse("/docs")
