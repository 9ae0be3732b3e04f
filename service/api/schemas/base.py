"""What the requests and answers of all tasks share."""

from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from service.tasks.labels import MOST_CHARACTERS, MOST_WORDS

Answered = TypeVar("Answered", bound=BaseModel)
Rounded = Annotated[float, PlainSerializer(lambda value: round(value, 6))]

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
"""A deadline beside the parameters, for gateways and client libraries that set it on every request.
There is no standard one; this name is the most used, and says its unit. It is time left and not a
time of day, so that clocks need not agree.
"""
MOST_TIMEOUT_MS = 3_600_000

ABOUT_EXAMPLE = {
    "model": "vit-scenes",
    "version": "1",
    "precision": "bf16",
    "image": {"width": 480, "height": 480},
}


def example(value: dict[str, Any]) -> ConfigDict:
    """A configuration that shows ``value`` in the documentation."""
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
        le=MOST_TIMEOUT_MS,
        description="Milliseconds until a 504; the server's default bounds it",
    )


class LabelsOptions(Options):
    """Parameters of tasks that find objects of several classes."""

    labels: (
        Annotated[str, Field(max_length=MOST_CHARACTERS)]
        | Annotated[list[str | int], Field(max_length=MOST_WORDS)]
        | None
    ) = Field(
        default=None,
        description="Only these classes: names or ids, separated by commas or as a JSON list",
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


class Box(BaseModel):
    """Edges in pixels of the upright picture."""

    xmin: Rounded
    ymin: Rounded
    xmax: Rounded
    ymax: Rounded


class Problem(BaseModel):
    """An RFC 9457 problem document; further members depend on ``code``."""

    model_config = ConfigDict(extra="allow") | example(
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
