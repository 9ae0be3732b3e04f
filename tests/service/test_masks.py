"""Masks as PNG, run lengths and polygons, held against pycocotools and Pillow."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from service.geometry import Size
from service.tasks import masks

pytestmark = pytest.mark.filterwarnings(  # pycocotools decodes into a class of NumPy 1's time
    "ignore:__array__ implementation:DeprecationWarning"
)

Mask = NDArray[np.bool_]


def cropped(mask: Mask) -> tuple[Mask, int, int]:
    """The smallest crop with all of the mask, and its left and top."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return mask[top : rows[-1] + 1, left : columns[-1] + 1], left, top


def size_of(mask: Mask) -> Size:
    return Size(height=mask.shape[0], width=mask.shape[1])


def encoded_by_coco(mask: Mask) -> Any:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def decoded(run_lengths: masks.RunLengths) -> Mask:
    plain = {"size": list(run_lengths["size"]), "counts": run_lengths["counts"].encode()}
    return np.asarray(coco.decode(plain)).astype(bool)


def drawn_by_coco(outlines: list[list[float]], mask: Mask) -> Mask:
    whole = coco.merge(coco.frPyObjects(outlines, *mask.shape))
    return np.asarray(coco.decode(whole)).astype(bool)


def ellipse(*edges: int, hole: tuple[int, ...] | None = None) -> Mask:
    image = Image.new("1", (90, 70))
    draw = ImageDraw.Draw(image)
    draw.ellipse(edges, fill=1)
    if hole:
        draw.ellipse(hole, fill=0)
    return np.array(image)


SHAPES = {
    "all": np.ones((7, 5), dtype=bool),
    "one pixel": np.eye(1, 20, 6, dtype=bool).reshape(4, 5),
    "last pixel": np.eye(1, 20, 19, dtype=bool).reshape(4, 5),
    "first column": np.arange(20).reshape(4, 5) % 5 == 0,
    "two whole columns": np.arange(20).reshape(4, 5) % 5 > 2,
    "every second": np.arange(20).reshape(4, 5) % 2 == 0,
    "ellipse": ellipse(10, 12, 70, 60),
    "ring": ellipse(10, 12, 70, 60, hole=(30, 25, 50, 40)),
    "cut by the edge": ellipse(-20, -9, 40, 90),
}


@pytest.mark.parametrize("name", SHAPES)
def test_run_lengths_are_those_of_coco(name: str) -> None:
    mask = SHAPES[name]
    found = masks.run_lengths(*cropped(mask), size_of(mask))
    assert found["counts"] == encoded_by_coco(mask)["counts"].decode()
    assert found["size"] == mask.shape
    assert np.array_equal(decoded(found), mask)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(mask=arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any))
def test_run_lengths_of_any_mask_are_those_of_coco(mask: Mask) -> None:
    found = masks.run_lengths(*cropped(mask), size_of(mask))
    assert found["counts"] == encoded_by_coco(mask)["counts"].decode()


@pytest.mark.parametrize("name", SHAPES)
def test_a_png_is_the_mask_of_the_whole_picture_in_one_bit_a_pixel(name: str) -> None:
    mask = SHAPES[name]
    image = Image.open(io.BytesIO(masks.mask_png(*cropped(mask), size_of(mask))))
    assert (image.mode, image.size) == ("1", mask.shape[::-1])
    assert np.array_equal(np.array(image), mask)


@pytest.mark.parametrize("name", ["all", "ellipse", "ring", "cut by the edge"])
def test_polygons_draw_the_mask_again(name: str) -> None:
    mask = SHAPES[name]
    again = drawn_by_coco(masks.polygons(*cropped(mask)), mask)
    assert (again & mask).sum() / (again | mask).sum() >= 0.98


def test_polygons_run_along_the_edges_of_pixels_and_cut_corners() -> None:
    (outline,) = masks.polygons(np.ones((2, 3), dtype=bool), left=10, top=20)
    points = set(zip(outline[0::2], outline[1::2], strict=True))
    assert points == {
        (10.0, 20.5),
        (10.5, 20.0),
        (12.5, 20.0),
        (13.0, 20.5),
        (13.0, 21.5),
        (12.5, 22.0),
        (10.5, 22.0),
        (10.0, 21.5),
    }


def test_a_part_has_a_polygon_and_a_hole_has_none() -> None:
    ring = SHAPES["ring"]
    two = np.concatenate([ring, ring], axis=1)
    assert [len(masks.polygons(*cropped(mask))) for mask in (ring, two)] == [1, 2]
    again = drawn_by_coco(masks.polygons(*cropped(two)), two)
    assert not again[32, 40]
    assert (again & two).sum() / (again | two).sum() >= 0.98


def test_several_holes_stay_open() -> None:
    mask = ellipse(2, 2, 85, 66, hole=(20, 20, 32, 40))
    mask &= ~ellipse(50, 15, 70, 30) & ~ellipse(45, 40, 60, 55)
    (outline,) = masks.polygons(*cropped(mask))
    again = drawn_by_coco([outline], mask)
    assert (again & mask).sum() / (again | mask).sum() >= 0.98
    assert not again[[30, 22, 47], [26, 60, 52]].any()


def test_ids_are_coded_as_coco_codes_them() -> None:
    ids = np.array([[0, 1, 255], [256, 257, 65535]], dtype=np.uint16)
    image = Image.open(io.BytesIO(masks.id_map_png(ids)))
    assert image.mode == "RGB"
    colours = np.array(image).astype(int)
    assert colours[0, 1].tolist() == [1, 0, 0]
    assert colours[1, 1].tolist() == [1, 1, 0]
    assert np.array_equal(colours @ [1, 256, 65536], ids)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(ids=arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_map_of_ids_comes_back_from_its_png(ids: NDArray[np.uint16]) -> None:
    image = Image.open(io.BytesIO(masks.id_map_png(ids)))
    image.load()  # which checks every chunk's sum
    assert (image.mode, image.size) == ("RGB", ids.shape[::-1])
    assert np.array_equal(np.array(image).astype(int) @ [1, 256, 65536], ids)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(mask=arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))).filter(np.any))
def test_any_mask_comes_back_from_its_png(mask: Mask) -> None:
    image = Image.open(io.BytesIO(masks.mask_png(*cropped(mask), size_of(mask))))
    assert image.mode == "1"
    assert np.array_equal(np.array(image), mask)


def test_flat_areas_make_a_small_png() -> None:
    ids = np.zeros((600, 800), dtype=np.uint16)
    ids[100:400, 200:500] = 7
    assert len(masks.id_map_png(ids)) < 6000
    assert len(masks.mask_png(ids[100:400, 200:500] == 7, 200, 100, size_of(ids == 7))) < 1000
