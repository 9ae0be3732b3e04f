"""COCO's average precision of boxes and masks, counted by pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
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
_RECALLED = ((0, 1), (0, 10), (0, 100), (1, 100), (2, 100), (3, 100))
"""The range of areas, and how many detections of a picture and class, of each of its recalls."""
_RECALLS = np.linspace(0, 1, 101)


def load_truth(document: Row) -> COCO:
    """An annotation file as pycocotools indexes it.

    Truth may leave out ``iscrowd``, and ``bbox`` and ``area`` where the other or a mask says them.
    Annotations are numbered anew: one with the id 0 would never count as found.
    """
    sizes = {row["id"]: (row.get("height"), row.get("width")) for row in document["images"]}
    annotations = []
    for number, row in enumerate(document["annotations"], 1):
        made = with_box(row, *sizes[row["image_id"]])
        annotations.append({"iscrowd": 0} | made | {"id": number})
    return _index(document | {"annotations": annotations})


def with_box(row: Row, height: int, width: int) -> Row:
    """An annotation with ``bbox`` and ``area``, of its mask where it has not said them.

    Raises:
        ValueError: the mask that should say them is none.
    """
    made = dict(row)
    if "bbox" not in made or ("area" not in made and made.get("segmentation")):
        encoded = encode(made["segmentation"], height, width)
        made.setdefault("bbox", run_lengths.toBbox(encoded).tolist())
        made.setdefault("area", float(run_lengths.area(encoded)))
    made.setdefault("area", made["bbox"][2] * made["bbox"][3])
    return made


def encode(segmentation: Any, height: int, width: int) -> Row:
    """Compressed run lengths of a mask in any of COCO's spellings: polygons, run lengths as numbers
    or compressed.

    Raises:
        ValueError: it is none of them, or of another size.
    """
    if isinstance(segmentation, list) and segmentation:
        # The first says to pycocotools that they are polygons; short ones cover nothing.
        polygons = sorted(segmentation, key=len, reverse=True)
        if len(polygons[0]) < 6 or not all(isinstance(one, list) for one in polygons):
            raise ValueError("a polygon is a list of x, y, x, y, ... of at least three points")
        return dict(run_lengths.merge(run_lengths.frPyObjects(polygons, height, width)))
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
    packed = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    if (pixels := _pixels(packed)) != height * width:
        raise ValueError(f"its counts add up to {pixels}, not to the picture's pixels")
    return {"size": size, "counts": packed}


def _pixels(counts: bytes) -> int:
    """The sum of compressed run lengths: five bits a letter, the lowest first, and from the fourth
    run on the difference to the last but one (pycocotools, ``rleFrString``).
    """
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        value |= (letter - 48 & 31) << shift
        shift += 5
        if letter - 48 & 32:
            continue
        if letter - 48 & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return sum(runs) if min(runs, default=0) >= 0 else -1


def compress(mask: NDArray[np.bool_]) -> Row:
    """Compressed run lengths of a mask (H, W), as JSON holds them."""
    found = run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


@dataclass(frozen=True)
class AveragePrecision:
    """What was counted over all pictures; figures are in 0..1, -1 where there is nothing to find.

    ``matches`` holds what a resample needs: for each range of areas one entry a class.
    """

    figures: dict[str, float]
    per_class: dict[int, dict[str, float]]
    matches: list[list["Matches"]]

    def resampled(self, weights: NDArray[np.float64]) -> dict[str, float]:
        """COCO's twelve where picture i in order of the ids was drawn ``weights[i]`` times; NaN
        where there is nothing to find in those that were.
        """
        by_size = [_mean([one.precision(weights) for one in kinds]) for kinds in self.matches]
        everything = by_size[0]  # (10,), IoU from 0.5 to 0.95
        values = [everything.mean(), everything[0], everything[5]]
        values += [precision.mean() for precision in by_size[1:]]
        for size, most in _RECALLED:
            values.append(_mean([one.recall(weights, most) for one in self.matches[size]]).mean())
        return {name: float(value) for name, value in zip(NAMES, values, strict=True)}


@dataclass(frozen=True)
class Matches:
    """Detections of one class, best first, at every IoU (10, D): whether they are right and whether
    they are wrong, for some count as neither; of each (D,) the picture and the rank in it from 0
    on, and how many there are to find (N,) in each picture.
    """

    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    picture: NDArray[np.int64]
    rank: NDArray[np.int64]
    to_find: NDArray[np.float64]

    def precision(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Average precision (10,); None where there is nothing to find."""
        to_find = float(self.to_find @ weights)
        if to_find == 0:
            return None
        weight = weights[self.picture]
        right = np.cumsum(self.right * weight, axis=1)
        wrong = np.cumsum(self.wrong * weight, axis=1)
        share = right / np.maximum(right + wrong, np.spacing(1))
        envelope = np.maximum.accumulate(share[:, ::-1], axis=1)[:, ::-1]
        means = []
        for recall, precision in zip(right / to_find, envelope, strict=True):
            places = np.searchsorted(recall, _RECALLS, side="left")
            means.append(precision[places[places < len(precision)]].sum() / len(_RECALLS))
        return np.array(means)

    def recall(self, weights: NDArray[np.float64], most: int) -> NDArray[np.float64] | None:
        """Recall (), the mean over the IoUs, of the ``most`` best detections in each picture; None
        where there is nothing to find.
        """
        to_find = float(self.to_find @ weights)
        if to_find == 0:
            return None
        weight = weights[self.picture] * (self.rank < most)
        return np.asarray(self._hits @ weight / to_find)

    @cached_property
    def _hits(self) -> NDArray[np.float64]:  # (D,)
        return self.right.mean(axis=0)


def _mean(values: Sequence[NDArray[np.float64] | None]) -> NDArray[np.float64]:
    """Over the classes that there are; NaN (10,) without any."""
    there = [value for value in values if value is not None]
    return np.asarray(np.mean(there, axis=0)) if there else np.full(10, np.nan)


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


def _matches(evaluation: COCOeval) -> list[list[Matches]]:
    """Out of what pycocotools matched, picture by picture, in each range of areas."""
    settings, everything = evaluation.params, evaluation.evalImgs
    images, areas = len(settings.imgIds), len(settings.areaRng)
    return [
        [
            _matches_of(everything[start : start + images], settings.maxDets[-1])
            for place in range(len(settings.catIds))
            for start in [(place * areas + area) * images]
        ]
        for area in range(areas)
    ]


def _matches_of(pictures: Sequence[Row | None], most: int) -> Matches:
    to_find = np.zeros(len(pictures))
    matched, ignored = [np.zeros((10, 0), dtype=bool)], [np.zeros((10, 0), dtype=bool)]
    scores, places = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    ranks = [np.zeros(0, dtype=np.int64)]
    for place, one in enumerate(pictures):
        if one is None:
            continue
        to_find[place] = np.sum(np.asarray(one["gtIgnore"]) == 0)
        matched.append(one["dtMatches"][:, :most] > 0)
        ignored.append(one["dtIgnore"][:, :most].astype(bool))
        scores.append(np.asarray(one["dtScores"][:most], dtype=np.float64))
        places.append(np.full(len(scores[-1]), place))
        ranks.append(np.arange(len(scores[-1])))
    right = np.concatenate(matched, axis=1) & ~np.concatenate(ignored, axis=1)
    wrong = ~np.concatenate(matched, axis=1) & ~np.concatenate(ignored, axis=1)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    order = order[(right | wrong).any(axis=0)[order]]  # of one size most count as neither
    return Matches(
        right[:, order],
        wrong[:, order],
        np.concatenate(places)[order],
        np.concatenate(ranks)[order],
        to_find,
    )
