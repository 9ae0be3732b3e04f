"""From arrays to answers: classes, attention maps, overlays."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.bundle import Explain, Manifest
from service.errors import InvalidParameter
from service.geometry import Size
from service.tasks import attention, classify, render
from tests.service.sample_bundle import manifest_of

CANVAS = Size(height=32, width=48)
EXPLAIN = Explain(
    layers=3,
    heads=2,
    patch_size=16,
    prefix_tokens=["class", "distillation", "register", "register"],
)


def classes(scores: list[float], top_k: int = 5, threshold: float = 0.0) -> list[tuple[str, float]]:
    manifest = Manifest.model_validate(manifest_of())
    found = classify.answer(manifest, np.array(scores, np.float32), top_k, threshold)
    return [(prediction.label, prediction.score) for prediction in found]


def select(**changes: str) -> attention.Selection:
    options: dict[str, Any] = {"kind": "raw", "layer": "last", "head": "mean", "query": "class"}
    return attention.select(EXPLAIN, CANVAS, **(options | changes))


def test_classes_come_best_first_and_at_most_top_k() -> None:
    assert classes([0.25, 0.5, 0.125]) == [("bee", 0.5), ("ant", 0.25), ("cat", 0.125)]
    assert classes([0.25, 0.5, 0.125], top_k=1) == [("bee", 0.5)]
    assert len(classes([0.25, 0.5, 0.125], top_k=100)) == 3


def test_equal_scores_come_in_the_order_of_labels() -> None:
    assert [label for label, _ in classes([0.25, 0.25, 0.25])] == ["ant", "bee", "cat"]
    assert [label for label, _ in classes([0.25, 0.5, 0.5], top_k=2)] == ["bee", "cat"]


def test_a_score_that_equals_the_threshold_counts() -> None:
    assert classes([0.25, 0.5, 0.125], threshold=0.25) == [("bee", 0.5), ("ant", 0.25)]
    assert classes([0.25, 0.5, 0.125], threshold=0.75) == []


@pytest.mark.parametrize(
    ("layer", "layers"),
    [("last", (2,)), ("all", (0, 1, 2)), ("0", (0,)), ("2", (2,)), ("-1", (2,)), ("-3", (0,))],
)
def test_layers_are_chosen_by_name_or_number(layer: str, layers: tuple[int, ...]) -> None:
    assert select(layer=layer).layers == layers


@pytest.mark.parametrize(
    ("head", "heads"), [("mean", "mean"), ("all", (0, 1)), ("1", (1,)), ("-2", (0,))]
)
def test_heads_are_chosen_by_name_or_number(head: str, heads: Any) -> None:
    assert select(head=head).heads == heads


@pytest.mark.parametrize(
    ("query", "token"),
    [
        ("class", 0),
        ("distillation", 1),
        ("register:0", 2),
        ("register:1", 3),
        ("0,0", 4),
        ("0,2", 6),
        ("1,0", 7),
        ("1,2", 9),
    ],
)
def test_tokens_are_chosen_by_name_or_place(query: str, token: int) -> None:
    assert (select(query=query).query, select(query=query).query_name) == (token, query)


@pytest.mark.parametrize(
    ("parameter", "found", "says"),
    [
        ("layer", "3", "0 to 2"),
        ("layer", "-4", "'last', 'all'"),
        ("layer", "mean", "0 to 2"),
        ("layer", "1.0", "0 to 2"),
        ("layer", "", "0 to 2"),
        ("head", "2", "0 to 1"),
        ("head", "last", "'mean', 'all'"),
        ("query", "register", "'register:0' to 'register:1'"),
        ("query", "register:2", "'register:1'"),
        ("query", "2,0", "Y below 2 and X below 3"),
        ("query", "0,3", "Y below 2 and X below 3"),
        ("query", "0, 1", "'Y,X'"),
        ("query", "-1,0", "'class', 'distillation'"),
        ("query", "CLASS", "'class'"),
    ],
)
def test_what_a_model_does_not_have_is_refused_with_what_it_has(
    parameter: str, found: str, says: str
) -> None:
    with pytest.raises(InvalidParameter) as refused:
        select(**{parameter: found})
    assert f"{parameter}={found!r}" in str(refused.value)
    assert says in str(refused.value)
    assert refused.value.facts == {"parameter": parameter}


def test_a_model_without_prefix_tokens_offers_its_patches_only() -> None:
    bare = EXPLAIN.model_copy(update={"prefix_tokens": []})
    assert attention.select(bare, CANVAS, "raw", "last", "mean", "1,2").query == 5
    with pytest.raises(InvalidParameter, match=r"allowed are 'Y,X' with Y below 2"):
        attention.select(bare, CANVAS, "raw", "last", "mean", "class")


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, False),
        ({"head": "all"}, False),
        ({"layer": "-1"}, False),
        ({"layer": "0"}, True),
        ({"layer": "all"}, True),
        ({"query": "distillation"}, True),
        ({"query": "0,0"}, True),
        ({"kind": "rollout"}, True),
    ],
)
def test_only_the_class_tokens_last_layer_is_free(changes: dict[str, str], needed: bool) -> None:
    assert select(**changes).needs_explain(EXPLAIN) is needed


SERVED = {"attention": np.arange(12, dtype=np.float32).reshape(2, 6)}  # (h, P)
EXPLAINED = {
    "attention": np.arange(36, dtype=np.float32).reshape(3, 2, 6),  # (L, h, P)
    "rollout": np.arange(6, dtype=np.float32),
}


def test_maps_of_the_serving_graph_are_those_of_the_last_layer() -> None:
    found = attention.answer(EXPLAIN, CANVAS, SERVED, select(head="all"))
    assert [(shown.layer, shown.head) for shown in found] == [(2, 0), (2, 1)]
    assert found[1].values.tolist() == [[6, 7, 8], [9, 10, 11]]


def test_the_mean_is_over_heads() -> None:
    (found,) = attention.answer(EXPLAIN, CANVAS, SERVED, select())
    assert (found.layer, found.head) == (2, "mean")
    assert found.values.tolist() == [[3, 4, 5], [6, 7, 8]]


def test_every_layer_and_head_of_the_explain_graph_has_its_map() -> None:
    found = attention.answer(EXPLAIN, CANVAS, EXPLAINED, select(layer="all", head="all"))
    assert [(shown.layer, shown.head) for shown in found] == [
        (layer, head) for layer in range(3) for head in range(2)
    ]
    assert np.array_equal(
        np.stack([shown.values for shown in found]), EXPLAINED["attention"].reshape(6, 2, 3)
    )
    (one,) = attention.answer(EXPLAIN, CANVAS, EXPLAINED, select(layer="1", head="1"))
    assert np.array_equal(one.values, EXPLAINED["attention"][1, 1].reshape(2, 3))


def test_rollout_is_one_map_of_no_layer_and_no_head() -> None:
    (found,) = attention.answer(EXPLAIN, CANVAS, EXPLAINED, select(kind="rollout"))
    assert (found.layer, found.head) == (None, None)
    assert found.values.tolist() == [[0, 1, 2], [3, 4, 5]]


def overlay(
    region: tuple[float, float, float, float],
    size: tuple[int, int] = (8, 4),
    values: Any = ((1.0, 1.0), (1.0, 1.0)),
) -> np.ndarray[Any, Any]:
    png = render.overlay_png(Image.new("RGB", size, (100, 100, 100)), np.array(values), region)
    return np.array(Image.open(io.BytesIO(png)))


def test_an_overlay_changes_the_region_and_nothing_else() -> None:
    pixels = overlay((2, 1, 6, 3))
    brightest = np.rint(0.45 * 100 + 0.55 * np.array([252, 250, 180]))
    assert pixels.shape == (4, 8, 3)
    assert (pixels[1:3, 2:6] == brightest).all()
    pixels[1:3, 2:6] = 100
    assert (pixels == 100).all()


def test_a_region_beyond_the_picture_is_cut_and_not_squeezed() -> None:
    inside = overlay((0, 0, 8, 4), values=[[0, 0, 1, 1]] * 4)
    beyond = overlay((-8, 0, 8, 4), values=[[0, 0, 0, 0, 0, 0, 1, 1]] * 4)
    assert (inside[:, :2] == inside[0, 0]).all()
    assert np.abs(inside.astype(int) - beyond.astype(int)).max() <= 1


def test_the_brightest_is_the_largest_value_whatever_its_size() -> None:
    small = overlay((0, 0, 8, 4), values=[[0.0, 0.001]])
    large = overlay((0, 0, 8, 4), values=[[0.0, 1.0]])
    assert np.abs(small.astype(int) - large.astype(int)).max() <= 1
    assert small[0, -1].sum() > small[0, 0].sum()
    assert (overlay((0, 0, 8, 4), values=[[0.0, 0.0]]) == overlay((0, 0, 8, 4))).sum() == 0


def test_a_large_picture_is_shown_smaller() -> None:
    assert overlay((0, 0, 5000, 100), size=(5000, 100)).shape == (41, render.MAX_SIDE_PX, 3)
    assert overlay((0, 0, 1, 9000), size=(1, 9000)).shape == (render.MAX_SIDE_PX, 1, 3)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    edges=st.tuples(*[st.floats(-20, 20) for _ in range(4)]),
)
def test_any_region_gives_a_picture_of_the_same_size(
    size: tuple[int, int], edges: tuple[float, float, float, float]
) -> None:
    region = min(edges[0::2]), min(edges[1::2]), max(edges[0::2]), max(edges[1::2])
    assert overlay(region, size).shape == (size[1], size[0], 3)
