"""One picture's way from bytes to what a graph takes; in any thread."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from service.bundle import Decoding, GraphKind, Manifest
from service.geometry import (
    Geometry,
    Placement,
    Size,
    choose_canvas,
    least_decoded,
    place,
    to_canvas,
)
from service.images import ORDINARY, Decoded, Effort, ImageLimits, Opened, is_ordinary
from service.worker.runtimes.base import Array, Arrays


@dataclass(frozen=True)
class Picture:
    """A picture on its canvas: ``pixels`` uint8 (H, W, 3).

    ``upright`` is the whole decoded picture, kept only for an overlay: it can be a hundred times
    the size of ``pixels``, and many pictures may wait for the worker.
    """

    placement: Placement
    pixels: Array
    upright: Image.Image | None
    started_s: float
    decode_s: float
    preprocess_s: float


class Recipe(Protocol):
    """What of a manifest decides how its pictures become pixels."""

    @property
    def geometry(self) -> Geometry: ...
    @property
    def canvases(self) -> list[Size]: ...
    @property
    def decoding(self) -> Decoding | None: ...


def prepare(
    data: bytes, recipe: Recipe, limits: ImageLimits, keep_upright: bool = False
) -> Picture:
    """Decode a picture and put it on its canvas.

    Raises:
        BadImage, UnsupportedFormat, TooLarge: as ``images.Opened`` says.
    """
    started_s = time.monotonic()
    opened = Opened(data, limits)
    picture = _placed(opened, opened.decode, recipe, keep_upright, started_s)
    assert picture is not None
    return picture


def prepare_ordinary(
    data: bytes,
    recipe: Recipe,
    limits: ImageLimits,
    keep_upright: bool = False,
    most: Effort = ORDINARY,
) -> Picture | None:
    """As ``prepare`` where that is known to be cheap and safe; None otherwise."""
    started_s = time.monotonic()
    if not is_ordinary(data, most):
        return None
    opened = Opened(data, limits)
    return _placed(opened, opened.decode_ordinary, recipe, keep_upright, started_s)


def placement_of(size: Size, recipe: Recipe) -> Placement:
    """Where a picture of this upright size goes."""
    return place(recipe.geometry, size, choose_canvas(recipe.geometry, size, recipe.canvases))


def _placed(
    opened: Opened,
    decode: Callable[[Size | None], Decoded | None],
    recipe: Recipe,
    keep_upright: bool,
    started_s: float,
) -> Picture | None:
    placement = placement_of(opened.header.size, recipe)
    allowed = recipe.decoding
    scale, resizer = (allowed.jpeg_scale, allowed.resizer) if allowed else (None, "pillow")
    decoded = decode(least_decoded(placement, scale) if scale else None)
    # With an overlay the model still sees what it sees without one, so that the answers are equal.
    whole = decode(None) if keep_upright and decoded and decoded.scaled else decoded
    if decoded is None or whole is None:
        return None
    decoded_s = time.monotonic()
    pixels = to_canvas(decoded.image, placement, decoded.box, resizer)
    return Picture(
        placement,
        pixels,
        whole.image if keep_upright else None,
        started_s,
        decode_s=decoded_s - started_s,
        preprocess_s=time.monotonic() - decoded_s,
    )


def graph_inputs(
    picture: Picture, manifest: Manifest, kind: GraphKind = "serve", extra: Arrays | None = None
) -> Arrays:
    """What a graph takes, from ``extra`` or else from the picture and the manifest.

    All requests to one graph have the same inputs, whatever their task, so that they share batches.
    """
    canvas, valid = picture.placement.canvas, picture.placement.valid
    known: Arrays = {
        "images": picture.pixels,
        "sizes": np.array((valid.height, valid.width), dtype=np.int32),
    }
    if manifest.segmentation is not None:
        for name in ("threshold", "overlap_threshold"):
            known[name] = np.array(getattr(manifest.segmentation, name), dtype=np.float32)
    known |= extra or {}
    graph = next(g for g in manifest.graphs if (g.kind, g.canvas) == (kind, canvas))
    return {tensor.name: known[tensor.name] for tensor in graph.inputs}
