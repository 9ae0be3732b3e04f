"""Bundles in folders that fsspec reaches: buckets, the Hugging Face Hub, local ones, and whatever
else it is installed for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from service.bundle import MANIFEST, Bundle, version_key
from service.distribution.blobs import Advance
from service.distribution.remote import (
    CHUNK_BYTES,
    MAX_MANIFEST_BYTES,
    Interrupted,
    at_most,
    patiently,
)
from service.errors import StartError, TransferFailed

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

BLOCK_BYTES = 8 * 2**20
"""Of one request."""
BUCKETS = ("s3", "gs", "az")
"""What one library speaks to, with credentials from the environment and from the machine."""


@dataclass(frozen=True)
class FolderRemote:
    """A version folder: the manifest, and beside it the files that it lists."""

    files: "AbstractFileSystem"
    folder: str
    scheme: str

    @property
    def place(self) -> str:
        """As it was asked for, with the folders that were found in it."""
        return self.folder if self.scheme == "file" else f"{self.scheme}://{self.folder}"

    def stream(self, name: str, offset: int) -> Iterator[bytes]:
        """From the file beside the manifest."""
        path = f"{self.folder}/{name}"
        with (
            _said_plainly(f"{self.place}/{name}"),
            self.files.open(path, "rb", block_size=BLOCK_BYTES) as file,
        ):
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def find_remotes(files: "AbstractFileSystem", scheme: str, folder: str) -> list[FolderRemote]:
    """The bundle in a folder; or of all models below it, the newest version of each.

    Raises:
        TransferFailed: there is none, or the folder cannot be looked into.
    """
    place = folder if scheme == "file" else f"{scheme}://{folder}"
    found = patiently(lambda: _manifests(files, folder, place), place)
    newest: dict[str, PurePosixPath] = {}
    for manifest in found:
        version = PurePosixPath(manifest).parent
        model = str(version.parent)
        if model not in newest or _key(version) > _key(newest[model]):
            newest[model] = version
    if not newest:
        raise TransferFailed(
            f"{place} has no bundle: neither {MANIFEST} nor <version>/{MANIFEST} nor "
            f"<model>/<version>/{MANIFEST} is there"
        )
    return [FolderRemote(files, str(newest[model]), scheme) for model in sorted(newest)]


def upload(
    files: "AbstractFileSystem",
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
    with _said_plainly(remote.place):
        there = files.exists(manifest)
    if there:
        if at_most(remote.stream(MANIFEST, 0), MAX_MANIFEST_BYTES, remote.place) == raw:
            return remote.place, True
        if not replace:
            raise TransferFailed(
                f"{remote.place} holds something else; it is left as it is. "
                "Give the bundle another version, or replace what is there with --replace"
            )
    with _said_plainly(remote.place):
        if there:
            files.rm_file(manifest)
        files.makedirs(target, exist_ok=True)
        for name in [*bundle.manifest.files, MANIFEST]:
            files.put_file(str(bundle.folder / name), f"{target}/{name}")
            advance(bundle.manifest.files[name].size_bytes if name != MANIFEST else 0)
    return remote.place, False


def open_files(source: str) -> tuple["AbstractFileSystem", str, str]:
    """What reaches a source, its scheme, and the folder in it.

    Raises:
        StartError: a library is missing.
        TransferFailed: nothing knows the scheme.
    """
    scheme, found, rest = source.partition("://")
    if not found:
        scheme, rest = "file", str(Path(source).absolute())
    folder = rest.rstrip("/")
    try:
        return _file_system(scheme), scheme, folder
    except ImportError as error:
        library = error.name or scheme
        raise StartError(
            f"{scheme}:// needs the package {library!r}; "
            "install it with: pip install 'saccade[pull]'"
        ) from None
    except ValueError as error:
        raise TransferFailed(
            f"{source}: {error}; known are oci://, https://, s3://, gs://, az://, hf://, folders, "
            "and what else fsspec has a library for"
        ) from None


def _file_system(scheme: str) -> "AbstractFileSystem":
    """Without caches of listings, which would outlive what they list."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in BUCKETS:
        from obstore.fsspec import FsspecStore

        return FsspecStore(scheme, **options)  # type: ignore[call-overload]
    return fsspec.filesystem(scheme, **options)


def _manifests(files: "AbstractFileSystem", folder: str, place: str) -> list[str]:
    with _said_plainly(place):
        for below in ("", "*/", "*/*/"):
            pattern = f"{folder}/{below}{MANIFEST}"
            found = files.glob(pattern) if below else [pattern] if files.exists(pattern) else []
            if found:
                return [str(path) for path in found]
    return []


def _key(version: PurePosixPath) -> list[tuple[int, str]]:
    return version_key(Path(version.name))


@contextmanager
def _said_plainly(what: str) -> Iterator[None]:
    """Every library behind fsspec has errors of its own; some of them may pass."""
    try:
        yield
    except (TransferFailed, Interrupted):
        raise
    except FileNotFoundError:
        raise TransferFailed(f"{what} is not there") from None
    except (PermissionError, NotImplementedError, ValueError) as error:
        raise TransferFailed(f"{what}: {_sentence(error)}") from None
    except Exception as error:
        raise Interrupted(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__
