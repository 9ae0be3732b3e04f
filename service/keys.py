"""Keys that callers show: read from settings and files, kept as digests, re-read when a file
changes.
"""

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from service.errors import BadSettings
from service.watching import WatchedFiles

LARGEST_FILE_BYTES = 2**20

# The characters of a bearer token (RFC 6750, section 2.1), so a colon can only end a name.
_ENTRY = re.compile(
    r"(?:(?!sha256:)(?P<name>[A-Za-z0-9._-]{1,64}):\s*)?"
    r"(?:sha256:(?P<digest>[0-9a-f]{64})|(?P<key>[A-Za-z0-9._~+/=-]{16,512}))"
)

_log = logging.getLogger(__name__)


def parse_keys(text: str) -> dict[bytes, str]:
    """Names by the SHA-256 of the key; entries are separated by commas or line breaks.

    An entry is ``key``, ``name:key``, or either with ``sha256:`` and the digest in place of the
    key. A key without a name is called by the first digits of its digest. Several keys may have one
    name, as the old and the new one while clients change over. Lines that begin with # are skipped.

    Raises:
        ValueError: an entry is neither; it is told by its number and never repeated.
    """
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    entries = [entry.strip() for line in lines for entry in line.split(",") if entry.strip()]
    names = {}
    for number, entry in enumerate(entries, 1):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(
                f"entry {number} is no key; write KEY or NAME:KEY, where a key has 16 to 512 "
                "letters, digits or ._~+/=- (openssl rand -hex 32 makes one), or "
                "sha256: and the 64 hexadecimal digits of its digest"
            )
        key = match["key"]
        digest = bytes.fromhex(match["digest"]) if key is None else _digest(key.encode())
        names[digest] = match["name"] or f"key-{digest.hex()[:8]}"
    return names


class KeyRing:
    """The keys of one kind; false where none were asked for.

    They are looked up by a digest under a secret of this process, so that the time a comparison
    takes says nothing about them.
    """

    def __init__(
        self, listed: str, file: str, setting: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Of the keys in ``listed`` and in ``file`` (empty: none), which ``setting`` named.

        Raises:
            BadSettings: the file cannot be read, holds no key, or what is no key.
        """
        self._secret = secrets.token_bytes(32)
        self._listed = self._blinded(parse_keys(listed))
        self._file = Path(file) if file else None
        self._setting = setting
        self._watched = WatchedFiles([self._file] if self._file else [], clock)
        self._names = self._listed | self._read()

    def __len__(self) -> int:
        return len(self._names)

    def find(self, key: bytes) -> str | None:
        """The name of who holds this key; None if nobody does."""
        if self._watched.changed():
            self._refresh()
        return self._names.get(self._blind(_digest(key)))

    def _refresh(self) -> None:
        """Follow a changed file; one that cannot be understood leaves the keys as they were."""
        try:
            self._names = self._listed | self._read()
        except BadSettings as error:
            _log.error("%s; the keys stay as they were", error)
        else:
            _log.info("read %s again: %d keys in use", self._file, len(self._names))

    def _read(self) -> dict[bytes, str]:
        """The keys of the file."""
        if self._file is None:
            return {}
        try:
            with self._file.open("rb") as opened:
                data = opened.read(LARGEST_FILE_BYTES + 1)
            if len(data) > LARGEST_FILE_BYTES:
                raise ValueError(f"it is larger than {LARGEST_FILE_BYTES} bytes")
            names = parse_keys(data.decode("ascii"))
            if not names:
                raise ValueError("it holds no key")
        except OSError as error:
            raise self._bad(str(error.strerror)) from None
        except UnicodeDecodeError:  # whose own words repeat what was found
            raise self._bad("it is not ASCII text") from None
        except ValueError as error:
            raise self._bad(str(error)) from None
        return self._blinded(names)

    def _bad(self, why: str) -> BadSettings:
        return BadSettings(f"{self._setting}: {self._file}: {why}")

    def _blinded(self, names: dict[bytes, str]) -> dict[bytes, str]:
        return {self._blind(digest): name for digest, name in names.items()}

    def _blind(self, digest: bytes) -> bytes:
        return hmac.digest(self._secret, digest, "sha256")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
