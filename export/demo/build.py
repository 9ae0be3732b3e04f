"""Makes a demo bundle from nothing: ``python -m export.demo.build vit --work FOLDER``."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from export.build import export_bundle
from export.demo.pool import SPLIT_SEEDS, scene
from export.demo.scenes import THINGS
from export.demo.train import Recipe, train_vit, vit_config
from models.checkpoints import save_checkpoint
from models.vit import ViT, ViTConfig
from service.bundle import MANIFEST, Accuracy, Bundle, load_bundle
from service.geometry import Geometry, Size, place, to_canvas
from service.images import ImageLimits, decode
from service.worker.runtimes.choose import Choice, candidates, open_runtime

REPOSITORY = Path("service/demo/repository")
BATCH = 32

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Train, export and measure a demo model, and write its bundle."""


@app.command()
def vit(
    work: Annotated[Path, typer.Option(help="folder for scenes, weights and checkpoint")],
    repository: Annotated[Path, typer.Option(help="model repository")] = REPOSITORY,
    name: Annotated[str, typer.Option(help="name of the bundle")] = "vit-scenes",
    held_out: Annotated[int, typer.Option(help="held-out scenes to measure on")] = 4096,
    threads: Annotated[int, typer.Option(help="CPU threads, and processes that draw")] = 2,
) -> None:
    """Build the ViT classifier's bundle; weights in WORK/vit.pt are taken as they are."""
    console = Console()
    weights = work / "vit.pt"
    if not weights.exists():
        train_vit(work, Recipe(), threads, console)
    model = ViT(vit_config())
    model.load_state_dict(torch.load(weights, weights_only=True))
    checkpoint = work / name
    save_checkpoint(model, checkpoint, dict(enumerate(THINGS)), preprocessor(model.config))
    bundle = export_bundle(checkpoint, repository, name=name, version="1")
    for accuracy in measure(bundle, held_out, threads):
        console.print(f"{accuracy.runtime} {accuracy.precision}: top-1 {accuracy.value:.4f}")


def preprocessor(config: ViTConfig) -> dict[str, Any]:
    """preprocessor_config.json: squash to the canvas, then to -1..1, as in training."""
    height, width = config.canvas
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def measure(bundle: Bundle, count: int, workers: int) -> list[Accuracy]:
    """Measure on held-out scenes in all that runs the bundle here; note it in the manifest."""
    images, labels = draw_held_out(bundle.manifest.geometry, count, workers)
    accuracy = [score(bundle, choice, images, labels) for choice in candidates(bundle)]
    origin = {"source": "trained by export.demo.train on generated scenes", "license": "Apache-2.0"}
    provenance = bundle.manifest.provenance.model_copy(update=origin)
    manifest = bundle.manifest.model_copy(update={"accuracy": accuracy, "provenance": provenance})
    text = manifest.model_dump_json(indent=2, exclude_none=True)
    (bundle.folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return load_bundle(bundle.folder).manifest.accuracy


def draw_held_out(
    geometry: Geometry, count: int, workers: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Held-out scenes as the server prepares them (N, H, W, 3), and their labels (N,)."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        drawn = executor.map(partial(_served, geometry), range(count), chunksize=64)
        pairs = list(track(drawn, f"drawing {count} held-out scenes", count))
    return np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])


def score(
    bundle: Bundle, choice: Choice, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> Accuracy:
    """Share of pictures whose best score is the label, through the serving graph."""
    runtime = open_runtime(bundle, "serve", bundle.manifest.geometry.nominal, choice)
    right = 0
    for start in range(0, len(images), BATCH):
        scores = runtime.run({"images": images[start : start + BATCH]})["scores"]
        right += int((scores.argmax(axis=1) == labels[start : start + BATCH]).sum())
    seeds = f"seeds [{SPLIT_SEEDS['held-out']}, i] for i below {len(images)}"
    return Accuracy(
        dataset=f"generated scenes, held out: export.demo.pool.scene('held-out', i), {seeds}",
        metric="top-1",
        value=right / len(images),
        images=len(images),
        runtime=choice.runtime,
        precision=choice.precision,  # type: ignore[arg-type]
    )


def _served(geometry: Geometry, index: int) -> tuple[NDArray[np.uint8], int]:
    drawn, file = scene("held-out", index)
    image = decode(file, ImageLimits())
    size = Size(height=image.height, width=image.width)
    return to_canvas(image, place(geometry, size, geometry.nominal)), THINGS.index(drawn.label)


if __name__ == "__main__":
    app()
