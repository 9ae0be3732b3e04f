"""The front door for clients of Hugging Face: a picture goes to /models/{name}, and the bare array
of its task's schema comes back, so that ``huggingface_hub.InferenceClient`` works unmodified.
"""

import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, get_args

import numpy as np
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import TypeAdapter

from service.api.bodies import by_name, decode_base64, parse_json, parse_options, read_bytes
from service.api.calls import JSON, Call, answer_read
from service.api.openapi import EXAMPLE_PNG, problem_responses
from service.api.schemas.huggingface import (
    Classified,
    ClassifyParameters,
    Detected,
    DetectParameters,
    Info,
    Parameters,
    Pipeline,
    PixelBox,
    Segmented,
    SegmentParameters,
    Transform,
)
from service.api.schemas.segment import SegmentOptions
from service.api.serving import Serving
from service.api.tasks.segment import find_segments, request_of
from service.bundle import Manifest, Task
from service.errors import InvalidBody, InvalidParameter, UnsupportedTask
from service.tasks import classify, detect, masks, segment
from service.tasks.labels import choose_labels
from service.worker.runtimes.base import Array

router = APIRouter()

Rows = list[Detected] | list[Segmented] | list[Classified]


@dataclass(frozen=True)
class _Front:
    """How one of our tasks looks from outside; ``answer`` writes the array."""

    pipeline: Pipeline
    parameters: type[Parameters]
    answer: Callable[[Call, bytes, Any], Awaitable[bytes]]


async def _classify(call: Call, data: bytes, asked: ClassifyParameters) -> bytes:
    top_k = call.manifest.defaults.top_k if asked.top_k is None else asked.top_k
    output, transform = _scores(call.manifest, asked.function_to_apply)
    picture = await call.picture(data)
    result = await call.infer(picture, (output,))
    with call.serving.postprocessing(call.manifest, call.trace):
        scores = transform(result.outputs[output])
        found = classify.answer(call.manifest, scores, top_k, threshold=-np.inf)
        rows = [Classified(label=one.label, score=one.score) for one in found]
        return TypeAdapter(list[Classified]).dump_json(rows)


def _scores(manifest: Manifest, asked: Transform | None) -> tuple[str, Callable[[Array], Array]]:
    """Which output of the graph to read, and what makes scores of it."""
    if asked is None or asked == manifest.activation:
        return "scores", lambda scores: scores
    serving = [graph for graph in manifest.graphs if graph.kind == "serve"]
    if not all(any(tensor.name == "logits" for tensor in graph.outputs) for graph in serving):
        raise InvalidParameter(
            f"function_to_apply={asked!r} needs logits, which this model's graph does not give; "
            f"leave it out, or ask for {manifest.activation!r}",
            parameter="function_to_apply",
        )
    return "logits", _TRANSFORMS[asked]


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max())
    return np.asarray(raised / raised.sum())


def _sigmoid(logits: Array) -> Array:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits))  # which cannot overflow


_TRANSFORMS: dict[Transform, Callable[[Array], Array]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "none": lambda logits: logits,
}


async def _detect(call: Call, data: bytes, asked: DetectParameters) -> bytes:
    manifest = call.manifest
    threshold = manifest.defaults.threshold if asked.threshold is None else asked.threshold
    top_k, every_label = manifest.defaults.top_k, choose_labels(manifest, None)
    picture = await call.picture(data)
    result = await call.infer(picture, detect.OUTPUTS)
    with call.serving.postprocessing(manifest, call.trace):
        found = detect.answer(
            manifest, picture.placement, result.outputs, threshold, top_k, every_label
        )
        rows = []
        for one in found:
            xmin, ymin, xmax, ymax = map(int, one.box)  # cut off, as transformers does it
            box = PixelBox(xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
            rows.append(Detected(label=manifest.labels[one.index].name, score=one.score, box=box))
        return TypeAdapter(list[Detected]).dump_json(rows)


async def _segment(call: Call, data: bytes, asked: SegmentParameters) -> bytes:
    options = SegmentOptions(
        mode=asked.subtask,
        threshold=asked.threshold,
        overlap_threshold=asked.overlap_mask_area_threshold,
    )
    wanted = request_of(call.manifest, options)
    picture = await call.picture(data)
    found, _ = await find_segments(call, picture, wanted)
    return await call.offload(partial(_segments, call.manifest, found))


def _segments(manifest: Manifest, found: segment.Segmentation) -> bytes:
    rows = []
    for one in found.segments:
        left, top, _, _ = one.region.box
        mask = masks.mask_png(one.region.crop, left, top, found.size, depth=8)
        encoded = base64.b64encode(mask).decode()
        label = manifest.labels[one.index].name
        rows.append(Segmented(label=label, score=one.score, mask=encoded))
    return TypeAdapter(list[Segmented]).dump_json(rows)


FRONTS: dict[Task, _Front] = {
    "classify": _Front("image-classification", ClassifyParameters, _classify),
    "detect": _Front("object-detection", DetectParameters, _detect),
    "segment": _Front("image-segmentation", SegmentParameters, _segment),
}


def _describe() -> dict[str, Any]:
    picture = {"schema": {"type": "string", "format": "binary"}}
    example = base64.b64encode(EXAMPLE_PNG).decode()
    parameters = [front.parameters.model_json_schema() for front in FRONTS.values()]
    document = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {"type": "string", "contentEncoding": "base64"},
            "parameters": {"anyOf": parameters},
        },
    }
    content = {
        **dict.fromkeys(("image/jpeg", "image/png", "image/webp"), picture),
        JSON: {"schema": document, "example": {"inputs": example}},
    }
    responses = problem_responses()
    del responses[406]
    responses[200] = {"model": Rows, "description": "Rows, best first"}
    return {
        "responses": responses,
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


@router.post("/models/{name}", **_describe())
async def answer_picture(request: Request, name: str) -> Response:
    """Classes, objects or segments of a picture, in Hugging Face's schema of the first of these
    tasks that the model does.
    """
    serving: Serving = request.state.serving
    return await _answer(request, name, _first_task(serving.named(name)))


@router.post("/models/{name}/pipeline/{pipeline}", **_describe())
async def answer_pipeline(
    request: Request,
    name: str,
    pipeline: Annotated[str, Path(json_schema_extra={"enum": list(get_args(Pipeline))})],
) -> Response:
    """The same for a task by Hugging Face's name, of a model that does several."""
    tasks = {front.pipeline: task for task, front in FRONTS.items()}
    task = next((task for known, task in tasks.items() if known == pipeline), None)
    if task is None:
        raise UnsupportedTask(
            f"there is no pipeline {pipeline!r:.80} here; there are {', '.join(tasks)}",
            allowed=list(tasks),
        )
    return await _answer(request, name, task)


@router.get("/models/{name}/health")
async def health(request: Request, name: str) -> Response:
    """200 when a picture sent now would be run: what ``InferenceClient.health_check`` asks."""
    serving: Serving = request.state.serving
    ready = serving.ready(serving.named(name))
    return JSONResponse({"ready": ready}, 200 if ready else 503)


@router.get("/models/{name}/info")
async def info(request: Request, name: str) -> Info:
    """What serves a model: what ``InferenceClient.get_endpoint_info`` asks."""
    serving: Serving = request.state.serving
    manifest = serving.named(name)
    running = serving.link.state.models.get(name, {})
    pipelines = [FRONTS[task].pipeline for task in manifest.tasks if task in FRONTS]
    return Info(
        model_id=manifest.name,
        model_version=manifest.version,
        model_pipeline_tag=pipelines[0] if pipelines else None,
        model_dtype=running.get("precision"),
        model_device_type=running.get("device"),
        version=version("saccade"),
    )


def _first_task(manifest: Manifest) -> Task:
    task = next((task for task in manifest.tasks if task in FRONTS), None)
    if task is None:
        does = ", ".join(manifest.tasks)
        raise UnsupportedTask(
            f"{manifest.name!r} has no task of Hugging Face's here; under /v1 it can {does}",
            allowed=list(manifest.tasks),
        )
    return task


async def _answer(request: Request, name: str, task: Task) -> Response:
    serving: Serving = request.state.serving
    front = FRONTS[task]
    request.state.trace.task = task  # a refusal counts as a request too
    manifest = serving.find_model(name, task)
    request.state.trace.model = manifest.name

    async def answer(posted: tuple[bytes, dict[str, Any]]) -> Response:
        data, parameters = posted
        asked = parse_options(front.parameters, parameters)
        body = await front.answer(Call.of(request, manifest, timeout_s=None), data, asked)
        return Response(body, media_type=JSON)

    return await answer_read(request, partial(_read, request), answer)


async def _read(request: Request) -> tuple[bytes, dict[str, Any]]:
    """The picture, and parameters by name out of JSON or, with bare bytes, out of the query."""
    body = await read_bytes(request, request.state.serving.settings)
    parameters = by_name(request.query_params.multi_items())
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON:
        document = parse_json(body)
        given = document.get("parameters") if isinstance(document, dict) else None
        if not isinstance(document, dict) or not isinstance(given, dict | None):
            raise InvalidBody("JSON must be an object with 'inputs' (base64) and 'parameters'")
        body, parameters = decode_base64(document.get("inputs")), parameters | (given or {})
    if not body:
        raise InvalidBody(
            "there is no picture; send its bytes, or JSON with 'inputs' in base64 and 'parameters'"
        )
    return body, parameters
