"""The console program ``saccade``; each command imports what it alone needs when it runs, so that
``serve`` is quick.
"""

import sys

import typer

from service.commands import (
    bench,
    distribution,
    doctor,
    evaluate,
    models,
    offline,
    plan,
    predict,
    serve,
    tune,
)
from service.errors import ServiceError

models.app.add_typer(offline.models)
app = typer.Typer(
    help="Serves vision transformers over HTTP: an image goes in, an answer comes out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(serve.app)
app.add_typer(models.app, name="models")
for group in (offline, bench, predict, evaluate, tune, plan, doctor, distribution):
    app.add_typer(group.app)


def main() -> None:
    """Run the command line; our own errors are one sentence on standard error and exit code 1."""
    try:
        app()
    except ServiceError as error:
        from rich.console import Console

        Console(stderr=True, soft_wrap=True).print(
            f"saccade: {error}", markup=False, highlight=False
        )
        sys.exit(1)
