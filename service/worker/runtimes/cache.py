"""Compiled models on disk, so that the second start of a server need not compile.

A compiled model is whatever its library makes of the bytes, so it is only read from where nobody
but this user could have written it, and only when its own digest is right. Whatever goes wrong
here costs time and never an answer: the graph is compiled anew.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 4 * 2**30
FORMAT = "1"  # part of every key; changes with the layout of an entry
SUFFIX, UNFINISHED = ".compiled", ".unfinished"
FOLDERS = "tensorrt-"
"""How the names of folders begin in which a library keeps files of its own."""
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
DIGEST_BYTES = 32

_log = logging.getLogger(__name__)


class CompiledCache:
    """A folder of compiled models, at most ``max_bytes`` of them; those unused longest go first."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.serving = False
        """Batches run in this process: what holds them up for as long as it takes to be written out
        is left to the next start.
        """
        self._max_bytes = max_bytes

    def read(self, key: str) -> bytes | None:
        """The entry as it was written, or None if there is none that can be trusted."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                if (fault := _untrusted(os.fstat(file.fileno()))) is not None:
                    _log.warning("ignoring the compiled model %s: it %s", path, fault)
                    return None
                digest, blob = file.read(DIGEST_BYTES), file.read()
            if digest != _digest(key, blob):
                _log.warning("the compiled model %s is damaged; compiling anew", path)
                path.unlink()
                return None
            os.utime(path)  # the mark of use by which old entries are known
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("cannot read the compiled model %s: %s", path, error.strerror)
            return None
        return blob

    def write(self, key: str, blob: bytes) -> None:
        """Keep an entry for later starts; a reader sees all of it or nothing."""
        if len(blob) > self._max_bytes:
            _log.info("a compiled model of %d bytes is too large for the cache", len(blob))
            return
        path, unfinished = self._path(key), None
        try:
            with tempfile.NamedTemporaryFile(  # mode 0600
                dir=self.folder, suffix=UNFINISHED, delete=False
            ) as file:
                unfinished = Path(file.name)
                file.write(_digest(key, blob))
                file.write(blob)
            unfinished.replace(path)
            self._prune(path)
        except OSError as error:
            _log.warning("cannot keep a compiled model in %s: %s", self.folder, error.strerror)
            if unfinished is not None:
                with contextlib.suppress(OSError):
                    unfinished.unlink()

    def subfolder(self, key: str) -> Path:
        """A folder for a library that keeps files of its own. All of it goes when it was not asked
        for longest; what it grows by afterwards counts from the next time.
        """
        path = self.folder / (FOLDERS + hashlib.sha256(key.encode()).hexdigest()[:32])
        path.mkdir(mode=0o700, exist_ok=True)
        os.utime(path)
        try:
            self._prune(path)
        except OSError as error:
            _log.warning("cannot make room in %s: %s", self.folder, error.strerror)
        return path

    def _path(self, key: str) -> Path:
        return self.folder / (hashlib.sha256(key.encode()).hexdigest() + SUFFIX)

    def _prune(self, newest: Path) -> None:
        entries = []
        for path in self.folder.iterdir():
            ours = path.suffix in (SUFFIX, UNFINISHED) or path.name.startswith(FOLDERS)
            if ours and path != newest:
                with contextlib.suppress(FileNotFoundError):  # another server prunes too
                    entries.append((path.stat().st_mtime, _size_of(path), path))
        left = self._max_bytes - _size_of(newest)
        for _, size, path in sorted(entries, reverse=True):
            left -= size
            if left < 0 and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif left < 0:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Slot:
    """The place of one graph in the cache, whatever it is compiled for."""

    cache: CompiledCache
    graph: str
    """Digests of everything that the graph is compiled from."""
    verify: Callable[[], None]
    """Raises if the files are no longer what the digests say."""

    def read(self, made_by: Mapping[str, Any]) -> bytes | None:
        """What ``made_by`` (library, version, device, settings) made of this graph before."""
        return self.cache.read(self._key(made_by))

    def write(self, made_by: Mapping[str, Any], blob: bytes) -> None:
        """Keep what was made just now; it must not stay under a name that was true only earlier."""
        self.verify()
        self.cache.write(self._key(made_by), blob)

    def _key(self, made_by: Mapping[str, Any]) -> str:
        facts = {name: str(value) for name, value in made_by.items()}
        return json.dumps([FORMAT, self.graph, machine(), facts], sort_keys=True)


def open_cache(folder: Path | None) -> CompiledCache | None:
    """The cache in ``folder``, made if need be; None, and a line in the log that says why, where
    there can be none.
    """
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        _log.warning("no cache of compiled models in %s: %s", folder, error.strerror)
        return None
    if (fault := _untrusted(found)) is not None:
        _log.warning("no cache of compiled models in %s: it %s", folder, fault)
        return None
    return CompiledCache(folder)


@functools.cache
def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What code made for this processor may rely on: a home can be shared between machines."""
    features = ""
    with contextlib.suppress(OSError), cpuinfo.open() as lines:
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {' '.join(sorted(features.partition(':')[2].split()))}"


def _size_of(path: Path) -> int:
    """Bytes of a file, or of those in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.iterdir())


def _untrusted(found: os.stat_result) -> str | None:
    """Why a file or folder is not this user's own, as a clause."""
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}, not to user {os.geteuid()}"
    if found.st_mode & WRITABLE_BY_OTHERS:
        return f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def _digest(key: str, blob: bytes) -> bytes:
    sha = hashlib.sha256(key.encode())
    sha.update(blob)
    return sha.digest()
