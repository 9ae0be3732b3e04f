"""Served models."""

from typing import Any

from pydantic import BaseModel, Field

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
    streams: int | None = Field(description="batches that run at once")
    threads: int | None = Field(description="that the streams share")
    batch: dict[str, int] | None = Field(description="most pictures run together, by canvas")
    tuned: bool | None = Field(description="whether saccade tune measured these on this machine")
    explain: str | None = Field(
        description="what computes attention maps, as 'onnxruntime fp32 on cpu'; null: it has none"
    )
    canvases: list[ImageSize]
    parameters: int
    macs: int
    accuracy: list[dict[str, Any]]


class ModelDetail(ModelSummary):
    """A model with its whole manifest."""

    manifest: dict[str, Any]


class Unloaded(BaseModel):
    """What is served no longer."""

    name: str
    version: str


class ModelList(BaseModel):
    """Every served model."""

    models: list[ModelSummary]
