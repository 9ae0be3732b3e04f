"""Parameters and multiply-accumulates of a network, counted from its definition."""

from typing import Any

import torch
from torch import Tensor, nn

from models.layers import Attention


def count_parameters(model: nn.Module) -> int:
    """Every learned number, heads and position tables included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of one forward pass over ``images``, which may be on the meta device.

    Counted are convolutions, linear layers and both matrix products of attention, as the papers do
    that call the figure FLOPs. Norms, softmax, activations and the attention row that
    ``Attention.first_row`` recomputes for the answer are not.
    """
    total = 0

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        total += _macs_of(module, inputs[0], output)

    counted = [module for module in model.modules() if isinstance(module, COUNTED)]
    handles = [module.register_forward_hook(add) for module in counted]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return total


COUNTED = (nn.Conv2d, nn.Linear, Attention)


def _macs_of(module: nn.Module, x: Tensor, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    batch, tokens, dim = x.shape
    return 2 * batch * tokens * tokens * dim  # Q K^T and its product with V
