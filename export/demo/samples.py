"""Writes the sample scenes of the package: ``python -m export.demo.samples``."""

import json
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from export.demo.pool import SERVED_SIZES, SPLIT_SEEDS, jpeg
from export.demo.scenes import THINGS, Scene, draw

SCENES = Path("service/demo/scenes")
QUALITY = 90


def write_samples(folder: Path) -> None:
    """One busy scene per class of thing as JPEG, and the truth of all in ``scenes.json``.

    ``seed`` is what ``numpy.random.default_rng`` draws the scene from, masks included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for number, label in enumerate(THINGS):
        seed, drawn = _first(label, SERVED_SIZES[number % len(SERVED_SIZES)])
        name = f"{label}.jpg"
        (folder / name).write_bytes(jpeg(drawn, QUALITY))
        height, width = drawn.ids.shape
        truth[name] = {
            "width": width,
            "height": height,
            "seed": seed,
            "class": label,
            "boxes": [asdict(thing) for thing in drawn.objects],
            "segments": [asdict(segment) for segment in drawn.segments],
        }
    (folder / "scenes.json").write_text(json.dumps(truth, indent=1) + "\n")


def _first(label: str, size: tuple[int, int]) -> tuple[list[int], Scene]:
    """The first seed that leads to this label, three things and two kinds of stuff."""
    for index in count():
        seed = [SPLIT_SEEDS["samples"], index]
        drawn = draw(np.random.default_rng(seed), size)
        things = len(drawn.objects)
        if drawn.label == label and things >= 3 and len(drawn.segments) - things >= 2:
            return seed, drawn
    raise AssertionError("count() does not end")


def main(
    out: Annotated[Path, typer.Option(help="folder for the pictures and scenes.json")] = SCENES,
) -> None:
    """Write the sample scenes."""
    write_samples(out)


if __name__ == "__main__":
    typer.run(main)
