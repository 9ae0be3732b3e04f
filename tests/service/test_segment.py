"""From graph outputs to numbered segments."""

from typing import Any

import numpy as np
import pytest

from service.bundle import Manifest
from service.geometry import Size, place
from service.tasks import segment
from service.worker.runtimes.base import Arrays
from tests.service.sample_bundle import PAD, segmenter_of

EVERYTHING = frozenset({0, 1, 2})

# Cells of a canvas of 8 x 8 pixels: row 1 is a bee, row 2 an ant, row 4 sky.
DRAWN = np.array([[4, 4, 4, 4], [4, 1, 1, 4], [0, 1, 1, 2], [0, 0, 2, 2]], dtype=np.int32)
PANOPTIC: Arrays = {
    "panoptic_map": DRAWN,
    "panoptic_classes": np.array([1, 0, -1, 2], dtype=np.int32),
    "panoptic_scores": np.array([0.75, 0.875, 0.99, 0.5], dtype=np.float32),
}
SEMANTIC: Arrays = {
    "semantic_map": np.array(
        [[2, 2, 2, 2], [2, 1, 1, 2], [1, 1, 1, 1], [0, 0, 1, 1]], dtype=np.int32
    )
}
INSTANCES: Arrays = {
    "instance_masks": np.stack(
        [np.equal(DRAWN, 2), np.equal(DRAWN, 1), np.greater(DRAWN, 0), np.equal(DRAWN, 3)],
    ).astype(np.uint8),
    "instance_classes": np.array([0, 1, 0, 1], dtype=np.int32),
    "instance_scores": np.array([0.5, 0.625, 0.75, 0.9], dtype=np.float32),
    "instance_queries": np.array([3, 0, 3, 2], dtype=np.int32),
}


def answer(
    outputs: Arrays,
    mode: Any = "panoptic",
    detail: Any = "fast",
    labels: frozenset[int] = EVERYTHING,
    image: tuple[int, int] = (8, 8),
    limits: tuple[float, float] = (0.5, 0.75),
    **changes: Any,
) -> segment.Segmentation:
    manifest = Manifest.model_validate(segmenter_of(**changes))
    placement = place(
        manifest.geometry, Size(height=image[0], width=image[1]), Size(height=8, width=8)
    )
    request = segment.Request(mode, detail, *limits, labels)
    return segment.answer(manifest, placement, outputs, request)


def told(found: segment.Segmentation) -> list[tuple[Any, ...]]:
    """Id, label index, score, query, area and box of every segment."""
    return [
        (one.id, one.index, one.score, one.query, one.region.area, one.region.box)
        for one in found.segments
    ]


def test_panoptic_segments_come_best_first_and_are_numbered_so() -> None:
    found = answer(PANOPTIC)
    assert told(found) == [
        (1, 0, 0.875, 1, 12, (4, 4, 4, 4)),
        (2, 1, 0.75, 0, 16, (2, 2, 4, 4)),
        (3, 2, 0.5, 3, 24, (0, 0, 8, 4)),
    ]
    assert found.ids is not None
    assert found.ids[::2, ::2].tolist() == [[3, 3, 3, 3], [3, 2, 2, 3], [0, 2, 2, 1], [0, 0, 1, 1]]
    assert np.array_equal(found.ids, found.ids[::2, ::2].repeat(2, axis=0).repeat(2, axis=1))


def test_every_pixel_of_a_segment_is_in_its_crop_and_no_other() -> None:
    found = answer(PANOPTIC, image=(30, 50))
    assert found.ids is not None
    for one in found.segments:
        x, y, width, height = one.region.box
        whole = np.zeros((30, 50), dtype=bool)
        whole[y : y + height, x : x + width] = one.region.crop
        assert np.array_equal(whole, found.ids == one.id)
        assert one.region.area == whole.sum()
        assert one.region.crop[:, [0, -1]].any(axis=0).all()
        assert one.region.crop[[0, -1]].any(axis=1).all()
        assert one.region.edges == (x, y, x + width, y + height)


def test_labels_that_were_not_asked_for_are_void_and_take_no_id() -> None:
    found = answer(PANOPTIC, labels=frozenset({1, 2}))
    assert [(one.id, one.index) for one in found.segments] == [(1, 1), (2, 2)]
    assert found.ids is not None
    assert found.ids[::2, ::2].tolist() == [[2, 2, 2, 2], [2, 1, 1, 2], [0, 1, 1, 0], [0, 0, 0, 0]]
    nothing = answer(PANOPTIC, labels=frozenset())
    assert nothing.segments == []
    assert nothing.ids is not None
    assert not nothing.ids.any()


def test_a_segment_that_no_pixel_shows_is_none() -> None:
    found = answer(PANOPTIC, image=(2, 2))  # the pixels' centres are in cells 1 and 3
    assert found.ids is not None
    assert found.ids.tolist() == [[2, 3], [0, 1]]
    assert [(one.query, one.region.area) for one in found.segments] == [(1, 1), (0, 1), (3, 1)]
    one_pixel = answer(PANOPTIC, image=(1, 1))  # cell 2, 2 is the bee's
    assert told(one_pixel) == [(1, 1, 0.75, 0, 1, (0, 0, 1, 1))]


def test_a_padded_picture_is_the_top_left_of_the_map() -> None:
    found = answer(PANOPTIC, image=(8, 16), geometry=PAD)  # 4 x 8 pixels of the canvas
    assert found.ids is not None
    assert found.ids.shape == (8, 16)
    assert found.ids[::4, ::4].tolist() == [[2, 2, 2, 2], [2, 1, 1, 2]]
    assert told(found) == [(1, 1, 0.75, 0, 32, (4, 4, 8, 4)), (2, 2, 0.5, 3, 96, (0, 0, 16, 8))]


def test_classes_of_a_semantic_map_come_by_area_without_a_score() -> None:
    found = answer(SEMANTIC, "semantic")
    assert told(found) == [
        (1, 1, None, None, 32, (0, 2, 8, 6)),
        (2, 2, None, None, 24, (0, 0, 8, 4)),
        (3, 0, None, None, 8, (0, 6, 4, 2)),
    ]
    assert found.ids is not None
    assert found.ids[::2, ::2].tolist() == [[2, 2, 2, 2], [2, 1, 1, 2], [1, 1, 1, 1], [3, 3, 1, 1]]


def test_instances_may_overlap_and_have_no_map() -> None:
    found = answer(INSTANCES, "instance")
    assert found.ids is None
    assert told(found) == [
        (1, 0, 0.75, 3, 52, (0, 0, 8, 8)),
        (2, 1, 0.625, 0, 16, (2, 2, 4, 4)),
        (3, 0, 0.5, 3, 12, (4, 4, 4, 4)),
    ]
    assert np.array_equal(
        found.segments[0].region.crop, np.greater(DRAWN, 0).repeat(2, axis=0).repeat(2, axis=1)
    )
    only = answer(INSTANCES, "instance", labels=frozenset({1}))
    assert told(only) == [(1, 1, 0.625, 0, 16, (2, 2, 4, 4))]


def test_instances_of_transformers_are_disjoint_and_have_a_map() -> None:
    masks = np.stack([np.equal(DRAWN, row) for row in (2, 1, 4, 3)]).astype(np.uint8)
    found = answer(INSTANCES | {"instance_masks": masks}, "instance", profile="hf")
    assert [(one.id, one.query, one.region.area) for one in found.segments] == [
        (1, 3, 24),
        (2, 0, 16),
        (3, 3, 12),
    ]
    assert found.ids is not None
    assert found.ids[::2, ::2].tolist() == [[1, 1, 1, 1], [1, 2, 2, 1], [0, 2, 2, 3], [0, 0, 3, 3]]


def raw() -> Arrays:
    """Logits and masks that say what DRAWN does, beyond doubt."""
    logits = np.full((4, 4), -9.0, np.float32)
    logits[[0, 1, 2, 3], [1, 0, 3, 2]] = 9.0
    masks = np.stack([np.where(np.equal(DRAWN, row + 1), 9.0, -9.0) for row in range(4)])
    return {"logits": logits, "masks": masks.astype(np.float32)}


@pytest.mark.parametrize("rule", ["mask2former", "maskformer", "detr"])
@pytest.mark.parametrize("profile", ["reference", "hf"])
def test_exact_segments_are_merged_from_raw_masks(rule: str, profile: str) -> None:
    segmentation = segmenter_of()["segmentation"] | {"rule": rule}
    found = answer(raw(), detail="exact", profile=profile, segmentation=segmentation)
    assert sorted((one.index, one.query) for one in found.segments) == [(0, 1), (1, 0), (2, 3)]
    assert found.ids is not None
    ids = {one.query: one.id for one in found.segments}
    assert found.ids[3, 3] == ids[0]
    assert found.ids[7, 7] == ids[1]
    assert found.ids[0, 0] == ids[3]
    assert [one.score for one in found.segments] == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("mode", ["panoptic", "instance", "semantic"])
def test_exact_answers_have_the_picture_s_resolution(mode: str) -> None:
    found = answer(raw(), mode, "exact", image=(33, 57))
    assert {one.index for one in found.segments} == EVERYTHING or mode == "instance"
    for one in found.segments:
        x0, y0, x1, y1 = one.region.edges
        assert 0 <= x0 < x1 <= 57
        assert 0 <= y0 < y1 <= 33
        assert one.region.area == one.region.crop.sum()
    if found.ids is not None:
        assert found.ids.shape == (33, 57)


def test_thresholds_count_in_exact_answers() -> None:
    outputs = raw()
    outputs["logits"][0] = [0, 0.5, 0, 0]  # a bee with 0.35
    few = answer(outputs, detail="exact", limits=(0.5, 0.75))
    many = answer(outputs, detail="exact", limits=(0.3, 0.75))
    assert {one.query for one in few.segments} == {1, 3}
    assert {one.query for one in many.segments} == {0, 1, 3}


def test_only_what_a_mode_needs_is_asked_of_the_graph() -> None:
    def wanted(mode: Any, detail: Any) -> tuple[str, ...]:
        return segment.Request(mode, detail, 0.5, 0.5, EVERYTHING).outputs

    assert wanted("panoptic", "exact") == wanted("instance", "exact") == ("logits", "masks")
    assert wanted("semantic", "fast") == ("semantic_map",)
    assert wanted("panoptic", "fast") == tuple(PANOPTIC)
    assert wanted("instance", "fast") == tuple(INSTANCES)
