"""The faster resizer shows what Pillow shows, at the same place."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from service.geometry import (
    WHOLE_RESIZE_CANVASES,
    Geometry,
    Interpolation,
    Resize,
    Size,
    place,
    to_canvas,
)
from service.resize import exact, simd

FILTERS: tuple[Interpolation, ...] = ("bilinear", "bicubic", "lanczos")
Placing = Literal["stretch", "crop", "pad"]


def waves(height: int, width: int) -> NDArray[np.float64]:
    y, x = np.mgrid[:height, :width] / max(height, width)
    found = [np.sin(11 * x + 3 * y), np.cos(7 * y - 5 * x), np.sin(9 * x * y + 2)]
    return 127 + 80 * np.stack(found, axis=-1)


def picture(height: int, width: int, grain: float = 0) -> Image.Image:
    noise = np.random.default_rng(height * width).normal(0, 1, (height, width, 3))
    return Image.fromarray((waves(height, width) + grain * noise).clip(0, 255).astype(np.uint8))


def geometry_of(placing: Placing, interpolation: Interpolation) -> Geometry:
    nominal = Size(height=48, width=64)
    rules = {
        "stretch": Resize(mode="squash", height=48, width=64, interpolation=interpolation),
        "crop": Resize(mode="shortest_edge", shortest_edge=70, interpolation=interpolation),
        "pad": Resize(
            mode="shortest_edge", shortest_edge=40, longest_edge=64, interpolation=interpolation
        ),
    }
    return Geometry(nominal=nominal, resize=rules[placing], placement=placing)


def psnr_db(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    error = np.square(left.astype(float) - right).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def shift_px(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    """By how much ``right`` lies beside ``left``, in the mean; for smooth pictures."""
    slope = np.gradient(left.astype(float), axis=1)
    return float(((left.astype(float) - right) * slope).sum() / max(np.square(slope).sum(), 1e-9))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(FILTERS),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.sampled_from([0, 25]),
)
def test_any_box_at_any_size_is_nearly_what_pillow_makes_of_it(
    interpolation: Interpolation,
    from_size: tuple[int, int],
    size: tuple[int, int],
    corners: list[float],
    grain: float,
) -> None:
    image = picture(*from_size, grain)
    left, right = sorted(share * image.width for share in corners[:2])
    top, bottom = sorted(share * image.height for share in corners[2:])
    boxes = [(0.0, 0.0, float(image.width), float(image.height))]
    if right - left > 0.1 and bottom - top > 0.1:
        boxes.append((left, top, right, bottom))
    for box in boxes:
        expected = np.asarray(exact(image, size, interpolation, box))
        found = np.asarray(simd(image, size, interpolation, box))
        assert found.shape == expected.shape
        assert psnr_db(expected, found) > 40


@pytest.mark.parametrize("placing", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_canvas_shows_the_same_at_the_same_place(
    placing: Placing, interpolation: Interpolation
) -> None:
    geometry = geometry_of(placing, interpolation)
    for height, width in ((375, 500), (501, 333), (31, 17), (48, 65), (47, 64), (70, 93)):
        image = picture(height, width)
        placement = place(geometry, Size(height=height, width=width), geometry.nominal)
        for box in (None, (0.0, 0.0, width - 0.5, height - 0.25)):
            expected = to_canvas(image, placement, box)
            found = to_canvas(image, placement, box, "simd")
            assert found.flags.c_contiguous
            assert psnr_db(expected, found) > 45
            assert abs(shift_px(expected, found)) < 0.02


def test_it_is_another_resizer_in_truth() -> None:
    image = picture(375, 500, 25)
    placement = place(
        geometry_of("stretch", "bilinear"), Size(height=375, width=500), Size(height=48, width=64)
    )
    expected, found = to_canvas(image, placement), to_canvas(image, placement, None, "simd")
    assert 0 < np.abs(expected.astype(int) - found).max() <= 2


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    image = picture(48, 64, 25)
    size = Size(height=48, width=64)
    placement = place(geometry_of("stretch", "lanczos"), size, size)
    assert np.array_equal(to_canvas(image, placement, None, "simd"), np.asarray(image))


@pytest.mark.parametrize("size", [(2, 6001), (6001, 3), (1, 32_768), (32_768, 1)])
def test_a_very_long_strip_is_resized_only_where_it_is_kept(size: tuple[int, int]) -> None:
    geometry, image = geometry_of("crop", "bicubic"), picture(*size)
    placement = place(geometry, Size(height=size[0], width=size[1]), geometry.nominal)
    resized, canvas = placement.resized, placement.canvas
    most = WHOLE_RESIZE_CANVASES * canvas.height * canvas.width
    assert resized.height * resized.width > most
    expected, found = to_canvas(image, placement), to_canvas(image, placement, None, "simd")
    assert psnr_db(expected, found) > 45


@pytest.mark.parametrize("interpolation", ["nearest", "hamming", "box"])
def test_other_filters_are_left_to_pillow(interpolation: Interpolation) -> None:
    image = picture(60, 80, 25)
    found = simd(image, (33, 21), interpolation, (0, 0, 80, 60))
    assert found == exact(image, (33, 21), interpolation, (0, 0, 80, 60))


def test_many_threads_get_what_one_gets() -> None:
    images = [picture(100 + 7 * i, 150 + 11 * i, 25) for i in range(8)]

    def resized(image: Image.Image) -> bytes:
        return simd(image, (64, 48), "bicubic", (0.5, 0, image.width, image.height)).tobytes()

    alone = [resized(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(resized, images * 20))
    assert together == alone * 20
