"""The canvases of padded pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)

from export.build import own_canvases
from export.canvases import padded_canvases
from export.preprocessor import read_preprocessor
from models.checkpoints.files import Checkpoint
from service.geometry import Size, choose_canvas, place

DETR: dict[str, Any] = {"image_processor_type": "DetrImageProcessor"}
MASK2FORMER: dict[str, Any] = {"image_processor_type": "Mask2FormerImageProcessor"}
FAR: dict[str, Any] = {"size": {"shortest_edge": 512, "longest_edge": 2048}}


def sizes(config: Mapping[str, object], sees_padding: bool = False) -> list[str]:
    geometry = read_preprocessor(config).geometry
    return [str(canvas) for canvas in padded_canvases(geometry, sees_padding)]


def test_detr_has_the_canvases_of_photographs_and_those_that_hold_anything() -> None:
    assert sizes(DETR) == ["800x1066", "1066x800", "800x1333", "1333x800"]


def test_a_network_that_sees_padding_has_the_usual_shapes_in_multiples_of_its_divisor() -> None:
    usual = ["800x1088", "1088x800", "800x800", "800x1216", "1216x800", "800x1344", "1344x800"]
    assert sizes(MASK2FORMER, sees_padding=True) == usual


def test_a_longest_edge_far_beyond_the_shortest_leaves_room_for_more_shapes() -> None:
    lying = ["512x704", "512x512", "512x768", "512x928", "512x1024", "512x2048"]
    found = sizes(MASK2FORMER | FAR, sees_padding=True)
    assert [size for size in found if size.startswith("512")] == lying
    assert len(found) == 11
    assert len(sizes(DETR | FAR)) == 11


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "longest"),
    [
        *((3, 4, 266), (1, 1, 266), (2, 3, 266)),
        *((3, 4, 640), (1, 1, 640), (2, 3, 640), (9, 16, 640), (1, 2, 640)),
    ],
)
def test_mask2former_sees_usual_pictures_as_transformers_shows_them(
    height: int, width: int, upright: bool, longest: int
) -> None:
    edges = {"shortest_edge": 160, "longest_edge": longest}
    image = Image.new("RGB", (width * 60, height * 60))
    image = image.transpose(Image.Transpose.ROTATE_90) if upright else image
    geometry = read_preprocessor({**MASK2FORMER, "size": edges}).geometry
    size = Size(height=image.height, width=image.width)
    canvas = choose_canvas(geometry, size, padded_canvases(geometry, sees_padding=True))
    processor: Any = Mask2FormerImageProcessorPil(size=edges, size_divisor=32)
    shown = processor(image)["pixel_values"][0].shape
    assert shown == (3, canvas.height, canvas.width)
    assert place(geometry, size, canvas).valid == canvas


@pytest.mark.parametrize("height", [120, 333, 480, 640, 1000])
@pytest.mark.parametrize("width", [150, 481, 640, 853, 2000])
@pytest.mark.parametrize("config", [DETR, MASK2FORMER | FAR], ids=["detr", "far"])
def test_no_picture_has_to_shrink_for_its_canvas(
    config: Mapping[str, object], height: int, width: int
) -> None:
    geometry = read_preprocessor(config).geometry
    image = Size(height=height, width=width)
    canvas = choose_canvas(geometry, image, padded_canvases(geometry, sees_padding=False))
    wanted = place(geometry, image, Size(height=9999, width=9999)).resized
    assert place(geometry, image, canvas).resized == wanted


def test_photographs_of_4_by_3_are_not_padded() -> None:
    geometry = read_preprocessor(DETR).geometry
    image = Size(height=480, width=640)
    canvas = choose_canvas(geometry, image, padded_canvases(geometry, sees_padding=False))
    assert place(geometry, image, canvas).valid == canvas


def checkpoint_of(kind: str, **config: object) -> Checkpoint:
    return Checkpoint("here", Path(), {"model_type": kind, **config}, None, None, None, "")


@pytest.mark.parametrize(
    "size", [{"max_height": 640, "max_width": 640}, {"shortest_edge": 480, "longest_edge": 640}]
)
def test_a_fixed_pad_size_is_the_one_canvas(size: dict[str, int]) -> None:
    config = {**DETR, "size": size, "pad_size": {"height": 640, "width": 672}}
    assert own_canvases(checkpoint_of("detr"), config) == [(640, 672)]


def test_only_a_network_that_sees_padding_gets_more_canvases() -> None:
    assert len(own_canvases(checkpoint_of("mask2former"), MASK2FORMER)) == 7
    assert len(own_canvases(checkpoint_of("detr"), DETR)) == 4


def test_a_file_that_does_not_resize_leaves_the_canvas_to_the_network() -> None:
    config = {"image_processor_type": "ViTImageProcessor", "do_resize": False, "size": 224}
    assert own_canvases(checkpoint_of("vit", image_size=64), config) == [(64, 64)]
    cropping = config | {"do_resize": True, "size": {"longest_edge": 96}, "crop_size": 48}
    assert own_canvases(checkpoint_of("vit", image_size=64), cropping) == [(48, 48)]
