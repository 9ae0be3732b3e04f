"""What a decoder process and its owner say to each other: a JSON header, then raw blobs."""

import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

Header = dict[str, Any]
MAX_HEADER_BYTES = 2**20
_LENGTH = struct.Struct("<I")


def send(
    peer: socket.socket,
    header: Header,
    blobs: Sequence[bytes | bytearray | memoryview] = (),
    deadline_s: float | None = None,
) -> None:
    """Send one message; ``deadline_s`` by ``time.monotonic``, None waits for ever.

    Raises:
        TimeoutError: the deadline passed.
        OSError: the peer is gone.
    """
    text = json.dumps(header | {"blob_bytes": [len(blob) for blob in blobs]}).encode()
    for part in (_LENGTH.pack(len(text)) + text, *blobs):
        _wait_until(peer, deadline_s)
        peer.sendall(part)


def receive(
    peer: socket.socket, max_bytes: int, deadline_s: float | None = None
) -> tuple[Header, list[bytearray]]:
    """Receive one message, whose blobs may have ``max_bytes`` together.

    Raises:
        TimeoutError: the deadline passed.
        EOFError: the peer is gone, or makes no sense.
        OSError: the peer is gone.
    """
    (length,) = _LENGTH.unpack(_exactly(peer, _LENGTH.size, deadline_s))
    if length > MAX_HEADER_BYTES:
        raise EOFError
    try:
        header = json.loads(_exactly(peer, length, deadline_s))
        sizes = [int(size) for size in header.pop("blob_bytes")]
    except (ValueError, TypeError, LookupError, AttributeError):
        raise EOFError from None
    if any(size < 0 for size in sizes) or sum(sizes) > max_bytes:
        raise EOFError
    return header, [_exactly(peer, size, deadline_s) for size in sizes]


def _exactly(peer: socket.socket, count: int, deadline_s: float | None) -> bytearray:
    room = bytearray(count)
    rest = memoryview(room)
    while rest:
        _wait_until(peer, deadline_s)
        received = peer.recv_into(rest)
        if not received:
            raise EOFError
        rest = rest[received:]
    return room


def _wait_until(peer: socket.socket, deadline_s: float | None) -> None:
    left_s = None if deadline_s is None else deadline_s - time.monotonic()
    if left_s is not None and left_s <= 0:
        raise TimeoutError
    peer.settimeout(left_s)
