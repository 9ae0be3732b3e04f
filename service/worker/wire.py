"""What API processes and workers say to each other: one JSON header frame, then raw tensor frames.

From the API: ``infer`` (id, model, version, graph, canvas, outputs, deadline_s, alone, accepted,
client, priority, arrays), ``cancel`` (id), ``load`` and ``unload`` (id, model, version), ``hello``.
From the worker: ``status`` (ready, phase, models, failed, passed_s, phases), ``result`` (id,
precision, batch_size, queue_s, infer_s, arrays), ``error`` (id, kind, message, facts,
retry_after_s), ``done`` (id). Which jobs run lies in shared memory, see ``pulse``.

``outputs`` names what to send back, null is everything.
Deadlines and other points in time are on CLOCK_MONOTONIC, which all processes of a machine share.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json

from service.worker.runtimes.base import Array, Arrays

Header = dict[str, Any]
Frame = bytes | memoryview


def pack(header: Header, arrays: Arrays | None = None) -> list[Frame]:
    """Frames of one message; array frames are views, so the arrays must not change until sent."""
    arrays = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    described = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    first = to_json({**header, "arrays": described}, inf_nan_mode="constants")
    return [first, *(array.reshape(-1).view(np.uint8).data for array in arrays.values())]


def unpack(frames: Sequence[Frame]) -> tuple[Header, Arrays]:
    """The inverse of ``pack``; arrays are views of the frames."""
    header = from_json(bytes(frames[0]))
    arrays = {
        name: _array(frame, dtype, shape)
        for (name, dtype, shape), frame in zip(header.pop("arrays"), frames[1:], strict=True)
    }
    return header, arrays


def _array(frame: Frame, dtype: str, shape: list[int]) -> Array:
    return np.frombuffer(frame, dtype=dtype).reshape(shape)
