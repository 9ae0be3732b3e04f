"""``saccade serve``, with a flag for every setting."""

import asyncio
import inspect
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, get_args

import typer

from service.commands.shared import examples
from service.logs import configure_logging
from service.settings import (
    DEMO_REPOSITORY,
    PREFIX,
    SECRETS,
    Settings,
    check_files,
    load_settings,
)

app = typer.Typer()


def serve(**flags: str | None) -> None:
    """Start the server; without a repository it serves the bundled demo models."""
    from service.supervisor import Supervisor

    settings = load_settings(flags)
    check_files(settings)
    configure_logging("supervisor", settings.log_level)
    supervisor = Supervisor(settings)
    listeners = supervisor.bind()
    host, port = listeners[0].getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    scheme = "https" if settings.tls_certificate else "http"

    def announce(names: list[str]) -> None:
        from rich.console import Console

        console = Console(soft_wrap=True, highlight=False)
        console.print(f"Saccade {version('saccade')} at {scheme}://{address}:{port}", markup=False)
        listed = ", ".join(names)
        if settings.repository == DEMO_REPOSITORY:
            console.print(f"No repository given: serving the bundled demo models ({listed})")
        else:
            console.print(f"Serving {listed} from {settings.repository}", markup=False)
        sys.stdout.flush()

    sys.exit(asyncio.run(supervisor.run(listeners, announce)))


def _completion(allowed: tuple[object, ...]) -> Callable[[str], list[str]] | None:
    """What completes a value in the shell; None where it is not one of a few."""

    def complete(incomplete: str) -> list[str]:
        return [str(value) for value in allowed if str(value).startswith(incomplete)]

    return complete if allowed else None


def _flags() -> list[inspect.Parameter]:
    """One optional flag for every field of Settings but secrets, so that the two cannot differ."""
    parameters = []
    for name, field in Settings.model_fields.items():
        if name in SECRETS:
            continue
        default = (
            "demo" if name == "repository" else "none" if field.default == "" else field.default
        )
        text = f"{field.description} [{PREFIX}{name.upper()}; default: {default}]"
        option = typer.Option(
            "--" + name.replace("_", "-"),
            help=text,
            show_default=False,
            autocompletion=_completion(get_args(field.annotation)),
        )
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[str | None, option],
            )
        )
    return parameters


serve.__signature__ = inspect.Signature(_flags())  # type: ignore[attr-defined]
serve.__annotations__ = {flag.name: flag.annotation for flag in _flags()}
app.command(
    epilog=examples(
        "saccade serve",
        "saccade serve --repository models-repository --port 8080",
        "saccade serve --host 0.0.0.0 --api-keys-file keys --metrics-access open",
        "SACCADE_PORT=8080 saccade serve",
    )
)(serve)
