"""Masks out of what answers hold, and into COCO's run lengths."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco

Mask = NDArray[np.bool_]


def read_png(text: str) -> NDArray[Any]:
    """The pixels of a PNG in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def read_id_map(text: str) -> NDArray[np.uint32]:  # (H, W)
    """Segment ids in COCO's panoptic coding, R + 256 G + 65536 B, 0 for void."""
    red, green, blue = np.moveaxis(read_png(text).astype(np.uint32), -1, 0)
    return np.asarray(red + 256 * green + 65536 * blue, dtype=np.uint32)


def read_mask(mask: Any, height: int, width: int) -> Mask:  # (H, W)
    """A mask as ``mask_format`` wrote it: run lengths, a PNG, or polygons.

    A polygon's outline runs between pixels, and a pixel counts if its centre is inside or near.
    """
    if isinstance(mask, dict):
        return np.asarray(coco.decode(mask), dtype=bool)
    if isinstance(mask, str):
        return read_png(mask).astype(bool)
    image = Image.new("1", (width, height))
    for outline in mask:
        ImageDraw.Draw(image).polygon([c - 0.5 for c in outline], fill=1)
    return np.asarray(image, dtype=bool)


def run_lengths(mask: Mask) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask (H, W)."""
    found = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}
