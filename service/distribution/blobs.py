"""Files by digest in a cache: what has arrived is kept, also in part, and checked whenever it is
used.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from service.bundle import File, digest_of
from service.distribution.remote import CHUNK_BYTES, Interrupted, patiently
from service.errors import TransferFailed

Stream = Callable[[int], Iterator[bytes]]
"""The bytes of a file from an offset on."""
Advance = Callable[[int], None]
"""Is told how many bytes more are there."""


class Blobs:
    """A folder of files that are named by their sha256; several processes may share it."""

    def __init__(
        self, folder: Path, keep: bool = True, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """Files are copied out where they are to be kept, and moved out else."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._keep = keep
        self._pause = pause

    def missing_bytes(self, files: dict[str, File]) -> int:
        """How much of ``files`` is not here yet."""
        wanted = {file.sha256: file.size_bytes for file in files.values()}
        return sum(
            size - min(size, max(_size(self._folder / sha256), _size(self._part(sha256))))
            for sha256, size in wanted.items()
        )

    def put(self, file: File, stream: Stream, target: Path, what: str, advance: Advance) -> None:
        """Bring a file to ``target``, from the cache or else from ``stream``.

        Raises:
            TransferFailed: it is not what ``file`` says, or does not arrive.
        """
        path = self._folder / file.sha256
        with _alone(self._part(file.sha256)) as part:
            if _size(path) == file.size_bytes and digest_of(path) == file.sha256:
                advance(file.size_bytes)
                Path(part.name).unlink()
            else:
                self._receive(part, file, stream, what, advance)
                Path(part.name).replace(path)
            if self._keep:
                shutil.copyfile(path, target)
            else:
                path.replace(target)

    def _part(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.part"

    def _receive(
        self, part: BinaryIO, file: File, stream: Stream, what: str, advance: Advance
    ) -> None:
        """Go on with what an earlier run left, or from the start where that was something else."""
        resumed = os.fstat(part.fileno()).st_size
        if resumed > file.size_bytes:
            part.truncate(0)
            resumed = 0
        advance(resumed)
        try:
            patiently(lambda: _append(part, file, stream, what, advance), what, self._pause)
            found = digest_of(Path(part.name))
            if found != file.sha256 and resumed:
                part.truncate(0)
                advance(-file.size_bytes)
                patiently(lambda: _append(part, file, stream, what, advance), what, self._pause)
                found = digest_of(Path(part.name))
            if found != file.sha256:
                raise _Wrong(
                    f"{what} has sha256 {found}; its manifest expects {file.sha256}. "
                    "It was changed or damaged there, or on the way; nothing was installed."
                )
        except _Wrong as error:
            Path(part.name).unlink()
            raise TransferFailed(str(error)) from None


class _Wrong(Exception):
    """What arrives is something else, and no use."""


def _append(part: BinaryIO, file: File, stream: Stream, what: str, advance: Advance) -> None:
    have = part.seek(0, os.SEEK_END)
    if have == file.size_bytes:
        return
    for chunk in stream(have):
        have += len(chunk)
        if have > file.size_bytes:
            raise _Wrong(
                f"{what} has more than the {file.size_bytes} bytes that its manifest expects; "
                "it was not read on, and nothing was installed"
            )
        part.write(chunk)
        advance(len(chunk))
    part.flush()
    if have < file.size_bytes:
        raise Interrupted(f"ended after {have} of {file.size_bytes} bytes")


@contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    """The file, open for reading and appending, while nobody else has it.

    Who had it may have renamed or removed it meanwhile: what was opened is then no more there.
    """
    while True:
        with path.open("a+b", buffering=CHUNK_BYTES) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                there = os.path.samestat(path.stat(), os.fstat(file.fileno()))
            except FileNotFoundError:
                there = False
            if there:
                yield file
                return


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
