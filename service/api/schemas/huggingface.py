"""Hugging Face's task schemas: what clients of its inference API send and expect.

Source: huggingface.js, packages/tasks/src/tasks/*/spec/{input,output}.json.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.base import Rounded
from service.bundle import Mode

Pipeline = Literal["image-classification", "object-detection", "image-segmentation"]
Transform = Literal["softmax", "sigmoid", "none"]


class Parameters(BaseModel):
    """What a request may set; a name that the schema does not have is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassifyParameters(Parameters):
    """Parameters of image-classification."""

    top_k: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="How many classes; the model's default where absent",
    )
    function_to_apply: Transform | None = Field(
        default=None,
        description="What turns the model's logits into scores; as it was trained where absent",
    )


class DetectParameters(Parameters):
    """Parameters of object-detection."""

    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Least score; the model's default where absent"
    )


class SegmentParameters(Parameters):
    """Parameters of image-segmentation."""

    subtask: Mode | None = Field(
        default=None, description="What to make of the masks; the model's first mode where absent"
    )
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least score of a segment; the model's default where absent",
    )
    overlap_mask_area_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least share of its mask that a panoptic segment must keep against others; the "
        "model's default where absent",
    )
    mask_threshold: float | None = Field(
        default=None,
        ge=0.5,
        le=0.5,
        description="Probability from which on a pixel is in a mask, which is 0.5 for every model",
    )


class Classified(BaseModel):
    """One class of a picture."""

    label: str
    score: Rounded


class PixelBox(BaseModel):
    """Edges in whole pixels of the upright picture."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class Detected(Classified):
    """One object."""

    box: PixelBox


class Segmented(BaseModel):
    """One segment; ``mask`` is a PNG in base64, 8 bits a pixel, of the picture's size and white
    where the segment is. A class of a semantic map has no score.
    """

    label: str
    score: Rounded | None
    mask: str


class Info(BaseModel):
    """What serves a model, as ``InferenceClient.get_endpoint_info`` asks for it."""

    model_id: str
    model_version: str
    model_pipeline_tag: Pipeline | None
    model_dtype: str | None
    model_device_type: str | None
    version: str
