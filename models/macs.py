"""Parameters and multiply-accumulates of a network, counted from its definition."""

from typing import Any

import torch
from torch import Tensor, nn


def count_parameters(model: nn.Module) -> int:
    """Every learned number, heads and position tables included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of one forward pass over ``inputs``, which may be on the meta device.

    Counted are convolutions, linear layers and the products that a module reports of itself in
    ``product_macs(*inputs)``, such as both of attention, as the papers do that call the figure
    FLOPs. Norms, softmax, activations, sampling and the attention row that
    ``Attention.first_row`` recomputes for the answer are not.
    """
    total = 0

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        total += _macs_of(module, inputs, output)

    handles = [module.register_forward_hook(add) for module in model.modules()]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return total


def _macs_of(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    """What the module does besides its children."""
    if isinstance(module, nn.Conv2d):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if hasattr(module, "product_macs"):
        return module.product_macs(*inputs)  # type: ignore[operator]
    return 0
