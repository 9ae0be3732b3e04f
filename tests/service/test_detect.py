"""From the rows of a graph to boxes on the picture."""

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle import Manifest
from service.errors import InvalidParameter
from service.geometry import Geometry, Resize, Size, place
from service.tasks import detect
from service.tasks.labels import choose_labels
from service.worker.runtimes.base import Arrays
from tests.service.sample_bundle import PAD, detector_of

CANVAS = Size(height=8, width=8)
STRETCH = detector_of()["geometry"]
CROP = {
    "nominal": {"height": 8, "width": 8},
    "resize": {"mode": "shortest_edge", "shortest_edge": 8},
    "placement": "crop",
}


def rows(
    *boxes: tuple[float, float, float, float], scores: Any = None, classes: Any = None
) -> Arrays:
    count = len(boxes)
    return {
        "scores": np.array(scores or [0.9] * count, np.float32),
        "classes": np.array(classes or [0] * count, np.int32),
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "queries": np.arange(10, 10 + count, dtype=np.int32),
    }


def found(
    outputs: Arrays,
    threshold: float = 0.5,
    top_k: int = 100,
    labels: frozenset[int] = frozenset({0, 1, 2}),
    image: tuple[int, int] = (6, 12),
    **changes: Any,
) -> list[detect.Detection]:
    manifest = Manifest.model_validate(detector_of(**changes))
    placement = place(manifest.geometry, Size(height=image[0], width=image[1]), CANVAS)
    return detect.answer(manifest, placement, outputs, threshold, top_k, labels)


ALL = (0.0, 0.0, 1.0, 1.0)
HALF = (0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("geometry", "image", "box", "expected"),
    [
        # height 6, width 12: squashed to 8 x 8
        (STRETCH, (6, 12), ALL, (0, 0, 12, 6)),
        (STRETCH, (6, 12), HALF, (3, 3, 9, 6)),
        # resized to 8 x 16, of which the middle 8 columns are seen: x from 3 to 9
        (CROP, (6, 12), ALL, (3, 0, 9, 6)),
        (CROP, (6, 12), HALF, (4.5, 3, 7.5, 6)),
        (CROP, (6, 12), (-0.5, 0.0, 1.5, 1.0), (0, 0, 12, 6)),
        # resized to 4 x 8, at the top left: boxes are shares of those 4 x 8
        (PAD, (6, 12), ALL, (0, 0, 12, 6)),
        (PAD, (6, 12), HALF, (3, 3, 9, 6)),
        (PAD, (12, 6), (0.5, 0.25, 1.0, 0.5), (3, 3, 6, 6)),
        # 10 x 16 becomes 5 x 8
        (PAD, (10, 16), HALF, (4, 5, 12, 10)),
    ],
)
def test_boxes_go_back_through_every_placement(
    geometry: Any,
    image: tuple[int, int],
    box: tuple[float, float, float, float],
    expected: tuple[float, float, float, float],
) -> None:
    (one,) = found(rows(box), image=image, geometry=geometry)
    assert one.box == pytest.approx(expected, abs=1e-5)


def test_boxes_end_at_the_picture_and_empty_ones_are_none() -> None:
    answers = found(
        rows(
            (-0.5, -1.0, 0.5, 2.0), (1.0, 0.0, 1.5, 1.0), (0.5, 0.5, 0.5, 0.9), (0.7, 0.2, 0.3, 0.9)
        )
    )
    assert [(one.query, one.box) for one in answers] == [(10, (0, 0, 6, 6))]


def test_the_best_come_first_and_equal_ones_in_the_order_of_rows() -> None:
    answers = found(rows(ALL, ALL, ALL, ALL, scores=[0.5, 0.75, 0.625, 0.75], classes=[0, 1, 2, 0]))
    assert [(one.query, one.index, one.score) for one in answers] == [
        (11, 1, 0.75),
        (13, 0, 0.75),
        (12, 2, 0.625),
        (10, 0, 0.5),
    ]
    assert len(found(rows(ALL, ALL, ALL), top_k=2)) == 2


def test_what_is_left_out_takes_no_place_among_the_best() -> None:
    outputs = rows(ALL, (0.0, 0.0, 0.0, 0.0), ALL, scores=[0.6, 0.9, 0.8], classes=[1, 1, 0])
    (one,) = found(outputs, top_k=1, labels=frozenset({1}))
    assert one.query == 10


@pytest.mark.parametrize(("profile", "queries"), [("reference", [10, 11]), ("hf", [10])])
def test_transformers_wants_more_than_the_threshold(profile: str, queries: list[int]) -> None:
    outputs = rows(ALL, ALL, ALL, scores=[0.75, 0.5, 0.25])
    assert [one.query for one in found(outputs, profile=profile)] == queries


def test_nothing_found_is_an_empty_list() -> None:
    assert found(rows()) == []
    assert found(rows(ALL), threshold=1.0) == []


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    sides=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    placement=st.sampled_from(["stretch", "crop", "pad"]),
    corner=st.tuples(st.floats(-1, 2), st.floats(-1, 2)),
    extent=st.tuples(st.floats(0, 2), st.floats(0, 2)),
)
def test_no_box_leaves_the_picture(
    sides: tuple[int, int],
    placement: Any,
    corner: tuple[float, float],
    extent: tuple[float, float],
) -> None:
    resize = (
        Resize(mode="squash", height=8, width=8)
        if placement == "stretch"
        else Resize(mode="shortest_edge", shortest_edge=8, longest_edge=12)
    )
    geometry = Geometry(nominal=CANVAS, resize=resize, placement=placement)
    placed = place(geometry, Size(height=sides[0], width=sides[1]), CANVAS)
    box = np.array([[*corner, corner[0] + extent[0], corner[1] + extent[1]]], np.float32)
    ((x0, y0, x1, y1),) = detect.boxes_on_picture(box, placed).tolist()
    assert 0 <= x0 <= x1 <= sides[1]
    assert 0 <= y0 <= y1 <= sides[0]


LABELS: Any = {
    "labels": [
        {"id": 3, "name": "ant"},
        {"id": 5, "name": "bee, wild"},
        {"id": 7, "name": "12"},
        {"id": 12, "name": "ant"},
    ]
}


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [
        (None, {0, 1, 2, 3}),
        ("ant", {0, 3}),
        ("5", {1}),
        ("bee, wild", {1}),
        ('["bee, wild", 3]', {0, 1}),
        (["bee, wild", 12], {1, 3}),
        ("12", {2}),
        (" 3 , 5,", {0, 1}),
        ([7], {2}),
    ],
)
def test_labels_are_chosen_by_name_or_id(wanted: Any, indices: set[int]) -> None:
    manifest = Manifest.model_validate(detector_of(**LABELS))
    assert choose_labels(manifest, wanted) == indices


@pytest.mark.parametrize(
    "wanted",
    ["wasp", "4", "", " , ", [], "[]", ["wasp"], [4], "[1", "[true]", '["ant", 1.5]', "9" * 400],
)
def test_labels_that_a_model_does_not_have_are_refused_with_those_that_it_has(wanted: Any) -> None:
    manifest = Manifest.model_validate(detector_of(**LABELS))
    with pytest.raises(InvalidParameter) as refused:
        choose_labels(manifest, wanted)
    assert "allowed are ant (3), bee, wild (5), 12 (7), ant (12)" in str(refused.value)
    assert len(str(refused.value)) < 300
    assert refused.value.facts == {"parameter": "labels"}


@pytest.mark.parametrize(
    "wanted",
    [["ant"] * 1025, "ant," * 1025, "ant," * 10**6, json.dumps(["ant"] * 1025), [3] * 10**6],
)
def test_more_labels_than_anybody_means_are_refused(wanted: Any) -> None:
    manifest = Manifest.model_validate(detector_of(**LABELS))
    with pytest.raises(InvalidParameter, match="labels: at most 1024 may be named; allowed are"):
        choose_labels(manifest, wanted)


def test_a_thousand_names_are_looked_up_and_not_searched_for() -> None:
    labels = [{"id": i, "name": f"n{i}"} for i in range(2000)]
    manifest = Manifest.model_validate(detector_of(labels=labels))
    wanted = ",".join(f"n{i}" for i in range(1024))
    began_s = time.process_time()
    assert choose_labels(manifest, wanted) == set(range(1024))
    assert time.process_time() - began_s < 0.1  # a search takes half a second


def test_a_refusal_names_twenty_labels_of_a_thousand() -> None:
    labels = [{"id": i, "name": f"n{i}"} for i in range(1000)]
    manifest = Manifest.model_validate(detector_of(labels=labels))
    with pytest.raises(InvalidParameter, match=r"n19 \(19\) and 980 more$"):
        choose_labels(manifest, "wasp")
