"""Puts a bundle into a repository in one step: it is whole and checked there, or not there."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from service.bundle import MANIFEST, Bundle, Manifest, Name, load_bundle
from service.distribution.blobs import Advance, Blobs
from service.distribution.remote import Remote, digest_of_bytes, read_manifest
from service.errors import BadBundle, TransferFailed

PREFIX = ".pulling-"
BLOBS, REPLACED = ".blobs", ".replaced"
"""In the folder with that prefix, beside the model, whose name begins with no dot."""


@dataclass(frozen=True)
class Wish:
    """Where to, and what is allowed on the way; ``cache`` None keeps nothing."""

    repository: Path
    cache: Path | None = None
    digest: str | None = None
    replace: bool = False
    max_bytes: int = 100 * 10**9


@dataclass(frozen=True)
class Installed:
    """What is now in the repository, and whether it was there before."""

    bundle: Bundle
    digest: str
    already: bool


Begin = Callable[[Manifest], Advance]
"""Is told what will be fetched, and gives what is told how it goes."""


def install(remote: Remote, wish: Wish, begin: Begin) -> Installed:
    """Fetch a bundle, check every byte, and put it into the repository.

    Raises:
        TransferFailed: it cannot be fetched, or another one of that version is there.
        BadBundle: it is not one that this release reads.
    """
    raw = read_manifest(remote)
    digest = digest_of_bytes(raw)
    if wish.digest not in (None, digest):
        raise TransferFailed(
            f"{remote.place}: {MANIFEST} has {digest}, but --digest expects {wish.digest}; "
            "nothing was installed"
        )
    with _staging(wish.repository) as stage:
        bundle = _unpack(raw, remote, stage)
        manifest = bundle.manifest
        target = wish.repository / manifest.name / manifest.version
        if _is_there(target, raw, wish.replace):
            return Installed(load_bundle(target), digest, already=True)
        blobs = Blobs(wish.cache or stage / BLOBS, keep=wish.cache is not None)
        _check_room(manifest, blobs, wish, remote.place)
        advance = begin(manifest)
        for name, file in manifest.files.items():
            blobs.put(
                file,
                lambda offset, name=name: remote.stream(name, offset),  # type: ignore[misc]
                bundle.folder / name,
                f"{remote.place}: {name}",
                advance,
            )
        bundle.verify()
        already = not _move(bundle.folder, target, raw, wish.replace, stage)
    return Installed(load_bundle(target), digest, already)


def _unpack(raw: bytes, remote: Remote, stage: Path) -> Bundle:
    """A folder with this manifest, named as it says, and nothing else in it yet.

    Name and version become part of a path: they are checked before, as those of files are by
    ``load_bundle``.
    """
    try:
        said = json.loads(raw)
        name, version = (TypeAdapter(Name).validate_python(said[key]) for key in _NAMES)
    except (ValueError, RecursionError, TypeError, KeyError, ValidationError):
        raise BadBundle(
            f"{remote.place}: {MANIFEST} is not a bundle's: it is JSON with a name and a version "
            "of letters, digits, dots, - and _. Is this the right folder?"
        ) from None
    folder = stage / name / version
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(raw)
    try:
        return load_bundle(folder)
    except BadBundle as error:
        raise BadBundle(str(error).replace(str(folder), remote.place)) from None


_NAMES = ("name", "version")


def _is_there(target: Path, raw: bytes, replace: bool) -> bool:
    """Whether this very bundle is installed.

    Raises:
        TransferFailed: another one is, and it is not to be replaced.
    """
    if not target.exists():
        return False
    try:
        if _equals(target, raw):
            load_bundle(target).verify()
            return True
    except BadBundle as error:
        if not replace:
            raise TransferFailed(f"{error} To fetch it anew: --replace") from None
    if replace:
        return False
    raise TransferFailed(
        f"{target} holds something else of this version; it is left as it is. "
        "Give the new bundle another version, or replace the old one with --replace"
    )


def _equals(target: Path, raw: bytes) -> bool:
    try:
        return (target / MANIFEST).read_bytes() == raw
    except (FileNotFoundError, NotADirectoryError):
        return False


def _check_room(manifest: Manifest, blobs: Blobs, wish: Wish, place: str) -> None:
    """Refuse before the first byte what would not fit."""
    whole = sum(file.size_bytes for file in manifest.files.values())
    if whole > wish.max_bytes:
        raise TransferFailed(
            f"{place} has {whole / 1e9:.1f} GB; at most {wish.max_bytes / 1e9:g} GB are fetched. "
            "If that is right, raise --max-gb"
        )
    needs = [(wish.repository, whole)]
    if wish.cache is not None:
        needs.append((wish.cache, blobs.missing_bytes(manifest.files)))
    for disk in {folder.stat().st_dev for folder, _ in needs}:
        here = {folder: needed for folder, needed in needs if folder.stat().st_dev == disk}
        needed, free = sum(here.values()), shutil.disk_usage(next(iter(here))).free
        if needed > free:
            where = " and ".join(map(str, here))
            raise TransferFailed(
                f"{place} needs {needed / 1e9:.1f} GB in {where}, where {free / 1e9:.1f} GB are "
                "free; make room, name another folder, or do without a cache: --cache off"
            )


def _move(folder: Path, target: Path, raw: bytes, replace: bool, stage: Path) -> bool:
    """Whether ``folder`` was moved to ``target``; not if another process was first with the same.

    A replaced version is away for a moment; readers that opened it keep its files.
    """
    target.parent.mkdir(exist_ok=True)
    if replace and target.exists():
        old = target.rename(stage / REPLACED)
        try:
            folder.rename(target)
        except OSError:
            old.rename(target)
            raise
        return True
    try:
        folder.rename(target)
    except OSError:
        if _is_there(target, raw, replace):
            return False
        raise
    return True


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """A folder in the repository that servers do not look into; gone at the end.

    What processes left that were killed is removed: nobody holds its lock any more.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _locked(repository):
            for left in repository.glob(f"{PREFIX}*"):
                _remove_if_left(left)
            stage = Path(tempfile.mkdtemp(prefix=PREFIX, dir=repository))
            held = os.open(stage, os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        raise TransferFailed(
            f"{repository} cannot be written: {error.strerror}; name another --repository"
        ) from None
    try:
        yield stage
    except OSError as error:
        raise TransferFailed(f"{error.filename or stage}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(held)


def _remove_if_left(folder: Path) -> None:
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(opened)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)
