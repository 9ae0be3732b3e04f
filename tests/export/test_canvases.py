"""The canvases of padded pictures, and which classes are things."""

from collections.abc import Mapping

import pytest

from export.canvases import padded_canvases
from export.label_sets import things_of
from export.preprocessor import read_preprocessor
from service.errors import StartError
from service.geometry import Size, choose_canvas, place


def sizes(config: Mapping[str, object]) -> list[str]:
    return [str(canvas) for canvas in padded_canvases(read_preprocessor(config).geometry)]


def test_detr_has_the_canvases_of_photographs_and_those_that_hold_anything() -> None:
    config = {"image_processor_type": "DetrImageProcessor"}
    assert sizes(config) == ["800x1066", "1066x800", "800x1333", "1333x800"]


def test_canvases_of_mask2former_are_multiples_of_its_divisor() -> None:
    config = {"image_processor_type": "Mask2FormerImageProcessor"}
    assert sizes(config) == ["800x1088", "1088x800", "800x1344", "1344x800"]


@pytest.mark.parametrize("height", [120, 333, 480, 640, 1000])
@pytest.mark.parametrize("width", [150, 481, 640, 853, 2000])
def test_no_picture_has_to_shrink_for_its_canvas(height: int, width: int) -> None:
    geometry = read_preprocessor({"image_processor_type": "DetrImageProcessor"}).geometry
    image = Size(height=height, width=width)
    canvas = choose_canvas(geometry, image, padded_canvases(geometry))
    wanted = place(geometry, image, Size(height=9999, width=9999)).resized
    assert place(geometry, image, canvas).resized == wanted


def test_photographs_of_4_by_3_are_not_padded() -> None:
    geometry = read_preprocessor({"image_processor_type": "DetrImageProcessor"}).geometry
    image = Size(height=480, width=640)
    canvas = choose_canvas(geometry, image, padded_canvases(geometry))
    assert place(geometry, image, canvas).valid == canvas


def test_a_fixed_pad_size_is_the_one_canvas() -> None:
    config = {
        "image_processor_type": "DetrImageProcessor",
        "size": {"max_height": 640, "max_width": 640},
        "pad_size": {"height": 640, "width": 640},
    }
    assert sizes(config) == ["640x640"]


def test_published_label_sets_are_recognised() -> None:
    coco = dict(enumerate(["person", *("thing",) * 78, "toothbrush", *("stuff",) * 53]))
    assert things_of(coco) == [True] * 80 + [False] * 53
    detr = dict(enumerate(["N/A", "person", *("x",) * 248]))
    assert sum(things_of(detr)) == 91
    vehicles = ["car", "truck", "bus", "train", "motorcycle", "bicycle"]
    city = dict(enumerate([*("road",) * 11, "person", "rider", *vehicles]))
    assert things_of(city) == [False] * 11 + [True] * 8
    assert things_of({0: "cat", 1: "sky"}) == [True, True]


def test_stuff_is_named_by_its_classes() -> None:
    assert things_of({0: "cat", 1: "sky"}, ["sky"]) == [True, False]
    assert things_of({0: "cat", 1: "sky"}, []) == [True, True]
    with pytest.raises(StartError, match="--stuff names sea; the classes are cat, sky"):
        things_of({0: "cat", 1: "sky"}, ["sea"])
