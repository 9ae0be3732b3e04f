"""``saccade`` in this process, and bundles to move."""

import hashlib
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from service.cli import app
from service.errors import ServiceError
from tests.service.sample_bundle import FILES, manifest_of, write_bundle


def saccade(*words: str) -> str:
    """What a command says; a refusal begins with its name."""
    ended = CliRunner().invoke(app, words)
    if isinstance(ended.exception, ServiceError):
        return f"{type(ended.exception).__name__}: {ended.exception}"
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return " ".join(ended.output.split())


def pull(source: str, into: Path, *flags: str, cache: str = "off") -> str:
    """What pulling into a repository says."""
    return saccade("pull", source, "--repository", str(into), "--cache", cache, *flags)


def make_bundle(repository: Path, name: str = "tiny", version: str = "1", **changes: Any) -> Path:
    """A bundle whose files are larger than what is sent in one piece."""
    return write_bundle(repository, manifest_of(name, version, **changes))


def served_files(folder: Path, at: str) -> dict[str, bytes]:
    """The files of a folder by their paths below ``at``."""
    return {f"{at}/{path.name}": path.read_bytes() for path in folder.iterdir()}


def digest_of_manifest(folder: Path) -> str:
    return f"sha256:{hashlib.sha256((folder / 'manifest.json').read_bytes()).hexdigest()}"


def contents(repository: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in repository.rglob("*")
        if path.is_file()
    }


def whole(name: str = "tiny", version: str = "1", **changes: Any) -> dict[str, bytes]:
    """The files of such a bundle, as they lie in a repository."""
    manifest = json.dumps(manifest_of(name, version, **changes)).encode()
    files = {**FILES, "manifest.json": manifest}
    return {f"{name}/{version}/{file}": data for file, data in files.items()}
