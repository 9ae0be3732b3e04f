"""The names of classes, and which of them are things."""

import json
from pathlib import Path

import pytest

from export.label_sets import are_placeholders, lines_of, read_labels, things_of
from service.errors import StartError


def test_published_label_sets_are_recognised() -> None:
    coco = dict(enumerate(["person", *("thing",) * 78, "toothbrush", *("stuff",) * 53]))
    assert things_of(coco) == [True] * 80 + [False] * 53
    detr = dict(enumerate(["N/A", "person", *("x",) * 248]))
    assert sum(things_of(detr)) == 91
    vehicles = ["car", "truck", "bus", "train", "motorcycle", "bicycle"]
    city = dict(enumerate([*("road",) * 11, "person", "rider", *vehicles]))
    assert things_of(city) == [False] * 11 + [True] * 8
    assert things_of({0: "cat", 1: "sky"}) == [True, True]


ADE20K = dict.fromkeys(range(150), "thing") | {
    0: "wall",
    2: "sky",
    6: "road, route",
    7: "bed",
    12: "person ",
    76: "boat",
    126: "animal",
    131: "blanket, cover",
    149: "flag",
}


@pytest.mark.parametrize("road", ["road, route", "road"])
def test_the_150_classes_of_ade20k_are_recognised_however_they_are_spelled(road: str) -> None:
    found = things_of(ADE20K | {6: road})
    assert sum(found) == 100
    assert [found[i] for i in (0, 2, 6, 7, 12, 131, 149)] == [False] * 3 + [True] * 2 + [
        False,
        True,
    ]
    assert things_of(ADE20K | {76: "ship"}) == [True] * 150


def test_stuff_may_have_commas_and_spaces_in_its_names_or_be_named_by_id() -> None:
    assert stuff_of(ADE20K, ["road, route"]) == [6]
    assert stuff_of(ADE20K, ["person", "bed,sky", "149"]) == [2, 7, 12, 149]
    assert stuff_of(ADE20K, ["0", "blanket, cover"]) == [0, 131]
    assert stuff_of({0: "3", 1: "a", 2: "b", 3: "c"}, ["3"]) == [0]  # a name goes before an id
    assert stuff_of({0: "crane", 1: "ant", 2: "crane"}, ["crane"]) == [0, 2]
    assert stuff_of({0: "cat", 1: "sky"}, [""]) == []


def stuff_of(labels: dict[int, str], stuff: list[str]) -> list[int]:
    return [index for index, thing in enumerate(things_of(labels, stuff)) if not thing]


def test_stuff_is_named_by_its_classes() -> None:
    assert things_of({0: "cat", 1: "sky"}, ["sky"]) == [True, False]
    assert things_of({0: "cat", 1: "sky"}, []) == [True, True]
    with pytest.raises(StartError, match="--stuff names sea; the classes are cat, sky"):
        things_of({0: "cat", 1: "sky"}, ["sea"])


NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "crane"}


@pytest.mark.parametrize(
    "text",
    [
        "tench, Tinca tinca\ngoldfish\r\ncrane\n\n",
        "\ufefftench, Tinca tinca\ngoldfish\ncrane",
        json.dumps(list(NAMES.values())),
        json.dumps({"2": "crane", "0": "tench, Tinca tinca", "1": "goldfish"}, indent=1),
        json.dumps({"model_type": "vit", "id2label": NAMES}),
    ],
    ids=["lines", "lines with a mark", "list", "object", "config.json"],
)
def test_labels_are_read_from_lines_a_list_or_an_object(text: str, tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text(text, encoding="utf-8")
    assert read_labels(file, 3) == NAMES


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat\ndog\n", "names 2 classes; the model has 3"),
        ("", "names 0 classes; the model has 3"),
        ("cat\n\ndog", "has no name for class 1"),
        ('["cat", "dog"', "labels: "),
        ('{"0": "cat", "2": "dog", "5": "ant"}', "every id from 0 to 2"),
        ('{"cat": 0, "dog": 1, "ant": 2}', "expected an object of ids"),
    ],
)
def test_labels_that_do_not_fit_are_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text(text)
    with pytest.raises(StartError, match=said):
        read_labels(file, 3)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StartError, match="labels cannot be read as text"):
        lines_of(tmp_path / "labels")


def test_placeholders_are_told_from_names() -> None:
    assert are_placeholders({0: "LABEL_0", 1: "LABEL_1"})
    assert not are_placeholders({0: "LABEL_0", 1: "cat"})
    assert not are_placeholders({})
