"""What merging at the resolution of the masks costs against merging at that of the picture:
``python -m export.demo.detail BUNDLE``.
"""

import json
from pathlib import Path
from typing import Annotated, get_args

import typer

from export.demo.measure import measured, show
from service.bundle import Bundle, Detail, load_bundle
from service.worker.runtimes.choose import candidates

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    bundle: Annotated[Path, typer.Argument(help="version folder of a segmenter")],
    scenes: Annotated[int, typer.Option(help="held-out scenes to measure on")] = 512,
    threads: Annotated[int, typer.Option(help="processes that draw")] = 2,
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
) -> None:
    """Measure PQ of both details with the fastest runtime that has proven the bundle."""
    found = compare(load_bundle(bundle), scenes, threads)
    if out is not None:
        out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for detail, figures in found.items():
        typer.echo(f"{detail}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))


def compare(bundle: Bundle, scenes: int, workers: int) -> dict[Detail, dict[str, float]]:
    """PQ, SQ and RQ of "fast" and of "exact" on the same held-out scenes."""
    shown = show(bundle.manifest.geometry, "held-out", scenes, workers)
    choice = candidates(bundle)[0]
    return {
        detail: {
            one.metric: one.value for one in measured(with_detail(bundle, detail), choice, shown)
        }
        for detail in get_args(Detail)
    }


def with_detail(bundle: Bundle, detail: Detail) -> Bundle:
    """The bundle as if its manifest named this detail."""
    segmentation = bundle.manifest.segmentation
    assert segmentation is not None, f"{bundle.folder} does not segment"
    changed = segmentation.model_copy(update={"detail": detail})
    manifest = bundle.manifest.model_copy(update={"segmentation": changed})
    return bundle.model_copy(update={"manifest": manifest})


if __name__ == "__main__":
    app()
