"""Panoptic quality and average precision of answers about scenes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.demo.scenes import CLASSES, THINGS
from service.evaluate import panoptic
from service.evaluate.average_precision import Row, load_truth, measure
from service.evaluate.categories import Category
from service.evaluate.panoptic import Segment


class PanopticQuality:
    """PQ, SQ and RQ of segments whose classes are named, as ``saccade evaluate`` counts them."""

    def __init__(self) -> None:
        self._quality = panoptic.PanopticQuality(
            [Category(number, name, name in THINGS) for number, name in enumerate(CLASSES)]
        )

    def add(
        self,
        true_ids: NDArray[np.integer],
        true_labels: Sequence[str],
        found_ids: NDArray[np.integer],
        found_labels: Sequence[str],
    ) -> None:
        """Note one answer: segment ids of every pixel (H, W) in truth and answer, and the class of
        the ids from 1 on; an id of 0 is no segment.
        """
        truth, found = (
            [Segment(number, CLASSES.index(label)) for number, label in enumerate(labels, 1)]
            for labels in (true_labels, found_labels)
        )
        self._quality.add(true_ids, truth, found_ids, found)

    def figures(self) -> dict[str, float]:
        """PQ, SQ and RQ in 0..1."""
        figures = self._quality.figures()
        return {name: figures[name] for name in ("PQ", "SQ", "RQ")}


@dataclass(frozen=True)
class Detections:
    """What a detector says of one picture: scores (T,), classes (T,) as indices of labels, and
    boxes (T, 4) as x0, y0, x1, y1 in pixels.
    """

    scores: NDArray[np.floating]
    classes: NDArray[np.integer]
    boxes_xyxy_px: NDArray[np.floating]


@dataclass(frozen=True)
class BoxTruth:
    """The things of one picture: its size (height, width), classes (n,) and boxes (n, 4)."""

    size: tuple[int, int]
    classes: NDArray[np.integer]
    boxes_xyxy_px: NDArray[np.floating]


def average_precision(
    truth: Sequence[BoxTruth], found: Sequence[Detections], labels: Sequence[str] = THINGS
) -> dict[str, float]:
    """AP over IoU 0.5 to 0.95 and AP50, in 0..1, as COCO's own code counts them."""
    reference = load_truth(_coco(truth, labels))
    figures = measure(reference, _rows(found), "bbox").figures
    return {"AP50": figures["AP50"], "AP": figures["AP"]}


def _coco(truth: Sequence[BoxTruth], labels: Sequence[str]) -> Row:
    annotations: list[dict[str, object]] = []
    for image_id, one in enumerate(truth, 1):
        for kind, (x0, y0, x1, y1) in zip(one.classes, one.boxes_xyxy_px.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(kind) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": image_id, "height": one.size[0], "width": one.size[1]}
            for image_id, one in enumerate(truth, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(labels, 1)],
        "annotations": annotations,
    }


def _rows(found: Sequence[Detections]) -> list[Row]:
    """COCO's results, whose boxes are x, y, width, height."""
    rows = []
    for image_id, one in enumerate(found, 1):
        low, high = one.boxes_xyxy_px[:, :2], one.boxes_xyxy_px[:, 2:]
        boxes = np.concatenate([low, high - low], axis=1).tolist()
        for score, kind, box in zip(one.scores.tolist(), one.classes.tolist(), boxes, strict=True):
            row = {"image_id": image_id, "category_id": kind + 1, "bbox": box, "score": score}
            rows.append(row)
    return rows
