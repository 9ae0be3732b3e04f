from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from service.geometry import Geometry, Placement, Resize, Size, choose_canvas, place, to_canvas

sides = st.integers(1, 3000)
sizes = st.builds(Size, height=sides, width=sides)
canvas_sizes = st.builds(Size, height=st.integers(1, 900), width=st.integers(1, 900))


def square(side: int) -> Size:
    return Size(height=side, width=side)


def squashing(side: int) -> Geometry:
    resize = Resize(mode="squash", height=side, width=side)
    return Geometry(nominal=square(side), resize=resize, placement="stretch")


def cropping(edge: int, side: int) -> Geometry:
    resize = Resize(mode="shortest_edge", shortest_edge=edge, interpolation="bicubic")
    return Geometry(nominal=square(side), resize=resize, placement="crop")


def padding(
    short: int,
    long: int,
    rounding: Literal["huggingface", "detr", "detectron2"] = "huggingface",
    multiple_of: int = 1,
) -> Geometry:
    resize = Resize(
        mode="shortest_edge",
        shortest_edge=short,
        longest_edge=long,
        rounding=rounding,
        multiple_of=multiple_of,
    )
    return Geometry(nominal=Size(height=short, width=long), resize=resize, placement="pad")


geometries = st.one_of(
    st.builds(squashing, st.integers(1, 600)),
    st.builds(cropping, st.integers(1, 600), st.integers(1, 600)),
    st.builds(
        padding,
        st.integers(1, 800),
        st.integers(800, 1400),
        st.sampled_from(["huggingface", "detr", "detectron2"]),
        st.sampled_from([1, 32]),
    ),
)


@pytest.mark.parametrize(
    ("rounding", "image", "resized"),
    [
        ("detr", (375, 1242), "402x1331"),
        ("huggingface", (375, 1242), "402x1333"),
        ("detectron2", (375, 1242), "402x1333"),
        ("detr", (480, 640), "800x1066"),
        ("huggingface", (480, 640), "800x1066"),
        ("detectron2", (480, 640), "800x1067"),
        ("detr", (800, 900), "800x900"),
        ("huggingface", (1242, 375), "1333x402"),
        ("detectron2", (640, 480), "1067x800"),
        ("detr", (1, 5000), "1x1333"),
    ],
)
def test_each_rounding_is_that_of_its_source(
    rounding: Literal["huggingface", "detr", "detectron2"], image: tuple[int, int], resized: str
) -> None:
    size = Size(height=image[0], width=image[1])
    found = place(padding(800, 1333, rounding), size, square(1400))
    assert str(found.resized) == resized


def test_the_roundings_differ_as_often_as_was_measured() -> None:
    grid = [Size(height=h, width=w) for h in range(200, 641, 7) for w in range(200, 641, 5)]
    rules = [padding(800, 1333, name) for name in ("huggingface", "detr", "detectron2")]
    found = [[place(rule, size, square(1400)).resized for size in grid] for rule in rules]
    from_detr = [sum(a != b for a, b in zip(found[1], other, strict=True)) for other in found]
    assert from_detr[0] / len(grid) == pytest.approx(0.166, abs=0.01)
    assert from_detr[2] / len(grid) == pytest.approx(0.495, abs=0.01)


def test_a_multiple_is_reached_by_stretching() -> None:
    found = place(padding(800, 1333, multiple_of=32), Size(height=480, width=640), square(1408))
    assert found.resized == Size(height=800, width=1088)
    assert found.scale_x == 640 / 1088


def test_fit_keeps_the_aspect_ratio_inside_a_box() -> None:
    resize = Resize(mode="fit", height=100, width=100)
    geometry = Geometry(nominal=square(100), resize=resize, placement="pad")
    found = place(geometry, Size(height=200, width=400), square(100))
    assert found.resized == found.valid == Size(height=50, width=100)


def test_an_even_crop_is_central_and_an_odd_pixel_goes_to_the_end() -> None:
    found = place(cropping(225, 224), Size(height=225, width=226), square(224))
    assert (found.top, found.left) == (0, -1)


def test_an_odd_pixel_around_a_small_picture_goes_to_the_start() -> None:
    found = place(cropping(221, 224), square(500), square(224))
    assert (found.top, found.left) == (2, 2)


def test_torchvision_cuts_half_pixels_to_even_and_pads_at_the_end() -> None:
    offsets = {}
    for edge in (221, 225, 227, 229):
        resize = Resize(mode="shortest_edge", shortest_edge=edge)
        geometry = Geometry(
            nominal=square(224), resize=resize, placement="crop", crop_rounding="torchvision"
        )
        offsets[edge] = place(geometry, square(500), square(224)).top
    assert offsets == {221: 1, 225: 0, 227: -2, 229: -2}


def test_a_crop_scales_its_edge_with_the_canvas() -> None:
    found = place(cropping(256, 224), Size(height=600, width=800), square(384))
    assert found.resized == Size(height=438, width=584)


def test_a_squash_ends_at_any_canvas() -> None:
    resize = Resize(mode="squash", height=256, width=256)
    geometry = Geometry(nominal=square(224), resize=resize, placement="crop")
    assert place(geometry, square(99), square(384)).resized == square(438)
    assert place(squashing(224), square(99), Size(height=160, width=320)).resized == Size(
        height=160, width=320
    )


def test_a_crop_that_covers_its_nominal_canvas_covers_the_others() -> None:
    wide = Size(height=224, width=320)
    found = place(cropping(256, 224), Size(height=1000, width=1200), wide)
    assert found.resized.width >= 320
    assert found.resized.height >= 224


def test_padding_keeps_pixel_sizes_on_every_canvas() -> None:
    image = Size(height=480, width=640)
    for canvas in (Size(height=800, width=1088), square(1344)):
        found = place(padding(800, 1333), image, canvas)
        assert found.resized == found.valid == Size(height=800, width=1066)
        assert (found.top, found.left) == (0, 0)


def test_a_picture_that_no_canvas_holds_is_shrunk_to_fit() -> None:
    found = place(padding(800, 1333), Size(height=480, width=640), square(533))
    assert found.resized == Size(height=400, width=533)


def test_the_canvas_of_the_closest_aspect_ratio_is_chosen() -> None:
    tall, even, wide = Size(height=320, width=224), square(256), Size(height=224, width=320)
    canvases = [even, wide, tall]
    assert choose_canvas(cropping(256, 224), Size(height=480, width=640), canvases) == wide
    assert choose_canvas(cropping(256, 224), Size(height=640, width=480), canvases) == tall
    assert choose_canvas(squashing(224), Size(height=500, width=510), canvases) == even


def test_equally_close_aspect_ratios_go_to_the_first_listed() -> None:
    small, large = square(224), square(384)
    assert choose_canvas(squashing(224), Size(height=3, width=7), [large, small]) == large
    assert choose_canvas(squashing(224), Size(height=3, width=7), [small, large]) == small


def test_padding_takes_the_smallest_canvas_that_holds_the_picture() -> None:
    even, wide, tall = square(1344), Size(height=800, width=1344), Size(height=1344, width=800)
    canvases = [even, wide, tall]
    assert choose_canvas(padding(800, 1333), Size(height=480, width=640), canvases) == wide
    assert choose_canvas(padding(800, 1333), Size(height=640, width=480), canvases) == tall
    assert choose_canvas(padding(800, 1333), square(500), [even, tall]) == tall


def test_where_no_canvas_holds_the_picture_it_stays_as_large_as_it_can() -> None:
    flat, even = Size(height=100, width=1333), square(640)
    assert choose_canvas(padding(800, 1333), square(500), [flat, even]) == even


@given(geometries, sizes, st.lists(canvas_sizes, min_size=1, max_size=5))
def test_a_choice_is_listed_and_depends_on_the_size_alone(
    geometry: Geometry, image: Size, canvases: list[Size]
) -> None:
    chosen = choose_canvas(geometry, image, canvases)
    assert chosen in canvases
    assert chosen == choose_canvas(geometry, image.model_copy(), list(canvases))


@given(geometries, sizes, canvas_sizes)
def test_valid_never_exceeds_the_canvas_and_padding_keeps_all_of_the_picture(
    geometry: Geometry, image: Size, canvas: Size
) -> None:
    found = place(geometry, image, canvas)
    assert found.valid.height <= canvas.height
    assert found.valid.width <= canvas.width
    if geometry.placement == "pad":
        assert (found.top, found.left, found.valid) == (0, 0, found.resized)
    else:
        assert found.valid == canvas


@given(geometries, sizes, canvas_sizes)
def test_the_corners_of_the_resized_picture_map_to_those_of_the_original(
    geometry: Geometry, image: Size, canvas: Size
) -> None:
    found = place(geometry, image, canvas)
    start = found.to_original(found.left, found.top)
    end = found.to_original(found.left + found.resized.width, found.top + found.resized.height)
    assert start == pytest.approx((0, 0), abs=1e-6)
    assert end == pytest.approx((image.width, image.height))
    assert found.to_original(3.5, 7) == (
        3.5 * found.scale_x + found.offset_x,
        7 * found.scale_y + found.offset_y,
    )


@given(geometries, sizes, canvas_sizes, st.floats(0, 1), st.floats(0, 1))
def test_mapping_to_the_original_is_the_inverse_of_placing(
    geometry: Geometry, image: Size, canvas: Size, across: float, down: float
) -> None:
    found = place(geometry, image, canvas)
    x, y = across * image.width, down * image.height
    on_canvas = (
        x * found.resized.width / image.width + found.left,
        y * found.resized.height / image.height + found.top,
    )
    assert found.to_original(*on_canvas) == pytest.approx((x, y), abs=1e-6)


@given(geometries, sizes, canvas_sizes)
def test_the_region_is_what_the_canvas_corners_show(
    geometry: Geometry, image: Size, canvas: Size
) -> None:
    found = place(geometry, image, canvas)
    x0, y0, x1, y1 = found.region
    assert (x0, y0) == found.to_original(0, 0)
    assert x1 - x0 == pytest.approx(canvas.width * found.scale_x)
    assert y1 - y0 == pytest.approx(canvas.height * found.scale_y)
    if geometry.placement == "stretch":
        assert found.region == pytest.approx((0, 0, image.width, image.height))


def test_a_region_reaches_past_a_padded_picture() -> None:
    found = place(padding(100, 200), square(50), Size(height=100, width=150))
    assert found.region == (0, 0, 75, 50)


@given(
    geometries,
    st.builds(Size, height=st.integers(1, 90), width=st.integers(1, 90)),
    st.builds(Size, height=st.integers(1, 120), width=st.integers(1, 120)),
)
def test_a_canvas_is_always_filled_by_a_contiguous_array(
    geometry: Geometry, image: Size, canvas: Size
) -> None:
    white = Image.new("RGB", (image.width, image.height), "white")
    found = place(geometry, image, canvas)
    pixels = to_canvas(white, found)
    assert pixels.shape == (canvas.height, canvas.width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    shown = np.zeros((canvas.height, canvas.width), bool)
    shown[
        max(0, found.top) : max(0, found.top + found.resized.height),
        max(0, found.left) : max(0, found.left + found.resized.width),
    ] = True
    assert (pixels[shown] == 255).all()
    assert not pixels[~shown].any()


def test_a_mark_is_found_again_where_it_was_drawn() -> None:
    image = Image.new("RGB", (640, 480))
    image.paste("white", (400, 200, 410, 210))
    for geometry, canvas in [
        (squashing(224), square(224)),
        (cropping(256, 224), square(224)),
        (padding(400, 700), Size(height=480, width=704)),
    ]:
        found = place(geometry, Size(height=480, width=640), canvas)
        rows, columns = np.nonzero(to_canvas(image, found)[..., 0] > 127)
        x0, y0 = found.to_original(columns.min(), rows.min())
        x1, y1 = found.to_original(columns.max() + 1, rows.max() + 1)
        assert (x0, y0, x1, y1) == pytest.approx((400, 200, 410, 210), abs=2)


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_strip_is_resized_only_where_it_is_kept() -> None:
    strip = noise(3, 900)
    found = place(cropping(256, 224), Size(height=3, width=900), square(224))
    assert found.resized == Size(height=256, width=76_800)
    whole = strip.resize((76_800, 256), Image.Resampling.BICUBIC)
    box = (-found.left, -found.top, 224 - found.left, 224 - found.top)
    expected = np.asarray(whole.crop(box)).astype(int)
    assert np.abs(to_canvas(strip, found) - expected).max() <= 1


def test_the_longest_strip_that_is_accepted_costs_little() -> None:
    strip = Image.new("RGB", (1, 32_768), "white")
    found = place(cropping(256, 224), Size(height=32_768, width=1), square(224))
    assert (to_canvas(strip, found) == 255).all()


def test_an_unresized_picture_is_cropped_as_it_is() -> None:
    geometry = Geometry(nominal=square(8), resize=Resize(mode="none"), placement="crop")
    image = noise(300, 200)
    found = place(geometry, Size(height=300, width=200), square(8))
    assert np.array_equal(to_canvas(image, found), np.asarray(image)[146:154, 96:104])


def test_a_picture_decoded_smaller_lands_in_the_same_place() -> None:
    full = Image.new("RGB", (800, 600))
    full.paste("white", (400, 0, 800, 600))
    found = place(cropping(100, 80), Size(height=600, width=800), square(80))
    draft = full.reduce(4)
    difference = np.abs(to_canvas(draft, found).astype(int) - to_canvas(full, found))
    assert difference.max() < 32
    assert difference.mean() < 1


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "squash", "height": 3},
        {"mode": "squash", "height": 3, "width": 3, "shortest_edge": 3},
        {"mode": "shortest_edge", "longest_edge": 3},
        {"mode": "none", "width": 3},
        {"mode": "fit", "height": 3, "width": 0},
    ],
)
def test_a_rule_states_exactly_the_sizes_of_its_mode(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Resize.model_validate(fields)


def test_stretching_must_end_at_the_canvas() -> None:
    resize = Resize(mode="squash", height=256, width=256)
    with pytest.raises(ValidationError, match="squashes to the nominal 224x224"):
        Geometry(nominal=square(224), resize=resize, placement="stretch")


def test_a_placement_is_a_value() -> None:
    one, other = (place(squashing(224), square(99), square(224)) for _ in range(2))
    assert one == other
    assert isinstance(one, Placement)
    assert len({one, other}) == 1
