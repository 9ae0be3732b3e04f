"""POST /v1/detect."""

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service.api.calls import JSON, Call, Work, answer_planned
from service.api.files import JPEG, PNG, WEBP, picture_response
from service.api.negotiation import accepted, choose_media_type
from service.api.openapi import describe
from service.api.schemas.base import Box
from service.api.schemas.detect import DetectAnswer, Detection, DetectOptions
from service.pictures import Picture
from service.tasks import detect
from service.tasks.labels import choose_labels
from service.tasks.overlay import Shown, boxes_overlay

router = APIRouter()

PICTURES = (PNG, JPEG, WEBP)


@router.post("/v1/detect", **describe(DetectOptions, DetectAnswer, PICTURES))
async def detect_objects(request: Request) -> Response:
    """Objects with boxes: JSON, or drawn on the picture (image/png, image/jpeg, image/webp)."""
    request.state.trace.task = "detect"  # a refusal counts as a request too
    choose_media_type(accepted(request.headers), (JSON, *PICTURES))
    return await answer_planned(request, "detect", DetectOptions, _plan)


def _plan(call: Call, options: DetectOptions) -> Work:
    offered = PICTURES if options.render == "overlay" else (JSON, *PICTURES)
    media_type = call.media_type(offered)
    labels = choose_labels(call.manifest, options.labels)
    if media_type == JSON:
        return partial(_json, call, options, labels)
    return partial(_overlay, call, options, labels, media_type)


async def _json(
    call: Call, options: DetectOptions, labels: frozenset[int], data: bytes
) -> DetectAnswer:
    picture = await call.picture(data)
    return (await _detect(call, picture, options, labels))[1]


async def _overlay(
    call: Call, options: DetectOptions, labels: frozenset[int], media_type: str, data: bytes
) -> Response:
    picture = await call.picture(data, keep_upright=True)
    assert picture.upright is not None
    found, answer = await _detect(call, picture, options, labels)
    shown = [Shown(one.index, one.score, one.box) for one in found]
    draw = partial(boxes_overlay, picture.upright, shown, call.manifest.labels, media_type)
    body = await call.offload(draw)
    return picture_response(body, media_type, answer, "predictions")


async def _detect(
    call: Call, picture: Picture, options: DetectOptions, labels: frozenset[int]
) -> tuple[list[detect.Detection], DetectAnswer]:
    defaults = call.manifest.defaults
    threshold = defaults.threshold if options.threshold is None else options.threshold
    top_k = defaults.top_k if options.top_k is None else options.top_k
    result = await call.infer(picture, detect.OUTPUTS)
    with call.serving.postprocessing(call.manifest, call.trace):
        found = detect.answer(
            call.manifest, picture.placement, result.outputs, threshold, top_k, labels
        )
        predictions = []
        for one in found:
            label, (xmin, ymin, xmax, ymax) = call.manifest.labels[one.index], one.box
            box = Box(xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
            predictions.append(
                Detection(
                    label=label.name, label_id=label.id, score=one.score, box=box, query=one.query
                )
            )
        return found, DetectAnswer(**call.about(picture, result.precision), predictions=predictions)
