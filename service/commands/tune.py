"""``saccade tune``: what serves each model best on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from service.commands.shared import examples
from service.settings import DEMO_REPOSITORY

app = typer.Typer()


@app.command(
    "tune",
    epilog=examples(
        "saccade tune --repository models-repository",
        "saccade tune --repository models-repository --model detr --out tuning.json",
    ),
)
def tune_machine(
    repository: Annotated[
        Path, typer.Option(help="Model repository \\[default: demo]", show_default=False)
    ] = DEMO_REPOSITORY,
    model: Annotated[list[str] | None, typer.Option(help="Only this one; repeatable")] = None,
    seconds: Annotated[
        float, typer.Option(min=0.05, max=600, help="Measuring time for each point")
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="File to write instead of tuning.json in the repository")
    ] = None,
    runtime: Annotated[str, typer.Option(help="As for saccade serve")] = "auto",
    precision: Annotated[str, typer.Option(help="As for saccade serve")] = "auto",
) -> None:
    """Measure this machine once: streams, threads and batch sizes that serve each model best."""
    from service.tune.command import tune

    tune(repository, model or [], seconds, out, {"runtime": runtime, "precision": precision})
