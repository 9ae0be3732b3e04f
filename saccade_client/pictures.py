"""Whatever people hold a picture in, as the bytes that go over the wire."""

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Picture = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[np.uint8]
"""A path, a URL (https://...) that the server is to fetch, the bytes of a file or the open file, a
Pillow image, or an array (H, W, 3) of RGB.
"""
PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
"""Kinds of pixels that Pillow writes into a PNG as they are."""


def url_of(picture: Picture) -> str | None:
    """The URL that a picture is given by, if it is."""
    if isinstance(picture, str) and picture.startswith(("https://", "http://")):
        return picture
    return None


def sent_of(picture: Picture) -> Picture:
    """What to draw on later: an open file as the bytes in it, which cannot be read twice."""
    if isinstance(picture, Image.Image) or not hasattr(picture, "read"):
        return picture
    return picture.read()


def bytes_of(picture: Picture) -> bytes:
    """A picture's file. Pixels become PNG, which loses nothing that the server would not drop.

    Raises:
        OSError: there is no such file.
        TypeError: it is nothing that a picture comes in.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if isinstance(picture, Image.Image):
        return png_of(picture)
    if hasattr(picture, "read"):
        return picture.read()
    raise TypeError(
        f"a picture is a path, a URL, bytes, an open file, a Pillow image or an array; found "
        f"{type(picture).__name__}"
    )


def png_of(image: Image.Image) -> bytes:
    """An image as a PNG file.

    Raises:
        TypeError: its pixels are floats, of which nobody knows what is white.
    """
    if image.mode == "F":
        raise TypeError(
            "a picture of floats has no known white; scale it to 0..255 and give it as uint8"
        )
    if image.mode not in PNG_MODES:
        image = image.convert("I;16" if image.mode.startswith("I") else "RGB")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def upright_of(picture: Picture) -> Image.Image:
    """RGB, turned as its EXIF data says: what coordinates in answers are of."""
    if url_of(picture) is not None:
        raise ValueError("the server fetched this picture; give draw() the picture itself")
    image: Any = Image.open(io.BytesIO(bytes_of(picture)))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit greyscale, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
