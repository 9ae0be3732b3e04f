"""Detection: the rows of a graph that reach a threshold, as boxes on the picture."""

from dataclasses import dataclass

import numpy as np

from service.bundle import Manifest
from service.geometry import Placement
from service.worker.runtimes.base import Array, Arrays

OUTPUTS = ("scores", "classes", "boxes", "queries")


@dataclass(frozen=True)
class Detection:
    """One object: ``index`` of its label, ``box`` xyxy in pixels of the upright picture, and the
    decoder's query that found it.
    """

    index: int
    score: float
    box: tuple[float, float, float, float]
    query: int


def answer(
    manifest: Manifest,
    placement: Placement,
    outputs: Arrays,
    threshold: float,
    top_k: int,
    labels: frozenset[int],
) -> list[Detection]:
    """The ``top_k`` best rows whose class is among ``labels`` and whose score reaches
    ``threshold``, best first; equal scores come in the order of their rows.

    ``outputs`` are those of one picture: ``scores``, ``classes`` and ``queries`` (T,), and
    ``boxes`` (T, 4) in 0..1 of the valid part of the canvas. Boxes are cut at the picture's edges;
    what is empty then is no detection. As transformers does it ("hf") the score must be above the
    threshold, and no box is left out for being empty.
    """
    scores, classes = outputs["scores"], outputs["classes"]
    boxes = boxes_on_picture(outputs["boxes"], placement)
    if manifest.profile == "hf":
        counts = scores > threshold
    else:
        solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        counts = (scores >= threshold) & solid
    kept = np.flatnonzero(counts & np.isin(classes, sorted(labels)))
    best = kept[np.argsort(-scores[kept], kind="stable")][:top_k]
    return [
        Detection(
            int(classes[row]),
            float(scores[row]),
            (*map(float, boxes[row]),),  # type: ignore[arg-type]
            int(outputs["queries"][row]),
        )
        for row in best
    ]


def boxes_on_picture(boxes: Array, placement: Placement) -> Array:
    """From 0..1 of the valid part (T, 4) to pixels of the upright picture, cut at its edges; both
    xyxy, float64.
    """
    valid, image = placement.valid, placement.image
    scale = np.array((placement.scale_x, placement.scale_y) * 2)
    offset = np.array((placement.offset_x, placement.offset_y) * 2)
    on_canvas = boxes.astype(np.float64) * ((valid.width, valid.height) * 2)
    return np.clip(on_canvas * scale + offset, 0, (image.width, image.height) * 2)
