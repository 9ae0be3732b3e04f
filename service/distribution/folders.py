"""Bundles in folders: in buckets, and in what fsspec reaches: the Hugging Face Hub, local ones, and
whatever else it has a library for.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

import httpx

from service.bundle import MANIFEST, Bundle, version_key
from service.distribution import buckets
from service.distribution.blobs import Advance
from service.distribution.remote import CHUNK_BYTES, Interrupted, Result, patiently, read_manifest
from service.distribution.web import BUSY
from service.errors import StartError, TransferFailed

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

BLOCK_BYTES = 8 * 2**20
"""Of one request through fsspec."""
MACHINE_ACCOUNTS = "169.254.169.254"
"""Who is asked last, on machines of clouds."""
IN_THE_EXTRA = (*buckets.SCHEMES, "hf", "file", "memory")

_XML_ERROR = re.compile(r"<Code>(?P<code>\w+)</Code>.*?<Message>(?P<message>[^<]*)", re.DOTALL)


class Files(Protocol):
    """What is asked of a place for files; methods raise what its library raises."""

    def manifests(self, folder: str) -> list[str]:
        """Paths of manifests in and below a folder; at least the nearest, to a depth of two."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""

    def stream(self, path: str, offset: int) -> Iterator[bytes]:
        """Its bytes from ``offset`` on."""

    def put(self, file: Path, path: str) -> None:
        """Upload a local file."""

    def remove(self, path: str) -> None:
        """Delete a file."""


class FsspecFiles:
    """Through fsspec."""

    def __init__(self, system: "AbstractFileSystem") -> None:
        self._system = system

    def manifests(self, folder: str) -> list[str]:
        """One depth after the other, until there are some."""
        if self._system.exists(f"{folder}/{MANIFEST}"):
            return [f"{folder}/{MANIFEST}"]
        for below in ("*", "*/*"):
            found = self._system.glob(f"{folder}/{below}/{MANIFEST}")
            if found:
                return [str(path) for path in found]
        return []

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return bool(self._system.exists(path))

    def stream(self, path: str, offset: int) -> Iterator[bytes]:
        """Block by block."""
        with self._system.open(path, "rb", block_size=BLOCK_BYTES) as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def put(self, file: Path, path: str) -> None:
        """With the folders above it."""
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._system.put_file(str(file), path)

    def remove(self, path: str) -> None:
        """Delete a file."""
        self._system.rm_file(path)


@dataclass(frozen=True)
class FolderRemote:
    """A version folder: the manifest, and beside it the files that it lists."""

    files: Files
    folder: str
    scheme: str

    @property
    def place(self) -> str:
        """As it was asked for, with the folders that were found in it."""
        return self.folder if self.scheme == "file" else f"{self.scheme}://{self.folder}"

    def stream(self, name: str, offset: int) -> Iterator[bytes]:
        """From the file beside the manifest."""
        path = f"{self.folder}/{name}"
        with _said_plainly(f"{self.place}/{name}"):
            yield from self.files.stream(path, offset)


def find_remotes(files: Files, scheme: str, folder: str) -> list[FolderRemote]:
    """The bundle in a folder; or of all models below it, the newest version of each.

    Raises:
        TransferFailed: there is none, or the folder cannot be looked into.
    """
    place = folder if scheme == "file" else f"{scheme}://{folder}"
    found = [PurePosixPath(path).parent for path in _do(place, files.manifests, folder)]
    own = len(folder.strip("/").split("/"))
    depths = [len(str(version).strip("/").split("/")) - own for version in found]
    nearest = min((depth for depth in depths if depth <= buckets.DEEPEST), default=None)
    if nearest is None:
        raise TransferFailed(
            f"{place} has no bundle: neither {MANIFEST} nor <version>/{MANIFEST} nor "
            f"<model>/<version>/{MANIFEST} is there"
        )
    newest: dict[str, PurePosixPath] = {}
    for version, depth in zip(found, depths, strict=True):
        model = str(version.parent)
        older = newest.get(model)
        if depth == nearest and (older is None or _key(version) > _key(older)):
            newest[model] = version
    return [FolderRemote(files, str(newest[model]), scheme) for model in sorted(newest)]


def upload(
    files: Files,
    scheme: str,
    folder: str,
    bundle: Bundle,
    replace: bool,
    advance: Advance,
) -> tuple[str, bool]:
    """Where a bundle now lies below ``folder``, as in a repository, and whether it already did.

    The manifest goes last: what is not whole does not exist for readers.

    Raises:
        TransferFailed: it cannot be written, or another bundle of that version is there.
    """
    target = f"{folder}/{bundle.manifest.name}/{bundle.manifest.version}"
    remote = FolderRemote(files, target, scheme)
    manifest = f"{target}/{MANIFEST}"
    raw = (bundle.folder / MANIFEST).read_bytes()
    there = _do(remote.place, files.exists, manifest)
    if there:
        if read_manifest(remote) == raw:
            return remote.place, True
        if not replace:
            raise TransferFailed(
                f"{remote.place} holds something else; it is left as it is. "
                "Give the bundle another version, or replace what is there with --replace"
            )
        _do(remote.place, files.remove, manifest)
    for name in [*bundle.manifest.files, MANIFEST]:
        file = f"{target}/{name}"
        _do(f"{remote.place}/{name}", files.put, bundle.folder / name, file)
        advance(bundle.manifest.files[name].size_bytes if name != MANIFEST else 0)
    return remote.place, False


def _do(what: str, call: Callable[..., Result], *arguments: object) -> Result:
    """What a call gives, tried again while the connection breaks."""

    def once() -> Result:
        with _said_plainly(what):
            return call(*arguments)

    return patiently(once, what)


def open_files(source: str) -> tuple[Files, str, str]:
    """What reaches a source, its scheme, and the folder in it.

    Raises:
        StartError: a library is missing.
        TransferFailed: nothing knows the scheme, or a bucket has no such name.
    """
    scheme, found, rest = source.partition("://")
    if not found or scheme == "file":  # where file://models is a folder below this one
        scheme, rest = "file", str(Path(rest if found else source).absolute())
    folder = rest.rstrip("/")
    try:
        if scheme in buckets.SCHEMES:
            return buckets.Bucket(scheme, folder.partition("/")[0]), scheme, folder
        return FsspecFiles(_file_system(scheme)), scheme, folder
    except ImportError as error:
        ours = scheme in IN_THE_EXTRA
        cure = "install it with: pip install 'saccade[pull]'" if ours else "install it with pip"
        raise StartError(f"{scheme}:// needs a library that is missing ({error}); {cure}") from None
    except ValueError as error:
        raise TransferFailed(
            f"{source}: {error}; known are oci://, https://, s3://, gs://, az://, hf://, folders, "
            "and what else fsspec has a library for"
        ) from None
    except Exception as error:
        raise TransferFailed(f"{source}: {_sentence(error)}") from None


def _file_system(scheme: str) -> "AbstractFileSystem":
    """Without caches of listings, which would outlive what they list."""
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)


def _key(version: PurePosixPath) -> list[tuple[int, str]]:
    return version_key(Path(version.name))


@contextmanager
def _said_plainly(what: str) -> Iterator[None]:
    """Every library behind fsspec has errors of its own; broken connections may pass."""
    try:
        yield
    except (TransferFailed, Interrupted):
        raise
    except FileNotFoundError:
        raise TransferFailed(f"{what} is not there") from None
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        passes = isinstance(error, OSError | httpx.TransportError)
        if passes and not isinstance(error, PermissionError) and status in (None, *BUSY):
            raise Interrupted(_sentence(error)) from None
        raise TransferFailed(f"{what}: {_sentence(error)}") from None


def _sentence(error: Exception) -> str:
    """What a library says, without the pages of XML and of debugging that some add."""
    said = str(error).strip()
    answer = _XML_ERROR.search(said)
    if answer:
        return f"{answer['code']}: {answer['message']}"
    if MACHINE_ACCOUNTS in said:
        return (
            "no credentials are in the environment, and this machine has none to give; "
            "docs/distribution.md lists what is looked for"
        )
    first = said.partition("\n")[0]
    return f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__
