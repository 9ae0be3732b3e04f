"""A loader turned round: which of their weights each of our numbers came from."""

import torch
from torch import Tensor

from models.checkpoints.strict import StrictReader


class Numbers(StrictReader):
    """Hands out numbers that count on, in place of weights, to any loader.

    What the loader makes of them shows where it puts every number of every weight, so that
    ``weights`` can put them back: one table of names serves both ways.
    """

    def __init__(self) -> None:
        super().__init__({}, "a network to be saved")
        self._numbers: dict[str, Tensor] = {}
        self._count = 0

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Numbers of that shape; float64 keeps them apart."""
        stop = self._count + torch.Size(shape).numel()
        numbers = torch.arange(self._count, stop, dtype=torch.float64).view(shape)
        self._count = stop
        self._numbers[name] = numbers
        return numbers

    def weights(self, loaded: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights by their names, where ``loaded`` is what the loader made of the numbers and
        ``state`` is a network's own.
        """
        values = torch.zeros(self._count)
        for ours, numbers in loaded.items():
            values[numbers.long().flatten()] = state[ours].detach().cpu().float().flatten()
        return {name: values[numbers.long()] for name, numbers in self._numbers.items()}
