"""Which maps a request chooses, and how they are cut out of a graph's outputs."""

from typing import Any

import numpy as np
import pytest

from service.errors import InvalidParameter
from service.explain import Explain, Kind, Layer
from service.geometry import Geometry, Placement, Resize, Size, place
from service.tasks import attention

CANVAS = Size(height=32, width=48)
RAW = [Layer(output="attention", index=index, heads=2, stride=16) for index in range(3)]
RAW[2] = RAW[2].model_copy(update={"served": "attention"})
SERVED = {"attention": np.arange(12, dtype=np.float32).reshape(2, 6)}  # (h, P)
EXPLAINED = {
    "attention": np.arange(36, dtype=np.float32).reshape(3, 2, 6),  # (L, h, P)
    "rollout": np.arange(6, dtype=np.float32),
}
VIT = Explain(
    kinds=[
        Kind(name="raw", query="token", layers=RAW),
        Kind(
            name="rollout",
            query="token",
            layers=[Layer(output="rollout", heads=0, stride=16)],
        ),
    ],
    prefix_tokens=["class"],
)
SEGMENTER = Explain(
    kinds=[
        Kind(
            name="decoder",
            query="object",
            queries=5,
            layers=[
                Layer(output="decoder.0", heads=4, stride=32),
                Layer(output="decoder.1", heads=2, stride=16),
            ],
        ),
        Kind(
            name="mask",
            query="object",
            queries=5,
            layers=[Layer(output=f"mask.{index}", heads=0, stride=16) for index in range(2)],
        ),
    ]
)


def select(explain: Explain = VIT, **chosen: str) -> attention.Selection:
    options: dict[str, Any] = {"kind": None, "layer": None, "head": None}
    return attention.select(explain, **(options | chosen))


def stretched(canvas: Size = CANVAS) -> Placement:
    resize = Resize(mode="squash", height=canvas.height, width=canvas.width)
    geometry = Geometry(nominal=canvas, resize=resize, placement="stretch")
    return place(geometry, Size(height=64, width=96), canvas)


def padded(canvas: Size, image: Size) -> Placement:
    geometry = Geometry(nominal=canvas, resize=Resize(mode="none"), placement="pad")
    return place(geometry, image, canvas)


def cut(selection: attention.Selection, served: bool = False) -> list[attention.Map]:
    return attention.answer(selection, stretched(), SERVED if served else EXPLAINED, served)


def test_the_kind_is_the_first_unless_one_is_named() -> None:
    assert select().kind.name == "raw"
    assert select(kind="rollout").kind.name == "rollout"
    with pytest.raises(InvalidParameter, match="this model shows 'raw', 'rollout'") as refused:
        select(kind="cam")
    assert refused.value.facts == {"parameter": "kind", "allowed": ["raw", "rollout"]}


@pytest.mark.parametrize(
    ("layer", "layers"),
    [("last", (2,)), ("all", (0, 1, 2)), ("0", (0,)), ("2", (2,)), ("-1", (2,)), ("-3", (0,))],
)
def test_layers_are_chosen_by_name_or_number(layer: str, layers: tuple[int, ...]) -> None:
    assert select(layer=layer).layers == layers
    assert select().layers == (2,)


@pytest.mark.parametrize(
    ("head", "heads"), [("mean", "mean"), ("all", None), ("1", (1,)), ("-2", (0,))]
)
def test_heads_are_chosen_by_name_or_number(head: str, heads: Any) -> None:
    assert select(head=head).heads == heads
    assert select().heads == "mean"


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
        ("head", "", "0 to 1"),
    ],
)
def test_what_a_model_does_not_have_is_refused_with_what_it_has(
    parameter: str, found: str, says: str
) -> None:
    with pytest.raises(InvalidParameter) as refused:
        select(VIT, **{parameter: found})
    assert f"{parameter}={found!r}" in str(refused.value)
    assert says in str(refused.value)
    assert refused.value.facts == {"parameter": parameter}


def test_a_head_must_be_in_every_chosen_layer() -> None:
    assert select(SEGMENTER, layer="0", head="3").heads == (3,)
    assert select(SEGMENTER, layer="all", head="-1").heads == (1,)
    with pytest.raises(InvalidParameter, match="heads 0 to 1"):
        select(SEGMENTER, layer="all", head="3")


@pytest.mark.parametrize(
    ("explain", "chosen", "says"),
    [
        (VIT, {"kind": "rollout", "layer": "0"}, "one map, of no layer and no head; leave out la"),
        (VIT, {"kind": "rollout", "layer": "0", "head": "mean"}, "leave out head and layer"),
        (SEGMENTER, {"kind": "mask", "head": "mean"}, "'mask' has no heads; leave out head"),
    ],
)
def test_a_choice_where_there_is_none_is_refused(
    explain: Explain, chosen: dict[str, str], says: str
) -> None:
    with pytest.raises(InvalidParameter, match=says):
        select(explain, **chosen)


@pytest.mark.parametrize(
    ("chosen", "query", "served"),
    [
        ({}, 0, True),
        ({"head": "all"}, 0, True),
        ({"layer": "-1"}, 0, True),
        ({}, 1, False),
        ({"layer": "0"}, 0, False),
        ({"layer": "all"}, 0, False),
        ({"kind": "rollout"}, 0, False),
    ],
)
def test_only_the_class_tokens_last_layer_is_free(
    chosen: dict[str, str], query: int, served: bool
) -> None:
    assert select(VIT, **chosen).served(query) is served


def test_only_what_is_shown_crosses_the_wire() -> None:
    every = ["decoder.0", "decoder.1", "mask.0", "mask.1", "explained", "explained_logits"]
    about = ("explained", "explained_logits")
    assert select(SEGMENTER).outputs(False, every) == ("decoder.1", *about)
    assert select(SEGMENTER, kind="mask", layer="all").outputs(
        False, [*every, "explained_box"]
    ) == ("mask.0", "mask.1", *about, "explained_box")
    assert select(layer="all").outputs(False, ["attention", "rollout"]) == ("attention",)
    assert select().outputs(True, ["scores", "attention"]) == ("attention",)


def test_maps_of_the_serving_graph_are_those_of_the_last_layer() -> None:
    found = cut(select(head="all"), served=True)
    assert [(shown.layer, shown.head) for shown in found] == [(2, 0), (2, 1)]
    assert found[1].values.tolist() == [[6, 7, 8], [9, 10, 11]]


def test_the_mean_is_over_heads() -> None:
    (found,) = cut(select(), served=True)
    assert (found.layer, found.head) == (2, "mean")
    assert found.values.tolist() == [[3, 4, 5], [6, 7, 8]]


def test_every_layer_and_head_of_the_explain_graph_has_its_map() -> None:
    found = cut(select(layer="all", head="all"))
    assert [(shown.layer, shown.head) for shown in found] == [
        (layer, head) for layer in range(3) for head in range(2)
    ]
    assert np.array_equal(
        np.stack([shown.values for shown in found]), EXPLAINED["attention"].reshape(6, 2, 3)
    )
    (one,) = cut(select(layer="1", head="1"))
    assert np.array_equal(one.values, EXPLAINED["attention"][1, 1].reshape(2, 3))


def test_rollout_is_one_map_of_no_layer_and_no_head() -> None:
    (found,) = cut(select(kind="rollout"))
    assert (found.layer, found.head) == (None, None)
    assert found.values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.region == (0, 0, 96, 64)


def test_layers_have_grids_and_heads_of_their_own() -> None:
    outputs = {
        "decoder.0": np.array([[1, 2], [3, 4], [5, 6], [7, 8]]),  # 1x2 cells
        "decoder.1": np.arange(12).reshape(2, 6),
        "mask.0": np.zeros(6),
        "mask.1": np.arange(6),
    }
    placement = stretched(CANVAS)
    found = attention.answer(select(SEGMENTER, layer="all"), placement, outputs, served=False)
    assert [one.values.tolist() for one in found] == [[[4, 5]], [[3, 4, 5], [6, 7, 8]]]
    masks = attention.answer(
        select(SEGMENTER, kind="mask", layer="all"), placement, outputs, served=False
    )
    assert [(one.layer, one.head) for one in masks] == [(0, None), (1, None)]
    assert masks[1].values.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_only_the_cells_that_show_the_picture_come_back() -> None:
    # 4x6 cells of 16 pixels; a picture of 30x49 pixels takes up 2 rows and 4 columns of them.
    placement = padded(Size(height=64, width=96), Size(height=30, width=49))
    selection = select(SEGMENTER, kind="mask")
    outputs = {"mask.1": np.arange(24, dtype=np.float32)}
    (found,) = attention.answer(selection, placement, outputs, served=False)
    assert found.values.tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert found.region == (0, 0, 64, 32)  # where those cells end, beyond the picture
    assert attention.seen_region(placement) == (0, 0, 49, 30)


def test_weights_are_those_of_the_softmax_row_whatever_padding_took() -> None:
    placement = padded(Size(height=32, width=64), Size(height=32, width=32))
    outputs = {"decoder.0": np.array([[0.25, 0.75]] * 4)}
    (found,) = attention.answer(select(SEGMENTER, layer="0"), placement, outputs, served=False)
    assert found.values.tolist() == [[0.25]]


def test_the_last_cells_of_a_canvas_that_is_no_multiple_reach_beyond_it() -> None:
    # Seven cells of 32 pixels cover 200. The networks take a cell for padding if the picture ends
    # before the first pixel that is reduced to it, and those share the canvas evenly.
    layer = Layer(output="encoder.0", heads=0, stride=32)
    canvas = Size(height=32, width=200)
    for width, columns in ((200, 7), (171, 6), (172, 7), (1, 1)):
        placement = padded(canvas, Size(height=32, width=width))
        assert attention.seen_cells(layer, placement) == (1, columns)
    explain = Explain(kinds=[Kind(name="encoder", query="place", layers=[layer])])
    placement = padded(canvas, Size(height=32, width=171))
    outputs = {"encoder.0": np.arange(7, dtype=np.float32)}
    (found,) = attention.answer(select(explain), placement, outputs, served=False)
    assert found.region == (0, 0, 192, 32)
