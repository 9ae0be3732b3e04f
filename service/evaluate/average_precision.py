"""COCO's average precision of boxes and masks, counted by pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

Kind = Literal["bbox", "segm"]
Row = dict[str, Any]
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve figures, in the order of its summary."""
_RECALLS = np.linspace(0, 1, 101)


def load_truth(document: Row) -> COCO:
    """An annotation file as pycocotools indexes it.

    Truth may leave out ``iscrowd``, and ``bbox`` and ``area`` where the other or a mask says them.
    Annotations are numbered anew: one with the id 0 would never count as found.
    """
    sizes = {row["id"]: (row.get("height"), row.get("width")) for row in document["images"]}
    annotations = []
    for number, row in enumerate(document["annotations"], 1):
        made = {"iscrowd": 0} | row | {"id": number}
        if "bbox" not in made or ("area" not in made and made.get("segmentation")):
            encoded = encode(made["segmentation"], *sizes[row["image_id"]])
            made.setdefault("bbox", run_lengths.toBbox(encoded).tolist())
            made.setdefault("area", float(run_lengths.area(encoded)))
        made.setdefault("area", made["bbox"][2] * made["bbox"][3])
        annotations.append(made)
    return _index(document | {"annotations": annotations})


def encode(segmentation: Any, height: int, width: int) -> Row:
    """Compressed run lengths of a mask in any of COCO's spellings: polygons, run lengths as numbers
    or compressed.

    Raises:
        ValueError: it is none of them, or of another size.
    """
    if isinstance(segmentation, list) and segmentation:
        return dict(run_lengths.merge(run_lengths.frPyObjects(segmentation, height, width)))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("it is neither a list of polygons nor run lengths with size and counts")
    size = [int(side) for side in segmentation["size"]]
    if size != [height, width]:
        raise ValueError(f"its size is {size[1]}x{size[0]}, its picture's {width}x{height}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise ValueError(f"its counts add up to {sum(counts)}, not to the picture's pixels")
        return dict(run_lengths.frPyObjects({"size": size, "counts": counts}, height, width))
    return {"size": size, "counts": counts}


def compress(mask: NDArray[np.bool_]) -> Row:
    """Compressed run lengths of a mask (H, W), as JSON holds them."""
    found = run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


@dataclass(frozen=True)
class AveragePrecision:
    """What was counted over all pictures; figures are in 0..1, -1 where there is nothing to find.

    ``matches`` holds what a resample needs, one entry a class.
    """

    figures: dict[str, float]
    per_class: dict[int, dict[str, float]]
    matches: list["Matches"]

    def resampled(self, weights: NDArray[np.float64]) -> dict[str, float]:
        """AP, AP50 and AP75 where picture i in order of the ids was drawn ``weights[i]`` times."""
        curves = [one.precision(weights) for one in self.matches]
        means = [curve for curve in curves if curve is not None]
        if not means:
            return {"AP": -1.0, "AP50": -1.0, "AP75": -1.0}
        by_iou = np.mean(means, axis=0)  # (10,), IoU from 0.5 to 0.95
        return {"AP": float(by_iou.mean()), "AP50": float(by_iou[0]), "AP75": float(by_iou[5])}


@dataclass(frozen=True)
class Matches:
    """Detections of one class, best first, at every IoU (10, D): whether they are right and whether
    they count at all; the picture (D,) of each, and how many there are to find (N,) in each.
    """

    right: NDArray[np.bool_]
    counts: NDArray[np.bool_]
    picture: NDArray[np.int64]
    to_find: NDArray[np.float64]

    def precision(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Average precision (10,); None where there is nothing to find."""
        to_find = float(self.to_find @ weights)
        if to_find == 0:
            return None
        weight = weights[self.picture]
        right = np.cumsum((self.right & self.counts) * weight, axis=1)
        wrong = np.cumsum((~self.right & self.counts) * weight, axis=1)
        share = right / np.maximum(right + wrong, np.spacing(1))
        envelope = np.maximum.accumulate(share[:, ::-1], axis=1)[:, ::-1]
        means = []
        for recall, precision in zip(right / to_find, envelope, strict=True):
            places = np.searchsorted(recall, _RECALLS, side="left")
            means.append(precision[places[places < len(precision)]].sum() / len(_RECALLS))
        return np.array(means)


def measure(
    truth: COCO, rows: Sequence[Row], kind: Kind, image_ids: Iterable[int] | None = None
) -> AveragePrecision:
    """Score rows of COCO's results format against all pictures of the truth, or some of them."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools speaks to a terminal
        evaluation = COCOeval(truth, _answers(truth, rows, kind), kind)
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return AveragePrecision(
        figures={name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=True)},
        per_class=_per_class(evaluation),
        matches=_matches(evaluation),
    )


def _answers(truth: COCO, rows: Sequence[Row], kind: Kind) -> COCO:
    """What ``COCO.loadRes`` makes of result rows, also where there are none."""
    annotations = []
    for number, row in enumerate(rows, 1):
        made = row | {"id": number, "iscrowd": 0}
        if kind == "segm":
            made["area"] = float(run_lengths.area(row["segmentation"]))
            made.setdefault("bbox", run_lengths.toBbox(row["segmentation"]).tolist())
        else:
            made["area"] = row["bbox"][2] * row["bbox"][3]
        annotations.append(made)
    dataset = truth.dataset
    return _index(
        {name: dataset[name] for name in ("images", "categories")} | {"annotations": annotations}
    )


def _index(document: Row) -> COCO:
    indexed = COCO()
    indexed.dataset = document
    with contextlib.redirect_stdout(io.StringIO()):
        indexed.createIndex()
    return indexed


def _per_class(evaluation: COCOeval) -> dict[int, dict[str, float]]:
    """AP and AP50 of every class by id, -1 where there is nothing to find of it."""
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (10, 101, K) of all sizes
    return {
        category_id: {"AP": float(values.mean()), "AP50": float(values[0].mean())}
        for category_id, values in zip(
            evaluation.params.catIds, np.moveaxis(precision, -1, 0), strict=True
        )
    }


def _matches(evaluation: COCOeval) -> list[Matches]:
    """Out of what pycocotools matched of all sizes, picture by picture."""
    settings, everything = evaluation.params, evaluation.evalImgs
    images, areas = len(settings.imgIds), len(settings.areaRng)
    found = []
    for place in range(len(settings.catIds)):
        start = place * areas * images  # the first area range is that of all sizes
        found.append(_matches_of(everything[start : start + images], settings.maxDets[-1]))
    return found


def _matches_of(pictures: Sequence[Row | None], most: int) -> Matches:
    to_find = np.zeros(len(pictures))
    right, ignored, scores, places = [], [], [], []
    for place, one in enumerate(pictures):
        if one is None:
            continue
        to_find[place] = np.sum(np.asarray(one["gtIgnore"]) == 0)
        right.append(one["dtMatches"][:, :most] > 0)
        ignored.append(one["dtIgnore"][:, :most].astype(bool))
        scores.append(np.asarray(one["dtScores"][:most], dtype=np.float64))
        places.append(np.full(len(scores[-1]), place))
    if not scores:
        none = np.zeros((10, 0), dtype=bool)
        return Matches(none, none, np.zeros(0, dtype=np.int64), to_find)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    return Matches(
        np.concatenate(right, axis=1)[:, order],
        ~np.concatenate(ignored, axis=1)[:, order],
        np.concatenate(places)[order],
        to_find,
    )
