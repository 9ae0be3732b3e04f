"""``saccade models``: what a repository holds, and whether it is whole."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.commands.shared import examples, find
from service.errors import BadBundle, StartError
from service.settings import DEMO_REPOSITORY

app = typer.Typer(help="Look into a model repository.", no_args_is_help=True)


Repository = Annotated[Path, typer.Argument(help="Folder of <model>/<version>/manifest.json")]


@app.command(
    "list",
    epilog=examples("saccade models list models-repository", "saccade models list --json"),
)
def list_models(
    repository: Repository = DEMO_REPOSITORY,
    as_json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
) -> None:
    """The newest version of every model: its size, what it was proven in, and how exact that is."""
    from rich.console import Console

    from service.bundle import load_repository
    from service.catalogue import list_bundle, tabulate

    listed = [list_bundle(bundle) for bundle in load_repository(repository)]
    if as_json:
        sys.stdout.write(json.dumps([each.model_dump() for each in listed], indent=2) + "\n")
    else:
        Console(highlight=False).print(tabulate(listed))


def _complete_model(context: typer.Context, incomplete: str) -> list[str]:
    """Names of models in the repository that stands before them on the line."""
    from service.bundle import load_repository

    try:
        bundles = load_repository(Path(context.params.get("repository") or DEMO_REPOSITORY))
    except BadBundle:
        return []
    names = (bundle.manifest.name for bundle in bundles)
    return [name for name in names if name.startswith(incomplete)]


@app.command(
    "show",
    epilog=examples(
        "saccade models show models-repository vit-base-patch16-224",
        "saccade models show models-repository vit-base-patch16-224 --json",
    ),
)
def show_model(
    repository: Repository = DEMO_REPOSITORY,
    name: Annotated[
        str | None,
        typer.Argument(help="Needed where there are several", autocompletion=_complete_model),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as it is")] = False,
) -> None:
    """One model: sizes, labels, source, and its measured error in each runtime and precision."""
    bundle = find(repository, name)
    if as_json:
        sys.stdout.write(bundle.manifest.model_dump_json(indent=2) + "\n")
        return
    from rich.console import Console

    from service.catalogue import describe

    Console(highlight=False).print(describe(bundle))


@app.command("verify", epilog=examples("saccade models verify models-repository"))
def verify_models(repository: Repository = DEMO_REPOSITORY) -> None:
    """Check size and digest of every file; exit code 1 if any bundle is damaged."""
    from rich.console import Console

    from service.bundle import load_repository

    damaged = 0
    for bundle in load_repository(repository):
        try:
            bundle.verify()
            verdict = "ok"
        except BadBundle as error:
            damaged += 1
            verdict = str(error)
        label = f"{bundle.manifest.name} {bundle.manifest.version}"
        Console(soft_wrap=True).print(f"{label}: {verdict}", markup=False, highlight=False)
    if damaged:
        raise StartError(f"{damaged} of the bundles in {repository} are damaged")


@app.command("schema", epilog=examples("saccade models schema > manifest.schema.json"))
def show_schema() -> None:
    """The JSON Schema of a bundle's manifest."""
    from service.bundle import Manifest

    sys.stdout.write(json.dumps(Manifest.model_json_schema(), indent=2) + "\n")
