"""PNG (ISO 15948) of what has large flat areas, such as masks and maps of ids.

Each row is written as its difference to the row above (filter 2, Up), which leaves zeros but for
what a row changes; general encoders try every filter on every row. zlib-ng packs such rows eight
times as fast as zlib.
"""

import struct
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

_LEVEL = 2  # of 9: the first that looks for repetitions further back, and as fast as 1 here
_UP = 2
_GREY, _RGB = 0, 2
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def grey_png(mask: NDArray[np.bool_], depth: Literal[1, 8] = 1) -> bytes:
    """White where the mask (H, W) is, black elsewhere, in ``depth`` bits a pixel."""
    pixels = np.packbits(mask, axis=1) if depth == 1 else mask * np.uint8(255)
    lines = _lines(len(mask), pixels.shape[1])
    _fill(lines[:, 1:], pixels)
    return _png(mask.shape, depth, _GREY, lines)


def rgb_png(red: NDArray[np.uint8], green: NDArray[np.uint8] | None = None) -> bytes:
    """Eight bits a channel, each (H, W); blue is zero everywhere, and so is green if absent."""
    lines = _lines(red.shape[0], 3 * red.shape[1])
    _fill(lines[:, 1::3], red)
    if green is not None:
        _fill(lines[:, 2::3], green)
    return _png(red.shape, 8, _RGB, lines)


def _lines(height: int, width_bytes: int) -> NDArray[np.uint8]:
    """Rows of zeros behind a byte each that names the filter."""
    lines = np.zeros((height, 1 + width_bytes), dtype=np.uint8)
    lines[:, 0] = _UP
    return lines


def _fill(target: NDArray[np.uint8], rows: NDArray[np.uint8]) -> None:
    target[:1] = rows[:1]
    np.subtract(rows[1:], rows[:-1], out=target[1:])  # modulo 256, as the filter wants it


def _png(shape: tuple[int, ...], depth: int, colour: int, lines: NDArray[np.uint8]) -> bytes:
    header = struct.pack(">IIBBBBB", shape[1], shape[0], depth, colour, 0, 0, 0)
    data = zlib_ng.compress(lines.data, _LEVEL)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib_ng.crc32(body))
