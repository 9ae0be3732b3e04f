"""The routes that answer pictures: classify, embed, attention."""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from service.api.bodies import Posted, parse_options, read_body
from service.api.negotiation import choose_media_type
from service.api.openapi import describe
from service.api.problems import count_rejection, problem_of
from service.api.schemas import (
    Answer,
    AttentionAnswer,
    AttentionMap,
    AttentionOptions,
    Box,
    ClassifyAnswer,
    ClassifyOptions,
    EmbedAnswer,
    EmbedOptions,
    ImageSize,
    Options,
    Prediction,
    Transform,
)
from service.api.serving import Picture, Serving
from service.bundle import GraphKind, Manifest, Task
from service.errors import InvalidBody, InvalidParameter, ServiceError
from service.geometry import Placement
from service.tasks import attention, classify, render
from service.tracing import Trace

router = APIRouter()

Asked = TypeVar("Asked", bound=Options)
JSON, PNG, NPY = "application/json", "image/png", "application/x-npy"
CLIENT_LEFT = 499  # nobody reads it; the log and the metrics do


class Call:
    """One request on its way: who asks what of which model, until when."""

    def __init__(
        self, serving: Serving, manifest: Manifest, trace: Trace, timeout_s: float
    ) -> None:
        self.serving = serving
        self.manifest = manifest
        self.trace = trace
        self.deadline_s = trace.started_s + timeout_s

    async def picture(self, data: bytes, keep_upright: bool = False) -> Picture:
        """Decode and place one picture."""
        return await self.serving.prepare(
            data, self.manifest, self.deadline_s, self.trace, keep_upright
        )

    def about(self, picture: Picture, precision: str) -> dict[str, Any]:
        """The members that every answer has."""
        return {
            "model": self.manifest.name,
            "version": self.manifest.version,
            "precision": precision,
            "image": ImageSize(
                width=picture.placement.image.width, height=picture.placement.image.height
            ),
        }


@router.post("/v1/classify", **describe(ClassifyOptions, ClassifyAnswer))
async def classify_images(request: Request) -> Response:
    """Classes of one or many pictures, best first."""
    return await _answer_all(request, "classify", ClassifyOptions, _classify)


@router.post("/v1/embed", **describe(EmbedOptions, EmbedAnswer))
async def embed_images(request: Request) -> Response:
    """A vector for each picture: what the model's head would read."""
    return await _answer_all(request, "embed", EmbedOptions, _embed)


@router.post("/v1/attention", **describe(AttentionOptions, AttentionAnswer, (PNG, NPY)))
async def attention_maps(request: Request) -> Response:
    """What a token attended to: JSON, an array (application/x-npy) or an overlay (image/png)."""
    request.state.trace.task = "attention"  # a refusal counts as a request too
    media_type = choose_media_type(request.headers.get("accept"), (JSON, NPY, PNG))
    if media_type == JSON:
        return await _answer_all(request, "attention", AttentionOptions, _attention)
    return await _answer_all(
        request, "attention", AttentionOptions, partial(_attention_file, media_type=media_type)
    )


async def _classify(call: Call, data: bytes, options: ClassifyOptions) -> ClassifyAnswer:
    defaults = call.manifest.defaults
    picture = await call.picture(data)
    result = await call.serving.infer(picture, call.manifest, call.deadline_s, call.trace)
    top_k = defaults.top_k if options.top_k is None else options.top_k
    threshold = defaults.threshold if options.threshold is None else options.threshold
    with call.serving.postprocessing(call.manifest, call.trace):
        found = classify.answer(call.manifest, result.outputs["scores"], top_k, threshold)
        predictions = [Prediction(**vars(prediction)) for prediction in found]
        return ClassifyAnswer(**call.about(picture, result.precision), predictions=predictions)


async def _embed(call: Call, data: bytes, options: EmbedOptions) -> EmbedAnswer:
    picture = await call.picture(data)
    result = await call.serving.infer(picture, call.manifest, call.deadline_s, call.trace)
    with call.serving.postprocessing(call.manifest, call.trace):
        vector = result.outputs["embedding"].astype(np.float64)
        if options.normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return EmbedAnswer(**call.about(picture, result.precision), embedding=vector.tolist())


async def _attention(call: Call, data: bytes, options: AttentionOptions) -> AttentionAnswer:
    _, maps, answer = await _explain(call, data, options)
    with call.serving.postprocessing(call.manifest, call.trace):
        for shown, found in zip(answer.maps, maps, strict=True):
            shown.values = found.values.astype(np.float64).tolist()
    return answer


async def _attention_file(
    call: Call, data: bytes, options: AttentionOptions, media_type: str
) -> Response:
    picture, maps, answer = await _explain(call, data, options, keep_upright=media_type == PNG)
    if media_type == PNG and len(maps) > 1:
        raise InvalidParameter(
            f"an overlay shows one map, and {len(maps)} were asked for; "
            "choose one layer and one head, or ask for application/json or application/x-npy",
            parameter="head" if options.head == "all" else "layer",
        )
    values = np.stack([found.values for found in maps])
    if picture.upright is not None:
        region = picture.placement.region
        encode = partial(render.overlay_png, picture.upright, values[0], region)
    else:
        encode = partial(_npy, values)
    body = await call.serving.offload(call.manifest, call.trace, encode)
    return Response(body, media_type=media_type, headers={"X-Saccade-Answer": _summary(answer)})


async def _explain(
    call: Call, data: bytes, options: AttentionOptions, keep_upright: bool = False
) -> tuple[Picture, list[attention.Map], AttentionAnswer]:
    """The picture, its maps, and the answer that describes them, still without their values."""
    explain = call.manifest.explain
    assert explain is not None  # the bundle's loader checks that the task comes with it
    ignored = sorted({"layer", "head"} & options.model_fields_set)
    if options.kind == "rollout" and ignored:
        raise InvalidParameter(
            f"kind 'rollout' is over all layers and heads; leave out {' and '.join(ignored)}",
            parameters=ignored,
        )
    picture = await call.picture(data, keep_upright)
    canvas = picture.placement.canvas
    selection = attention.select(
        explain, canvas, options.kind, options.layer, options.head, options.query
    )
    graph: GraphKind = "serve"
    extra = None
    if selection.needs_explain(explain):
        graph, extra = "explain", {"query": np.asarray(selection.query, dtype=np.int64)}
    result = await call.serving.infer(
        picture, call.manifest, call.deadline_s, call.trace, graph, extra
    )
    maps = attention.answer(explain, canvas, result.outputs, selection)
    shown = [
        AttentionMap(
            kind=options.kind,
            layer=found.layer,
            head=found.head,
            query=options.query,
            grid=found.values.shape,
        )
        for found in maps
    ]
    answer = AttentionAnswer(
        **call.about(picture, result.precision), maps=shown, transform=_transform(picture.placement)
    )
    return picture, maps, answer


def _summary(answer: AttentionAnswer) -> str:
    """The answer in short, as proxies bound headers: what its maps share, once.

    The maps of an array are in the order of ``layers``, and within a layer of ``heads``.
    """
    first = answer.maps[0]
    shared = {
        "kind": first.kind,
        "query": first.query,
        "grid": first.grid,
        "layers": list(dict.fromkeys(shown.layer for shown in answer.maps)),
        "heads": list(dict.fromkeys(shown.head for shown in answer.maps)),
    }
    return json.dumps(answer.model_dump(mode="json", exclude={"maps"}) | shared)


def _transform(placement: Placement) -> Transform:
    xmin, ymin, xmax, ymax = placement.region
    return Transform(
        canvas=ImageSize(width=placement.canvas.width, height=placement.canvas.height),
        scale=(placement.scale_x, placement.scale_y),
        offset=(placement.offset_x, placement.offset_y),
        region=Box(xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax),
    )


def _npy(values: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


async def _answer_all(
    request: Request,
    task: Task,
    kind: type[Asked],
    answer_one: Callable[[Call, bytes, Asked], Awaitable[Answer | Response]],
) -> Response:
    """Read the request, answer each of its pictures at once, and shape the response."""
    serving: Serving = request.state.serving
    trace: Trace = request.state.trace
    trace.task = task
    async with serving.admitted():
        try:
            posted = await read_body(request, serving.settings)
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        options = parse_options(kind, posted.parameters)
        manifest = serving.find_model(options.model, task)
        trace.model = manifest.name
        timeout_s = serving.settings.timeout_s
        if options.timeout_ms is not None:
            timeout_s = min(timeout_s, options.timeout_ms / 1000)
        call = Call(serving, manifest, trace, timeout_s)
        work = _answer_posted(request, posted, partial(answer_one, call), options)
        return await _unless_disconnected(request, work)


async def _answer_posted(
    request: Request,
    posted: Posted,
    answer_one: Callable[[bytes, Asked], Awaitable[Answer | Response]],
    options: Asked,
) -> Response:
    if not posted.many:
        answer = await answer_one(posted.images[0], options)
        return answer if isinstance(answer, Response) else _json(_dump(answer))
    answers = await asyncio.gather(
        *(answer_one(data, options) for data in posted.images), return_exceptions=True
    )
    results = []
    for found in answers:
        if isinstance(found, ServiceError):
            count_rejection(found, request)
            results.append(json.dumps(problem_of(found, request)))
        elif isinstance(found, BaseException):
            raise found
        elif isinstance(found, Response):
            raise InvalidBody("a picture or an array answers one picture; ask for application/json")
        else:
            results.append(_dump(found))
    return _json('{"results":[' + ",".join(results) + "]}")


def _dump(answer: Answer) -> str:
    return answer.model_dump_json(exclude_none=True)


def _json(body: str) -> Response:
    return Response(body, media_type=JSON)


async def _unless_disconnected(request: Request, work: Awaitable[Response]) -> Response:
    """Give up the work as soon as the client has left."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return Response(status_code=CLIENT_LEFT)
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
