"""Shapes of requests and responses over HTTP; floats carry six digits."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

Answered = TypeVar("Answered", bound=BaseModel)
Rounded = Annotated[float, PlainSerializer(lambda value: round(value, 6))]


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class Options(BaseModel):
    """Parameters that every task takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        default=None, description="Name of a model; the first that does the task where absent"
    )
    timeout_ms: int | None = Field(
        default=None,
        ge=1,
        le=3_600_000,
        description="Milliseconds until a 504; the server's default bounds it",
    )


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


class EmbedOptions(Options):
    """Parameters of embedding."""

    normalize: bool = Field(default=False, description="Divide by the Euclidean norm")


class AttentionOptions(Options):
    """Parameters of attention maps."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # JSON may say "layer": 0

    kind: Literal["raw", "rollout"] = Field(
        default="raw", description="One layer's softmax rows, or the rollout over all layers"
    )
    layer: str = Field(default="last", description="'last', 'all' or a number; raw maps only")
    head: str = Field(default="mean", description="'mean', 'all' or a number; raw maps only")
    query: str = Field(
        default="class",
        description="Token that attends: 'class', 'distillation', 'register:K' or a patch 'Y,X'",
    )


class ImageSize(BaseModel):
    """Pixels of the upright picture."""

    width: int
    height: int


class Answer(BaseModel):
    """What every answer says of itself."""

    model: str
    version: str
    precision: str
    image: ImageSize


class Prediction(BaseModel):
    """One class."""

    label: str
    label_id: int
    score: Rounded


_ABOUT_EXAMPLE = {
    "model": "vit-scenes",
    "version": "1",
    "precision": "bf16",
    "image": {"width": 480, "height": 480},
}


class ClassifyAnswer(Answer):
    """Classes, best first."""

    model_config = _example(
        _ABOUT_EXAMPLE | {"predictions": [{"label": "star", "label_id": 3, "score": 0.983593}]},
    )

    predictions: list[Prediction]


class EmbedAnswer(Answer):
    """A vector for the picture."""

    model_config = _example(_ABOUT_EXAMPLE | {"embedding": [0.12045, -0.731002, 0.044871]})

    embedding: list[Rounded]


class AttentionMap(BaseModel):
    """Weights over the grid of patches, row by row; prefix tokens are left out."""

    kind: Literal["raw", "rollout"]
    layer: int | None
    head: int | Literal["mean"] | None
    query: str
    grid: tuple[int, int]
    values: list[list[Rounded]] | None = None


class Box(BaseModel):
    """Edges in pixels of the upright picture."""

    xmin: Rounded
    ymin: Rounded
    xmax: Rounded
    ymax: Rounded


class Transform(BaseModel):
    """From canvas to picture: ``x = x_canvas * scale[0] + offset[0]``, y likewise; the grid covers
    ``region``.
    """

    canvas: ImageSize
    scale: tuple[Rounded, Rounded]
    offset: tuple[Rounded, Rounded]
    region: Box


class AttentionAnswer(Answer):
    """Maps, and where their grid lies on the picture."""

    model_config = _example(
        _ABOUT_EXAMPLE
        | {
            "maps": [
                {
                    "kind": "raw",
                    "layer": 5,
                    "head": "mean",
                    "query": "class",
                    "grid": [2, 2],
                    "values": [[0.201, 0.017], [0.65, 0.102]],
                }
            ],
            "transform": {
                "canvas": {"width": 128, "height": 128},
                "scale": [3.75, 3.75],
                "offset": [0, 0],
                "region": {"xmin": 0, "ymin": 0, "xmax": 480, "ymax": 480},
            },
        }
    )

    maps: list[AttentionMap]
    transform: Transform


class Problem(BaseModel):
    """An RFC 9457 problem document; further members depend on ``code``."""

    model_config = ConfigDict(extra="allow") | _example(
        {
            "type": "urn:saccade:problem:unknown_model",
            "title": "Not Found",
            "status": 404,
            "detail": "there is no model 'resnet'; served are vit-scenes",
            "instance": "/v1/classify",
            "code": "unknown_model",
            "request_id": "77ab19b0d1a1a4d1",
            "allowed": ["vit-scenes"],
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str


class Results(BaseModel, Generic[Answered]):
    """Answers to several pictures, in order; a picture that failed has a problem document."""

    results: list[Answered | Problem]


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
