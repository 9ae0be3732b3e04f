"""What PyTorch computes, to which every graph is compared."""

import numpy as np
import torch
from torch import nn

from service.worker.runtimes.base import Arrays


def reference(head: nn.Module, inputs: Arrays) -> Arrays:
    """What PyTorch computes in fp32, one picture at a time."""
    with torch.inference_mode():
        rows = [
            head(**{name: torch.from_numpy(array[i : i + 1]) for name, array in inputs.items()})
            for i in range(len(next(iter(inputs.values()))))
        ]
    return {name: np.concatenate([row[name].numpy() for row in rows]) for name in rows[0]}
