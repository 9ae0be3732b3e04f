"""From an fp32 graph to one with layers in 8-bit floating point, by NVIDIA's ModelOpt."""

import importlib
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from service.errors import StartError
from service.worker.runtimes.base import Arrays

MODULE = "modelopt.onnx.quantization"
METHOD = "max"
"""How ModelOpt finds the scales."""
REST = "fp32"
"""What is not quantised. Of the other two ModelOpt makes all of it, also norms, softmax, position
tables and the coordinates that maps are read at, where half precision is a fraction of a pixel off.
"""


def quantize_to_fp8(path: Path, inputs: Arrays, folder: Path) -> ir.Model:
    """The graph of a file with QuantizeLinear and DequantizeLinear pairs of E4M3 around its layers,
    calibrated on the pictures of ``inputs``; ModelOpt works in ``folder``.

    Raises:
        StartError: ModelOpt is not installed, or the graph reads maps by GridSample, which from the
        opset on that fp8 needs TensorRT reads as nearest-neighbour sampling.
    """
    library = modelopt()
    nodes = onnx.load(path, load_external_data=False).graph.node
    if any(node.op_type == "GridSample" for node in nodes):
        raise StartError(
            f"{path.name} has GridSample, which fp8 graphs may not have; export the model again "
            "with --engine fp32, whose gather form has none"
        )
    target = folder / f"fp8-{path.name}"
    library.quantize(
        str(path),
        quantize_mode="fp8",
        calibration_data=inputs,
        calibration_method=METHOD,
        calibration_eps=["cpu"],
        output_path=str(target),
        high_precision_dtype=REST,
        use_external_data_format=True,
        log_level="ERROR",
    )
    model = ir.load(target)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    model.producer_name, model.producer_version = "saccade", None
    return model


def modelopt() -> Any:
    """The part of ModelOpt that changes ONNX graphs.

    Raises:
        StartError: it is not installed.
    """
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        raise StartError(
            f"fp8 graphs are made by NVIDIA's ModelOpt, which cannot be imported here ({error}); "
            "install it with: pip install 'nvidia-modelopt[onnx]', or build --precision bf16"
        ) from None
