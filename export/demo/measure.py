"""A bundle measured on held-out scenes, through its graph and the server's own arithmetic."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from export.demo.pool import SPLIT_SEEDS, Split, scene
from export.demo.scenes import THINGS
from export.demo.scoring import (
    BoxTruth,
    Detections,
    PanopticQuality,
    average_precision,
)
from service.bundle import Accuracy, Bundle
from service.geometry import Geometry, Placement, Size, place, to_canvas
from service.images import ImageLimits, decode
from service.tasks.framing import Frame, Merging
from service.tasks.laying import lay_panoptic
from service.tasks.merging import Segments, merge_panoptic
from service.worker.runtimes.base import Arrays
from service.worker.runtimes.choose import Choice, open_runtime

BATCH = 32


@dataclass(frozen=True)
class Truth:
    """A scene without its picture: how it was placed on the canvas, the class of its dominant
    thing, and the classes by segment id and boxes in pixels of its segments.
    """

    placement: Placement
    label: str
    ids: NDArray[np.uint8]
    labels: list[str]
    boxes_xyxy_px: list[tuple[int, int, int, int]]

    def things(self) -> BoxTruth:
        """What a detector should find."""
        pairs = zip(self.labels, self.boxes_xyxy_px, strict=True)
        things = [(label, box) for label, box in pairs if label in THINGS]
        return BoxTruth(
            self.ids.shape,
            np.array([THINGS.index(label) for label, _ in things]),
            np.array([box for _, box in things], dtype=np.float64),
        )


@dataclass(frozen=True)
class Shown:
    """Scenes as the server prepares them (N, H, W, 3), and their truth."""

    images: NDArray[np.uint8]
    truth: list[Truth]


def show(geometry: Geometry, split: Split, count: int, workers: int) -> Shown:
    """The first ``count`` scenes of a split, drawn by ``workers`` processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        drawn = executor.map(partial(_served, geometry, split), range(count), chunksize=64)
        pairs = list(track(drawn, f"drawing {count} {split} scenes", count))
    return Shown(np.stack([image for image, _ in pairs]), [truth for _, truth in pairs])


def measured(bundle: Bundle, choice: Choice, shown: Shown) -> list[Accuracy]:
    """The scores of a bundle's first task on held-out scenes."""
    score = _SCORES[bundle.manifest.tasks[0]]
    figures = score(bundle, partial(_run, bundle, choice, shown.images), shown.truth)
    seeds = f"seeds [{SPLIT_SEEDS['held-out']}, i] for i below {len(shown.images)}"
    return [
        Accuracy(
            dataset=f"generated scenes, held out: export.demo.pool.scene('held-out', i), {seeds}",
            metric=metric,
            value=value,
            images=len(shown.images),
            runtime=choice.runtime,
            precision=choice.precision,  # type: ignore[arg-type]
        )
        for metric, value in figures.items()
    ]


Run = Callable[[Sequence[str]], list[Arrays]]


def classified(bundle: Bundle, run: Run, truth: Sequence[Truth]) -> dict[str, float]:
    """Share of scenes whose best score is that of the label."""
    labels = [label.name for label in bundle.manifest.labels]
    found = [labels[int(named["scores"].argmax())] for named in run(["scores"])]
    right = [name == one.label for name, one in zip(found, truth, strict=True)]
    return {"top-1": float(np.mean(right))}


def detected(bundle: Bundle, run: Run, truth: Sequence[Truth]) -> dict[str, float]:
    """AP50 and AP of all rows, whatever their score."""
    del bundle
    found = []
    for named, one in zip(run(["scores", "classes", "boxes"]), truth, strict=True):
        height, width = one.ids.shape
        sides = np.array([width, height, width, height])
        boxes = named["boxes"].clip(0, 1) * sides
        found.append(Detections(named["scores"], named["classes"], boxes))
    return average_precision([one.things() for one in truth], found)


def segmented(bundle: Bundle, run: Run, truth: Sequence[Truth]) -> dict[str, float]:
    """PQ, SQ and RQ at the size of the scenes, with the thresholds and detail that the server takes
    where a request names none.
    """
    labels = [label.name for label in bundle.manifest.labels]
    segmentation = bundle.manifest.segmentation
    assert segmentation is not None
    outputs = ["logits", "masks"]
    if segmentation.detail == "fast":
        outputs = ["panoptic_map", "panoptic_classes", "panoptic_scores"]
    quality = PanopticQuality()
    for named, one in zip(run(outputs), truth, strict=True):
        segments = _merge(bundle, Frame.of(one.placement), named)
        classes = [labels[row.class_index] for row in segments.rows]
        quality.add(one.ids, one.labels, segments.ids, classes)
    return quality.figures()


def _merge(bundle: Bundle, frame: Frame, named: Arrays) -> Segments:
    segmentation = bundle.manifest.segmentation
    assert segmentation is not None
    if segmentation.detail == "fast":
        parts = (named[f"panoptic_{part}"] for part in ("map", "classes", "scores"))
        return lay_panoptic(frame, *parts)
    return merge_panoptic(
        Merging.of(bundle.manifest),
        frame,
        named["logits"],
        named["masks"],
        segmentation.threshold,
        segmentation.overlap_threshold,
    )


_SCORES = {"classify": classified, "detect": detected, "segment": segmented}


def _run(
    bundle: Bundle, choice: Choice, images: NDArray[np.uint8], outputs: Sequence[str]
) -> list[Arrays]:
    """The named outputs for every picture, by the serving graph at the first canvas."""
    runtime = open_runtime(bundle, "serve", bundle.manifest.canvases[0], choice)
    starts = [*range(0, len(images), BATCH), len(images)]
    answers: list[Arrays] = []
    for start, stop in pairwise(starts):
        inputs = {"images": images[start:stop]} | _thresholds(bundle, stop - start)
        named = runtime.run(inputs)
        answers.extend({name: named[name][i] for name in outputs} for i in range(stop - start))
    return answers


def _thresholds(bundle: Bundle, count: int) -> Arrays:
    segmentation = bundle.manifest.segmentation
    if segmentation is None:
        return {}
    return {
        "threshold": np.full(count, segmentation.threshold, dtype=np.float32),
        "overlap_threshold": np.full(count, segmentation.overlap_threshold, dtype=np.float32),
    }


def _served(geometry: Geometry, split: Split, index: int) -> tuple[NDArray[np.uint8], Truth]:
    drawn, file = scene(split, index)
    image = decode(file, ImageLimits())
    size = Size(height=image.height, width=image.width)
    placement = place(geometry, size, geometry.nominal)
    labels = [segment.label for segment in drawn.segments]
    boxes = [segment.box_xyxy_px for segment in drawn.segments]
    truth = Truth(placement, drawn.label, drawn.ids, labels, boxes)
    return to_canvas(image, placement), truth
