"""What turns answers of the HTTP interface into scores, for each kind of data."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from saccade_client.masks import read_id_map
from saccade_client.results import Detections, Segmentation
from service.evaluate import average_precision
from service.evaluate.annotations import without_mask
from service.evaluate.average_precision import AveragePrecision
from service.evaluate.bootstrap import RESAMPLES, Figures, Weights
from service.evaluate.categories import Matching
from service.evaluate.datasets import Dataset
from service.evaluate.panoptic import PanopticQuality, Segment
from service.evaluate.semantic import VOID, MeanIou, read_classes

Answer = dict[str, Any]
Measure = Callable[[Weights], Figures]
PerClass = dict[int, dict[str, float]]


class OtherSize(Exception):
    """An answer is about a picture of another size than its truth."""


class Scores(Protocol):
    """What was counted. ``headline`` names the figure that is looked at first."""

    headline: str
    resamples: int

    def figures(self) -> Figures:
        """All figures in 0..1."""

    def per_class(self) -> PerClass:
        """Figures of every class by its id; -1 where there is nothing to say."""

    def measure(self) -> Measure:
        """Figures of a resample of the pictures."""


class Scorer(Scores, Protocol):
    """Hears one answer after another; None is one that failed, and counts as finding nothing."""

    def add(self, name: str, answer: Answer | None) -> None:
        """Note the answer to the picture of that name; raises OtherSize, having noted nothing."""

    def running(self) -> float | None:
        """The headline figure so far; None where it is not at hand."""


def scorer_of(dataset: Dataset, matching: Matching, task: str) -> Scorer:
    """What scores the answers to ``task`` about this data."""
    if dataset.kind in ("imagenet", "folder"):
        return Classified(dataset, matching)
    if dataset.kind == "coco":
        masks = task == "segment" and not without_mask(dataset.document)
        return Found(dataset, matching, masks)
    if dataset.kind == "coco-panoptic":
        return Panoptic(dataset, matching)
    return Semantic(dataset, matching)


class Classified:
    """Share of pictures whose class comes first, and is among the first five."""

    headline = "top-1"
    resamples = RESAMPLES

    def __init__(self, dataset: Dataset, matching: Matching) -> None:
        self._truth, self._category_ids = dataset.truth, matching.category_ids
        self._kinds = [category.id for category in dataset.categories]
        self._hits: list[tuple[bool, bool]] = []
        self._true: list[int] = []
        self._right = 0

    def add(self, name: str, answer: Answer | None) -> None:
        rows = answer["predictions"][:5] if answer else []
        said = [self._category_ids.get(row["label_id"]) for row in rows]
        true = self._truth[name]
        self._hits.append((true in said[:1], true in said))
        self._right += true in said[:1]
        self._true.append(true)

    def running(self) -> float | None:
        return self._right / max(len(self._hits), 1)

    def figures(self) -> Figures:
        return self.measure()(np.ones(len(self._hits)))

    def per_class(self) -> PerClass:
        hits, true = np.array(self._hits, dtype=float), np.array(self._true)
        seen = set(self._true)
        nothing = np.array([-1.0, -1.0])
        return {
            kind: _tops(hits[true == kind].mean(axis=0) if kind in seen else nothing)
            for kind in self._kinds
        }

    def measure(self) -> Measure:
        hits = np.array(self._hits, dtype=float)
        return lambda weights: _tops(weights @ hits / weights.sum())


class FoundScores:
    """COCO's figures of masks and boxes; those that are counted first make the headline."""

    resamples = 200  # each sorts all detections anew

    def __init__(self, counted: dict[average_precision.Kind, AveragePrecision]) -> None:
        self.headline = f"{next(iter(counted))} AP"
        self._counted = counted

    def figures(self) -> Figures:
        return {
            f"{kind} {name}": value
            for kind, counted in self._counted.items()
            for name, value in counted.figures.items()
        }

    def per_class(self) -> PerClass:
        rows: PerClass = {}
        for kind, counted in self._counted.items():
            for category_id, values in counted.per_class.items():
                named = {f"{kind} {name}": value for name, value in values.items()}
                rows[category_id] = rows.get(category_id, {}) | named
        return rows

    def measure(self) -> Measure:
        def resampled(weights: Weights) -> Figures:
            return {
                f"{kind} {name}": value
                for kind, one in self._counted.items()
                for name, value in one.resampled(weights).items()
            }

        return resampled


class Found:
    """COCO's figures of boxes, and of masks where there are any."""

    resamples = FoundScores.resamples

    def __init__(self, dataset: Dataset, matching: Matching, masks: bool) -> None:
        self._rows: list[dict[str, Any]] = []
        self._images, self._category_ids = dataset.truth, matching.category_ids
        self._ids: list[int] = []
        self._truth = average_precision.load_truth(dataset.document)
        self._kinds: list[average_precision.Kind] = ["segm", "bbox"] if masks else ["bbox"]
        self.headline = f"{self._kinds[0]} AP"
        self._running: float | None = None
        self._scored: tuple[int, FoundScores] | None = None

    def add(self, name: str, answer: Answer | None) -> None:
        image = self._images[name]
        if answer is not None:
            _compare_size(answer, (image["height"], image["width"]))
            found = Segmentation.of(answer) if "segments" in answer else Detections.of(answer)
            for row in found.to_coco(image["id"]):
                if row["category_id"] in self._category_ids:
                    category_id = self._category_ids[row["category_id"]]
                    self._rows.append(row | {"category_id": category_id})
        self._ids.append(image["id"])

    def running(self) -> float | None:
        """Counted whenever the number of pictures has doubled: it takes longer each time."""
        count = len(self._ids)
        if count >= 32 and count & (count - 1) == 0:
            self._running = self._measured(self._kinds[0]).figures["AP"]
        return self._running

    def figures(self) -> Figures:
        return self._scores().figures()

    def per_class(self) -> PerClass:
        return self._scores().per_class()

    def measure(self) -> Measure:
        return self._scores().measure()

    def _scores(self) -> FoundScores:
        if self._scored is None or self._scored[0] != len(self._ids):
            counted = {kind: self._measured(kind) for kind in self._kinds}
            self._scored = len(self._ids), FoundScores(counted)
        return self._scored[1]

    def _measured(self, kind: average_precision.Kind) -> AveragePrecision:
        return average_precision.measure(self._truth, self._rows, kind, self._ids)


class PanopticScores:
    """Panoptic quality."""

    headline = "PQ"
    resamples = RESAMPLES

    def __init__(self, quality: PanopticQuality) -> None:
        self.quality = quality

    def figures(self) -> Figures:
        return self.quality.figures()

    def per_class(self) -> PerClass:
        return self.quality.per_class()

    def measure(self) -> Measure:
        return _summed(self.quality)


class Panoptic(PanopticScores):
    """Panoptic quality of answers."""

    def __init__(self, dataset: Dataset, matching: Matching) -> None:
        super().__init__(PanopticQuality(dataset.categories))
        self._dataset, self._category_ids = dataset, matching.category_ids

    def add(self, name: str, answer: Answer | None) -> None:
        row = self._dataset.truth[name]
        assert self._dataset.maps is not None  # this kind of data comes with them
        true_ids = self._dataset.maps.read(row["file_name"])
        found_ids, found = np.zeros_like(true_ids), []
        if answer is not None:
            _compare_size(answer, true_ids.shape)
            found_ids = read_id_map(answer["segment_map"]).astype(np.int32)
            found = [
                Segment(one["id"], self._category_ids[one["label_id"]])
                for one in answer["segments"]
                if one["label_id"] in self._category_ids
            ]
        self.quality.add(true_ids, segments_of(row), found_ids, found)

    def running(self) -> float | None:
        return self.figures()["PQ"]


class Semantic:
    """Mean intersection over union."""

    headline = "mIoU"
    resamples = RESAMPLES

    def __init__(self, dataset: Dataset, matching: Matching) -> None:
        self._maps, self._iou = dataset.truth, MeanIou([one.name for one in dataset.categories])
        self._kinds = [category.id for category in dataset.categories]
        rows = {category.id: row for row, category in enumerate(dataset.categories)}
        self._rows = {label: rows[kind] for label, kind in matching.category_ids.items()}

    def add(self, name: str, answer: Answer | None) -> None:
        truth = read_classes(self._maps[name], len(self._kinds))
        found = np.full(truth.shape, VOID)
        if answer is not None:
            _compare_size(answer, truth.shape)
            most = max((one["id"] for one in answer["segments"]), default=0)
            table = np.full(most + 1, VOID)
            for one in answer["segments"]:
                table[one["id"]] = self._rows.get(one["label_id"], VOID)
            found = table[read_id_map(answer["segment_map"])]
        self._iou.add(truth, found)

    def running(self) -> float | None:
        return self.figures()["mIoU"] if self._iou.pictures else None

    def figures(self) -> Figures:
        return self._iou.figures()

    def per_class(self) -> PerClass:
        return dict(zip(self._kinds, self._iou.per_class(), strict=True))

    def measure(self) -> Measure:
        return _summed(self._iou)


def segments_of(annotation: dict[str, Any]) -> list[Segment]:
    """The segments of a picture in COCO's panoptic format."""
    return [
        Segment(one["id"], one["category_id"], bool(one.get("iscrowd", 0)))
        for one in annotation["segments_info"]
    ]


def _tops(shares: NDArray[np.float64]) -> Figures:
    return {"top-1": float(shares[0]), "top-5": float(shares[1])}


def _summed(counted: PanopticQuality | MeanIou) -> Measure:
    pictures = np.stack(counted.pictures)

    def resampled(weights: Weights) -> Figures:
        total = np.tensordot(weights, pictures, axes=1)
        return {name: float(value) for name, value in counted.summarize(total).items()}

    return resampled


def _compare_size(answer: Answer, size: tuple[int, ...]) -> None:
    said = answer["image"]
    if (said["height"], said["width"]) != tuple(size):
        raise OtherSize(
            f"the picture is {said['width']}x{said['height']}, its truth {size[1]}x{size[0]}"
        )
