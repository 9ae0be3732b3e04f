"""A bundle somewhere else, and how its bytes are asked for: within limits, and again where a
connection breaks.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from service.bundle import MANIFEST
from service.errors import TransferFailed

MAX_MANIFEST_BYTES = 16 * 2**20
CHUNK_BYTES = 2**20
WAITS_S = (0.5, 2.0, 8.0)
"""Before the second and each later try."""

Result = TypeVar("Result")


class Interrupted(Exception):
    """The connection broke, or the other side is busy: another try may go on from there."""


class Remote(Protocol):
    """One bundle that is not here."""

    @property
    def place(self) -> str:
        """Where it is, for people: without passwords."""

    def stream(self, name: str, offset: int) -> Iterator[bytes]:
        """The bytes of one of its files, from ``offset`` on.

        Raises:
            TransferFailed: there is no such file, or it is not given out.
            Interrupted: it ended early.
        """


def patiently(
    once: Callable[[], Result], what: str, pause: Callable[[float], None] = time.sleep
) -> Result:
    """The result of ``once``, which is tried again while it is interrupted.

    Raises:
        TransferFailed: it was interrupted every time.
    """
    for wait_s in WAITS_S:
        try:
            return once()
        except Interrupted:
            pause(wait_s)
    try:
        return once()
    except Interrupted as error:
        tries = len(WAITS_S) + 1
        raise TransferFailed(f"{what}: {error} (tried {tries} times); try again later") from None


def at_most(chunks: Iterator[bytes], limit_bytes: int, what: str) -> bytes:
    """All that comes, joined.

    Raises:
        TransferFailed: there is more than that, perhaps without end.
    """
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > limit_bytes:
            raise TransferFailed(f"{what} is larger than {limit_bytes} bytes; it is not read on")
    return bytes(data)


def read_manifest(remote: Remote, pause: Callable[[float], None] = time.sleep) -> bytes:
    """The manifest of a bundle, as it lies there.

    Raises:
        TransferFailed: it cannot be had, or is too large to be one.
    """
    what = f"{remote.place}: {MANIFEST}"
    return patiently(
        lambda: at_most(remote.stream(MANIFEST, 0), MAX_MANIFEST_BYTES, what), what, pause
    )


def digest_of_bytes(data: bytes) -> str:
    """As manifests and registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
