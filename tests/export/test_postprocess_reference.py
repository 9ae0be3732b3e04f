"""Merging at the resolution of padded pictures, against torch's resizes and loops over queries."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from service.bundle import Mode, Rule
from service.tasks.framing import Frame, Merging
from service.tasks.instances import merge_instances
from service.tasks.merging import merge_panoptic, merge_semantic
from tests.export import naive_merging as naive
from tests.export.mask_cases import KINDS, Case, draw

MODES: tuple[Mode, ...] = ("panoptic", "instance", "semantic")
Maps = NDArray[np.float32]


def cases(count: int) -> list[tuple[Case, Frame]]:
    rng = np.random.default_rng(11)
    found = []
    for index in range(count):
        case = draw(rng, KINDS[index % len(KINDS)])
        height, width = (4 * side for side in case.masks.shape[1:])
        valid = int(rng.integers(height // 2, height + 1)), int(rng.integers(5, width + 1))
        found.append((case, Frame((height, width), valid, case.picture)))
    return found


def bilinear(masks: Maps, size: tuple[int, int]) -> Maps:
    resized = F.interpolate(torch.from_numpy(masks)[None], size=size, mode="bilinear")
    return resized[0].numpy()


def on_valid_canvas(case: Case, frame: Frame) -> Maps:
    return bilinear(case.masks, frame.canvas)[:, : frame.valid[0], : frame.valid[1]]


def on_picture(case: Case, frame: Frame) -> Maps:
    """As detectron2 brings masks to the picture."""
    return bilinear(on_valid_canvas(case, frame).copy(), frame.picture)


@pytest.mark.parametrize("rule", ["maskformer", "mask2former"])
def test_segments_are_those_of_the_loops(rule: Rule) -> None:
    pixels = wrong = segments = 0
    for case, frame in cases(90):
        limits = 0.4, 0.37
        merging = Merging(rule, "reference", MODES, case.things)
        found = merge_panoptic(merging, frame, case.logits, case.masks, *limits)
        probabilities = naive.sigmoid(on_picture(case, frame))
        expected = naive.panoptic(
            rule, "reference", case.logits, probabilities, case.things, *limits
        )
        assert {row.query: row.class_index for row in found.rows} == expected.classes
        queries = np.array([0, *(row.query + 1 for row in found.rows)])
        pixels += found.ids.size
        wrong += int((queries[found.ids] != expected.map).sum())
        segments += len(found.rows)
    assert segments > 100
    assert wrong / pixels < 1e-4


def test_instances_are_those_of_the_loops() -> None:
    pixels = wrong = rows = 0
    for case, frame in cases(45):
        merging = Merging("mask2former", "reference", MODES, case.things)
        found = merge_instances(merging, frame, case.logits, case.masks, 0.3, 0.0)
        allowed = list(case.things)
        expected = naive.best_pairs(case.logits, on_picture(case, frame), allowed, 0.3, 100)
        ours = {(row.query, row.class_index): row for row in found}
        assert ours.keys() == {(row.query, row.index) for row in expected}
        assert [row.score for row in found] == sorted((row.score for row in found), reverse=True)
        for row in expected:
            one = ours[row.query, row.index]
            assert one.score == pytest.approx(row.score, abs=1e-4)
            pixels += row.mask.size
            wrong += int((one.mask != row.mask).sum())
        rows += len(expected)
    assert rows > 60
    assert wrong / pixels < 1e-4


def test_masks_of_detr_are_cut_before_the_nearest_pixel_is_taken() -> None:
    for case, frame in cases(27):
        merging = Merging("detr", "reference", MODES, case.things)
        found = merge_instances(merging, frame, case.logits, case.masks, 0.3, 0.0)
        binary = torch.from_numpy((on_valid_canvas(case, frame) > 0).astype(np.float32))
        masks = F.interpolate(binary[None], size=frame.picture, mode="nearest")[0].numpy() > 0
        scores = naive.softmax(case.logits)[:, :-1].max(axis=1)
        kept = np.flatnonzero((scores >= 0.3) & masks.any(axis=(1, 2)))
        assert sorted(row.query for row in found) == kept.tolist()
        for row in found:
            assert (row.mask != masks[row.query]).mean() < 1e-3


@pytest.mark.parametrize("modes", [MODES, ("semantic",)])
def test_semantic_maps_are_those_of_torch(modes: tuple[Mode, ...]) -> None:
    pixels = wrong = 0
    for case, frame in cases(45):
        merging = Merging("mask2former", "reference", modes, case.things)
        found = merge_semantic(merging, frame, case.logits, case.masks)
        weights = naive.softmax(case.logits)[:, :-1].T
        alone = modes == ("semantic",)
        masks = on_valid_canvas(case, frame) if alone else on_picture(case, frame)
        sums = np.tensordot(weights, naive.sigmoid(masks), axes=1)
        sums = bilinear(sums, frame.picture) if alone else sums
        pixels += found.size
        wrong += int((found != sums.argmax(axis=0)).sum())
    assert wrong / pixels < 1e-4
