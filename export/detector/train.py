"""Trains a detector: ``python -m export.detector.train DATA WORK``."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from export.demo.build import preprocessor
from export.demo.training.detect import frozen, learn_statistics
from export.demo.training.loop import Figures, Recipe, fit
from export.demo.training.teach import matrices_of
from export.detector.augment import batches
from export.detector.lesson import BoxLesson, detector_config, precision
from export.detector.pictures import Pictures, read
from models.checkpoints import save_checkpoint
from models.deformable_detr import DeformableDetr

CANVAS = 192, 256


def main(
    data: Annotated[Path, typer.Argument(help="folder in COCO's layout, see export.detector.voc")],
    work: Annotated[Path, typer.Argument(help="folder for the state and the checkpoint")],
    canvas: Annotated[tuple[int, int], typer.Option(help="height and width in pixels")] = CANVAS,
    queries: Annotated[int, typer.Option(help="boxes that a picture can have")] = 100,
    steps: Annotated[int, typer.Option(help="batches to learn from")] = 3000,
    batch: Annotated[int, typer.Option(help="pictures in a batch")] = 8,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """Train on DATA/train, watch on DATA/val, and write WORK/checkpoint in transformers' form.

    A training that was interrupted goes on from its last check when it is started again.
    """
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    pictures, validation = read(data, "train", canvas), read(data, "val", canvas)
    recipe = Recipe(steps=steps, batch=batch, muon_rate=5e-3, adam_rate=8e-4, check_every=100)
    torch.manual_seed(recipe.seed)
    model = DeformableDetr(detector_config(canvas, len(pictures.labels), queries))
    lesson = taught(model, pictures, validation, recipe, work)
    kept = DeformableDetr(model.config)
    kept.load_state_dict(frozen(lesson.average.module.state_dict()))
    labels = dict(enumerate(pictures.labels))
    processor = preprocessor("DeformableDetrImageProcessor", canvas)
    save_checkpoint(kept, work / "checkpoint", labels, processor)


def taught(
    model: DeformableDetr, pictures: Pictures, validation: Pictures, recipe: Recipe, work: Path
) -> BoxLesson:
    """The finished lesson. WORK/curve.jsonl has the figures and the time at every check."""
    learn_statistics(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lesson = BoxLesson(model)
    clock = _Clock(work / "curve.jsonl")

    def validate() -> Figures:
        figures = precision(lesson.average, validation)
        clock.note(int(lesson.average.n_averaged), figures)
        return figures

    matrices = [*matrices_of(model.encoder), *matrices_of(model.decoder)]
    draw = partial(batches, pictures, recipe.batch)
    fit(lesson, matrices, draw, recipe, validate, work / "state.pt", Console())
    return lesson


class _Clock:
    """Time and processor time since the training began, over all its parts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        before = json.loads(lines[-1]) if lines else {"wall_s": 0.0, "cpu_s": 0.0}
        self._wall_s = before["wall_s"] - time.monotonic()
        self._cpu_s = before["cpu_s"] - time.process_time()

    def note(self, step: int, figures: Figures) -> None:
        line = {
            "step": step,
            "wall_s": round(self._wall_s + time.monotonic(), 1),
            "cpu_s": round(self._cpu_s + time.process_time(), 1),
            **figures,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    typer.run(main)
