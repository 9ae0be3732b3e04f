"""The manifest's word on what can be explained, and the graphs that must bear it out."""

from typing import Any

import pytest
from pydantic import ValidationError

from service.explain import Explain, Kind, Layer
from service.geometry import Size

CANVAS = Size(height=32, width=48)
INPUTS = {"images": [-1, 32, 48, 3], "query": [-1], "place": [-1, 2]}
OUTPUTS = {
    "decoder.0": [-1, 4, 6],
    "stack": [-1, 3, 2, 6],
    "cam": [-1, 2, 3],
    "explained": [-1],
    "explained_logits": [-1, 8],
}


def explain(query: str = "object", name: str = "decoder", **layer: Any) -> Explain:
    described = {"output": "decoder.0", "heads": 4, "stride": 16} | layer
    queries = {"queries": 5} if query == "object" else {}
    return Explain.model_validate(
        {"kinds": [{"name": name, "query": query, "layers": [described]} | queries]}
    )


def fault(section: Explain, without: str = "") -> str | None:
    inputs = {name: shape for name, shape in INPUTS.items() if name != without}
    outputs = {name: shape for name, shape in OUTPUTS.items() if name != without}
    return section.fault(inputs, outputs, CANVAS)


def test_a_grid_has_a_cell_for_every_begun_stride() -> None:
    layer = Layer(output="a", heads=1, stride=32)
    assert layer.grid(Size(height=800, width=1067)) == (25, 34)
    assert layer.grid(Size(height=1, width=32)) == (1, 1)


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"output": "stack", "heads": 2, "index": 2},
        {"output": "cam", "heads": 0},
    ],
)
def test_a_graph_that_holds_the_maps_has_no_fault(layer: dict[str, Any]) -> None:
    assert fault(explain(**layer)) is None


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ({"heads": 3}, "'decoder.0' has the shape [-1, 4, 6], which is not kind 'decoder' with 3"),
        ({"stride": 8}, "4 heads on 4x6 cells"),
        ({"output": "stack", "heads": 2, "index": 3}, "'stack' has the shape"),
        ({"output": "stack", "heads": 2}, "'stack' has the shape"),
        ({"output": "decoder.9"}, "needs an output 'decoder.9'"),
    ],
)
def test_a_graph_that_does_not_hold_the_maps_has_a_fault(layer: dict[str, Any], says: str) -> None:
    assert says in str(fault(explain(**layer)))


@pytest.mark.parametrize(
    ("query", "missing"),
    [
        ("object", "query"),
        ("class", "query"),
        ("token", "query"),
        ("place", "place"),
        ("object", "explained"),
        ("class", "explained_logits"),
    ],
)
def test_a_graph_takes_what_is_asked_and_says_what_it_explained(query: str, missing: str) -> None:
    assert fault(explain(query)) is None
    assert f"needs an {'in' if missing in INPUTS else 'out'}put {missing!r}" in str(
        fault(explain(query), without=missing)
    )


def test_one_map_without_heads_leaves_nothing_to_choose() -> None:
    (kind,) = explain("class", "cam", output="cam", heads=0).kinds
    assert kind.single
    assert not explain().kinds[0].single
    two = kind.model_copy(update={"layers": kind.layers * 2})
    assert not two.single


def test_objects_are_counted_and_names_unique() -> None:
    layers = [Layer(output="a", heads=1, stride=1)]
    for query, queries in (("object", None), ("class", 3)):
        with pytest.raises(ValidationError, match="must say how many queries"):
            Kind.model_validate({"name": "a", "query": query, "queries": queries, "layers": layers})
    kind = Kind(name="a", query="class", layers=layers)
    with pytest.raises(ValidationError, match="listed twice"):
        Explain(kinds=[kind, kind])
