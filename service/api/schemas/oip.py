"""Open Inference Protocol v2: requests and metadata.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md, with Triton's
extensions for binary tensors, classification and schedule policy.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.bundle import Mode

Datatype = Literal["BYTES", "UINT8", "INT32", "FP32"]
State = Literal["READY", "UNAVAILABLE"]


class Strict(BaseModel):
    """A member or parameter that nobody declared is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputParameters(Strict):
    """Parameters of an input."""

    binary_data_size: int | None = Field(
        default=None, ge=0, description="Bytes of the tensor behind the JSON"
    )
    content_type: Literal["base64"] | None = Field(
        default=None, description="What BYTES are in JSON, here always"
    )


class Input(Strict):
    """A tensor that is sent: ``data``, or bytes behind the JSON in the order of the inputs."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=8)
    datatype: str
    parameters: InputParameters = InputParameters()
    data: Any = None


class OutputParameters(Strict):
    """Parameters of an output."""

    binary_data: bool | None = Field(default=None, description="Bytes behind the JSON")
    classification: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="How many classes of 'scores' to name, best first; 0 for the tensor itself",
    )


class Output(Strict):
    """A tensor that is asked for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferParameters(Strict):
    """Parameters of a request; those of segmentation are as in /v1/segment."""

    timeout: int | None = Field(
        default=None, ge=0, description="Microseconds until a 504; 0 is the server's default"
    )
    priority: int = Field(
        default=0, ge=0, le=2**31 - 1, description="1 is the highest; 0 is the default, the lowest"
    )
    binary_data_output: bool = Field(
        default=False, description="Bytes behind the JSON for every output that does not say"
    )
    content_type: str | None = Field(default=None, description="Accepted, and means nothing here")
    mode: Mode | None = None
    threshold: float | None = Field(default=None, ge=0, le=1)
    overlap_threshold: float | None = Field(default=None, ge=0, le=1)


class InferRequest(Strict):
    """An inference request; without ``outputs`` all of them are meant."""

    id: str | None = Field(default=None, max_length=256)
    parameters: InferParameters = InferParameters()
    inputs: list[Input] = Field(min_length=1, max_length=8)
    outputs: list[Output] | None = Field(default=None, max_length=64)


class TensorMetadata(BaseModel):
    """An input or output of a model; -1 is any size."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """What the server is, and which extensions it has."""

    name: str
    version: str
    extensions: list[str]


class ModelReady(BaseModel):
    """Whether a picture sent to the model now would be run."""

    name: str
    ready: bool


class Models(BaseModel):
    """Names of the served models."""

    models: list[str]


class IndexEntry(BaseModel):
    """One model of the repository."""

    name: str
    version: str
    state: State
    reason: str


class Given(BaseModel):
    """A tensor of an answer: ``data``, or bytes behind the JSON in the order of the outputs."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: dict[str, int | str] | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """An inference response."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Given]
