"""POST /v1/attention: JSON, an array (application/x-npy) or an overlay (image/png)."""

import io
import json
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api.calls import JSON, Call, answer_all
from service.api.negotiation import choose_media_type
from service.api.openapi import describe
from service.api.schemas.attention import (
    AttentionAnswer,
    AttentionMap,
    AttentionOptions,
    Transform,
)
from service.api.schemas.base import Box, ImageSize
from service.api.serving import Picture
from service.bundle import GraphKind
from service.errors import InvalidParameter
from service.geometry import Placement
from service.tasks import attention, render

router = APIRouter()

PNG, NPY = "image/png", "application/x-npy"


@router.post("/v1/attention", **describe(AttentionOptions, AttentionAnswer, (PNG, NPY)))
async def attention_maps(request: Request) -> Response:
    """What a token attended to: JSON, an array (application/x-npy) or an overlay (image/png)."""
    request.state.trace.task = "attention"  # a refusal counts as a request too
    media_type = choose_media_type(request.headers.get("accept"), (JSON, NPY, PNG))
    if media_type == JSON:
        return await answer_all(request, "attention", AttentionOptions, _attention)
    return await answer_all(
        request, "attention", AttentionOptions, partial(_attention_file, media_type=media_type)
    )


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
