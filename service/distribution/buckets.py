"""Objects in buckets as files in folders: what S3, Google Cloud Storage and Azure have in common.

The library has an interface for fsspec as well; that one runs in threads of its own, which now and
then abort a process that ends. This is its other interface, which runs in ours.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from service.bundle import MANIFEST
from service.distribution.remote import CHUNK_BYTES

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

SCHEMES = ("s3", "gs", "az")
RETRIES: "RetryConfig" = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}
"""The library's own, of every request."""


class Bucket:
    """One bucket, with credentials from the environment or the machine; paths begin with its name.

    Methods raise what the library raises.
    """

    def __init__(self, scheme: str, name: str) -> None:
        from obstore.store import from_url

        self._name = name
        self._store: ObjectStore = from_url(f"{scheme}://{name}", retry_config=RETRIES)

    def manifests(self, folder: str) -> list[str]:
        """Every manifest below a folder, at any depth."""
        import obstore

        below = self._key(folder)
        listed = obstore.list(self._store, prefix=below or None)
        keys = [found["path"] for page in listed for found in page]
        return [f"{self._name}/{key}" for key in keys if Path(key).name == MANIFEST]

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        import obstore

        try:
            obstore.head(self._store, self._key(path))
        except FileNotFoundError:
            return False
        return True

    def stream(self, path: str, offset: int) -> Iterator[bytes]:
        """Its bytes from ``offset`` on."""
        import obstore

        options = {"range": {"offset": offset}} if offset else {}
        got = obstore.get(self._store, self._key(path), options=options)  # type: ignore[arg-type]
        for chunk in got.stream(min_chunk_size=CHUNK_BYTES):
            yield bytes(chunk)

    def put(self, file: Path, path: str) -> None:
        """Upload a file, in parts where it is large."""
        import obstore

        obstore.put(self._store, self._key(path), file)

    def remove(self, path: str) -> None:
        """Delete an object."""
        import obstore

        obstore.delete(self._store, self._key(path))

    def _key(self, path: str) -> str:
        return path.removeprefix(self._name).strip("/")
