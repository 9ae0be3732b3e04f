"""Scenes as a model sees them: JPEG-encoded at natural sizes, then resized to its canvas."""

import io
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from export.demo.scenes import CLASSES, STUFF, THINGS, Scene, draw

Split = Literal["train", "validation", "held-out", "samples"]

# First word of every seed, so that no scene is in two splits.
SPLIT_SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "held-out": 3, "samples": 4}
# Scenes in a file of the cache.
CHUNK = 256
# Six things and every kind of stuff.
MAX_SEGMENTS = 6 + len(STUFF)
SERVED_SIZES = [(240, 320), (320, 240), (360, 640), (480, 480), (480, 640), (640, 480)]


@dataclass(frozen=True)
class Examples:
    """Scenes as a network sees them, and their truth by segment.

    ``images`` (N, H, W, 3) at the canvas, ``labels`` (N,) of the dominant things, and the segment
    ``ids`` (N, H, W) of the pixels. ``classes`` (N, S) and ``boxes`` (N, S, 4) say what segment
    s + 1 is: its index in ``CLASSES``, -1 where there is none, and its corners x0, y0, x1, y1
    in 0..1 of the picture. ``dominant`` (N,) is the id of the thing that gives the label.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: NDArray[np.uint8]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    dominant: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)


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


def draw_examples(split: Split, canvas: tuple[int, int], start: int, stop: int) -> Examples:
    """Scenes ``start`` to ``stop`` of a split, squashed to the canvas (height, width)."""
    drawn = [_example(split, index, canvas) for index in range(start, stop)]
    columns = {part.name: [getattr(one, part.name) for one in drawn] for part in fields(Examples)}
    return Examples(**{name: np.concatenate(parts) for name, parts in columns.items()})


def cached_examples(
    work: Path, split: Split, count: int, canvas: tuple[int, int], workers: int
) -> Examples:
    """The first ``count`` examples of a split, drawn by ``workers`` processes and kept in ``work``
    for the next run.
    """
    folder = work / f"{split}-{canvas[0]}x{canvas[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, CHUNK)
    paths = [folder / f"{start:06d}.npz" for start in starts]
    missing = [pair for pair in zip(paths, starts, strict=True) if not pair[0].exists()]
    if missing:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as executor:
            drawn = executor.map(partial(_draw_chunk, split, canvas), *zip(*missing, strict=True))
            list(track(drawn, f"drawing {split} scenes, {CHUNK} at a time", len(missing)))
    chunks = [np.load(path) for path in paths]
    return Examples(
        **{
            part.name: np.concatenate([chunk[part.name] for chunk in chunks])[:count]
            for part in fields(Examples)
        }
    )


def _draw_chunk(split: Split, canvas: tuple[int, int], path: Path, start: int) -> None:
    drawn = draw_examples(split, canvas, start, start + CHUNK)
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, **{part.name: getattr(drawn, part.name) for part in fields(Examples)})
    unfinished.replace(path)


def _example(split: Split, index: int, canvas: tuple[int, int]) -> Examples:
    drawn, file = scene(split, index)
    size = canvas[::-1]
    picture = Image.open(io.BytesIO(file)).resize(size, Image.Resampling.BICUBIC)
    ids = Image.fromarray(drawn.ids).resize(size, Image.Resampling.NEAREST)
    height, width = drawn.ids.shape
    classes = np.full((1, MAX_SEGMENTS), -1)
    boxes = np.zeros((1, MAX_SEGMENTS, 4), dtype=np.float32)
    for row, segment in enumerate(drawn.segments):
        classes[0, row] = CLASSES.index(segment.label)
        boxes[0, row] = np.array(segment.box_xyxy_px) / (width, height, width, height)
    dominant = max(drawn.objects, key=lambda thing: thing.area_px)
    return Examples(
        images=np.asarray(picture)[None],
        labels=np.array([THINGS.index(drawn.label)]),
        ids=np.asarray(ids)[None],
        classes=classes,
        boxes=boxes,
        dominant=np.array([dominant.id], dtype=np.uint8),
    )


def _training_size(rng: Generator) -> tuple[int, int]:
    """Height and width: the shorter side 120 to 480 px, most of them small, up to 1.8 : 1."""
    shorter = math.exp(rng.uniform(math.log(120), math.log(480)))
    sides = round(shorter), round(shorter * rng.uniform(1, 1.8))
    return sides if rng.uniform() < 0.6 else sides[::-1]
