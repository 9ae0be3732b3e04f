"""Post-processing against numbers that the authors' own functions gave: DETR, and Mask2Former."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from export.heads import Boxes, Merge
from service.bundle import Mode, Rule
from service.tasks.framing import Frame, Merging
from service.tasks.instances import merge_instances
from service.tasks.merging import Segments, merge_panoptic, merge_semantic

DATA = Path(__file__).parents[3] / "shared" / "data" / "postprocess_golden"
MODES: tuple[Mode, ...] = ("panoptic", "instance", "semantic")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")


@dataclass(frozen=True)
class Golden:
    """One case: what ``cases.json`` says of it, and its arrays."""

    about: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def logits(self) -> NDArray[np.float32]:
        return self.arrays["class_logits"]

    @property
    def masks(self) -> NDArray[np.float32]:
        return self.arrays["mask_logits"]

    @property
    def things(self) -> list[bool]:
        return [index in self.about["things"] for index in range(self.about["classes"])]

    @property
    def frame(self) -> Frame:
        processed, target = tuple(self.about["processed_size"]), tuple(self.about["target_size"])
        return Frame(processed, processed, target)

    def merging(self, rule: Rule) -> Merging:
        return Merging(rule, "reference", MODES, tuple(self.things))

    def head(self, rule: Rule) -> Merge:
        return Merge(rule, "reference", MODES, self.things, self.frame.picture)

    def upsampled(self) -> Tensor:
        """Masks at the picture's size (1, Q, H, W), as Mask2Former brings them there."""
        masks = torch.from_numpy(self.masks)[None]
        for size in (self.frame.canvas, self.frame.picture):
            masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        return masks

    def detr_segments(self) -> tuple[NDArray[np.int32], list[tuple[int, int, int]]]:
        """Ids from 1 on, and (id, class, area) of the rows; the authors count from 0."""
        segments = self.about["detr_panoptic_segments"]
        rows = [(row["id"] + 1, row["category_id"], row["area"]) for row in segments]
        return self.arrays["detr_panoptic_id"] + (1 if rows else 0), rows


@pytest.fixture(scope="module")
def golden() -> list[Golden]:
    archive = np.load(DATA / "cases.npz")
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    for name in archive.files:
        case, _, array = name.partition("/")
        arrays.setdefault(case, {})[array] = archive[name]
    about = json.loads((DATA / "cases.json").read_text())["cases"]
    assert len(about) == 24
    return [Golden(one, arrays[str(one["id"])]) for one in about]


THRESHOLDS = {"coco": (0.8, 0.8), "loose": (0.3, 0.5)}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_merging_gives_the_panoptic_segments_of_mask2former(
    golden: list[Golden], name: str
) -> None:
    for case in golden:
        found = merge_panoptic(
            case.merging("mask2former"), case.frame, case.logits, case.masks, *THRESHOLDS[name]
        )
        assert np.array_equal(found.ids, case.arrays[f"m2f_panoptic_{name}"])
        assert [(row.id, row.class_index) for row in found.rows] == [
            (row["id"], row["category_id"]) for row in case.about[f"m2f_segments_{name}"]
        ]


@pytest.mark.parametrize("name", THRESHOLDS)
def test_the_head_gives_the_panoptic_segments_of_mask2former(
    golden: list[Golden], name: str
) -> None:
    for case in golden:
        found = run(case.head("mask2former"), case.logits, case.upsampled(), *THRESHOLDS[name])
        numbers, classes = numbered(found)
        assert np.array_equal(numbers, case.arrays[f"m2f_panoptic_{name}"])
        assert classes == [row["category_id"] for row in case.about[f"m2f_segments_{name}"]]


def test_merging_gives_the_panoptic_segments_of_detr(golden: list[Golden]) -> None:
    for case in golden:
        found = merge_panoptic(case.merging("detr"), case.frame, case.logits, case.masks, 0.85, 0.8)
        ids, rows = case.detr_segments()
        assert np.array_equal(found.ids, ids)
        assert with_areas(found) == rows


def test_the_head_gives_the_panoptic_segments_of_detr(golden: list[Golden]) -> None:
    for case in golden:
        masks = torch.from_numpy(case.masks)[None]
        processed = case.frame.canvas
        masks = F.interpolate(masks, size=processed, mode="bilinear", align_corners=False)
        rows, columns = map(pillow_nearest, processed, case.frame.picture)
        masks = masks[:, :, rows][..., columns]
        numbers, classes = numbered(run(case.head("detr"), case.logits, masks, 0.85, 0.8))
        ids, segments = case.detr_segments()
        assert np.array_equal(numbers, ids)
        assert classes == [index for _, index, _ in segments]


def test_the_head_gives_the_boxes_of_detr(golden: list[Golden]) -> None:
    for case in golden:
        boxes = torch.from_numpy(case.arrays["boxes_cxcywh"])[None]
        rows = Boxes("softmax")(torch.from_numpy(case.logits)[None], boxes)
        height, width = case.frame.picture
        scaled = rows["boxes"][0].numpy() * np.array([width, height, width, height])
        assert rows["classes"][0].tolist() == case.arrays["detr_labels"].tolist()
        assert rows["queries"][0].tolist() == list(range(len(case.logits)))
        np.testing.assert_allclose(rows["scores"][0], case.arrays["detr_scores"], atol=1e-6)
        np.testing.assert_allclose(scaled, case.arrays["detr_boxes_xyxy_px"], atol=1e-3)


def test_merging_gives_the_masks_of_detr(golden: list[Golden]) -> None:
    for case in golden:
        found = merge_instances(case.merging("detr"), case.frame, case.logits, case.masks, 0, 0)
        height, width = case.frame.picture
        packed = case.arrays["detr_masks_packed"]
        masks = np.unpackbits(packed, axis=1, count=height * width).reshape(-1, height, width)
        assert {row.query for row in found} == set(np.flatnonzero(masks.any(axis=(1, 2))))
        for row in found:
            assert np.array_equal(row.mask, masks[row.query])
            assert row.class_index == case.arrays["detr_labels"][row.query]
            assert row.score == pytest.approx(case.arrays["detr_scores"][row.query], abs=1e-6)


def test_merging_gives_the_instances_of_mask2former(golden: list[Golden]) -> None:
    for case in golden:
        found = merge_instances(
            case.merging("mask2former"), case.frame, case.logits, case.masks, 0, 0
        )
        check_instances(
            case,
            [(row.score, row.class_index, int(np.count_nonzero(row.mask))) for row in found],
        )


def test_the_head_gives_the_instances_of_mask2former(golden: list[Golden]) -> None:
    for case in golden:
        found = run(case.head("mask2former"), case.logits, case.upsampled(), 0.0, 0.0)
        areas = found["instance_masks"].reshape(len(found["instance_scores"]), -1).sum(axis=1)
        rows = zip(
            found["instance_scores"].tolist(),
            found["instance_classes"].tolist(),
            areas.tolist(),
            strict=True,
        )
        check_instances(case, [row for row in rows if row[1] >= 0])


def test_semantic_maps_are_those_of_mask2former(golden: list[Golden]) -> None:
    pixels = wrong = 0
    for case in golden:
        expected = case.arrays["m2f_semantic_argmax"]
        merged = merge_semantic(case.merging("mask2former"), case.frame, case.logits, case.masks)
        head = run(case.head("mask2former"), case.logits, case.upsampled(), 0.0, 0.0)
        pixels += expected.size
        wrong += int((merged != expected).sum()) + int((head["semantic_map"] != expected).sum())
    assert pixels > 100_000
    assert wrong <= 3  # in one, two sums of the case "tie" differ by 2e-7


def pillow_nearest(source: int, target: int) -> NDArray[np.int32]:
    """The pixels that Pillow's NEAREST takes along one axis."""
    numbers = Image.fromarray(np.arange(source, dtype=np.int32)[None])
    return np.asarray(numbers.resize((target, 1), Image.Resampling.NEAREST))[0].copy()


def run(
    head: Merge, logits: NDArray[np.float32], masks: Tensor, threshold: float, overlap: float
) -> dict[str, NDArray[Any]]:
    thresholds = torch.tensor([threshold]), torch.tensor([overlap])
    with torch.no_grad():
        outputs = head(torch.from_numpy(logits)[None], masks, *thresholds)
    return {name: value[0].numpy() for name, value in outputs.items()}


def numbered(found: dict[str, NDArray[Any]]) -> tuple[NDArray[np.int64], list[int]]:
    """The map with ids from 1 on, and their classes; every segment has a cell."""
    rows = np.flatnonzero(found["panoptic_classes"] >= 0)
    assert set(np.unique(found["panoptic_map"])) - {0} == set(rows + 1)
    ids = np.searchsorted(rows + 1, found["panoptic_map"]) + 1
    numbers = np.where(found["panoptic_map"] > 0, ids, 0)
    return numbers, found["panoptic_classes"][rows].tolist()


def with_areas(found: Segments) -> list[tuple[int, int, int]]:
    return [
        (row.id, row.class_index, int(np.count_nonzero(found.ids == row.id))) for row in found.rows
    ]


def check_instances(case: Golden, found: list[tuple[float, int, int]]) -> None:
    """The recorded rows are the 20 best by class score, things alone, best first."""
    names = ("m2f_instance_scores", "m2f_instance_labels", "m2f_instance_areas")
    recorded = zip(*(case.arrays[name].tolist() for name in names), strict=True)
    expected = [(score, label, area) for score, label, area in recorded if area > 0]
    for score, label, area in expected:
        close = [row for row in found if row[1:] == (label, area) and abs(row[0] - score) < 2e-6]
        assert len(close) >= 1
    assert all(case.things[label] and area > 0 for _, label, area in found)
