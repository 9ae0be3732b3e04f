"""Segmentation: what the graph gives, merged at the resolution of the picture, as numbered segments
with their measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.bundle import Detail, Manifest, Mode
from service.geometry import Placement, Size
from service.tasks.framing import Frame, Merging
from service.tasks.instances import Instance, draw_instances, merge_instances
from service.tasks.laying import lay_instances, lay_panoptic, lay_semantic
from service.tasks.masks import Crop
from service.tasks.merging import merge_panoptic, merge_semantic
from service.tasks.runs import Runs
from service.worker.runtimes.base import Array, Arrays

_OUTPUTS: dict[Mode, tuple[str, ...]] = {
    "panoptic": ("panoptic_map", "panoptic_classes", "panoptic_scores"),
    "instance": ("instance_masks", "instance_classes", "instance_scores", "instance_queries"),
    "semantic": ("semantic_map",),
}


@dataclass(frozen=True)
class Request:
    """What is asked for; ``labels`` are indices of the labels that count."""

    mode: Mode
    detail: Detail
    threshold: float
    overlap_threshold: float
    labels: frozenset[int]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The graph outputs that the answer is made of."""
        return _OUTPUTS[self.mode] if self.detail == "fast" else ("logits", "masks")


@dataclass(frozen=True)
class Region:
    """A part of the picture: ``values`` (H, W) equal ``value`` there, or are bits of a mask (H,
    W/8) where there is no ``value``. ``box`` is the smallest that holds it, x, y, width, height.
    """

    box: tuple[int, int, int, int]
    area: int
    values: Array
    value: int | None

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """The box as xyxy."""
        left, top, width, height = self.box
        return left, top, left + width, top + height

    @property
    def crop(self) -> Crop:
        """The mask inside ``box``, made anew at every call."""
        left, top, width, height = self.box
        rows = self.values[top : top + height]
        if self.value is None:
            rows = np.unpackbits(rows, axis=1, count=left + width)
            return rows[:, left:].astype(bool)
        return np.asarray(rows[:, left : left + width] == self.value)


@dataclass(frozen=True)
class Segment:
    """One row of an answer: ``index`` of its label; a class of a semantic map has no score and no
    query.
    """

    id: int
    index: int
    region: Region
    score: float | None = None
    query: int | None = None


@dataclass(frozen=True)
class Segmentation:
    """All rows, ids from 1 on, and where masks are disjoint the map of ids (H, W), 0 for void."""

    size: Size
    segments: list[Segment]
    ids: NDArray[np.uint16] | None


@dataclass(frozen=True)
class _Row:
    index: int
    score: float | None = None
    query: int | None = None


def has_id_map(manifest: Manifest, mode: Mode) -> bool:
    """Whether masks are disjoint: all but the instances of the reference are."""
    return mode != "instance" or manifest.profile == "hf"


def answer(
    manifest: Manifest, placement: Placement, outputs: Arrays, request: Request
) -> Segmentation:
    """Segments of one picture from its graph outputs.

    Panoptic segments and instances come best first, the classes of a semantic map by their area.
    Pixels of labels that were not asked for are void.
    """
    frame, merging = Frame.of(placement), Merging.of(manifest)
    raw = (outputs["logits"], outputs["masks"]) if request.detail == "exact" else ()
    limits = request.threshold, request.overlap_threshold
    named = (outputs[name] for name in request.outputs)
    if request.mode == "instance" and raw and has_id_map(manifest, request.mode):
        found = draw_instances(merging, frame, *raw, *limits)
        drawn, rows = found.ids, [_Row(r.class_index, r.score, r.query) for r in found.rows]
    elif request.mode == "instance":
        if raw:
            instances = merge_instances(merging, frame, *raw, *limits)
        else:
            instances = lay_instances(frame, *named)
        if not has_id_map(manifest, request.mode):
            return _overlapping(placement.image, instances, request.labels)
        drawn = np.zeros(frame.picture, dtype=np.uint16)
        for number, instance in enumerate(instances, 1):
            drawn[instance.mask] = number
        rows = [_Row(one.class_index, one.score, one.query) for one in instances]
    elif request.mode == "semantic":
        classes = merge_semantic(merging, frame, *raw) if raw else lay_semantic(frame, *named)
        drawn, rows = classes + np.uint16(1), [_Row(i) for i in range(len(manifest.labels))]
    else:
        found = (
            merge_panoptic(merging, frame, *raw, *limits) if raw else lay_panoptic(frame, *named)
        )
        drawn, rows = found.ids, [_Row(r.class_index, r.score, r.query) for r in found.rows]
    return _disjoint(placement.image, drawn, rows, request.labels)


def _overlapping(size: Size, instances: Sequence[Instance], labels: frozenset[int]) -> Segmentation:
    segments: list[Segment] = []
    for one in instances:
        if one.class_index in labels:
            region = _region_of_bits(one)
            number = len(segments) + 1
            segments.append(Segment(number, one.class_index, region, one.score, one.query))
    return Segmentation(size, segments, None)


def _disjoint(
    size: Size, drawn: NDArray[np.uint16], rows: Sequence[_Row], labels: frozenset[int]
) -> Segmentation:
    """Number anew what is ``drawn`` (H, W) as row + 1: what was asked for, and the best first."""
    runs = Runs.of(drawn)
    areas, boxes = (found(len(rows) + 1)[1:].tolist() for found in (runs.areas, runs.boxes))
    kept = [i for i, row in enumerate(rows) if row.index in labels and areas[i] > 0]
    scores = (row.score for row in rows)
    ranks = [area if score is None else score for area, score in zip(areas, scores, strict=True)]
    kept.sort(key=lambda i: -ranks[i])
    table = np.zeros(len(rows) + 1, dtype=np.uint16)
    table[np.array(kept, dtype=int) + 1] = np.arange(1, len(kept) + 1)
    ids = runs.renumbered(table).drawn()
    segments = []
    for number, i in enumerate(kept, 1):
        region = Region(tuple(boxes[i]), areas[i], ids, number)
        segments.append(Segment(number, rows[i].index, region, rows[i].score, rows[i].query))
    return Segmentation(size, segments, ids)


def _box(across: Array, down: Array) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is where a column (W,) and a row (H,) are not zero."""
    (left, right), (top, bottom) = (
        np.flatnonzero(side)[[0, -1]].tolist() for side in (across, down)
    )
    return left, top, right - left + 1, bottom - top + 1


def _region_of_bits(instance: Instance) -> Region:
    bits = instance.bits
    across = np.unpackbits(np.bitwise_or.reduce(bits, axis=0), count=instance.width)
    box = _box(across, np.bitwise_or.reduce(bits, axis=1))
    return Region(box, int(np.bitwise_count(bits).sum()), bits, None)
