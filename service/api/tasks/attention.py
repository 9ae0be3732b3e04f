"""POST /v1/attention: JSON, an array (application/x-npy) or an overlay (image/png)."""

import io
import json
from functools import partial

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api.calls import JSON, Call, answer_all, dump
from service.api.files import ANSWER_HEADER, PNG
from service.api.negotiation import accepted, choose_media_type
from service.api.openapi import describe
from service.api.schemas.attention import (
    AttentionAnswer,
    AttentionMap,
    AttentionOptions,
    Explained,
    Point,
    Transform,
)
from service.api.schemas.base import Box, ImageSize
from service.bundle import GraphKind
from service.errors import InvalidParameter
from service.geometry import Placement
from service.pictures import Picture
from service.tasks import attention, queries, render
from service.tasks.attention import Region
from service.tasks.detect import boxes_on_picture

router = APIRouter()

NPY = "application/x-npy"


@router.post("/v1/attention", **describe(AttentionOptions, AttentionAnswer, (PNG, NPY)))
async def attention_maps(request: Request) -> Response:
    """What a token, place, object or class looked at: JSON, an array (application/x-npy) or an
    overlay (image/png).
    """
    request.state.trace.task = "attention"  # a refusal counts as a request too
    media_type = choose_media_type(accepted(request.headers), (JSON, NPY, PNG))
    if media_type == JSON:
        return await answer_all(request, "attention", AttentionOptions, _attention)
    return await answer_all(
        request, "attention", AttentionOptions, partial(_attention_file, media_type=media_type)
    )


async def _attention(call: Call, data: bytes, options: AttentionOptions) -> str:
    _, maps, answer = await _explain(call, data, options)
    return await call.offload(partial(_document, maps, answer))


async def _attention_file(
    call: Call, data: bytes, options: AttentionOptions, media_type: str
) -> Response:
    picture, maps, answer = await _explain(call, data, options, keep_upright=media_type == PNG)
    if picture.upright is not None:
        if len(maps) > 1:
            raise InvalidParameter(
                f"an overlay shows one map, and {len(maps)} were asked for; "
                "choose one layer and one head, or ask for application/json or application/x-npy",
                parameter="head" if options.head == "all" else "layer",
            )
        seen = np.maximum(maps[0].values, 0)  # a class activation map is signed
        encode = partial(render.overlay_png, picture.upright, seen, maps[0].region)
    else:
        _check_one_grid(maps)
        encode = partial(_npy, maps)
    body = await call.offload(encode)
    return Response(body, media_type=media_type, headers={ANSWER_HEADER: _summary(answer)})


def _document(maps: list[attention.Map], answer: AttentionAnswer) -> str:
    """The answer with the values of its maps, of which there may be many thousands."""
    for shown, found in zip(answer.maps, maps, strict=True):
        shown.values = found.values.astype(np.float64).tolist()
    return dump(answer)


def _check_one_grid(maps: list[attention.Map]) -> None:
    grids = dict.fromkeys(found.values.shape for found in maps)
    if len(grids) > 1:
        listed = ", ".join(f"{rows}x{columns}" for rows, columns in grids)
        raise InvalidParameter(
            f"an array holds maps of one grid, and the chosen layers have {listed}; "
            "choose one layer, or ask for application/json",
            parameter="layer",
        )


async def _explain(
    call: Call, data: bytes, options: AttentionOptions, keep_upright: bool = False
) -> tuple[Picture, list[attention.Map], AttentionAnswer]:
    """The picture, its maps, and the answer that describes them, still without their values."""
    manifest, explain = call.manifest, call.manifest.explain
    assert explain is not None  # the bundle's loader checks that the task comes with it
    selection = attention.select(explain, options.kind, options.layer, options.head)
    picture = await call.picture(data, keep_upright)
    placement = picture.placement
    question = queries.read_question(selection, manifest, placement, options.query, options.point)
    served = selection.served(question.query)
    kind: GraphKind = "serve" if served else "explain"
    graph = manifest.graph(kind, placement.canvas, "fp32")
    wanted = selection.outputs(served, {tensor.name for tensor in graph.outputs} if graph else ())
    result = await call.serving.infer(
        picture, manifest, call.deadline_s, call.trace, kind, question.inputs(), wanted
    )
    found = queries.read_found(selection, manifest, result.outputs, question)
    maps = attention.answer(selection, placement, result.outputs, served)
    region = attention.seen_region(placement)
    answer = AttentionAnswer(
        **call.about(picture, result.precision),
        explained=_explained(question, found, placement),
        maps=[
            AttentionMap(
                kind=selection.kind.name,
                layer=one.layer,
                head=one.head,
                query=question.name(selection.kind.layers[one.layer or 0], placement, found),
                grid=one.values.shape,
                region=None if one.region == region else _edges(one.region),
            )
            for one in maps
        ],
        transform=_transform(placement),
    )
    return picture, maps, answer


def _explained(
    question: queries.Question, found: queries.Object | None, placement: Placement
) -> Explained | None:
    if question.point is not None:
        return Explained(point=Point(x=question.point.x, y=question.point.y))
    if found is None:
        return None
    box = None if found.box is None else boxes_on_picture(np.array([found.box]), placement)[0]
    return Explained(
        query=found.query,
        label=found.label.name,
        label_id=found.label.id,
        score=found.score,
        box=None if box is None else _edges((*map(float, box),)),  # type: ignore[arg-type]
    )


def _edges(region: Region) -> Box:
    xmin, ymin, xmax, ymax = region
    return Box(xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)


def _summary(answer: AttentionAnswer) -> str:
    """The answer in short, as proxies bound headers: what its maps share, once.

    The maps of an array are in the order of ``layers``, and within a layer of ``heads``.
    """
    first = answer.maps[0].model_dump(mode="json", exclude={"values"}, exclude_none=True)
    shared = {name: first[name] for name in ("kind", "query", "grid", "region") if name in first}
    chosen = {
        "layers": list(dict.fromkeys(shown.layer for shown in answer.maps)),
        "heads": list(dict.fromkeys(shown.head for shown in answer.maps)),
    }
    described = answer.model_dump(mode="json", exclude={"maps"}, exclude_none=True)
    return json.dumps(described | shared | chosen)


def _transform(placement: Placement) -> Transform:
    return Transform(
        canvas=ImageSize(width=placement.canvas.width, height=placement.canvas.height),
        scale=(placement.scale_x, placement.scale_y),
        offset=(placement.offset_x, placement.offset_y),
        region=_edges(attention.seen_region(placement)),
    )


def _npy(maps: list[attention.Map]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.stack([found.values for found in maps]), allow_pickle=False)
    return file.getvalue()
