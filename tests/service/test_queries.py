"""What a request asks about: tokens, places, objects and classes."""

from typing import Any

import numpy as np
import pytest

from service.bundle import Manifest
from service.errors import InvalidParameter
from service.explain import Explain, Kind, Layer
from service.geometry import Geometry, Placement, Resize, Size, place
from service.tasks import attention, queries
from tests.service.sample_bundle import manifest_of

CANVAS = Size(height=32, width=48)
FINE = Layer(output="a", heads=1, stride=16)
COARSE = Layer(output="b", heads=1, stride=32)
EXPLAIN = Explain(
    kinds=[
        Kind(name="raw", query="token", layers=[FINE]),
        Kind(name="encoder", query="place", layers=[COARSE, FINE]),
        Kind(name="decoder", query="object", queries=20, layers=[FINE]),
        Kind(name="cam", query="class", layers=[FINE]),
        Kind(name="pooled", query="all", layers=[FINE]),
    ],
    prefix_tokens=["class", "distillation", "register", "register"],
)
LABELS = [{"id": 7, "name": "ant"}, {"id": 9, "name": "bee"}, {"id": 12, "name": "7"}]


def manifest(**changes: Any) -> Manifest:
    explain = changes.pop("explain", EXPLAIN)
    return Manifest.model_validate(
        manifest_of(labels=LABELS, explain=explain.model_dump(), **changes)
    )


def stretched(image: Size = CANVAS) -> Placement:
    resize = Resize(mode="squash", height=32, width=48)
    return place(Geometry(nominal=CANVAS, resize=resize, placement="stretch"), image, CANVAS)


def padded(image: Size) -> Placement:
    geometry = Geometry(nominal=CANVAS, resize=Resize(mode="none"), placement="pad")
    return place(geometry, image, CANVAS)


def cropped(image: Size) -> Placement:
    geometry = Geometry(nominal=CANVAS, resize=Resize(mode="none"), placement="crop")
    return place(geometry, image, CANVAS)


def ask(
    kind: str,
    query: str | None = None,
    point: str | None = None,
    placement: Placement | None = None,
    layer: str | None = None,
    explain: Explain = EXPLAIN,
) -> queries.Question:
    selection = attention.select(explain, kind, layer, None)
    return queries.read_question(
        selection, manifest(explain=explain), placement or stretched(), query, point
    )


def spot(question: queries.Question) -> tuple[float, float, float, float]:
    assert question.point is not None
    point = question.point
    return point.down, point.across, point.x, point.y


@pytest.mark.parametrize(
    ("query", "token"),
    [
        (None, 0),
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
def test_tokens_are_chosen_by_name_or_place(query: str | None, token: int) -> None:
    question = ask("raw", query)
    assert question.query == token
    assert question.name(FINE, stretched(), None) == (query or "class")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("register", "'register:0' to 'register:1'"),
        ("register:2", "'register:1'"),
        ("2,0", "Y below 2 and X below 3"),
        ("0,3", "Y below 2 and X below 3"),
        ("0, 1", "'Y,X'"),
        ("-1,0", "'class', 'distillation'"),
        ("CLASS", "'class'"),
        ("\u0661,\u0660", "'Y,X'"),
    ],
)
def test_a_token_that_there_is_not_is_refused_with_those_there_are(query: str, says: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        ask("raw", query)
    assert f"query={query!r}" in str(refused.value)
    assert says in str(refused.value)
    assert refused.value.facts == {"parameter": "query"}


def test_a_model_without_prefix_tokens_offers_its_patches_only() -> None:
    bare = EXPLAIN.model_copy(update={"prefix_tokens": []})
    assert ask("raw", "1,2", explain=bare).query == 5
    with pytest.raises(InvalidParameter, match=r"allowed are 'Y,X' with Y below 2"):
        ask("raw", "class", explain=bare)


@pytest.mark.parametrize(
    ("point", "token", "name"),
    [("0,0", 4, "0,0"), ("95.9,63.9", 9, "1,2"), ("31.9,32", 7, "1,0"), ("32,31", 5, "0,1")],
)
def test_a_point_of_the_picture_is_the_token_of_the_patch_there(
    point: str, token: int, name: str
) -> None:
    placement = stretched(Size(height=64, width=96))  # two pixels of the picture for one
    question = ask("raw", point=point, placement=placement)
    assert (question.query, question.name(FINE, placement, None)) == (token, name)


def test_a_point_is_mapped_through_the_crop_and_each_layer_has_its_cell_there() -> None:
    placement = cropped(Size(height=64, width=148))  # the canvas starts at x = 50, y = 16
    question = ask("encoder", point="90,40", placement=placement, layer="all")
    assert spot(question) == (24 / 32, 40 / 48, 90, 40)
    assert question.name(FINE, placement, None) == "1,2"
    assert question.name(COARSE, placement, None) == "0,1"
    assert question.inputs()["place"].tolist() == pytest.approx([0.75, 40 / 48])
    assert question.inputs()["query"].tolist() == -1


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ("148,0", "X below 148 and Y below 64"),
        ("-1,0", "not on the picture"),
        ("1e2,0", "not on the picture"),
        ("nan,0", "not on the picture"),
        ("\u0661,0", "not on the picture"),
        ("10,20,30", "not on the picture"),
        ("49.9,20", "X from 50 to 98 and Y from 16 to 48"),
        ("98,20", "X from 50 to 98"),
        ("60,48", "Y from 16 to 48"),
    ],
)
def test_a_point_that_the_model_does_not_see_is_refused(point: str, says: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        ask("encoder", point=point, placement=cropped(Size(height=64, width=148)))
    assert says in str(refused.value)
    assert refused.value.facts == {"parameter": "point"}


def test_a_point_and_a_query_are_one_too_many() -> None:
    with pytest.raises(InvalidParameter, match="leave out one of them"):
        ask("encoder", query="0,0", point="1,1")
    for kind, about in (("decoder", "an object"), ("cam", "a class"), ("pooled", "all tokens")):
        with pytest.raises(InvalidParameter, match=f"not about a place but about {about}; leave"):
            ask(kind, point="1,1")


def test_a_place_is_the_middle_of_what_is_seen_unless_one_is_named() -> None:
    assert spot(ask("encoder")) == (0.5, 0.5, 24, 16)
    assert spot(ask("encoder", "center")) == (0.5, 0.5, 24, 16)
    small = padded(Size(height=16, width=12))
    assert spot(ask("encoder", placement=small)) == (0.25, 0.125, 6, 8)
    hung = cropped(Size(height=8, width=100))  # zeros above and below
    assert spot(ask("encoder", placement=hung)) == (0.5, 0.5, 50, 4)


def test_a_place_may_be_a_cell_of_the_grid_that_the_chosen_layers_share() -> None:
    question = ask("encoder", "1,2")  # the last layer: 2x3 cells
    assert spot(question) == (0.75, 2.5 / 3, 40, 24)
    assert question.name(FINE, stretched(), None) == "1,2"
    assert spot(ask("encoder", "0,1", layer="0")) == (0.5, 40 / 48, 40, 16)  # cut off at 48
    with pytest.raises(InvalidParameter, match="different grids; name a 'point'"):
        ask("encoder", "0,1", layer="all")
    with pytest.raises(InvalidParameter, match="Y below 2 and X below 3"):
        ask("encoder", "2,0")


def test_a_cell_of_padding_is_no_place() -> None:
    small = padded(Size(height=16, width=17))
    assert ask("encoder", "0,1", placement=small).point is not None
    for query in ("1,0", "0,2"):
        with pytest.raises(InvalidParameter, match="Y below 1 and X below 2"):
            ask("encoder", query, placement=small)
        with pytest.raises(InvalidParameter, match="Y below 1 and X below 2"):
            ask("raw", query, placement=small)
    with pytest.raises(InvalidParameter, match="X below 17 and Y below 16"):
        ask("encoder", point="20,3", placement=small)


def test_every_named_cell_is_the_cell_that_is_asked_about() -> None:
    canvas = Size(height=1067, width=1333)
    geometry = Geometry(nominal=canvas, resize=Resize(mode="none"), placement="pad")
    placement = place(geometry, canvas, canvas)
    layer = Layer(output="a", heads=1, stride=32)
    explain = Explain(kinds=[Kind(name="encoder", query="place", layers=[layer])])
    rows, columns = layer.grid(canvas)
    assert (rows, columns) == (34, 42)
    for query in (f"{row},{column}" for row in range(rows) for column in range(columns)):
        question = ask("encoder", query, placement=placement, explain=explain)
        assert question.name(layer, placement, None) == query


@pytest.mark.parametrize(
    ("kind", "query", "number"),
    [
        ("decoder", None, -1),
        ("decoder", "best", -1),
        ("decoder", "0", 0),
        ("decoder", "19", 19),
        ("cam", None, -1),
        ("cam", "best", -1),
        ("cam", "9", 1),
        ("cam", "bee", 1),
        ("cam", "7", 0),  # an id goes before a name
        ("cam", "12", 2),
    ],
)
def test_objects_have_numbers_and_classes_ids_and_names(
    kind: str, query: str | None, number: int
) -> None:
    assert ask(kind, query).query == number


@pytest.mark.parametrize(
    ("kind", "query", "says"),
    [
        ("decoder", "20", "'best' or a number from 0 to 19"),
        ("decoder", "-1", "0 to 19"),
        ("decoder", "class", "0 to 19"),
        ("decoder", "\u0661", "0 to 19"),
        ("cam", "1", "'best', a label's id or name"),
        ("cam", "Bee", "'best', a label's id or name"),
        ("cam", "", "'best', a label's id or name"),
    ],
)
def test_an_object_or_class_that_there_is_not_is_refused(kind: str, query: str, says: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        ask(kind, query)
    assert says in str(refused.value)
    assert refused.value.facts == {"parameter": "query"}


def test_the_mean_over_all_needs_no_query() -> None:
    for query in (None, "all"):
        question = ask("pooled", query)
        assert (question.query, question.point) == (-1, None)
        assert question.name(FINE, stretched(), None) == "all"
    with pytest.raises(InvalidParameter, match="the mean over 'all'") as refused:
        ask("pooled", "class")
    assert refused.value.facts == {"parameter": "query"}


def found(kind: str, logits: list[float], **more: Any) -> queries.Object | None:
    outputs = {"explained": np.array(1), "explained_logits": np.array(logits, np.float32)}
    activation = more.pop("activation", "softmax")
    selection = attention.select(EXPLAIN, kind, None, None)
    question = queries.Question(more.pop("asked", -1))
    return queries.read_found(selection, manifest(activation=activation), outputs | more, question)


def test_an_object_is_its_surest_class_that_is_one() -> None:
    box = np.array([0.25, 0.5, 0.75, 1.25], np.float32)
    logits = np.log([0.125, 0.25, 0.125, 0.5]).tolist()  # the last is no object
    object_ = found("decoder", logits, explained_box=box)
    assert object_ is not None
    assert (object_.label.name, object_.query, object_.name) == ("bee", 1, "1")
    assert object_.score == pytest.approx(0.25)
    assert object_.box == (0.25, 0.5, 0.75, 1.25)


def test_scores_of_a_sigmoid_stand_alone() -> None:
    object_ = found("decoder", [0.0, -1.0, 2.0], activation="sigmoid")
    assert object_ is not None
    assert (object_.label.name, object_.box) == ("7", None)
    assert object_.score == pytest.approx(1 / (1 + np.exp(-2)))


def test_a_class_has_its_own_score_even_if_another_is_better() -> None:
    class_ = found("cam", np.log([0.5, 0.125, 0.375]).tolist())
    assert class_ is not None
    assert (class_.label.id, class_.query, class_.name) == (9, None, "9")
    assert class_.score == pytest.approx(0.125)


def test_a_query_that_the_picture_does_not_have_is_refused() -> None:
    for asked in (-1, 1):
        object_ = found("decoder", [0.0, 1.0, 0.0, 0.0], asked=asked)
        assert object_ is not None
        assert object_.query == 1
    with pytest.raises(InvalidParameter, match="query=2 is none of this picture's"):
        found("decoder", [0.0, 1.0, 0.0, 0.0], asked=2)


def test_a_place_and_a_token_are_no_objects() -> None:
    assert found("raw", [0.0]) is None
    assert found("encoder", [0.0]) is None
