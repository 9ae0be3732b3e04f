"""Scenes as a model sees them: JPEG-encoded at natural sizes, then resized to its canvas."""

import io
import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from export.demo.scenes import CLASSES, THINGS, Scene, draw

Split = Literal["train", "validation", "held-out", "samples"]

# First word of every seed, so that no scene is in two splits.
SPLIT_SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "held-out": 3, "samples": 4}
# Side of the cells of the truth, in pixels of the canvas.
CELL_PX = 4
SERVED_SIZES = [(240, 320), (320, 240), (360, 640), (480, 480), (480, 640), (640, 480)]


@dataclass(frozen=True)
class Examples:
    """Pictures (N, H, W, 3) at the canvas, the label id of each (N,), and what their cells of
    ``CELL_PX`` show (N, rows, columns, classes + 1): the share in 255ths of every class, and of the
    dominant thing.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    cells: NDArray[np.uint8]


def scene(split: Split, index: int) -> tuple[Scene, bytes]:
    """Scene ``index`` of a split, and the JPEG file that a client would send.

    Training scenes vary in size from 120 px on; the others have the sizes of ``SERVED_SIZES``.
    """
    rng = np.random.default_rng([SPLIT_SEEDS[split], index])
    size = _training_size(rng) if split == "train" else SERVED_SIZES[index % len(SERVED_SIZES)]
    quality = int(rng.integers(60, 96))
    drawn = draw(rng, size)
    return drawn, jpeg(drawn, quality)


def jpeg(drawn: Scene, quality: int) -> bytes:
    """The picture of a scene as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(drawn.image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def draw_examples(
    split: Split, count: int, canvas: tuple[int, int], workers: int
) -> Iterator[Examples]:
    """The first ``count`` scenes of a split in chunks, drawn by ``workers`` processes."""
    chunk = partial(_chunk, split, canvas)
    starts = range(0, count, 256)
    stops = [min(start + 256, count) for start in starts]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        yield from executor.map(chunk, starts, stops)


def concatenated(chunks: list[Examples]) -> Examples:
    """All chunks as one."""
    return Examples(
        np.concatenate([chunk.images for chunk in chunks]),
        np.concatenate([chunk.labels for chunk in chunks]),
        np.concatenate([chunk.cells for chunk in chunks]),
    )


def _chunk(split: Split, canvas: tuple[int, int], start: int, stop: int) -> Examples:
    images, labels, cells = [], [], []
    for index in range(start, stop):
        drawn, file = scene(split, index)
        picture = Image.open(io.BytesIO(file)).resize(canvas[::-1], Image.Resampling.BICUBIC)
        images.append(np.asarray(picture))
        labels.append(THINGS.index(drawn.label))
        cells.append(_shares(drawn, (canvas[0] // CELL_PX, canvas[1] // CELL_PX)))
    return Examples(np.stack(images), np.array(labels), np.stack(cells))


def _training_size(rng: Generator) -> tuple[int, int]:
    """Height and width: the shorter side 120 to 480 px, most of them small, up to 1.8 : 1."""
    shorter = math.exp(rng.uniform(math.log(120), math.log(480)))
    sides = round(shorter), round(shorter * rng.uniform(1, 1.8))
    return sides if rng.uniform() < 0.6 else sides[::-1]


def _shares(drawn: Scene, grid: tuple[int, int]) -> NDArray[np.uint8]:
    """The truth of ``Examples.cells`` for one scene."""
    shares = np.zeros((*grid, len(CLASSES) + 1), dtype=np.float32)
    dominant = max(drawn.objects, key=lambda thing: thing.area_px)
    for segment in drawn.segments:
        mask = Image.fromarray(drawn.mask(segment).astype(np.float32))
        share = np.asarray(mask.resize(grid[::-1], Image.Resampling.BOX))
        shares[..., CLASSES.index(segment.label)] += share
        if segment is dominant:
            shares[..., -1] = share
    return (shares * 255 + 0.5).astype(np.uint8)
