"""Objects in buckets as files in folders: what S3, Google Cloud Storage and Azure have in common.

The library has an interface for fsspec as well; that one runs in threads of its own, which now and
then abort a process that ends. This is its other interface, which runs in ours.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from service.bundle import MANIFEST
from service.distribution.remote import CHUNK_BYTES
from service.errors import TransferFailed

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

SCHEMES = ("s3", "gs", "az")
DEEPEST = 2
"""Folders between a repository and a manifest: the model's and the version's."""
MOST_FOLDERS = 10_000
"""Models and versions of one repository; a bucket of other things has more."""
AT_ONCE = 16
"""Folders that are looked into together."""
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
        """One depth after the other, until there are some: what else is there is not listed.

        Raises:
            TransferFailed: so many folders are no repository.
        """
        waiting, looked_into = [self._key(folder)], 0
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in range(DEEPEST + 1):
                looked_into += len(waiting)
                if looked_into > MOST_FOLDERS:
                    raise TransferFailed(
                        f"{folder} has more than {MOST_FOLDERS} folders, which is no repository; "
                        "name the folder of the models in it"
                    )
                listed = list(pool.map(self._list, waiting))
                found = [key for keys, _ in listed for key in keys if Path(key).name == MANIFEST]
                if found:
                    return [f"{self._name}/{key}" for key in found]
                waiting = [below for _, folders in listed for below in folders]
        return []

    def _list(self, folder: str) -> tuple[Sequence[str], Sequence[str]]:
        """Keys of the objects and of the folders that are in a folder itself."""
        import obstore

        listed = obstore.list_with_delimiter(self._store, prefix=folder or None)
        return [found["path"] for found in listed["objects"]], listed["common_prefixes"]

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
