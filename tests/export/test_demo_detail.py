"""What the detail of merging is worth, on scenes whose masks are a noisy copy of the truth."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.demo.detail import with_detail
from export.demo.pool import scene
from export.demo.scenes import CLASSES, THINGS, Scene
from export.demo.scoring import PanopticQuality
from export.heads import Merge
from service.bundle import Bundle, Manifest, Segmentation
from service.tasks.framing import Frame, Merging
from service.tasks.laying import lay_panoptic
from service.tasks.merging import Segments, merge_panoptic
from service.tasks.resampling import bilinear, resized
from tests.service.sample_bundle import manifest_of

CANVAS, GRID = (160, 160), (40, 40)
IS_THING = [label in THINGS for label in CLASSES]


def perturbed(drawn: Scene, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Class and mask logits of a network that sees every segment, a little wrong."""
    rng = np.random.default_rng(seed)
    count = len(drawn.segments)
    logits = np.full((count, len(CLASSES) + 1), -4, dtype=np.float32)
    for query, segment in enumerate(drawn.segments):
        logits[query, CLASSES.index(segment.label)] = 4
    masks = np.stack([drawn.mask(segment) for segment in drawn.segments]).astype(np.float32)
    to_grid = (bilinear(side, cells) for side, cells in zip(drawn.ids.shape, GRID, strict=True))
    noise = rng.normal(size=(count, *GRID)).astype(np.float32)
    return logits, (resized(masks, *to_grid) - 0.5) * 12 + noise


def merged_in_the_graph(frame: Frame, logits: torch.Tensor, masks: torch.Tensor) -> Segments:
    head = Merge("mask2former", "reference", ["panoptic"], IS_THING, CANVAS)
    found = head(logits[None], masks[None], torch.tensor([0.8]), torch.tensor([0.8]))
    parts = (found[f"panoptic_{part}"][0].numpy() for part in ("map", "classes", "scores"))
    return lay_panoptic(frame, *parts)


def test_merging_at_the_resolution_of_the_picture_is_worth_it() -> None:
    merging = Merging("mask2former", "reference", ("panoptic",), tuple(IS_THING))
    fast, exact = PanopticQuality(), PanopticQuality()
    for index in range(6):
        drawn = scene("validation", index)[0]
        labels = [segment.label for segment in drawn.segments]
        logits, masks = perturbed(drawn, index)
        frame = Frame(CANVAS, CANVAS, (drawn.ids.shape[0], drawn.ids.shape[1]))
        whole = merge_panoptic(merging, frame, logits, masks, 0.8, 0.8)
        coarse = merged_in_the_graph(frame, torch.from_numpy(logits), torch.from_numpy(masks))
        for quality, found in ((exact, whole), (fast, coarse)):
            names = [CLASSES[row.class_index] for row in found.rows]
            quality.add(drawn.ids, labels, found.ids, names)
    assert 0.7 < fast.figures()["PQ"] < exact.figures()["PQ"] - 0.01
    assert exact.figures()["SQ"] > 0.85


def test_a_bundle_is_measured_at_either_detail() -> None:
    manifest = Manifest.model_validate(manifest_of())
    segmentation = Segmentation(rule="mask2former", modes=["panoptic"])
    manifest = manifest.model_copy(update={"segmentation": segmentation})
    bundle = Bundle(folder=Path(), manifest=manifest)
    for detail in ("fast", "exact"):
        changed = with_detail(bundle, detail)
        assert changed.manifest.segmentation == segmentation.model_copy(update={"detail": detail})
