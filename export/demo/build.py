"""Makes a demo bundle from nothing: ``python -m export.demo.build vit --work FOLDER``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from torch import nn

from export.build import export_bundle
from export.demo.measure import measured, show
from export.demo.scenes import CLASSES, STUFF, THINGS
from export.demo.training.teach import School
from export.plan import Wishes
from models.checkpoints import save_checkpoint
from service.bundle import MANIFEST, Bundle, load_bundle
from service.worker.runtimes.choose import candidates

REPOSITORY = Path("service/demo/repository")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Work = Annotated[Path, typer.Option(help="folder for scenes, weights and checkpoint")]
Repository = Annotated[Path, typer.Option(help="model repository")]
HeldOut = Annotated[int, typer.Option(help="held-out scenes to measure on")]
Threads = Annotated[int, typer.Option(help="CPU threads, and processes that draw")]


@app.callback()
def main() -> None:
    """Train, export and measure a demo model, and write its bundle.

    Weights that WORK has are taken as they are.
    """


@app.command()
def vit(
    work: Work, repository: Repository = REPOSITORY, held_out: HeldOut = 2048, threads: Threads = 2
) -> None:
    """Build the ViT classifier's bundle from WORK/vit.pt."""
    model = School(work, threads, Console()).vit()
    plan = Plan("vit-scenes", "ViTImageProcessor", THINGS)
    make(model, plan, work, repository, held_out, threads)


@app.command()
def swin(
    work: Work, repository: Repository = REPOSITORY, held_out: HeldOut = 2048, threads: Threads = 2
) -> None:
    """Build the Swin classifier's bundle from WORK/swin.pt."""
    model = School(work, threads, Console()).swin()
    plan = Plan("swin-scenes", "ViTImageProcessor", THINGS)
    make(model, plan, work, repository, held_out, threads)


@app.command()
def detr(
    work: Work, repository: Repository = REPOSITORY, held_out: HeldOut = 2048, threads: Threads = 2
) -> None:
    """Build the detector's bundle from WORK/detr.pt."""
    model = School(work, threads, Console()).detector()
    plan = Plan(
        "detr-scenes",
        "DeformableDetrImageProcessor",
        THINGS,
        threshold=0.4,  # where precision and recall balance on validation scenes
        note="Deformable DETR in two stages rather than plain DETR, since its authors report ten "
        "times fewer epochs (arXiv 2010.04159, section 5.1)",
    )
    make(model, plan, work, repository, held_out, threads)


@app.command()
def mask2former(
    work: Work, repository: Repository = REPOSITORY, held_out: HeldOut = 2048, threads: Threads = 2
) -> None:
    """Build the segmenter's bundle from WORK/mask2former.pt."""
    model = School(work, threads, Console()).segmenter()
    plan = Plan(
        "mask2former-scenes",
        "Mask2FormerImageProcessor",
        CLASSES,
        stuff=STUFF,
        threshold=0.5,  # by validation scenes; the authors' 0.8 is for networks that are surer
        note="its backbone and the trunk of swin-scenes learned as one until step 1550 of 2050",
    )
    make(model, plan, work, repository, held_out, threads)


@dataclass(frozen=True)
class Plan:
    """What a bundle is called, and what its checkpoint says beside the weights."""

    name: str
    processor: str
    labels: Sequence[str]
    stuff: Sequence[str] | None = None
    threshold: float | None = None
    note: str | None = None


def make(
    model: nn.Module, plan: Plan, work: Path, repository: Path, held_out: int, threads: int
) -> None:
    """Save, export and measure a trained network."""
    checkpoint = work / plan.name
    canvas = model.config.canvas  # type: ignore[union-attr]
    processor = preprocessor(plan.processor, canvas)  # type: ignore[arg-type]
    save_checkpoint(model, checkpoint, dict(enumerate(plan.labels)), processor)
    bundle = export_bundle(
        checkpoint,
        repository,
        name=plan.name,
        version="1",
        wishes=Wishes(stuff=plan.stuff, threshold=plan.threshold),
        note=plan.note,
    )
    measure(bundle, held_out, threads)
    for accuracy in load_bundle(bundle.folder).manifest.accuracy:
        where = f"{accuracy.runtime} {accuracy.precision}"
        typer.echo(f"{plan.name} {where}: {accuracy.metric} {accuracy.value:.4f}")


def preprocessor(kind: str, canvas: tuple[int, int]) -> dict[str, Any]:
    """preprocessor_config.json: squash to the canvas, then to -1..1, as in training."""
    height, width = canvas
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def measure(bundle: Bundle, count: int, workers: int) -> None:
    """Measure on held-out scenes in all that runs the bundle here; note it in the manifest."""
    shown = show(bundle.manifest.geometry, "held-out", count, workers)
    accuracy = [one for choice in candidates(bundle) for one in measured(bundle, choice, shown)]
    origin = {"source": "trained by export.demo on generated scenes", "license": "Apache-2.0"}
    provenance = bundle.manifest.provenance.model_copy(update=origin)
    manifest = bundle.manifest.model_copy(update={"accuracy": accuracy, "provenance": provenance})
    text = manifest.model_dump_json(indent=2, exclude_none=True)
    (bundle.folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
