"""The routes of the Open Inference Protocol v2, for ``tritonclient`` and others that speak it."""

import asyncio
import base64
from functools import partial
from importlib.metadata import version as release_of
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service.api.bodies import read_bytes
from service.api.calls import JSON, Call, answer_read
from service.api.oip.codec import HEADER, INPUT, Asked, decompress, read_request, write_response
from service.api.oip.outputs import Found, Wanted, answer_one, catalogue, join
from service.api.openapi import EXAMPLE_PNG, problem_responses, schema_of
from service.api.schemas.oip import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    Models,
    ServerMetadata,
    TensorMetadata,
)
from service.api.serving import Serving
from service.bundle import Manifest
from service.errors import ServiceError, UnknownModel
from service.worker.runtimes.base import Array

router = APIRouter(prefix="/v2")

EXTENSIONS = ["binary_tensor_data", "classification", "schedule_policy", "model_repository"]
BINARY = "application/octet-stream"
_LONG_BYTES = 2**20  # that many take so long to parse that others would wait for it
_PLATFORM = "onnx_onnxv1"  # the format of the graphs, as the specification spells platforms


def _describe() -> dict[str, Any]:
    example = {
        "inputs": [
            {
                "name": INPUT,
                "datatype": "BYTES",
                "shape": [1],
                "data": [base64.b64encode(EXAMPLE_PNG).decode()],
            }
        ]
    }
    header = {
        "name": HEADER,
        "in": "header",
        "required": False,
        "description": "Bytes of the JSON in front of binary tensors; 0: the body is one picture",
        "schema": {"type": "integer", "minimum": 0},
    }
    responses = problem_responses()
    del responses[406]
    responses[200] = {
        "model": InferResponse,
        "description": "The outputs, those that were asked for as binary behind the JSON",
        "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
    }
    content = {
        JSON: {"schema": schema_of(InferRequest), "example": example},
        BINARY: {"schema": {"type": "string", "format": "binary"}},
    }
    return {
        "responses": responses,
        "openapi_extra": {
            "parameters": [header],
            "requestBody": {"required": True, "content": content},
        },
    }


@router.get("")
async def server_metadata() -> ServerMetadata:
    """Name, release and extensions of the server."""
    return ServerMetadata(name="saccade", version=release_of("saccade"), extensions=EXTENSIONS)


@router.get("/models")
async def list_models(request: Request) -> Models:
    """Names of the served models."""
    serving: Serving = request.state.serving
    return Models(models=list(serving.manifests))


@router.get("/models/{name}")
@router.get("/models/{name}/versions/{version}")
async def model_metadata(request: Request, name: str, version: str | None = None) -> ModelMetadata:
    """What a model takes and gives; labels and all else are in /v1/models/{name}."""
    manifest = _find(request, name, version)
    return ModelMetadata(
        name=manifest.name,
        versions=[manifest.version],
        platform=_PLATFORM,
        inputs=[TensorMetadata(name=INPUT, datatype="BYTES", shape=[-1])],
        outputs=list(catalogue(manifest).values()),
    )


@router.get("/models/{name}/ready")
@router.get("/models/{name}/versions/{version}/ready")
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    """200 when a picture sent to the model now would be run."""
    serving: Serving = request.state.serving
    ready = serving.ready(_find(request, name, version))
    body = ModelReady(name=name, ready=ready)
    return JSONResponse(body.model_dump(), 200 if ready else 503)


@router.post("/models/{name}/infer", **_describe())
async def infer(request: Request, name: str) -> Response:
    """Outputs of one or many pictures, as tensors."""
    return await _infer(request, _find(request, name))


@router.post("/models/{name}/versions/{version}/infer", **_describe())
async def infer_version(request: Request, name: str, version: str) -> Response:
    """The same, and 404 unless that version is served."""
    return await _infer(request, _find(request, name, version))


def _find(request: Request, name: str, version: str | None = None) -> Manifest:
    serving: Serving = request.state.serving
    manifest = serving.named(name)
    if version not in (None, manifest.version):
        raise UnknownModel(
            f"there is no version {version!r:.80} of {name!r}; served is {manifest.version!r}",
            allowed=[manifest.version],
        )
    return manifest


async def _infer(request: Request, manifest: Manifest) -> Response:
    # Known before the body is read, so that a refusal counts as a request to the model too.
    request.state.trace.task, request.state.trace.model = manifest.tasks[0], manifest.name
    return await answer_read(request, partial(_read, request), partial(_answer, request, manifest))


async def _read(request: Request) -> Asked:
    settings = request.state.serving.settings
    body = await read_bytes(request, settings)
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        size = len(body)
        body = await asyncio.to_thread(decompress, body, encoding, settings.max_body_bytes)
        request.state.hold_bytes(len(body) - size)
    read = partial(read_request, body, request.headers.get(HEADER), settings.max_images)
    return await asyncio.to_thread(read) if len(body) > _LONG_BYTES else read()


async def _answer(request: Request, manifest: Manifest, asked: Asked) -> Response:
    parameters, outputs = asked.request.parameters, asked.request.outputs or []
    wanted = Wanted.of(manifest, asked.request)
    request.state.trace.priority = parameters.priority
    timeout_s = parameters.timeout / 1e6 if parameters.timeout else None
    call = Call.of(request, manifest, timeout_s)
    tensors = join(manifest, wanted, await _answer_all(call, asked.pictures, wanted))
    chosen = {one.name: one.parameters.binary_data for one in outputs}
    binary = [
        parameters.binary_data_output if (own := chosen.get(tensor.name)) is None else own
        for tensor in tensors
    ]
    write = partial(
        write_response,
        manifest.name,
        manifest.version,
        asked.request.id,
        list(zip(tensors, binary, strict=True)),
    )
    body, header_length = write() if all(binary) else await call.offload(write)
    if header_length is None:
        return Response(body, media_type=JSON)
    return Response(body, media_type=BINARY, headers={HEADER: str(header_length)})


async def _answer_all(
    call: Call, pictures: list[bytes] | list[Array], wanted: Wanted
) -> list[Found]:
    """The outputs of every picture; the protocol knows no answer of which a part failed."""
    answers = await asyncio.gather(
        *(answer_one(call, picture, wanted) for picture in pictures), return_exceptions=True
    )
    found = []
    for place, answer in enumerate(answers):
        if isinstance(answer, BaseException):
            if isinstance(answer, ServiceError) and len(pictures) > 1:
                answer.facts["picture"] = place
            raise answer
        found.append(answer)
    return found
