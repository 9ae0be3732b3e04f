"""The model repository extension: what could be served, and for admins what is."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api.bodies import parse_json, read_bytes
from service.api.models import ADMIN, load_model, unload_model
from service.api.schemas.oip import IndexEntry
from service.api.serving import Serving
from service.bundle import Manifest
from service.errors import InvalidBody, InvalidParameter

router = APIRouter(prefix="/v2/repository")


@router.post("/index")
async def index(request: Request) -> list[IndexEntry]:
    """The served models and their state; {"ready": true} asks for the ready ones."""
    serving: Serving = request.state.serving
    only_ready = (await _read(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidBody("'ready' must be true or false")
    return [
        IndexEntry(
            name=manifest.name,
            version=manifest.version,
            state="READY" if ready else "UNAVAILABLE",
            reason="" if ready else _why_not(serving, manifest),
        )
        for manifest in serving.manifests.values()
        if (ready := serving.ready(manifest)) or not only_ready
    ]


@router.post("/models/{name}/load", **ADMIN)
async def load(request: Request, name: str) -> Response:
    """Serve the newest version of a model, as POST /v1/models/{name}/load does."""
    _check_parameters(await _read(request))
    await load_model(request, name)
    return Response(b"{}", media_type="application/json")


@router.post("/models/{name}/unload", **ADMIN)
async def unload(request: Request, name: str) -> Response:
    """Serve a model no longer, as POST /v1/models/{name}/unload does."""
    _check_parameters(await _read(request))
    await unload_model(request, name)
    return Response(b"{}", media_type="application/json")


def _why_not(serving: Serving, manifest: Manifest) -> str:
    state = serving.link.state
    if manifest.name in state.failed:
        return "it cannot be loaded; the server's log says why"
    if state.answers():
        return "it is not loaded"
    return "the worker is silent" if state.ready else state.phase


async def _read(request: Request) -> dict[str, Any]:
    body = await read_bytes(request, request.state.serving.settings)
    document = parse_json(body) if body.strip() else {}
    if not isinstance(document, dict):
        raise InvalidBody("the body must be empty or a JSON object")
    return document


def _check_parameters(document: dict[str, Any]) -> None:
    """A configuration or files would be ignored, which nobody expects who sends them."""
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidBody("'parameters' must be a JSON object")
    wrong = sorted(name for name in parameters if name != "unload_dependents")
    if wrong:
        raise InvalidParameter(
            f"{', '.join(f'{name!r:.80}' for name in wrong[:8])}: models are loaded from the "
            "repository as they are, without a configuration or files of the request",
            parameters=wrong[:8],
        )
