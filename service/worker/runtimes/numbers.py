"""What a device computes, compared with the same on the CPU before it serves."""

from pathlib import Path

import numpy as np

from service.errors import BadSettings
from service.worker.runtimes.base import Array, Arrays, Runtime, example_inputs

RAW = ("logits", "masks", "embedding", "attention")
"""Outputs that nothing was sorted or chosen for: there a small difference stays a small one."""
BLOCK_PX = 16
LARGEST_ERROR = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 8e-2}
"""Root mean square of the difference, as a share of the spread of what the CPU computes. TF32 in
place of fp32 would be more; what a wrong kernel makes is far beyond."""


def check_numbers(runtime: Runtime, reference: Runtime, path: Path) -> None:
    """Run two pictures through both.

    Raises:
        BadSettings: naming the output that differs most, by how much, and what is allowed.
    """
    inputs = example_pictures(runtime)
    found, expected = runtime.run(inputs), reference.run(inputs)
    names = [name for name in found if name in RAW]
    names = names or [name for name, array in expected.items() if array.dtype.kind == "f"]
    errors = {name: difference(found[name], expected[name]) for name in names}
    allowed = LARGEST_ERROR[runtime.precision]
    worst = max(errors, key=lambda name: errors[name], default="")
    if errors and not errors[worst] <= allowed:  # what is not a number is not less, either
        raise BadSettings(
            f"{runtime.name} {runtime.precision} on {runtime.device} computes {path} wrongly: "
            f"{worst!r} is {errors[worst]:.2g} of its spread off what the CPU computes, allowed is "
            f"{allowed:g}. Try another release of the library or the driver, or another --runtime "
            "or --precision; --device cpu serves meanwhile"
        )


def difference(found: Array, expected: Array) -> float:
    """Root mean square of the difference over the spread of what is expected; where it has none,
    over its size.
    """
    wanted = expected.astype(np.float64)
    spread = float(wanted.std()) or float(np.abs(wanted).max()) or 1.0
    return float(np.sqrt(np.mean((found.astype(np.float64) - wanted) ** 2))) / spread


def example_pictures(runtime: Runtime) -> Arrays:
    """Two pictures of coloured blocks; the second does not fill its canvas, where that may be."""
    inputs = example_inputs(runtime, 2)
    _, height, width, _ = inputs["images"].shape
    rows, columns = -(-height // BLOCK_PX), -(-width // BLOCK_PX)
    blocks = np.random.default_rng(0).integers(0, 256, (2, rows, columns, 3), dtype=np.uint8)
    large = blocks.repeat(BLOCK_PX, axis=1).repeat(BLOCK_PX, axis=2)
    inputs["images"] = np.ascontiguousarray(large[:, :height, :width])
    if "sizes" in inputs:
        inputs["sizes"][:] = [[height, width], [height, max(1, width * 3 // 4)]]
        inputs["images"][1, :, inputs["sizes"][1, 1] :] = 0
    for name in ("threshold", "overlap_threshold"):
        if name in inputs:
            inputs[name][:] = 0.5
    return inputs
