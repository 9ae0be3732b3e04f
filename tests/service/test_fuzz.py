"""What reads bytes from outside meets bytes that nobody would write: pictures and manifests.

A run of all tests tries a hundred of each; for longer::

    pytest tests/service/test_fuzz.py tests/service/test_bodies.py --hypothesis-profile long
"""

import copy
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.bundle import Bundle, load_bundle
from service.errors import BadBundle, ClientError
from service.images import ImageLimits, Opened
from tests.service.sample_bundle import manifest_of, write_bundle

LIMITS = ImageLimits(max_pixels=1_000_000)


@cache
def valid_pictures() -> list[bytes]:
    """Each format in the ways that its decoders tell apart, with metadata."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    ways: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (image, "JPEG", {"quality": 80, "exif": exif}),
        (image, "JPEG", {"progressive": True, "comment": b"hello"}),
        (image.convert("L"), "JPEG", {"restart_marker_blocks": 1}),
        (image.convert("CMYK"), "JPEG", {}),
        (image, "PNG", {"exif": exif}),
        (image.convert("P"), "PNG", {"transparency": 3}),
        (image.convert("RGBA"), "PNG", {"icc_profile": b"no profile"}),
        (image.convert("I;16"), "PNG", {}),
        (image, "PNG", {"save_all": True, "append_images": [image.rotate(90)]}),
        (image, "WEBP", {"exif": exif}),
        (image.convert("RGBA"), "WEBP", {"lossless": True}),
        (image, "WEBP", {"save_all": True, "append_images": [image.rotate(90)]}),
    ]
    for picture, kind, options in ways:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        files.append(file.getvalue())
    return files


Change = Callable[[bytes], bytes]


def changes() -> st.SearchStrategy[Change]:
    """One way to damage a file: bits, lengths, stretches lost, repeated or swapped."""
    where = st.floats(0, 1, exclude_max=True)

    def overwrite(at: float, new: bytes) -> Change:
        def change(data: bytes) -> bytes:
            start = int(at * len(data))
            return data[:start] + new + data[start + len(new) :]

        return change

    def splice(at: float, size: int, times: int) -> Change:
        def change(data: bytes) -> bytes:
            start = int(at * len(data))
            return data[:start] + data[start : start + size] * times + data[start + size :]

        return change

    def cut(at: float) -> Change:
        return lambda data: data[: int(at * len(data))]

    interesting = st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\xff\xd8"])
    return (
        st.builds(overwrite, where, st.binary(min_size=1, max_size=4) | interesting)
        | st.builds(splice, where, st.integers(1, 200), st.sampled_from([0, 2, 50]))
        | st.builds(cut, where)
    )


@settings(deadline=None)
@given(which=st.integers(0, 11), damage=st.lists(changes(), min_size=1, max_size=5))
def test_a_damaged_picture_is_decoded_or_refused_and_nothing_else(
    which: int, damage: list[Change]
) -> None:
    data = valid_pictures()[which]
    for change in damage:
        data = change(data)
    try:
        image = Opened(data, LIMITS).decode().image
    except ClientError:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= LIMITS.max_pixels


def test_the_pictures_are_valid_before_they_are_damaged() -> None:
    pictures = valid_pictures()
    assert len(pictures) == 12
    sizes = {Opened(data, LIMITS).decode().image.size for data in pictures}
    assert sizes == {(40, 24), (24, 40)}


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([-1, 0, 2**63, 10**400, "", "../x", "model.onnx", "1", "\ud800", "\0"])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a document can be changed: the path of each of its values."""
    inner = document.items() if isinstance(document, dict) else enumerate(document)
    found = []
    for key, value in inner:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at ``path``, or without it where the value is ``...``."""
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return document


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle, whose manifest each example replaces."""
    return write_bundle(tmp_path_factory.mktemp("repository"), manifest_of())


def load_or_refuse(folder: Path) -> Bundle | None:
    """The bundle, or None where it is refused with a sentence."""
    try:
        return load_bundle(folder)
    except BadBundle:
        return None


@settings(deadline=None)
@given(
    path=st.sampled_from(places(manifest_of())),
    value=st.just(...) | values | st.sampled_from([manifest_of()["graphs"], manifest_of()]),
)
def test_a_manifest_with_any_value_anywhere_loads_or_is_refused(
    bundle_folder: Path, path: tuple[Any, ...], value: Any
) -> None:
    manifest = changed(manifest_of(), path, value)
    (bundle_folder / "manifest.json").write_text(json.dumps(manifest))
    bundle = load_or_refuse(bundle_folder)
    assert bundle is None or bundle.folder == bundle_folder


@settings(deadline=None)
@given(damage=st.lists(changes(), min_size=1, max_size=5))
@example(damage=[lambda data: b'{"schema_version": ' + b"9" * 5000 + b"}"])
@example(damage=[lambda data: data.replace(b"1", b"1e999")])
@example(damage=[lambda data: b"\xef\xbb\xbf" + data])
@example(damage=[lambda data: data.decode().encode("utf-16")])
def test_a_damaged_manifest_loads_or_is_refused(bundle_folder: Path, damage: list[Change]) -> None:
    data = json.dumps(manifest_of()).encode()
    for change in damage:
        data = change(data)
    (bundle_folder / "manifest.json").write_bytes(data)
    load_or_refuse(bundle_folder)


def test_the_manifest_loads_before_it_is_changed(bundle_folder: Path) -> None:
    (bundle_folder / "manifest.json").write_text(json.dumps(manifest_of()))
    assert load_or_refuse(bundle_folder) is not None
