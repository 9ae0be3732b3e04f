"""From torch modules to ONNX files that share one file of weights."""

import hashlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

import onnx
import onnx_ir as ir
import torch
from onnxscript import values
from torch import Tensor, nn

import models.deformable  # noqa: F401  # which registers the operator that _plugin stands for
from service import bundle

OPSET = 18
"""17 brought LayerNormalization. From 20 on GridSample calls its modes by other words, which a
widely used parser reads as nearest-neighbour sampling without a warning; Gelu, which 20 brought,
the runtimes find by its pattern."""
WEIGHTS = "weights.bin"
PLUGIN = "MultiscaleDeformableAttnPlugin_TRT"
"""TensorRT's operator for deformable attention, of version 2."""
PLUGIN_DOMAIN = "trt.plugins"

_INLINE_BYTES = 256  # below: shapes, axes and scalars, which runtimes want inside the graph
_ALIGNMENT_BYTES = 64
_DTYPES: dict[ir.DataType, Literal["uint8", "int32", "int64", "float32"]] = {
    ir.DataType.UINT8: "uint8",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
    ir.DataType.FLOAT: "float32",
}


class Signature(TypedDict):
    """Inputs and outputs of a graph as a manifest states them."""

    inputs: list[bundle.Tensor]
    outputs: list[bundle.Tensor]


def trace(head: nn.Module, inputs: Mapping[str, Tensor]) -> ir.Model:
    """The graph of ``head``, a module from named tensors to a dict of named tensors.

    ``inputs`` are examples of at least two pictures; their first axis becomes the dynamic "batch",
    all others stay as they are.
    """
    head = head.eval()
    with torch.no_grad():
        outputs = list(head(**inputs))
    batch = torch.export.Dim("batch")
    with _quiet_exporter():
        program = torch.onnx.export(
            head,
            (),
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={name: {0: batch} for name in inputs},
            custom_translation_table={torch.ops.saccade.fused_sample.default: _plugin},
            verbose=False,
        )
    assert program is not None
    _strip(program.model)
    return program.model


def signature(model: ir.Model) -> Signature:
    """``inputs`` and ``outputs`` as a manifest states them."""
    return Signature(
        inputs=[_tensor(value) for value in model.graph.inputs],
        outputs=[_tensor(value) for value in model.graph.outputs],
    )


def save(
    graphs: Mapping[str, ir.Model],
    folder: Path,
    weights: str = WEIGHTS,
    beside: Iterable[ir.Model] = (),
) -> None:
    """Write the graphs, by file name, and one file of weights beside them.

    Tensors of equal type and content are stored once, whether in one graph or in several, and not
    at all where the graphs ``beside``, which lie in the same folder, have them in ``weights.bin``,
    the one file that stays while its bundle does. The graphs in memory refer to the files
    afterwards.
    """
    places = _places(beside)
    with (folder / weights).open("wb") as file:
        for model in graphs.values():
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < _INLINE_BYTES:
                    continue
                content = tensor.tobytes()
                key = _key(tensor.dtype, content)
                if key not in places:
                    file.write(b"\0" * (-file.tell() % _ALIGNMENT_BYTES))
                    places[key] = weights, file.tell(), len(content)
                    file.write(content)
                name, offset, length = places[key]
                value.const_value = ir.ExternalTensor(
                    name,
                    offset,
                    length,
                    tensor.dtype,
                    shape=tensor.shape,  # type: ignore[arg-type]
                    name=value.name or "",
                    base_dir=folder,
                )
    for file_name, model in graphs.items():
        ir.save(model, folder / file_name)


def _plugin(cells: Any, grids: Any, starts: Any, locations: Any, weights: Any) -> Any:
    """``models.deformable.fused_sample`` as the node that TensorRT finds its plugin by."""
    node = values.Op(values.Opset(PLUGIN_DOMAIN, 1), PLUGIN, _plugin_schema())
    return node(cells, grids, starts, locations, weights, plugin_version="2", plugin_namespace="")


def _plugin_schema() -> onnx.defs.OpSchema:
    schema, text = onnx.defs.OpSchema, onnx.defs.OpSchema.AttrType.STRING
    kinds = {"value": "F", "grids": "I", "starts": "I", "locations": "F", "weights": "F"}
    return schema(
        PLUGIN,
        PLUGIN_DOMAIN,
        1,
        inputs=[schema.FormalParameter(name, kind) for name, kind in kinds.items()],
        outputs=[schema.FormalParameter("sums", "F")],
        type_constraints=[("F", ["tensor(float)"], ""), ("I", ["tensor(int32)"], "")],
        attributes=[schema.Attribute(n, text) for n in ("plugin_version", "plugin_namespace")],
    )


def _key(dtype: ir.DataType, content: bytes) -> str:
    """Zeros are zeros in any type, but TensorRT refuses one place in a file that holds more numbers
    for one tensor than for another.
    """
    return f"{dtype.name} {hashlib.sha256(content).hexdigest()}"


def _places(graphs: Iterable[ir.Model]) -> dict[str, tuple[str, int, int]]:
    """File, offset and length of what graphs keep in ``weights.bin``, by the digest of the
    content.
    """
    found = {}
    for model in graphs:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and str(tensor.location) == WEIGHTS:
                key = _key(tensor.dtype, tensor.tobytes())
                found[key] = str(tensor.location), tensor.offset or 0, tensor.nbytes
    return found


def _strip(model: ir.Model) -> None:
    """Drop what the exporter notes about its own run: source lines, paths, torch's node names."""
    model.producer_name, model.producer_version = "saccade", None
    model.doc_string = None
    model.metadata_props.clear()
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.name = "saccade"
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def _tensor(value: ir.Value) -> bundle.Tensor:
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    shape = [side if isinstance(side, int) else -1 for side in value.shape]
    return bundle.Tensor(name=value.name, role=value.name, dtype=_DTYPES[value.dtype], shape=shape)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep what torch says to its own developers off the user's screen."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # "torchvision is not installed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used")
            yield
    finally:
        logger.setLevel(level)
