"""What a typed graph computes, on a machine whose runtimes lack its types: in fp32, with every
tensor rounded to the type that the graph gives it.
"""

import numpy as np
import onnx_ir as ir

HALVES = {ir.DataType.BFLOAT16, ir.DataType.FLOAT16}


def rounded(model: ir.Model) -> ir.Model:
    """A copy in fp32 whose tensors pass through the half precision of the original.

    An engine fuses operations and rounds between them less often, so that its error is of this
    size or smaller.
    """
    copy = model.clone()
    graph = copy.graph
    for value in graph.initializers.values():
        _widen(value)
    for node in list(graph):
        kinds = [value.dtype for value in node.outputs]
        _widen_constants(node)
        if node.op_type == "Cast":
            _round_cast(graph, node)
        else:
            for value, kind in zip(node.outputs, kinds, strict=True):
                if kind in HALVES:
                    _round_after(graph, node, value, kind)
    return copy


def _widen(value: ir.Value) -> None:
    if value.const_value is not None and value.const_value.dtype in HALVES:
        value.const_value = _as_fp32(value.const_value, value.name)
        value.dtype = ir.DataType.FLOAT


def _widen_constants(node: ir.Node) -> None:
    """Of ``Constant`` and ``ConstantOfShape``."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALVES:
            node.attributes[name] = ir.AttrTensor(name, _as_fp32(attribute.as_tensor(), name))


def _round_cast(graph: ir.Graph, node: ir.Node) -> None:
    kind = ir.DataType(node.attributes["to"].as_int())
    if kind in HALVES:
        back = _cast(node.outputs[0], ir.DataType.FLOAT)
        _replace(graph, node, node.outputs[0], [back])


def _round_after(graph: ir.Graph, node: ir.Node, value: ir.Value, kind: ir.DataType) -> None:
    value.dtype = ir.DataType.FLOAT
    half = _cast(value, kind)
    _replace(graph, node, value, [half, _cast(half.outputs[0], ir.DataType.FLOAT)])


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value, casts: list[ir.Node]) -> None:
    """Everyone who read ``value`` reads the end of the ``casts`` instead."""
    for user, index in tuple(value.uses()):
        if user is not casts[0]:
            user.replace_input_with(index, casts[-1].outputs[0])
    graph.insert_after(node, casts)


def _cast(value: ir.Value, kind: ir.DataType) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", kind.value)])
    node.outputs[0].dtype, node.outputs[0].shape = kind, value.shape
    return node


def _as_fp32(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    return ir.Tensor(np.asarray(tensor.numpy(), dtype=np.float32), name=name)
