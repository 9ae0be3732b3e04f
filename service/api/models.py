"""The routes that tell what is served, and those that change it."""

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from service.api.openapi import problem_responses
from service.api.schemas.base import ImageSize
from service.api.schemas.models import ModelDetail, ModelList, ModelSummary, Unloaded
from service.api.security import require_admin
from service.api.serving import Serving
from service.bundle import Manifest

router = APIRouter()

_log = logging.getLogger(__name__)

ADMIN: dict[str, Any] = {
    "dependencies": [Depends(require_admin)],
    "responses": problem_responses(
        {
            401: "No admin key was shown",
            403: "The key that was shown is not one of the admin keys",
            404: "There is no such model or version, or no admin keys are set",
            409: "The version is damaged, or nothing here may run it; what was served goes on",
            500: "A bug; what was served goes on",
            503: "The worker is not ready, or died of it; what was served goes on",
        }
    ),
}


@router.get("/v1/models")
async def list_models(request: Request) -> ModelList:
    """Every served model: its tasks, and the runtime and precision that really run it."""
    serving: Serving = request.state.serving
    models = [ModelSummary(**_summary(serving, m)) for m in serving.manifests.values()]
    return ModelList(models=models)


@router.get("/v1/models/{name}")
async def show_model(request: Request, name: str) -> ModelDetail:
    """One model with its whole manifest: labels, geometry, measured parity, provenance."""
    serving: Serving = request.state.serving
    manifest = serving.named(name)
    return ModelDetail(**_summary(serving, manifest), manifest=manifest.model_dump(mode="json"))


@router.post("/v1/models/{name}/load", **ADMIN)
async def load_model(
    request: Request,
    name: str,
    version: Annotated[
        str | None, Query(description="A version in the repository; without it the newest")
    ] = None,
) -> ModelSummary:
    """Serve a version of a model in place of the one that is served, if any.

    The answer comes when the version has been verified and is warm; until then the other one
    answers. Further HTTP processes of the server follow within moments.
    """
    serving: Serving = request.state.serving
    await serving.link.change("load", name, version)
    await serving.learn()
    manifest = serving.named(name)
    _log.info("an admin loaded %s %s", name, manifest.version)
    return ModelSummary(**_summary(serving, manifest))


@router.post("/v1/models/{name}/unload", **ADMIN)
async def unload_model(request: Request, name: str) -> Unloaded:
    """Serve a model no longer; requests that have begun are answered."""
    serving: Serving = request.state.serving
    version = serving.named(name).version
    await serving.link.change("unload", name)
    await serving.learn()
    _log.info("an admin unloaded %s %s", name, version)
    return Unloaded(name=name, version=version)


def _summary(serving: Serving, manifest: Manifest) -> dict[str, Any]:
    running = serving.link.state.models.get(manifest.name, {})
    return {
        "name": manifest.name,
        "version": manifest.version,
        "family": manifest.family,
        "tasks": manifest.tasks,
        "ready": serving.link.state.answers() and bool(running),
        "runtime": running.get("runtime"),
        "precision": running.get("precision"),
        "device": running.get("device"),
        "streams": running.get("streams"),
        "threads": running.get("threads"),
        "batch": running.get("batch"),
        "tuned": running.get("tuned"),
        "explain": running.get("explain"),
        "canvases": [ImageSize(width=c.width, height=c.height) for c in manifest.canvases],
        "parameters": manifest.parameters,
        "macs": manifest.macs,
        "accuracy": [accuracy.model_dump() for accuracy in manifest.accuracy],
    }
