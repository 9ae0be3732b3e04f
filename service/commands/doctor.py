"""``saccade doctor``: what this machine has, and what would be chosen."""

from pathlib import Path
from typing import Annotated

import typer

from service.commands.shared import AsForServe, examples
from service.settings import load_settings

app = typer.Typer()


@app.command(
    "doctor",
    epilog=examples(
        "saccade doctor --repository models-repository",
        "saccade doctor --precision int8",
        "saccade doctor --json > doctor.json",
    ),
)
def examine_machine(
    repository: Annotated[
        Path | None, typer.Option(help="Model repository \\[default: demo]", show_default=False)
    ] = None,
    device: AsForServe = None,
    runtime: AsForServe = None,
    precision: AsForServe = None,
    tuning: AsForServe = None,
    cache: AsForServe = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs and bug reports")] = False,
) -> None:
    """What this machine has, what would serve each model and why, and what to mend.

    Nothing is compiled or changed. Exit code 1 if saccade serve would fail with these settings.
    """
    from service.doctor.command import doctor

    wishes = {"device": device, "runtime": runtime, "precision": precision}
    places = {"repository": repository, "tuning": tuning, "cache": cache}
    doctor(load_settings(wishes | places), as_json)
