"""The profile "hf" against transformers' own post-processing of the picture without padding."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)
from transformers.models.maskformer.image_processing_pil_maskformer import (
    MaskFormerImageProcessorPil,
)

from service.bundle import Rule
from service.tasks.framing import Frame, Merging
from service.tasks.instances import merge_instances
from service.tasks.merging import merge_panoptic, merge_semantic
from tests.export.mask_cases import KINDS, Case, draw

RULES: tuple[Rule, ...] = ("detr", "maskformer", "mask2former")
PROCESSORS: dict[Rule, Any] = {
    "detr": DetrImageProcessorPil,
    "maskformer": MaskFormerImageProcessorPil,
    "mask2former": Mask2FormerImageProcessorPil,
}
MANY_CLASSES = 70
"""torch's unsorted top-k is sorted where there are 64 times as many candidates."""


@dataclass
class Outputs:
    """What a network of transformers hands to its processor, for one picture."""

    case: Case

    def __getattr__(self, name: str) -> torch.Tensor:
        if name in ("logits", "class_queries_logits"):
            return torch.from_numpy(self.case.logits)[None]
        assert name in ("pred_masks", "masks_queries_logits")
        return torch.from_numpy(self.case.masks)[None]


def cases(count: int, classes: int = 8) -> list[Case]:
    rng = np.random.default_rng(classes)
    return [draw(rng, KINDS[index % len(KINDS)], classes) for index in range(count)]


def whole(case: Case) -> Frame:
    height, width = case.masks.shape[1:]
    return Frame((4 * height, 4 * width), (4 * height, 4 * width), case.picture)


def merging_of(rule: Rule, case: Case, fused: frozenset[int] = frozenset()) -> Merging:
    return Merging(rule, "hf", ("panoptic", "instance", "semantic"), case.things, fused)


def theirs(rule: Rule, method: str, case: Case, **options: Any) -> Any:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    process = getattr(PROCESSORS[rule](), f"post_process_{method}_segmentation")
    return process(Outputs(case), target_sizes=[case.picture], **options)[0]


@pytest.mark.parametrize("rule", RULES)
def test_panoptic_ids_and_rows_are_those_of_transformers(rule: Rule) -> None:
    pixels = wrong = 0
    for case in cases(150):
        options = {"threshold": 0.4, "overlap_mask_area_threshold": 0.45}
        reference = theirs(rule, "panoptic", case, **options)
        found = merge_panoptic(
            merging_of(rule, case), whole(case), case.logits, case.masks, 0.4, 0.45
        )
        rows = reference["segments_info"]
        assert [(row.id, row.class_index) for row in found.rows] == [
            (row["id"], row["label_id"]) for row in rows
        ]
        np.testing.assert_allclose(
            [row.score for row in found.rows], [row["score"] for row in rows], atol=2e-6
        )
        pixels += found.ids.size
        # Nothing found is -1 there and 0 where anything is.
        wrong += int((found.ids != np.maximum(reference["segmentation"].numpy(), 0)).sum())
    assert wrong / pixels < 1e-4


def test_fused_segments_have_the_same_pixels_and_ids_of_their_own() -> None:
    rewound = 0
    for case in cases(60):
        fused = frozenset(index for index, thing in enumerate(case.things) if not thing)
        reference = theirs(
            "maskformer",
            "panoptic",
            case,
            threshold=0.2,
            overlap_mask_area_threshold=0.1,
            label_ids_to_fuse=set(fused),
        )
        merging = merging_of("maskformer", case, fused)
        found = merge_panoptic(merging, whole(case), case.logits, case.masks, 0.2, 0.1)
        # transformers may give one id to several of our segments, never two to one of ours.
        wanted = np.maximum(reference["segmentation"].numpy(), 0)
        labels: dict[int, set[int]] = {}
        for row in reference["segments_info"]:
            labels.setdefault(row["id"], set()).add(row["label_id"])
        rewound += any(len(classes) > 1 for classes in labels.values())
        assert len({row.id for row in found.rows}) == len(found.rows)
        assert [row.class_index for row in found.rows if row.class_index in fused] == list(
            dict.fromkeys(row["label_id"] for row in reference["segments_info"] if row["was_fused"])
        )
        for row in found.rows:
            values, counts = np.unique(wanted[found.ids == row.id], return_counts=True)
            assert counts.max() / counts.sum() > 0.99
            assert row.class_index in labels[int(values[counts.argmax()])]
        assert ((found.ids == 0) != (wanted == 0)).mean() < 1e-3
    assert rewound >= 5


@pytest.mark.parametrize("rule", RULES)
def test_instances_are_those_of_transformers(rule: Rule) -> None:
    pixels = wrong = 0
    for case in cases(60, MANY_CLASSES):
        reference = theirs(rule, "instance", case, threshold=0.3, overlap_mask_area_threshold=0.3)
        found = merge_instances(
            merging_of(rule, case), whole(case), case.logits, case.masks, 0.3, 0.3
        )
        ids = reference["segmentation"].numpy()
        expected = [
            (row["score"], row["label_id"], mask)
            for row in reference["segments_info"]
            if (mask := ids == row["id"]).any()
        ]
        if case.kind == "tie":  # which of two equal rows comes first is not said
            assert len(found) == len(expected)
            continue
        expected.sort(key=lambda row: -row[0])
        assert [row.class_index for row in found] == [label for _, label, _ in expected]
        np.testing.assert_allclose(
            [row.score for row in found], [score for score, _, _ in expected], atol=2e-5
        )
        pixels += sum(row.mask.size for row in found)
        wrong += sum(
            int((row.mask != mask).sum()) for row, (_, _, mask) in zip(found, expected, strict=True)
        )
    assert wrong / pixels < 1e-4


@pytest.mark.parametrize("rule", RULES)
def test_the_semantic_map_is_that_of_transformers(rule: Rule) -> None:
    pixels = wrong = 0
    for case in cases(60):
        reference = theirs(rule, "semantic", case).numpy()
        found = merge_semantic(merging_of(rule, case), whole(case), case.logits, case.masks)
        pixels += found.size
        wrong += int((found != reference).sum())
    assert wrong / pixels < 1e-4


@pytest.mark.parametrize("rule", RULES)
def test_padding_changes_nothing(rule: Rule) -> None:
    rng = np.random.default_rng(7)
    for case in cases(18):
        count, height, width = case.masks.shape
        beyond = rng.normal(size=(count, height + 5, width + 9)).astype(np.float32) * 9
        beyond[:, :height, :width] = case.masks
        alone = whole(case)
        # The picture ends inside its last cells.
        valid = alone.valid[0] - 3, alone.valid[1] - 1
        padded = Frame((4 * (height + 5), 4 * (width + 9)), valid, case.picture)
        merging = merging_of(rule, case)
        one = merge_panoptic(merging, alone, case.logits, case.masks, 0.3, 0.3)
        other = merge_panoptic(merging, padded, case.logits, beyond, 0.3, 0.3)
        assert one.rows == other.rows
        assert np.array_equal(one.ids, other.ids)
