"""Accuracy of the demo bundles in all that runs them: ``python -m export.demo.accuracy``.

What a bundle offers is measured and noted in its manifest. int8, which the packaged bundles do not
hold, is made of a copy of each, as ``saccade models quantize`` does, and noted in a file.
"""

import json
import shutil
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from export.demo.build import REPOSITORY
from export.demo.measure import Shown, measured, show
from export.demo.pool import scene
from export.pictures import MOST_CALIBRATION, MOST_PROOF
from export.quantize import add_int8
from service.bundle import MANIFEST, Accuracy, Bundle, Manifest, load_bundle, load_repository
from service.errors import StartError
from service.worker.runtimes.choose import candidates

INT8_RESULTS = Path("bench/results/demo-int8.json")


class Precisions(StrEnum):
    """What ``--precision`` takes."""

    ALL = "all"
    OFFERED = "offered"
    INT8 = "int8"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    repository: Annotated[Path, typer.Option(help="model repository")] = REPOSITORY,
    out: Annotated[Path, typer.Option(help="what int8 scores")] = INT8_RESULTS,
    held_out: Annotated[int, typer.Option(help="held-out scenes to measure on")] = 2048,
    scenes: Annotated[int, typer.Option(help="scenes that int8 is made and proven with")] = (
        MOST_CALIBRATION + MOST_PROOF
    ),
    workers: Annotated[int, typer.Option(help="processes that draw")] = 2,
    model: Annotated[list[str] | None, typer.Option(help="only these")] = None,
    precision: Annotated[Precisions, typer.Option(help="what to measure")] = Precisions.ALL,
) -> None:
    """Measure bundles in every precision and runtime that this machine can do."""
    for bundle in load_repository(repository):
        if model and bundle.manifest.name not in model:
            continue
        shown = show(bundle.manifest.geometry, "held-out", held_out, workers)
        if precision != Precisions.INT8:
            note(
                bundle,
                [o for choice in candidates(bundle) for o in measured(bundle, choice, shown)],
            )
        if precision != Precisions.OFFERED:
            keep(out, int8_row(bundle, shown, scenes))


def int8_row(bundle: Bundle, shown: Shown, scenes: int) -> dict[str, Any]:
    """What int8 made of a copy of the bundle scores, or why it is refused."""
    with TemporaryDirectory() as folder:
        pictures = Path(folder) / "scenes"
        write_scenes(pictures, scenes)
        row = {
            "model": bundle.manifest.name,
            "scenes": scenes,
            "versions": {name: version(name) for name in ("onnxruntime", "openvino")},
        }
        try:
            quantized = add_int8(copied(bundle, Path(folder)), pictures)
        except StartError as error:
            return row | {"refused": str(error)}
        quantization = quantized.manifest.quantization
        assert quantization is not None
        choices = candidates(quantized, precision="int8")
        scores = [one for choice in choices for one in measured(quantized, choice, shown)]
        return row | {
            "quantization": quantization.model_dump(),
            "accuracy": [one.model_dump() for one in scores],
        }


def keep(out: Path, row: dict[str, Any]) -> None:
    """Put a model's row into the file, in place of its earlier one."""
    rows = json.loads(out.read_bytes())["models"] if out.exists() else []
    rows = sorted([one for one in rows if one["model"] != row["model"]] + [row], key=_model)
    out.write_text(json.dumps({"models": rows}, indent=2) + "\n", encoding="utf-8")


def _model(row: dict[str, Any]) -> str:
    return str(row["model"])


def note(bundle: Bundle, found: list[Accuracy]) -> None:
    """Put scores into a bundle's manifest, beside those of what this machine cannot run."""
    manifest = merged(bundle.manifest, found)
    text = manifest.model_dump_json(indent=2, exclude_none=True)
    (bundle.folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    for one in found:
        where = f"{bundle.manifest.name} {one.runtime} {one.precision}"
        typer.echo(f"{where}: {one.metric} {one.value:.4f}")


def merged(manifest: Manifest, found: list[Accuracy]) -> Manifest:
    """The manifest with these scores in place of earlier ones of the same runtime and precision."""
    anew = {(one.runtime, one.precision) for one in found}
    kept = [one for one in manifest.accuracy if (one.runtime, one.precision) not in anew]
    return manifest.model_copy(update={"accuracy": [*found, *kept]})


def write_scenes(folder: Path, count: int) -> None:
    """Validation scenes as the JPEG files that a client would send."""
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:06d}.jpg").write_bytes(scene("validation", index)[1])


def copied(bundle: Bundle, folder: Path) -> Bundle:
    """The same bundle at another place."""
    place = folder / bundle.manifest.name / bundle.manifest.version
    shutil.copytree(bundle.folder, place)
    return load_bundle(place)


if __name__ == "__main__":
    app()
