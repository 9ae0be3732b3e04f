"""Version folders in a model repository: numbered, written aside, and put in place in one move."""

import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from service.bundle import MANIFEST, Bundle, File, Manifest, Name, digest_of, load_bundle
from service.errors import StartError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_name(what: str, name: str) -> str:
    """The name, if a folder and a URL can hold it.

    Raises:
        StartError: they cannot.
    """
    try:
        return TypeAdapter[str](Name).validate_python(name)
    except ValidationError:
        raise StartError(
            f"{what} {name!r} is not allowed: letters, digits, '.', '_' and '-', starting with a "
            "letter or digit, at most 128 characters"
        ) from None


def next_version(repository: Path, name: str) -> str:
    """One more than the highest number among the versions of ``name``; "1" for the first."""
    folder = repository / name
    taken = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    return str(max(taken, default=0) + 1)


@contextmanager
def enough_room(folder: Path) -> Iterator[None]:
    """Say in one sentence that a disk or a quota is full, or a file larger than is allowed."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StartError(
            f"{folder} cannot take what is written: {error.strerror}; nothing was left behind. "
            "Make room there, or name another folder."
        ) from error


@contextmanager
def unfinished_version(repository: Path, name: str, version: str) -> Iterator[Path]:
    """A folder to write into, which ``publish`` moves into place; gone afterwards in any case.

    It lies beside the model folders under a hidden name, where no server looks for versions.

    Raises:
        StartError: the version exists, or there is no room for it.
    """
    _refuse_existing(repository / name / version)
    folder = repository / f".{name}-{version}-{uuid.uuid4().hex[:8]}"
    try:
        with enough_room(repository):
            folder.mkdir(parents=True)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def describe_files(folder: Path) -> dict[str, File]:
    """Digest and size of everything in a version folder."""
    return {
        path.name: File(sha256=digest_of(path), size_bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
    }


def publish(folder: Path, repository: Path, manifest: Manifest) -> Bundle:
    """Write the manifest, then move the folder to where servers find it.

    Raises:
        StartError: the version has come to exist in the meantime.
    """
    (folder / MANIFEST).write_text(_text(manifest), encoding="utf-8")
    target = repository / manifest.name / manifest.version
    target.parent.mkdir(exist_ok=True)
    _refuse_existing(target)
    try:
        folder.rename(target)
    except OSError as error:
        raise StartError(f"{folder} cannot be moved to {target}: {error}") from error
    return load_bundle(target)


def replace_manifest(bundle: Bundle, manifest: Manifest) -> Bundle:
    """Put another manifest in place of a bundle's own, in one move; its graphs stay."""
    aside = bundle.folder / f".{MANIFEST}-{uuid.uuid4().hex[:8]}"
    try:
        with enough_room(bundle.folder):
            aside.write_text(_text(manifest), encoding="utf-8")
            aside.replace(bundle.folder / MANIFEST)
    finally:
        aside.unlink(missing_ok=True)
    return load_bundle(bundle.folder)


def _text(manifest: Manifest) -> str:
    return manifest.model_dump_json(indent=2, exclude_none=True) + "\n"


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise StartError(f"{target} exists; name another version, or remove it first")
