"""What the worker asks of a runtime."""

from collections.abc import Collection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, NDArray[Any]]
Signature = tuple[str, tuple[int | None, ...]]
"""Numpy dtype name and shape of one input or output; None is the batch axis."""


class Runtime(Protocol):
    """One compiled graph on one device."""

    name: str
    """Library: ``onnxruntime``, ``openvino`` or ``tensorrt``."""
    precision: str
    """Arithmetic that really runs: ``fp32``, ``bf16`` ..."""
    device: str
    """``cpu``, ``cuda:0`` ..."""
    inputs: dict[str, Signature]
    """By name, as the compiled graph states them."""
    outputs: dict[str, Signature]
    streams: int
    """How many batches it runs at once."""
    threads: int
    """Threads that the streams share."""

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        """Run one batch, arrays by graph input name in, by graph output name out; may raise
        anything.

        Outputs that are not ``wanted`` may be left out, so that they need not be copied; without
        it all are there.

        May be called from several threads; calls beyond ``streams`` wait for those before them.
        """
        ...


def example_inputs(runtime: Runtime, batch: int) -> Arrays:
    """Zeros of the shapes that the graph takes, for a warm-up run."""
    return {
        name: np.zeros((batch, *(side or 1 for side in shape[1:])), dtype=dtype)
        for name, (dtype, shape) in runtime.inputs.items()
    }
