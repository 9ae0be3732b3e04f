"""What ``saccade pull`` and ``saccade push`` do: find what is named, move it, say what happened."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from service.bundle import MANIFEST, Bundle, Manifest
from service.catalogue import size_bytes
from service.distribution.artefact import find_artefact, push_artefact
from service.distribution.blobs import Advance
from service.distribution.credentials import find_login
from service.distribution.folders import FolderRemote, find_remotes, open_files, upload
from service.distribution.install import Installed, Wish, install
from service.distribution.reference import SCHEMES, Reference
from service.distribution.registry import Registry
from service.distribution.remote import Remote, digest_of_bytes
from service.distribution.web import check_open, make_client, web_remote
from service.errors import TransferFailed

Logins = Callable[[], Iterable[tuple[str, str]]]
"""Names and contents of what may hold logins; only read for registries."""


def pull(source: str, wish: Wish, logins: Logins) -> None:
    """Install what ``source`` holds, one bundle after the other.

    Raises:
        TransferFailed: it cannot be had, or is not what it should be.
        BadBundle: it is no bundle that this release reads.
    """
    if _scheme(source) == "file":  # which is as near as a cache
        wish = replace(wish, cache=None)
    with make_client() as client:
        remotes = _find(source, wish, client, logins)
        if wish.digest is not None and len(remotes) > 1:
            raise TransferFailed(
                f"{source} has {len(remotes)} bundles, and --digest is of one; "
                f"name one: {', '.join(remote.place for remote in remotes)}"
            )
        for remote in remotes:
            with _progress() as progress:
                done = install(remote, wish, partial(_bar, progress))
            _report(done)


def push(bundle: Bundle, target: str, replaces: bool, logins: Logins) -> None:
    """Send a bundle to where ``pull`` finds it.

    Raises:
        TransferFailed: it cannot be written there, or something else is.
        BadBundle: the bundle is damaged.
    """
    bundle.verify()
    manifest = bundle.manifest
    digest = digest_of_bytes((bundle.folder / MANIFEST).read_bytes())
    scheme = _scheme(target)
    if scheme in ("http", "https"):
        raise TransferFailed(
            f"nothing can be sent to {scheme}://; copy the folder {bundle.folder} to the web "
            "server, or push to oci://, s3://, gs://, az:// or hf://"
        )
    if scheme in SCHEMES:
        place, already = _push_artefact(bundle, target, replaces, logins)
    else:
        files, scheme, folder = open_files(target)
        if scheme == "file":  # where others may read already, as in any repository
            remote = FolderRemote(files, str(bundle.folder.absolute()), scheme)
            wish = Wish(repository=Path(folder), replace=replaces)
            done = install(remote, wish, lambda _: _nobody)
            place, already = str(done.bundle.folder), done.already
        else:
            with _progress() as progress:
                advance = _bar(progress, manifest)
                place, already = upload(files, scheme, folder, bundle, replaces, advance)
    said = "is already at" if already else "is now at"
    _say(f"{manifest.name} {manifest.version} {said} {place}, manifest {digest}")


def _find(source: str, wish: Wish, client: httpx.Client, logins: Logins) -> Sequence[Remote]:
    scheme = _scheme(source)
    if scheme in SCHEMES:
        reference = Reference.parse(source)
        registry = _registry(reference, client, logins, wish.digest is not None)
        remote, digest = find_artefact(registry, reference.asked, str(reference))
        return [replace(remote, place=str(reference.at(digest)))]
    if scheme in ("http", "https"):
        return [web_remote(source, client, wish.digest is not None)]
    return find_remotes(*open_files(source))


def _scheme(source: str) -> str:
    return source.partition("://")[0] if "://" in source else "file"


def _push_artefact(bundle: Bundle, target: str, replaces: bool, logins: Logins) -> tuple[str, bool]:
    reference = Reference.parse(target)
    if reference.digest is not None:
        raise TransferFailed(f"{target}: what is sent gets its digest; name a tag, or nothing")
    if reference.tag is None:
        reference = replace(reference, tag=bundle.manifest.version)
    with make_client() as client, _progress() as progress:
        registry = _registry(reference, client, logins, pinned=True)
        advance = _bar(progress, bundle.manifest)
        digest, already = push_artefact(
            registry, reference.asked, bundle, str(reference), replaces, advance
        )
    return str(reference.at(digest)), already


def _registry(reference: Reference, client: httpx.Client, logins: Logins, pinned: bool) -> Registry:
    url = httpx.URL(f"{reference.transport}://{reference.host}")
    how = "use oci://, or pin the artefact: @sha256:..."
    check_open(url, pinned or reference.digest is not None, how)
    return Registry(reference, client, find_login(reference.host, logins()))


@contextmanager
def _progress() -> Iterator[Progress]:
    """Bars on standard error, where it is a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


def _bar(progress: Progress, manifest: Manifest) -> Advance:
    task = progress.add_task(f"{manifest.name} {manifest.version}", total=size_bytes(manifest))
    return lambda amount: progress.advance(task, amount)


def _nobody(_: int) -> None:
    """Is told, and tells nobody."""


def _report(done: Installed) -> None:
    manifest = done.bundle.manifest
    what = f"{manifest.name} {manifest.version}"
    if done.already:
        _say(f"{what} is already in {done.bundle.folder}, manifest {done.digest}")
    else:
        size = f"{size_bytes(manifest) / 1e6:.1f} MB"
        _say(f"{what} ({size}) is now in {done.bundle.folder}, manifest {done.digest}")


def _say(sentence: str) -> None:
    Console(soft_wrap=True, highlight=False).print(sentence, markup=False)
