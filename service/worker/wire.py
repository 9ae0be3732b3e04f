"""What API processes and workers say to each other: a header in JSON, then raw tensors.

A message is the lengths of both parts (``PREFIX``), the header, padded by spaces, and each array,
padded by zeros, so that all of them begin at multiples of ``ALIGNMENT``.

From the API: ``infer`` (id, model, version, graph, canvas, outputs, deadline_s, alone, accepted,
client, priority, arrays), ``cancel`` (id), ``load`` and ``unload`` (id, model, version), ``hello``
(name, in hexadecimal digits).
From the worker: ``status`` (ready, phase, models, failed, passed_s, phases), ``result`` (id,
precision, batch_size, queue_s, infer_s, arrays), ``error`` (id, kind, message, facts,
retry_after_s), ``done`` (id). Which jobs run lies in shared memory, see ``pulse``.

``outputs`` names what to send back, null is everything.
Deadlines and other points in time are on CLOCK_MONOTONIC, which all processes of a machine share.
"""

import struct
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json

from service.worker.runtimes.base import Array, Arrays

Header = dict[str, Any]
Frame = bytes | memoryview
PREFIX = struct.Struct("<IQ")
ALIGNMENT = 16


def pack(header: Header, arrays: Arrays | None = None) -> list[Frame]:
    """One message in pieces; those of arrays are views, so these must not change until sent."""
    arrays = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    described = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    first = to_json({**header, "arrays": described}, inf_nan_mode="constants")
    first += b" " * _padding(len(first))
    frames: list[Frame] = []
    for array in arrays.values():
        if array.nbytes:
            frames.append(array.reshape(-1).view(np.uint8).data)
        if padding := _padding(array.nbytes):
            frames.append(bytes(padding))
    return [PREFIX.pack(len(first), sum(map(len, frames))) + first, *frames]


class Reader:
    """Puts messages together from whatever pieces come: fill ``buffer``, then say ``filled``."""

    _rest: memoryview
    _body: Array | None

    def __init__(self) -> None:
        self._prefix = bytearray(PREFIX.size)
        self._begin()

    @property
    def buffer(self) -> memoryview:
        """Where the next bytes belong."""
        return self._rest

    def filled(self, count: int) -> tuple[Header, Arrays] | None:
        """The message whose last bytes were these; its arrays are views of memory of its own.

        Raises:
            ValueError, TypeError: it is none that ``pack`` makes. The next may be.
        """
        self._rest = self._rest[count:]
        if self._rest:
            return None
        if self._body is None:
            self._header_bytes, array_bytes = PREFIX.unpack(self._prefix)
            self._body = np.empty(self._header_bytes + array_bytes, np.uint8)
            self._rest = self._body.data
            return None
        body = self._body
        self._begin()
        return _unpack(body, self._header_bytes)

    def _begin(self) -> None:
        self._rest = memoryview(self._prefix)
        self._body = None


def unpack(frames: list[Frame]) -> tuple[Header, Arrays]:
    """The inverse of ``pack``."""
    reader, message = Reader(), b"".join(frames)
    while len(message) > (size := len(reader.buffer)):
        reader.buffer[:] = message[:size]
        message = message[size:]
        reader.filled(size)
    reader.buffer[: len(message)] = message
    if (unpacked := reader.filled(len(message))) is None:
        raise ValueError("the message ends too soon")
    return unpacked


def _unpack(body: Array, header_bytes: int) -> tuple[Header, Arrays]:
    header = from_json(body[:header_bytes].tobytes())
    arrays, offset = {}, header_bytes
    for name, dtype, shape in header.pop("arrays"):
        arrays[name] = np.ndarray(shape, dtype, body.data, offset)
        offset += arrays[name].nbytes + _padding(arrays[name].nbytes)
    return header, arrays


def _padding(size: int) -> int:
    return -size % ALIGNMENT
