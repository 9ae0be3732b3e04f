"""How a mask goes out: as a 1-bit PNG, as COCO's run lengths, as polygons, or as one of many in
COCO's panoptic map.

A mask is given by its ``crop`` (h, w), bool, whose top left pixel is at (``left``, ``top``) of a
picture of ``size``.
"""

from itertools import pairwise
from typing import Literal, TypedDict

import contourpy
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from service.geometry import Size
from service.tasks.flat_png import grey_png, rgb_png

Crop = NDArray[np.bool_]


class RunLengths(TypedDict):
    """COCO's compressed run lengths; ``size`` is height and width."""

    size: tuple[int, int]
    counts: str


def mask_png(crop: Crop, left: int, top: int, size: Size, depth: Literal[1, 8] = 1) -> bytes:
    """The whole picture, ``depth`` bits a pixel: white where the mask is."""
    whole = np.zeros((size.height, size.width), dtype=bool)
    whole[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return grey_png(whole, depth)


def id_map_png(ids: NDArray[np.uint16]) -> bytes:
    """Segment ids (H, W) in COCO's panoptic coding (Kirillov et al. 2019, arXiv 1801.00868): the id
    is R + 256 G + 65536 B, and 0 is void.
    """
    high = (ids >> 8).astype(np.uint8) if ids.size and ids.max() > 255 else None
    return rgb_png(ids.astype(np.uint8), high)


def run_lengths(crop: Crop, left: int, top: int, size: Size) -> RunLengths:
    """Lengths of runs of zeros and ones in turn, column by column, in COCO's short text form.

    They are counted in the crop alone, which is a small part of most pictures.
    """
    width, height = crop.shape[1], crop.shape[0] + 1
    flat = np.zeros(width * height + 1, dtype=bool)  # a zero before each column and after all
    flat[:-1].reshape(width, height)[:, 1:] = crop.T
    columns, rows = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), height)
    places = (left + columns) * size.height + top + rows
    starts, ends = places[0::2], places[1::2]
    apart = starts[1:] > ends[:-1]  # a run may go on at the top of the next column
    starts, ends = starts[np.r_[True, apart]], ends[np.r_[apart, True]]
    edges = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=size.height * size.width).tolist()
    if counts[-1] == 0:  # only the first run may be empty
        counts.pop()
    plain = {"size": [size.height, size.width], "counts": counts}
    counted = coco.frPyObjects(plain, size.height, size.width)
    return {"size": (size.height, size.width), "counts": counted["counts"].decode()}


def polygons(crop: Crop, left: int, top: int) -> list[list[float]]:
    """Outlines [x, y, x, y, ...] in pixels of the picture, one for each connected part.

    They run through the middle between pixels inside and outside, so that a corner loses an eighth
    of a pixel. COCO's polygons know no holes: a hole is part of the outline around it, reached by a
    cut that leads there and back.
    """
    padded = np.zeros((crop.shape[0] + 2, crop.shape[1] + 2), dtype=np.float32)
    padded[1:-1, 1:-1] = crop
    lines = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    outlines = []
    for points, offsets in zip(*lines.filled(0.5, 2.0), strict=True):
        rings = [
            _without_straight(points[start : end - 1])  # the last point repeats the first
            for start, end in pairwise(offsets)
        ]
        ring = rings[0]
        for hole in rings[1:]:
            ring = _cut_open(ring, hole)
        outlines.append((ring + np.array((left - 0.5, top - 0.5))).ravel().tolist())
    return outlines


def _without_straight(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """A ring (N, 2) without the points that lie between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return ring[turns]


def _cut_open(ring: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    """One ring that goes around both, joined where the hole's first point is closest."""
    near = int(np.argmin(((ring - hole[0]) ** 2).sum(axis=1)))
    return np.concatenate([ring[: near + 1], hole, hole[:1], ring[near:]])
