"""What several commands need."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.errors import BadBundle, BadSettings, StartError

if TYPE_CHECKING:
    from service.bundle import Bundle

AsForServe = Annotated[str | None, typer.Option(help="As for saccade serve")]
Url = Annotated[
    str | None, typer.Option(help="A running server to ask; without it, this machine answers")
]
ApiKeyFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="File of the server's API key")
]
LocalRepository = Annotated[
    Path | None, typer.Option(help="Without --url: model repository \\[default: demo]")
]
Parameters = Annotated[
    list[str] | None, typer.Option(help="A parameter, like threshold=0.3; repeatable")
]


def examples(*lines: str) -> str:
    """What a command's ``--help`` ends with; an empty line keeps lines apart."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


@contextmanager
def needing(extra: str, command: str) -> Iterator[None]:
    """Say what to install where something that comes with an extra, imported inside, is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise StartError(
            f"'saccade {command}' needs the package {error.name!r}; "
            f"install it with: pip install 'saccade[{extra}]'"
        ) from None


def find(repository: Path, name: str | None) -> "Bundle":
    """The newest version of a model; a repository of one model needs no name.

    Raises:
        BadBundle: there is no such model, or a bundle cannot be read.
    """
    from service.bundle import load_repository

    bundles = {bundle.manifest.name: bundle for bundle in load_repository(repository)}
    if name is None and len(bundles) == 1:
        return next(iter(bundles.values()))
    if name not in bundles:
        asked = "name a model" if name is None else f"there is no model {name!r}"
        raise BadBundle(f"{asked}: {repository} holds {', '.join(bundles)}")
    return bundles[name]


def refuse_beside_url(url: str | None, local: dict[str, Any]) -> None:
    """Raises BadSettings where a server is to answer and flags say how this machine would."""
    if url is not None and (given := [name for name, value in local.items() if value is not None]):
        raise BadSettings(
            f"--{given[0]} says how this machine answers, and --url has {url} answer; leave out one"
        )


class PictureTask(StrEnum):
    """What a model is asked of pictures."""

    CLASSIFY = "classify"
    DETECT = "detect"
    SEGMENT = "segment"
    EMBED = "embed"
