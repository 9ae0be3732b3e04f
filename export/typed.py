"""Networks in half precision for engines that take every type from the graph.

The weights stay as they are and are cast where they are used, so that a typed graph shares the
file of weights, and an engine's builder folds the casts. In fp32 remain the statistics of norms,
softmax, sums and means, relative positions, sampling coordinates, and the last layers, which make
classes and boxes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.deformable import DeformableAttention, Sampling

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

FP32_PARTS = frozenset(
    {
        "head",
        "heads",
        "classify",
        "box",
        "locate",
        "reference",
        "proposals",
        "relative",
        "log_scale",
    }
)
"""Attributes of networks whose weights stay in fp32: the layers that make the answer or a place to
look at, and the tables of relative positions. Everything else they touch is small."""

_NORMS = (nn.LayerNorm, nn.GroupNorm)
_PRODUCTS = {Tensor.__matmul__, Tensor.matmul, torch.matmul, torch.bmm, Tensor.bmm}
_WITH_WEIGHTS: set[Callable[..., Any]] = {F.linear, F.conv2d, torch.conv2d}
_NORM_FUNCTIONS = {F.layer_norm, F.group_norm}
_IN_FP32 = {
    Tensor.softmax,
    F.softmax,
    torch.softmax,
    Tensor.sum,
    Tensor.mean,
    Tensor.norm,
    torch.sum,
    torch.mean,
}


class Typed(nn.Module):
    """A network that computes in ``precision`` where that is harmless; takes and gives fp32.

    Deformable attention reads its maps in the ``sampling`` form named.
    """

    def __init__(self, model: nn.Module, precision: str, sampling: Sampling | None = None) -> None:
        super().__init__()
        self.model = model
        self.dtype = DTYPES[precision]
        self.sampling = sampling
        self.cast = cast_parameters(model)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        cast = dict(self.cast_weights())
        with sampling_form(self.model, self.sampling), _Arithmetic(self.dtype):
            named: Mapping[str, Tensor] = torch.func.functional_call(self.model, cast, inputs)
        return {
            name: value.float() if value.is_floating_point() else value
            for name, value in named.items()
        }

    def cast_weights(self) -> Mapping[str, Tensor]:
        """The parameters that are cast, by name."""
        given = dict(self.model.named_parameters())
        return {name: given[name].to(self.dtype) for name in self.cast}


def cast_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that are cast: all but those of norms and of ``FP32_PARTS``."""
    norms = {name for name, module in model.named_modules() if isinstance(module, _NORMS)}
    return [
        name
        for name, _ in model.named_parameters()
        if name.rpartition(".")[0] not in norms and not FP32_PARTS & set(name.split("."))
    ]


def samples(model: nn.Module) -> bool:
    """Whether deformable attention is a part of the network."""
    return any(isinstance(module, DeformableAttention) for module in model.modules())


@contextmanager
def sampling_form(model: nn.Module, form: Sampling | None) -> Iterator[None]:
    """Deformable attention in another form for a while; None leaves it as it is."""
    layers = [module for module in model.modules() if isinstance(module, DeformableAttention)]
    before = [layer.sampling for layer in layers]
    for layer in layers:
        layer.sampling = form or layer.sampling
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.sampling = own


class _Arithmetic(TorchFunctionMode):
    """Decides the type of each operation: layers by their weights, products in half precision,
    norms and softmax in fp32; for the rest the types of the operands.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            args = tuple(one.to(self.dtype) for one in args)
        elif func in _WITH_WEIGHTS:
            args = (args[0].to(args[1].dtype), *args[1:])
        elif func in _NORM_FUNCTIONS:
            return func(args[0].float(), *args[1:], **kwargs).to(self.dtype)
        elif func in _IN_FP32 and args[0].is_floating_point():
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)
