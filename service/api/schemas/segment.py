"""Segmentation."""

from typing import Literal

from pydantic import BaseModel, Field

from service.api.schemas.base import ABOUT_EXAMPLE, Answer, LabelsOptions, Rounded, example
from service.bundle import Detail, Mode

MaskFormat = Literal["none", "png", "rle", "polygon"]


class SegmentOptions(LabelsOptions):
    """Parameters of segmentation."""

    mode: Mode | None = Field(
        default=None, description="What to make of the masks; the model's first mode where absent"
    )
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least score of a segment; the model's default where absent. A semantic map "
        "has no scores",
    )
    overlap_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Least share of its mask that a panoptic segment must keep against others; the "
        "model's default where absent. DETR's authors know none",
    )
    detail: Detail | None = Field(
        default=None,
        description="'exact' decides every pixel of the picture as the model's authors do, 'fast' "
        "decides at the resolution of the masks; the model's default where absent",
    )
    mask_format: MaskFormat | None = Field(
        default=None,
        description="What 'mask' holds: a 1-bit PNG in base64, COCO's compressed run lengths, or "
        "COCO's polygons; 'rle' for instances where absent, else 'none'",
    )
    segment_map: bool | None = Field(
        default=None,
        description="Whether to send the map of ids; true where absent and masks are disjoint",
    )
    render: Literal["none", "overlay"] = Field(
        default="none",
        description="'overlay' draws the segments on the picture, in an image type of Accept",
    )


class RunLengths(BaseModel):
    """COCO's compressed run lengths; ``size`` is height and width."""

    size: tuple[int, int]
    counts: str


class Segment(BaseModel):
    """One segment; ``area`` in pixels, ``bbox`` x, y, width, height in pixels of the upright
    picture, ``query`` the number of the decoder's query. A class of a semantic map has no score
    and no query.
    """

    id: int
    label: str
    label_id: int
    score: Rounded | None = None
    area: int
    bbox: tuple[int, int, int, int]
    isthing: bool | None = None
    query: int | None = None
    mask: str | RunLengths | list[list[float]] | None = None


class SegmentAnswer(Answer):
    """Segments, best first (of a semantic map largest first), and the map of their ids.

    ``segment_map`` is a PNG in base64 in COCO's panoptic coding: id = R + 256 G + 65536 B, 0 is
    void, and every other id is listed once.
    """

    model_config = example(
        ABOUT_EXAMPLE
        | {
            "model": "mask2former-scenes",
            "mode": "panoptic",
            "detail": "exact",
            "segments": [
                {
                    "id": 1,
                    "label": "star",
                    "label_id": 3,
                    "score": 0.991204,
                    "area": 5120,
                    "bbox": [40, 12, 94, 89],
                    "isthing": True,
                    "query": 17,
                    "mask": {"size": [480, 480], "counts": "oZ1:g>0000000O1000"},
                }
            ],
            "segment_map": "iVBORw0KGgo...",
        }
    )

    mode: Mode
    detail: Detail
    segments: list[Segment]
    segment_map: str | None = None
