import contextlib
import csv
import io
import json
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from service.errors import BadImage, ClientError, TooLarge, UnsupportedFormat
from service.geometry import Size
from service.images import ImageLimits, Opened, decode, inspect

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
ODD = DATA / "odd_images"
LIMITS = ImageLimits()
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def drawn(mode: str = "RGB", height: int = 40, width: int = 60) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(
        0, 256, (height // 4, width // 4, channels), np.uint8
    )
    pixels = pixels.repeat(4, axis=0).repeat(4, axis=1)
    return Image.merge(mode, [Image.fromarray(pixels[..., band]) for band in range(channels)])


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    return SIGNATURE + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    )


def by_transformers(data: bytes) -> Image.Image:
    """What ``load_image`` does; compared with itself below where transformers is installed."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_format_comes_out_upright(kind: str, orientation: int) -> None:
    data = encoded(drawn(), kind, exif=oriented(orientation))
    header = inspect(data, LIMITS)
    image = decode(data, LIMITS)
    assert header.format == kind
    assert header.orientation == orientation
    assert header.size == (
        Size(height=60, width=40) if orientation > 4 else Size(height=40, width=60)
    )
    assert (image.height, image.width) == (header.size.height, header.size.width)
    assert image.tobytes() == by_transformers(data).tobytes()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("RGB", "WEBP"),
        ("RGBA", "WEBP"),
    ],
)
def test_every_mode_becomes_the_rgb_of_transformers(mode: str, kind: str) -> None:
    data = encoded(drawn(mode), kind)
    image = decode(data, LIMITS)
    assert image.mode == "RGB"
    assert image.tobytes() == by_transformers(data).tobytes()


def test_palette_and_one_bit_pictures_become_rgb() -> None:
    for image in (drawn().quantize(17), drawn("L").convert("1")):
        data = encoded(image, "PNG")
        assert decode(data, LIMITS).tobytes() == image.convert("RGB").tobytes()


def test_alpha_is_dropped_and_the_colours_below_it_show() -> None:
    image = drawn("RGBA")
    image.putalpha(0)
    expected = np.asarray(image)[..., :3]
    assert np.array_equal(np.asarray(decode(encoded(image, "PNG"), LIMITS)), expected)


@pytest.mark.parametrize("transparency", [b"\x00\x80\xff", 3])
def test_palette_transparency_is_dropped_without_a_word(transparency: bytes | int) -> None:
    image = drawn().quantize(17)
    data = encoded(image, "PNG", transparency=transparency)
    assert decode(data, LIMITS).tobytes() == image.convert("RGB").tobytes()


def test_sixteen_bit_greyscale_is_divided_and_not_clipped() -> None:
    values = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    data = encoded(Image.fromarray(values), "PNG")
    pixels = np.asarray(decode(data, LIMITS))
    assert inspect(data, LIMITS).mode == "I;16"
    assert np.array_equal(pixels, (values // 256).astype(np.uint8)[..., None].repeat(3, axis=2))


def test_of_an_animation_the_first_frame_counts() -> None:
    first, second = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (30, 20), "blue")
    for kind in ("PNG", "WEBP"):
        data = encoded(first, kind, save_all=True, append_images=[second], lossless=True)
        assert inspect(data, LIMITS).frames == 2
        assert decode(data, LIMITS).getpixel((3, 3)) == (255, 0, 0)


def test_colour_profiles_are_ignored() -> None:
    image = drawn()
    with_profile = encoded(image, "PNG", icc_profile=b"no profile at all")
    assert decode(with_profile, LIMITS).tobytes() == image.tobytes()


def test_metadata_behind_the_pixels_of_a_png_still_turns_it() -> None:
    plain = encoded(drawn(), "PNG")
    data = plain[:-12] + chunk(b"eXIf", oriented(6).removeprefix(b"Exif\0\0")) + plain[-12:]
    assert inspect(data, LIMITS).size == Size(height=60, width=40)
    assert decode(data, LIMITS).tobytes() == by_transformers(data).tobytes()


def test_damaged_exif_counts_as_upright() -> None:
    for exif in (
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x09",
        oriented(6)[:-9],
        oriented(77),
    ):
        for kind in ("JPEG", "PNG", "WEBP"):
            data = encoded(drawn(), kind, exif=exif)
            assert inspect(data, LIMITS).size == Size(height=40, width=60)
            assert decode(data, LIMITS).size == (60, 40)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (encoded(drawn(), "GIF"), "a GIF picture"),
        (encoded(drawn(), "TIFF"), "a TIFF picture"),
        (encoded(drawn(), "BMP"), "a BMP picture"),
        (encoded(drawn(), "ICO"), "an icon"),
        (encoded(drawn(), "PPM"), "a portable pixmap"),
        (encoded(drawn(), "PDF"), "a PDF document"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "a HEIC picture"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "an AVIF picture"),
        (b"\0\0\0\x20ftypmp42\0\0\0\0", "a video"),
        (b"\xff\x0a\x00", "a JPEG XL picture"),
        (b"PK\x03\x04abcd", "a ZIP archive"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"<?xml version='1.0'?>\n<svg xmlns=''>", "an SVG drawing"),
        (b'{"image": "..."}', "a JSON document"),
        (b"/9j/4AAQSkZJRgABAQ", "base64 text of a picture"),
        (b"hello world", "no picture (11 bytes that begin with 68 65 6c 6c 6f 20 77 6f)"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "no picture"),
    ],
    # Pillow writes the time into a PDF, and names of tests must not change from second to second.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_formats_are_refused_by_name(data: bytes, found: str) -> None:
    for step in (inspect, decode):
        with pytest.raises(UnsupportedFormat) as caught:
            step(data, LIMITS)
        assert f"Found {found}" in str(caught.value)
        assert "JPEG, PNG and WebP are accepted" in str(caught.value)


def test_no_bytes_and_a_few_bytes_are_bad_pictures() -> None:
    for data in (b"", b"\xff", b"\xff\xd8", SIGNATURE[:5], SIGNATURE, b"RIFF\x10\0\0\0WEBP"):
        for step in (inspect, decode):
            with pytest.raises(BadImage):
                step(data, LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_that_ends_early_is_refused_and_its_header_is_not(kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))
    data = encoded(image, kind)
    cut = data[: len(data) // 2]
    with pytest.raises(BadImage, match=f"The {kind} picture is damaged or incomplete"):
        decode(cut, LIMITS)
    if kind != "WEBP":  # its container is checked as a whole
        assert inspect(cut, LIMITS).size == Size(height=200, width=200)


def test_a_message_names_no_python_object() -> None:
    data = png_header(10, 10) + chunk(b"IEND", b"")
    broken = data.replace(b"IHDR", b"IHDX")
    for bad in (data, broken):
        with pytest.raises(BadImage) as caught:
            decode(bad, LIMITS)
        assert " at 0x" not in str(caught.value)


def webp_header(first: bytes, body: bytes) -> bytes:
    chunks = first + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


@pytest.mark.parametrize(
    "data",
    [
        png_header(30_000, 30_000) + chunk(b"IDAT", b""),
        png_header(10_001, 10_000) + chunk(b"IDAT", b""),
        png_header(2**31 - 1, 2**31 - 1) + chunk(b"IDAT", b""),
        webp_header(b"VP8X", struct.pack("<I", 0) + b"\xff\xff\xff\xff\x7f\x00"),
        webp_header(b"VP8X", struct.pack("<I", 2) + b"\x10\x27\x00\x10\x27\x00"),
        webp_header(b"VP8L", b"\x2f" + b"\xff" * 4 + b"\0" * 8),
        webp_header(b"VP8 ", b"\x10\x00\x00\x9d\x01\x2a\xff\x3f\xff\x3f" + b"\0" * 8),
        encoded(Image.new("L", (16, 16)), "JPEG").replace(
            b"\x08\0\x10\0\x10", b"\x08\xff\xdc\xff\xdc"
        ),
    ],
)
def test_too_many_pixels_are_refused_by_the_header(data: bytes) -> None:
    for step in (inspect, decode):
        with pytest.raises(TooLarge) as caught:
            step(data, LIMITS)
        assert "Send a smaller one" in str(caught.value)


def test_limits_are_inclusive_and_their_numbers_are_in_the_message() -> None:
    data = encoded(drawn(), "PNG")
    assert decode(data, ImageLimits(max_pixels=2400, max_side=60)).size == (60, 40)
    with pytest.raises(TooLarge, match="60 x 40 = 2400 pixels; at most 2399") as caught:
        inspect(data, ImageLimits(max_pixels=2399))
    assert caught.value.facts == {"pixels": 2400, "max_pixels": 2399}
    with pytest.raises(TooLarge, match="a side may have at most 59"):
        inspect(data, ImageLimits(max_side=59))


def test_a_header_is_read_without_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    files = [encoded(drawn(), kind) for kind in ("JPEG", "PNG")]
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    for data in files:
        assert inspect(data, LIMITS).size == Size(height=40, width=60)


def test_a_text_chunk_that_inflates_without_end_is_refused() -> None:
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 50_000_000))
    plain = encoded(drawn(), "PNG")
    data = plain[:33] + bomb + plain[33:]
    for step in (inspect, decode):
        with pytest.raises(BadImage):
            step(data, LIMITS)


def scans(data: bytes, count: int) -> bytes:
    """Repeat the last scan of a progressive JPEG."""
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_a_jpeg_with_too_many_scans_is_refused() -> None:
    data = encoded(drawn(), "JPEG", progressive=True)
    assert decode(data, LIMITS).size == (60, 40)
    with pytest.raises(TooLarge, match="more than 32 scans"):
        decode(scans(data, 40), LIMITS)


def test_bytes_behind_the_end_of_a_jpeg_are_no_scans() -> None:
    data = encoded(drawn(), "JPEG", progressive=True) + b"\xff\xda\0\x02" * 500
    assert decode(data, LIMITS).size == (60, 40)


def test_a_draft_is_smaller_and_never_below_what_was_asked() -> None:
    image = Image.fromarray(np.tile(np.arange(0, 256, dtype=np.uint8), (400, 3))).convert("RGB")
    data = encoded(image, "JPEG", quality=95)
    wanted = Size(height=100, width=150)
    draft = Opened(data, LIMITS).decode(wanted).image
    assert draft.size == (192, 100)
    difference = np.asarray(draft).astype(int) - np.asarray(image.reduce(4))
    assert np.abs(difference).mean() < 2
    assert decode(data, LIMITS).size == (768, 400)


def test_a_draft_is_asked_for_upright() -> None:
    data = encoded(drawn("RGB", 400, 800), "JPEG", exif=oriented(6))
    draft = Opened(data, LIMITS).decode(Size(height=200, width=100)).image
    assert draft.size == (100, 200)


def test_a_draft_changes_nothing_but_jpeg() -> None:
    data = encoded(drawn("RGB", 400, 800), "PNG")
    assert Opened(data, LIMITS).decode(Size(height=8, width=8)).image.size == (800, 400)


def broken_apng() -> bytes:
    plain = encoded(drawn(), "PNG")
    return plain[:33] + chunk(b"acTL", bytes(8)) + plain[33:]


@pytest.mark.parametrize("action", ["error", "always"])
def test_what_pillow_warns_of_is_neither_raised_nor_printed(
    action: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = oriented(6)[:-6]
    image = drawn().quantize(17)
    files = [
        broken_apng(),
        encoded(image, "PNG", transparency=b"\x00\x80"),
        encoded(drawn(), "JPEG", exif=exif),
        encoded(drawn(), "WEBP", exif=exif),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        sizes = [decode(data, LIMITS).size for data in files]
        large = encoded(Image.new("1", (10_000, 9_500)), "PNG")
        assert inspect(large, ImageLimits(max_pixels=10**8)).size.width == 10_000
    assert sizes == [(60, 40)] * 4
    assert capsys.readouterr() == ("", "")


def test_threads_decode_the_same_and_the_globals_of_pillow_stay() -> None:
    files = [encoded(drawn(), kind) for kind in ("JPEG", "PNG", "WEBP")] + [broken_apng()]
    expected = [decode(data, LIMITS).tobytes() for data in files]
    bound, lenient = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: decode(files[i % 4], LIMITS).tobytes(), range(400)))
    assert all(pixels == expected[i % 4] for i, pixels in enumerate(found))
    assert bound == Image.MAX_IMAGE_PIXELS
    assert lenient is ImageFile.LOAD_TRUNCATED_IMAGES is False
    pillow = [entry for entry in warnings.filters if "PIL" in str(entry[3])]
    assert len(pillow) == 1


SEEDS = [
    encoded(drawn(), "JPEG", exif=oriented(6)),
    encoded(drawn("L"), "JPEG", progressive=True),
    encoded(drawn("CMYK"), "JPEG"),
    encoded(drawn("RGBA"), "PNG"),
    encoded(drawn().quantize(17), "PNG", transparency=b"\x00\x80", exif=oriented(3)),
    encoded(drawn(), "PNG", save_all=True, append_images=[Image.new("RGB", (60, 40))]),
    encoded(drawn(), "WEBP", exif=oriented(8)),
    encoded(drawn("RGBA"), "WEBP", lossless=True),
    encoded(drawn(), "WEBP", save_all=True, append_images=[Image.new("RGB", (60, 40))]),
]
edits = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 6)), max_size=8)


def with_checksums(data: bytes) -> bytes:
    """Mend the CRC of every PNG chunk, so that changes reach the code behind the check."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        body = data[position + 8 : position + 8 + length]
        parts.append(data[position : position + 4] + data[position + 4 : position + 8] + body)
        parts.append(struct.pack(">I", zlib.crc32(data[position + 4 : position + 8] + body)))
        position += 12 + length
    return b"".join(parts)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SEEDS), edits, st.booleans(), st.floats(0, 1))
def test_no_change_of_bytes_raises_anything_but_a_client_error(
    seed: bytes, changes: list[tuple[float, bytes, int]], mend: bool, cut: float
) -> None:
    data = bytearray(seed)
    for place, inserted, removed in changes:
        at = int(place * len(data))
        data[at : at + removed] = inserted
    if cut < 0.2:
        del data[int(len(data) * cut * 5) :]
    broken = with_checksums(bytes(data)) if mend and seed.startswith(SIGNATURE) else bytes(data)
    limits = ImageLimits(max_pixels=1_000_000)
    for step in (inspect, decode):
        with contextlib.suppress(ClientError):
            step(broken, limits)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"", *(seed[:20] for seed in SEEDS)]), st.binary(max_size=200))
def test_no_bytes_at_all_raise_anything_but_a_client_error(start: bytes, rest: bytes) -> None:
    for step in (inspect, decode):
        with pytest.raises(ClientError):
            step(start + rest, LIMITS)


OPEN_ALL = """
import csv, json, resource, sys, warnings
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from service.errors import ClientError
from service.images import ImageLimits, Opened, decode, inspect
folder, outcomes = Path(sys.argv[1]), {}
for row in csv.DictReader((folder / "MANIFEST.tsv").read_text().splitlines(), delimiter="\\t"):
    data, found = (folder / row["file"]).read_bytes(), []
    for step in (inspect, decode):
        try:
            result = step(data, ImageLimits())
            size = result.size
            found.append(list(size) if step is decode else [size.width, size.height, result.frames])
        except ClientError as error:
            found.append(type(error).__name__)
    outcomes[row["file"]] = found
print(json.dumps(outcomes))
"""


@pytest.mark.skipif(not ODD.is_dir(), reason="../shared/data/odd_images is not here")
@pytest.mark.parametrize("action", ["default", "error"])
def test_odd_and_hostile_files_come_out_as_their_manifest_says(action: str) -> None:
    run = subprocess.run(
        [sys.executable, "-W", action, "-c", OPEN_ALL, str(ODD)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.stderr == ""
    outcomes = json.loads(run.stdout)
    rows = list(csv.DictReader((ODD / "MANIFEST.tsv").read_text().splitlines(), delimiter="\t"))
    assert len(outcomes) == len(rows) > 90
    for row in rows:
        header, pixels = outcomes[row["file"]]
        start = (ODD / row["file"]).read_bytes()[:12]
        ours = start[:3] == b"\xff\xd8\xff" or start[:8] == SIGNATURE or start[8:] == b"WEBP"
        if not ours:
            assert (header, pixels) == ("UnsupportedFormat", "UnsupportedFormat"), row["file"]
        elif row["file"] == "pillow/broken_data_stream.png":
            # the manifest's "ok" is of a second attempt to load it, after the first had failed
            assert (header, pixels) == ([128, 128, 1], "BadImage")
        elif row["outcome, warnings ignored"] == "ok":
            assert pixels == json.loads(row["upright_rgb_size"]), row["file"]
            assert header == [*pixels, int(row["frames"])], row["file"]
        else:
            assert pixels == "BadImage", row["file"]


ORDINARY: list[Callable[[], list[Path]]] = [
    lambda: sorted((DATA / "coco_photos").glob("*.jpg")),
    lambda: [*sorted((DATA / "photos").glob("*.*g"))],
    lambda: sorted((ODD / "exif_orientation").glob("*.jpg")),
    lambda: sorted((ODD / "torchvision" / "fakedata" / "logos").glob("*.*g")),
]


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize("listed", ORDINARY)
def test_ordinary_files_equal_load_image_of_transformers(
    listed: Callable[[], list[Path]],
) -> None:
    transformers = pytest.importorskip("transformers.image_utils")
    for path in listed():
        expected = transformers.load_image(str(path))
        assert decode(path.read_bytes(), LIMITS).tobytes() == expected.tobytes(), path
