"""Classification."""

from pydantic import BaseModel, Field

from service.api.schemas.base import ABOUT_EXAMPLE, Answer, Options, Rounded, example


class ClassifyOptions(Options):
    """Parameters of classification."""

    top_k: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="How many classes; the model's default where absent",
    )
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Least score; the model's default where absent"
    )


class Prediction(BaseModel):
    """One class."""

    label: str
    label_id: int
    score: Rounded


class ClassifyAnswer(Answer):
    """Classes, best first."""

    model_config = example(
        ABOUT_EXAMPLE | {"predictions": [{"label": "star", "label_id": 3, "score": 0.983593}]},
    )

    predictions: list[Prediction]
