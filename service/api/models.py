"""The routes that tell what is served."""

from typing import Any

from fastapi import APIRouter, Request

from service.api.schemas.base import ImageSize
from service.api.schemas.models import ModelDetail, ModelList, ModelSummary
from service.api.serving import Serving
from service.bundle import Manifest
from service.errors import UnknownModel

router = APIRouter()


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
    manifest = serving.manifests.get(name)
    if manifest is None:
        served = list(serving.manifests)
        raise UnknownModel(
            f"there is no model {name!r}; served are {', '.join(served)}", allowed=served
        )
    return ModelDetail(**_summary(serving, manifest), manifest=manifest.model_dump(mode="json"))


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
        "canvases": [ImageSize(width=c.width, height=c.height) for c in manifest.canvases],
        "parameters": manifest.parameters,
        "macs": manifest.macs,
        "accuracy": [accuracy.model_dump() for accuracy in manifest.accuracy],
    }
