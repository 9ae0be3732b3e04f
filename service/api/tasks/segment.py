"""POST /v1/segment."""

import base64
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from PIL import Image

from service.api.calls import JSON, Call, Work, answer_planned, dump
from service.api.files import JPEG, MIXED, PNG, WEBP, mixed_response, picture_response
from service.api.negotiation import accepted, choose_media_type
from service.api.openapi import describe
from service.api.schemas.segment import (
    MaskFormat,
    RunLengths,
    Segment,
    SegmentAnswer,
    SegmentOptions,
)
from service.bundle import Manifest, Mode, Segmentation
from service.errors import InvalidParameter, NotAcceptable
from service.geometry import Size
from service.pictures import Picture
from service.tasks import masks, segment
from service.tasks.labels import choose_labels
from service.tasks.overlay import Shown, masks_overlay

router = APIRouter()

PICTURES = (PNG, JPEG, WEBP)


@router.post("/v1/segment", **describe(SegmentOptions, SegmentAnswer, (*PICTURES, MIXED)))
async def segment_images(request: Request) -> Response:
    """Segments with masks: JSON, the map of ids as image/png, or with render=overlay the picture
    with the masks drawn on it; multipart/mixed is the picture and the JSON.
    """
    request.state.trace.task = "segment"  # a refusal counts as a request too
    choose_media_type(accepted(request.headers), (JSON, *PICTURES, MIXED))
    return await answer_planned(request, "segment", SegmentOptions, _plan)


@dataclass(frozen=True)
class _Plan:
    """What to make of a picture: the ``media_type`` is JSON, that of a picture (an ``overlay`` or
    the map of ids), or multipart/mixed.
    """

    asked: segment.Request
    media_type: str
    overlay: bool
    mask_format: MaskFormat
    segment_map: bool


def _plan(call: Call, options: SegmentOptions) -> Work:
    asked = request_of(call.manifest, options)
    has_map = segment.has_id_map(call.manifest, asked.mode)
    media_type = _media_type(call, options, asked.mode, has_map)
    if options.segment_map and not has_map:
        raise InvalidParameter(
            f"segment_map: masks of mode {asked.mode!r} may overlap, so that they have no map; "
            "leave it out, and choose a mask_format",
            parameter="segment_map",
        )
    wants_map = has_map and media_type == JSON
    mask_format = options.mask_format or ("rle" if asked.mode == "instance" else "none")
    plan = _Plan(
        asked,
        media_type,
        overlay=options.render == "overlay",
        mask_format="none" if media_type in PICTURES else mask_format,
        segment_map=wants_map if options.segment_map is None else options.segment_map,
    )
    return partial(_answer, call, plan)


def request_of(manifest: Manifest, options: SegmentOptions) -> segment.Request:
    """What the options ask for, with the model's defaults for what they leave open.

    Raises:
        InvalidParameter: the model has no such mode or label.
    """
    defaults = manifest.segmentation
    assert defaults is not None  # the bundle's loader checks that the task comes with it
    mode = _mode(defaults, options.mode)
    threshold, overlap = options.threshold, options.overlap_threshold
    if threshold is None:
        threshold = defaults.instance_threshold if mode == "instance" else defaults.threshold
    return segment.Request(
        mode=mode,
        detail=options.detail or defaults.detail,
        threshold=threshold,
        overlap_threshold=defaults.overlap_threshold if overlap is None else overlap,
        labels=choose_labels(manifest, options.labels),
    )


def _mode(defaults: Segmentation, mode: Mode | None) -> Mode:
    if mode is None:
        return defaults.modes[0]
    if mode not in defaults.modes:
        raise InvalidParameter(
            f"mode={mode!r} is not available; this model has {', '.join(defaults.modes)}",
            parameter="mode",
            allowed=list(defaults.modes),
        )
    return mode


def _media_type(call: Call, options: SegmentOptions, mode: Mode, has_map: bool) -> str:
    """What to answer with; a picture alone has no room for what goes into JSON."""
    if options.render == "overlay":
        offered = [*PICTURES, MIXED]
    else:
        offered = [JSON, PNG, MIXED] if has_map else [JSON]
    try:
        media_type = call.media_type(offered)
    except NotAcceptable as error:
        hint = f"render=overlay offers pictures of mode {mode!r}"
        if options.render == "overlay":
            hint = "without render=overlay there is application/json"
        raise NotAcceptable(f"{error}; {hint}", **error.facts) from None
    for name in ("mask_format", "segment_map"):
        if media_type in PICTURES and getattr(options, name) not in (None, "none", False):
            raise InvalidParameter(
                f"{name}: an answer in {media_type} has no place for it; ask for application/json "
                "or multipart/mixed",
                parameter=name,
            )
    return media_type


async def _answer(call: Call, plan: _Plan, data: bytes) -> str | Response:
    manifest, asked = call.manifest, plan.asked
    picture = await call.picture(data, keep_upright=plan.overlay)
    found, precision = await find_segments(call, picture, asked)
    about = call.about(picture, precision)
    return await call.offload(partial(_encoded, manifest, plan, picture.upright, found, about))


async def find_segments(
    call: Call, picture: Picture, asked: segment.Request
) -> tuple[segment.Segmentation, str]:
    """What a picture shows, and the precision that it was found in."""
    limits = {
        "threshold": np.array(asked.threshold, dtype=np.float32),
        "overlap_threshold": np.array(asked.overlap_threshold, dtype=np.float32),
    }
    result = await call.infer(picture, asked.outputs, limits)
    merge = partial(segment.answer, call.manifest, picture.placement, result.outputs, asked)
    return await call.offload(merge, "postprocess"), result.precision


def _encoded(
    manifest: Manifest,
    plan: _Plan,
    upright: Image.Image | None,
    found: segment.Segmentation,
    about: dict[str, Any],
) -> str | Response:
    """JSON, the picture described by a header, or both in parts."""
    id_map = None
    if found.ids is not None and (plan.segment_map or (plan.media_type != JSON and not upright)):
        id_map = masks.id_map_png(found.ids)
    answer = SegmentAnswer(
        **about,
        mode=plan.asked.mode,
        detail=plan.asked.detail,
        segments=[_row(manifest, plan, found.size, one) for one in found.segments],
        segment_map=base64.b64encode(id_map).decode() if id_map and plan.segment_map else None,
    )
    if plan.media_type == JSON:
        return dump(answer)
    picture_type = PNG if plan.media_type == MIXED else plan.media_type
    shown = id_map if upright is None else _overlay(manifest, upright, found, picture_type)
    assert shown is not None  # a picture is offered of what has a map, or as an overlay
    if plan.media_type == MIXED:
        return mixed_response(shown, PNG, dump(answer))
    return picture_response(shown, picture_type, answer, "segments")


def _overlay(
    manifest: Manifest, upright: Image.Image, found: segment.Segmentation, media_type: str
) -> bytes:
    shown = [Shown(one.index, one.score, one.region.edges, one.region) for one in found.segments]
    return masks_overlay(upright, shown, manifest.labels, media_type)


def _row(manifest: Manifest, plan: _Plan, size: Size, found: segment.Segment) -> Segment:
    label = manifest.labels[found.index]
    return Segment(
        id=found.id,
        label=label.name,
        label_id=label.id,
        score=found.score,
        area=found.region.area,
        bbox=found.region.box,
        isthing=label.isthing,
        query=found.query,
        mask=_mask(plan.mask_format, found.region, size),
    )


def _mask(
    mask_format: MaskFormat, region: segment.Region, size: Size
) -> str | RunLengths | list[list[float]] | None:
    if mask_format == "none":
        return None
    crop, (left, top, _, _) = region.crop, region.box
    if mask_format == "png":
        return base64.b64encode(masks.mask_png(crop, left, top, size)).decode()
    if mask_format == "rle":
        return RunLengths(**masks.run_lengths(crop, left, top, size))
    return masks.polygons(crop, left, top)
