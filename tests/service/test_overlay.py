"""Boxes, masks and names drawn on pictures: pixels at known places."""

import io
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from service.bundle import Label
from service.tasks.colours import colour_of, oklch, shade, text_on
from service.tasks.overlay import FILL_SHARE, Shown, boxes_overlay, masks_overlay
from service.tasks.render import MAX_SIDE_PX
from service.tasks.tags import MOST_HIDDEN, Rectangle, Style, Tag, draw_tags

GREY = 100
LABELS = [Label(id=i, name=name) for i, name in enumerate(("ant", "bee", "cat"))]


@dataclass
class Crop:
    """A mask in its box."""

    crop: NDArray[np.bool_]


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (GREY, GREY, GREY))


def pixels(encoded: bytes) -> NDArray[np.int64]:
    return np.array(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(np.int64)


def boxes(*found: Shown, size: tuple[int, int] = (300, 200), labels: Any = LABELS) -> Any:
    return pixels(boxes_overlay(grey(*size), found, labels, "image/png"))


def masks(*found: Shown, size: tuple[int, int] = (300, 200), labels: Any = LABELS) -> Any:
    return pixels(masks_overlay(grey(*size), found, labels, "image/png"))


def test_a_box_is_a_line_in_the_colour_of_its_class_inside_its_edges() -> None:
    found = boxes(Shown(1, 0.9, (40, 60, 240, 160)))
    colour = list(colour_of(LABELS[1]))
    for y, x in ((110, 40), (110, 239), (159, 140), (60, 200)):
        assert found[y, x].tolist() == colour
    assert (found[100:120, 60:220] == GREY).all()
    assert (found[110, 39] < GREY).all()  # a dark halo, for light pictures
    assert (found[110, :38] == GREY).all()
    assert (found[170:] == GREY).all()


def test_the_name_stands_above_its_box_on_a_tag_of_its_colour() -> None:
    found = boxes(Shown(1, 0.9, (40, 60, 240, 160)))
    tag = found[44:57, 42:90]
    colour = list(colour_of(LABELS[1]))
    assert (tag == colour).all(axis=2).mean() > 0.4
    assert (np.abs(tag - text_on(colour_of(LABELS[1]))).max(axis=2) < 40).any()


def test_what_comes_first_is_drawn_on_top() -> None:
    first, second = Shown(1, 0.9, (40, 60, 240, 160)), Shown(2, 0.8, (40, 60, 240, 160))
    assert boxes(first, second)[110, 40].tolist() == list(colour_of(LABELS[1]))
    assert boxes(second, first)[110, 40].tolist() == list(colour_of(LABELS[2]))


def test_a_label_keeps_its_colour_whatever_else_is_found() -> None:
    bee = Shown(1, 0.9, (40, 60, 240, 160))
    alone = boxes(bee)
    others = [Shown(0, 0.95, (250, 10, 290, 30)), Shown(2, 0.5, (250, 170, 290, 190))]
    crowd = boxes(others[0], bee, others[1])
    assert alone[110, 40].tolist() == crowd[110, 40].tolist()
    own = [LABELS[0], LABELS[1].model_copy(update={"color": (1, 2, 250)}), LABELS[2]]
    assert boxes(bee, labels=own)[110, 40].tolist() == [1, 2, 250]


def test_objects_of_a_class_are_shades_of_its_colour() -> None:
    found = boxes(*(Shown(1, 0.9, (10 + 60 * i, 60, 50 + 60 * i, 160)) for i in range(4)))
    lines = [tuple(found[110, 10 + 60 * i].tolist()) for i in range(4)]
    assert lines == [shade(colour_of(LABELS[1]), i) for i in range(4)]
    assert lines[0] == colour_of(LABELS[1])
    assert len(set(lines)) == 4


def test_a_mask_is_filled_lightly_and_rimmed_strongly() -> None:
    colour = np.array(colour_of(LABELS[1]))
    found = masks(Shown(1, 0.9, (50, 40, 250, 180), Crop(np.ones((140, 200), dtype=bool))))
    mixed = (1 - FILL_SHARE) * GREY + FILL_SHARE * colour
    assert np.abs(found[60:80, 70:120] - mixed).max() <= 2
    assert np.abs(found[160, [50, 249]] - colour).max() <= 40
    assert np.abs(found[160, 60:240] - mixed).max() <= 2
    assert (found[:, :40] == GREY).all()
    assert (found[:30] == GREY).all()


def test_a_mask_covers_its_pixels_and_no_others() -> None:
    ring = Image.new("1", (200, 140))
    draw = ImageDraw.Draw(ring)
    draw.ellipse((0, 0, 199, 139), fill=1)
    draw.ellipse((60, 40, 139, 99), fill=0)
    found = masks(Shown(0, None, (50, 40, 250, 180), Crop(np.array(ring))))
    assert (found[110, 150] == GREY).all()  # the hole
    assert (found[45, 55] == GREY).all()  # a corner of the box
    assert (found[110, 80] != GREY).any()


def test_a_mask_that_the_picture_cuts_has_no_rim_there() -> None:
    found = masks(Shown(1, 0.9, (0, 0, 300, 200), Crop(np.ones((200, 300), dtype=bool))))
    assert (found[150:] == found[199, 0]).all()


def test_the_name_of_a_mask_stands_where_the_mask_is_deepest() -> None:
    crop = np.zeros((160, 280), dtype=bool)
    crop[:, :20] = True
    crop[60:, :] = True
    found = masks(Shown(1, 0.9, (10, 20, 290, 180), Crop(crop)))
    colour = list(colour_of(LABELS[1]))
    rows, columns = np.nonzero((found == colour).all(axis=2))
    inside = (rows > 85) & (rows < 175) & (columns > 20) & (columns < 280)
    assert inside.sum() > 200
    assert rows[inside].mean() == pytest.approx(130, abs=12)


@pytest.mark.parametrize(
    ("size", "shown"),
    [((5000, 100), (MAX_SIDE_PX, 41)), ((2, 6000), (1, MAX_SIDE_PX)), ((1, 1), (1, 1))],
)
def test_a_large_picture_is_shown_smaller(size: tuple[int, int], shown: tuple[int, int]) -> None:
    whole = (0.0, 0.0, float(size[0]), float(size[1]))
    mask = Crop(np.ones((size[1], size[0]), dtype=bool))
    assert boxes(Shown(1, 0.9, whole), size=size).shape == (shown[1], shown[0], 3)
    assert masks(Shown(1, 0.9, whole, mask), size=size).shape == (shown[1], shown[0], 3)


@pytest.mark.parametrize("draw", [boxes_overlay, masks_overlay])
def test_the_given_picture_is_not_drawn_on(draw: Any) -> None:
    upright = grey(60, 40)
    draw(
        upright, [Shown(1, 0.9, (5, 5, 30, 30), Crop(np.ones((25, 25), bool)))], LABELS, "image/png"
    )
    assert upright.getcolors() == [(60 * 40, (GREY, GREY, GREY))]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    corners=st.lists(st.tuples(*[st.floats(0, 1) for _ in range(4)]), max_size=6),
)
def test_any_boxes_give_a_picture_of_the_same_size(
    size: tuple[int, int], corners: list[tuple[float, float, float, float]]
) -> None:
    found = [
        Shown(
            0,
            0.5,
            (min(a, c) * size[0], min(b, d) * size[1], max(a, c) * size[0], max(b, d) * size[1]),
        )
        for a, b, c, d in corners
    ]
    assert boxes(*found, size=size).shape == (size[1], size[0], 3)


def placed(tags: list[Tag], size: tuple[int, int] = (640, 480)) -> list[Rectangle]:
    image = grey(*size)
    return draw_tags(ImageDraw.Draw(image, "RGBA"), size, tags, Style.of(size, len(tags)))


def common(a: Rectangle, b: Rectangle) -> int:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def test_names_stay_in_the_picture_and_off_each_other() -> None:
    corners = [(0, 0), (600, 0), (0, 440), (600, 440), (300, 200), (302, 203), (310, 190)]
    tags = [Tag("kingfisher 0.98", (200, 0, 0), (x, y, x + 40, y + 40)) for x, y in corners]
    found = placed(tags)
    assert len(found) == len(tags)
    assert all(0 <= x0 < x1 <= 640 and 0 <= y0 < y1 <= 480 for x0, y0, x1, y1 in found)
    assert [common(a, b) for a, b in itertools.combinations(found, 2) if common(a, b)] == []


def test_a_name_that_would_be_hidden_is_left_out() -> None:
    tags = [Tag("kingfisher 0.98", (200, 0, 0), (100, 100, 104, 104)) for _ in range(40)]
    found = placed(tags)
    assert 3 < len(found) < 40
    for number, place in enumerate(found):
        area = (place[2] - place[0]) * (place[3] - place[1])
        hidden = sum(common(place, other) for other in found[:number])
        assert hidden <= MOST_HIDDEN * area


def test_a_name_longer_than_the_picture_is_cut() -> None:
    (found,) = placed([Tag("x" * 500, (200, 0, 0), (10, 50, 90, 90))], size=(100, 100))
    assert found[2] - found[0] <= 100


def test_text_grows_with_the_picture_and_shrinks_in_a_crowd() -> None:
    sizes = [Style.of(size, 5).text for size in ((64, 64), (640, 480), (1600, 1200), (2048, 2048))]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (11, 34)
    assert Style.of((2048, 100), 5).text == 11
    assert Style.of((1600, 1200), 50).text < sizes[2]


def test_colours_of_many_classes_are_apart() -> None:
    colours = [colour_of(Label(id=i, name=str(i))) for i in range(12)]
    distances = [
        sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
        for one, other in itertools.combinations(colours, 2)
    ]
    assert min(distances) > 30
    assert colours == [colour_of(Label(id=i, name="other name")) for i in range(12)]


@pytest.mark.parametrize(
    ("lightness", "chroma", "hue", "colour"),
    [
        (1.0, 0.0, 0.0, (255, 255, 255)),
        (0.0, 0.0, 0.0, (0, 0, 0)),
        (0.6279554, 0.2576833, 0.5102284, (255, 0, 0)),
        (0.8664396, 0.2948272, 2.4870073, (0, 255, 0)),
        (0.4520137, 0.3132144, 4.6085093, (0, 0, 255)),
    ],
)
def test_the_perceptual_space_has_the_primaries_where_its_author_says(
    lightness: float, chroma: float, hue: float, colour: tuple[int, int, int]
) -> None:
    assert oklch(lightness, chroma, hue) == pytest.approx(colour, abs=1)


def test_text_is_black_on_light_and_white_on_dark() -> None:
    assert text_on((255, 255, 0)) == text_on((255, 255, 255)) == (0, 0, 0)
    assert text_on((0, 0, 160)) == text_on((0, 0, 0)) == (255, 255, 255)
