"""The faster decoder gives what Pillow gives, and a fraction shows what the whole shows."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from service import images
from service.bundle import Manifest
from service.errors import ClientError
from service.geometry import (
    Geometry,
    Resize,
    Size,
    choose_canvas,
    least_decoded,
    place,
    to_canvas,
)
from service.images import ImageLimits, Opened, decode
from service.pictures import prepare
from tests.service.sample_bundle import manifest_of

DATA = Path(__file__).parents[3] / "shared" / "data"
LIMITS = ImageLimits()
Outcome = tuple[str, Any]


def noisy(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """A gradient with noise, so that every coefficient is used."""
    random = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    planes = [(3 * y + 2 * x) % 256, (5 * x) % 256, (y * x // 7) % 256, x % 256]
    pixels = np.stack(planes[: len(mode)], axis=-1) + random.integers(-20, 20, (height, width, 1))
    bands = [
        Image.fromarray(pixels[..., i].clip(0, 255).astype(np.uint8)) for i in range(len(mode))
    ]
    return Image.merge(mode, bands)


def smooth(height: int, width: int) -> Image.Image:
    """Waves far longer than eight pixels, which any fraction can show."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(11 * x + 3 * y), np.cos(7 * y - 5 * x), np.sin(9 * x * y + 2)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def oriented(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def outcome(data: bytes) -> Outcome:
    """The pixels, or the error with its message."""
    try:
        image = decode(data, LIMITS)
    except ClientError as error:
        return type(error).__name__, str(error)
    return image.mode, (image.size, image.tobytes())


def by_pillow(data: bytes) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_by_simplejpeg", lambda *_: None)
        return outcome(data)


def some_scans(data: bytes, count: int) -> bytes:
    """A progressive JPEG that ends properly, but before its last scans."""
    at = -1
    for _ in range(count + 1):
        at = data.index(b"\xff\xda", at + 1)
    return data[:at] + b"\xff\xd9"


PROGRESSIVE = encoded(noisy(67, 93), progressive=True)
GOOD = {
    "4:4:4": encoded(noisy(67, 93), subsampling=0, quality=97),
    "4:2:2": encoded(noisy(67, 93), subsampling=1),
    "4:2:0": encoded(noisy(67, 93), subsampling=2, quality=40),
    "grey": encoded(noisy(67, 93, "L")),
    "grey, progressive": encoded(noisy(67, 93, "L"), progressive=True),
    "RGB without conversion": encoded(noisy(67, 93), keep_rgb=True),
    "restart markers": encoded(noisy(67, 93), restart_marker_blocks=2),
    "progressive": PROGRESSIVE,
    "two scans only": some_scans(PROGRESSIVE, 2),
    "one pixel": encoded(noisy(1, 1)),
    "one row": encoded(noisy(1, 77)),
    "bytes behind the end": encoded(noisy(30, 40)) + b"\xff\xd8\xff\xda rest",
    "colour profile": encoded(noisy(30, 40), icc_profile=b"none"),
    **{f"orientation {k}": encoded(noisy(33, 47), exif=oriented(k)) for k in range(1, 9)},
}


@pytest.mark.parametrize("name", GOOD)
def test_ordinary_jpegs_are_not_decoded_by_pillow_and_equal_what_it_decodes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_pillow(GOOD[name])

    def fail(*_: Any) -> None:
        raise AssertionError("decoded by Pillow")

    monkeypatch.setattr(images, "_upright_rgb", fail)
    assert outcome(GOOD[name]) == expected
    assert expected[0] == "RGB"


def test_four_colours_are_left_to_pillow() -> None:
    data = encoded(noisy(67, 93, "CMYK"))
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert outcome(data) == ("RGB", (expected.size, expected.tobytes()))


def test_a_picture_lies_on_the_memory_that_it_was_decoded_to() -> None:
    pixels = np.zeros((3, 5, 4), np.uint8)
    image = images._rgb_of(pixels)
    pixels[1, 2] = 9, 8, 7, 255
    assert image.getpixel((2, 1)) == (9, 8, 7)


def test_without_that_way_into_pillow_pixels_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_pillow(GOOD["4:2:0"])
    monkeypatch.delattr("PIL.Image.core.map_buffer")
    assert outcome(GOOD["4:2:0"]) == expected


def damaged(data: bytes) -> Iterator[bytes]:
    """Cut anywhere, with bytes missing, doubled or overwritten."""
    random = np.random.default_rng(0)
    yield from (data[:end] for end in range(2, len(data), max(1, len(data) // 60)))
    yield data[:-1]
    yield data[:-2]
    for _ in range(120):
        start = int(random.integers(2, len(data)))
        length = int(random.integers(1, 5))
        yield data[:start] + random.bytes(length) + data[start + length :]
        yield data[:start] + data[start + length :]
        yield data[:start] + data[start : start + length] + data[start:]


@pytest.mark.parametrize("name", ["4:2:0", "grey", "progressive", "restart markers"])
def test_damaged_jpegs_end_as_with_pillow_alone(name: str) -> None:
    refused = 0
    for data in damaged(GOOD[name]):
        expected = by_pillow(data)
        assert outcome(data) == expected
        refused += expected[0] != "RGB"
    assert refused > 30


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(GOOD)),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 4)), max_size=4),
)
def test_whatever_is_done_to_a_jpeg_the_outcome_is_that_of_pillow(
    name: str, edits: list[tuple[float, bytes, int]]
) -> None:
    data = bytearray(GOOD[name])
    for place_, inserted, removed in edits:
        at = int(place_ * len(data))
        data[at : at + removed] = inserted
    assert outcome(bytes(data)) == by_pillow(bytes(data))


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")
def test_files_from_elsewhere_end_as_with_pillow_alone() -> None:
    files = [
        p
        for name in ("odd_images", "photos", "coco_photos")
        for p in DATA.joinpath(name).rglob("*")
    ]
    jpegs = [p for p in files if p.is_file() and p.read_bytes()[:3] == b"\xff\xd8\xff"]
    assert len(jpegs) > 60
    for path in jpegs:
        assert outcome(path.read_bytes()) == by_pillow(path.read_bytes()), path


def test_a_header_that_two_decoders_read_differently_gets_no_more_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, large = encoded(noisy(16, 16)), encoded(noisy(400, 600))
    opened = Opened(small, LIMITS)
    monkeypatch.setattr(opened, "_data", large)
    image = opened.decode().image
    assert image.tobytes() == Image.open(io.BytesIO(small)).tobytes()


def test_a_fraction_is_the_smallest_that_leaves_what_was_asked() -> None:
    data = encoded(noisy(401, 803))
    for least, sides in {
        (50, 100): (51, 101),
        (51, 100): (101, 201),
        (100, 101): (101, 201),
        (101, 1): (201, 402),
        (200, 401): (201, 402),
        (201, 401): (401, 803),
        (1, 402): (401, 803),
    }.items():
        decoded = Opened(data, LIMITS).decode(Size(height=least[0], width=least[1]))
        assert (decoded.image.height, decoded.image.width) == sides
        assert decoded.scaled == (sides != (401, 803))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_fraction_is_asked_for_and_given_upright(orientation: int) -> None:
    data = encoded(smooth(401, 803), quality=95, exif=oriented(orientation))
    least = Size(height=200, width=100) if orientation > 4 else Size(height=100, width=200)
    decoded = Opened(data, LIMITS).decode(least)
    whole = decode(data, LIMITS)
    left, top, right, bottom = decoded.box
    assert ((right - left) * 4, (bottom - top) * 4) == whole.size
    assert decoded.image.size == ((101, 201) if orientation > 4 else (201, 101))


def test_fractions_are_for_jpegs_alone_and_not_for_tiny_ones() -> None:
    buffer = io.BytesIO()
    noisy(400, 800).save(buffer, "PNG")
    for data in (buffer.getvalue(), encoded(noisy(63, 63)), encoded(noisy(400, 800, "CMYK"))):
        decoded = Opened(data, LIMITS).decode(Size(height=1, width=1))
        assert decoded.image.size == decode(data, LIMITS).size
        assert decoded.box == (0, 0, *decoded.image.size)
        assert not decoded.scaled


def canvases_of(data: bytes, geometry: Geometry, scale: float) -> tuple[Any, Any, bool]:
    """The canvas of a full decode, that of a fraction, and whether there was one."""
    opened = Opened(data, LIMITS)
    canvas = choose_canvas(geometry, opened.header.size, [geometry.nominal])
    placement = place(geometry, opened.header.size, canvas)
    decoded = opened.decode(least_decoded(placement, scale))
    whole = to_canvas(decode(data, LIMITS), placement)
    return whole, to_canvas(decoded.image, placement, decoded.box), decoded.scaled


NOMINAL = Size(height=48, width=64)
GEOMETRIES: dict[str, Callable[[Any], Geometry]] = {
    "squashed": lambda interpolation: Geometry(
        nominal=NOMINAL,
        resize=Resize(mode="squash", height=48, width=64, interpolation=interpolation),
        placement="stretch",
    ),
    "cropped": lambda interpolation: Geometry(
        nominal=NOMINAL,
        resize=Resize(mode="shortest_edge", shortest_edge=70, interpolation=interpolation),
        placement="crop",
    ),
    "padded": lambda interpolation: Geometry(
        nominal=NOMINAL,
        resize=Resize(
            mode="shortest_edge", shortest_edge=40, longest_edge=64, interpolation=interpolation
        ),
        placement="pad",
    ),
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(GEOMETRIES)),
    st.sampled_from(["bilinear", "bicubic"]),
    st.integers(130, 700),
    st.integers(130, 700),
    st.integers(1, 8),
    st.sampled_from([1.0, 1.5, 2.0, 3.0]),
)
def test_a_canvas_from_a_fraction_shows_the_same_at_the_same_place(
    name: str, interpolation: str, height: int, width: int, orientation: int, scale: float
) -> None:
    data = encoded(smooth(height, width), quality=95, exif=oriented(orientation))
    whole, fraction, _ = canvases_of(data, GEOMETRIES[name](interpolation), scale)
    error = whole.astype(float) - fraction
    assert 10 * np.log10(255**2 / max(np.square(error).mean(), 1e-9)) > 40
    # A shift by a tenth of a pixel would show on a ramp; a box that ignores the rounding of sides
    # shifts the far edge by up to a pixel.
    slope = np.gradient(whole.astype(float), axis=1)
    shift = (error * slope).sum() / np.square(slope).sum()
    assert abs(shift) < 0.1


def test_a_very_long_strip_from_a_fraction_shows_the_same() -> None:
    geometry = Geometry(
        nominal=Size(height=32, width=32),
        resize=Resize(mode="shortest_edge", shortest_edge=32),
        placement="crop",
    )
    data = encoded(smooth(70, 6001), quality=95, exif=oriented(3))
    whole, fraction, scaled = canvases_of(data, geometry, 1.0)
    assert scaled
    assert np.abs(whole.astype(int) - fraction).mean() < 2


def test_a_manifest_decides_whether_pixels_are_exact() -> None:
    data = encoded(smooth(300, 500), quality=95, exif=oriented(6))
    effect = {
        "runtime": "onnxruntime",
        "precision": "fp32",
        "canvas": {"height": 8, "width": 8},
        "images": 1,
        "max_error": 0.0,
        "rms_error": 0.0,
        "cosine": 1.0,
    }
    measured = {"pictures": "1 picture", "psnr_db": 50.0, "effect": [effect]}
    ways: list[dict[str, Any]] = [
        {"jpeg_scale": 2},
        {"resizer": "simd"},
        {"jpeg_scale": 2, "resizer": "simd"},
    ]
    exact = Manifest.model_validate(manifest_of())
    allowed = [Manifest.model_validate(manifest_of(decoding=measured | way)) for way in ways]
    seen = set()
    whole = decode(data, LIMITS)
    for manifest in (exact, *allowed):
        picture, overlaid = (prepare(data, manifest, LIMITS, keep) for keep in (False, True))
        assert picture.placement.image == Size(height=500, width=300)
        assert picture.upright is None
        assert np.array_equal(picture.pixels, overlaid.pixels)
        assert overlaid.upright is not None
        assert overlaid.upright.tobytes() == whole.tobytes()
        expected = to_canvas(whole, picture.placement)
        assert np.array_equal(picture.pixels, expected) == (manifest is exact)
        assert np.abs(picture.pixels.astype(int) - expected).max() < 4
        seen.add(picture.pixels.tobytes())
    assert len(seen) == 4
    with pytest.raises(ValidationError, match="allows nothing"):
        Manifest.model_validate(manifest_of(decoding=measured))
