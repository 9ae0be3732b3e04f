"""Detection."""

from typing import Literal

from pydantic import BaseModel, Field

from service.api.schemas.base import (
    ABOUT_EXAMPLE,
    Answer,
    Box,
    LabelsOptions,
    Rounded,
    example,
)


class DetectOptions(LabelsOptions):
    """Parameters of detection."""

    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Least score; the model's default where absent"
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="How many boxes at most; the model's default where absent",
    )
    render: Literal["none", "overlay"] = Field(
        default="none",
        description="'overlay' draws the boxes on the picture; so does an image type in Accept",
    )


class Detection(BaseModel):
    """One object; ``query`` is the number of the decoder's query that found it."""

    label: str
    label_id: int
    score: Rounded
    box: Box
    query: int


class DetectAnswer(Answer):
    """Objects, best first, with boxes in pixels of the upright picture."""

    model_config = example(
        ABOUT_EXAMPLE
        | {
            "model": "detr-scenes",
            "predictions": [
                {
                    "label": "star",
                    "label_id": 3,
                    "score": 0.991204,
                    "box": {"xmin": 40.25, "ymin": 12.5, "xmax": 133.75, "ymax": 101.0},
                    "query": 17,
                }
            ],
        }
    )

    predictions: list[Detection]
