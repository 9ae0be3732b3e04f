"""Panoptic quality and average precision of answers about scenes."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.demo.scenes import THINGS


@dataclass
class _Tally:
    """Counts of one class."""

    iou_sum: float = 0.0
    found: int = 0
    missed: int = 0
    invented: int = 0


@dataclass
class PanopticQuality:
    """PQ, SQ and RQ (Kirillov et al. 2019, arXiv 1801.00868, section 4), means over the classes.

    Every pixel of the truth belongs to a segment, so that the rules about void do not apply.
    """

    _tallies: dict[str, _Tally] = field(default_factory=dict)

    def add(
        self,
        true_ids: NDArray[np.integer],
        true_labels: Sequence[str],
        found_ids: NDArray[np.integer],
        found_labels: Sequence[str],
    ) -> None:
        """Note one answer: segment ids of every pixel (H, W) in truth and answer, and the class of
        the ids from 1 on; an answer's 0 is no segment.

        Segments match where they have one class and an IoU above 0.5.
        """
        rows, columns = len(true_labels) + 1, len(found_labels) + 1
        joint = true_ids.astype(np.int64) * columns + found_ids
        shared = np.bincount(joint.ravel(), minlength=rows * columns).reshape(rows, columns)
        union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0) - shared
        ious = shared / np.maximum(union, 1)
        kinds = np.array(["", *found_labels])
        invented = (shared.sum(axis=0) > 0) & (np.arange(columns) > 0)
        for true_id, label in enumerate(true_labels, 1):
            same = np.flatnonzero((kinds == label) & (ious[true_id] > 0.5))
            tally = self._tally(label)
            tally.found += len(same)
            tally.missed += 1 - len(same)
            tally.iou_sum += float(ious[true_id, same].sum())
            invented[same] = False
        for label in kinds[invented]:
            self._tally(str(label)).invented += 1

    def figures(self) -> dict[str, float]:
        """PQ, SQ and RQ in 0..1."""
        segmentation, recognition, panoptic = [], [], []
        for tally in self._tallies.values():
            weight = tally.found + 0.5 * (tally.missed + tally.invented)
            panoptic.append(tally.iou_sum / weight)
            recognition.append(tally.found / weight)
            segmentation.append(tally.iou_sum / max(tally.found, 1))
        means = (float(np.mean(values)) for values in (panoptic, segmentation, recognition))
        return dict(zip(("PQ", "SQ", "RQ"), means, strict=True))

    def _tally(self, label: str) -> _Tally:
        return self._tallies.setdefault(label, _Tally())


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
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = _coco(truth, labels)
        reference.createIndex()
        answers = reference.loadRes(_rows(found))
        evaluation = COCOeval(reference, answers, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP50": float(evaluation.stats[1]), "AP": float(evaluation.stats[0])}


def _coco(truth: Sequence[BoxTruth], labels: Sequence[str]) -> dict[str, list[dict[str, object]]]:
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


def _rows(found: Sequence[Detections]) -> NDArray[np.float64]:
    """As loadRes takes them: image id, x, y, width, height, score, category id (n, 7)."""
    rows = []
    for image_id, one in enumerate(found, 1):
        low, high = one.boxes_xyxy_px[:, :2], one.boxes_xyxy_px[:, 2:]
        columns = [np.full((len(one.scores), 1), image_id), low, high - low]
        columns += [one.scores[:, None], one.classes[:, None] + 1]
        rows.append(np.concatenate(columns, axis=1))
    return np.concatenate(rows)
