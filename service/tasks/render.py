"""Answers as pictures."""

import io

import numpy as np
from PIL import Image

from service.worker.runtimes.base import Array

MAX_SIDE_PX = 2048  # of an overlay; a map has some hundred values, and encoding is what costs
HEAT_SHARE = 0.55

# Colours of weights from least to largest: dark violet, magenta, orange, pale yellow.
_STOPS = np.array([[13, 8, 60], [130, 25, 120], [235, 95, 60], [252, 250, 180]], dtype=np.float32)


def overlay_png(
    upright: Image.Image, values: Array, region: tuple[float, float, float, float]
) -> bytes:
    """The picture with a map of weights laid over it, PNG, at most ``MAX_SIDE_PX`` on a side.

    ``values`` (gh, gw) cover ``region``, the box xyxy in pixels of the upright picture (it may
    reach beyond the picture); they are scaled so that the largest is the brightest. The rest of the
    picture is shown as it is.
    """
    shrink = min(1.0, MAX_SIDE_PX / max(upright.size))
    size = max(1, round(upright.width * shrink)), max(1, round(upright.height * shrink))
    picture = upright.resize(size, Image.Resampling.BILINEAR) if shrink < 1 else upright
    x0, y0, x1, y1 = (round(edge * shrink) for edge in region)
    box = x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)
    heat = np.asarray(values, dtype=np.float32) / max(float(values.max()), 1e-12)
    patch = Image.fromarray(heat).resize(
        (box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC
    )
    left, right = (min(max(edge, 0), size[0]) for edge in box[0::2])
    top, bottom = (min(max(edge, 0), size[1]) for edge in box[1::2])
    seen = patch.crop((left - box[0], top - box[1], right - box[0], bottom - box[1]))
    canvas = np.array(picture)
    area = np.s_[top:bottom, left:right]
    mixed = (1 - HEAT_SHARE) * canvas[area] + HEAT_SHARE * _colour(np.asarray(seen))
    canvas[area] = np.rint(mixed).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _colour(weights: Array) -> Array:  # (H, W) in 0..1 -> (H, W, 3) in 0..255
    places = np.linspace(0, 1, len(_STOPS))
    return np.stack([np.interp(weights, places, channel) for channel in _STOPS.T], axis=-1)
