"""Served models."""

from typing import Any

from pydantic import BaseModel

from service.api.schemas.base import ImageSize


class ModelSummary(BaseModel):
    """One served model, and what runs it."""

    name: str
    version: str
    family: str
    tasks: list[str]
    ready: bool
    runtime: str | None
    precision: str | None
    device: str | None
    canvases: list[ImageSize]
    parameters: int
    macs: int
    accuracy: list[dict[str, Any]]


class ModelDetail(ModelSummary):
    """A model with its whole manifest."""

    manifest: dict[str, Any]


class ModelList(BaseModel):
    """Every served model."""

    models: list[ModelSummary]
