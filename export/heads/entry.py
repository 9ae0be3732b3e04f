"""The entry of every graph: from pixels to what a network takes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers import valid_mask


class Entry(nn.Module):
    """Pixels (B, H, W, 3), uint8 RGB, to what the network takes: (B, 3, H, W), normalised.

    Computes ``(pixel * scale - mean) / std`` per channel as one multiply and one add; ``mean`` and
    ``std`` are in RGB order.
    """

    def __init__(self, scale: float, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        deviation = torch.tensor(std, dtype=torch.float64)
        factor = scale / deviation
        offset = -torch.tensor(mean, dtype=torch.float64) / deviation
        self.factor = nn.Buffer(factor.float())
        self.offset = nn.Buffer(offset.float())

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """``sizes`` (B, 2) are the height and width that a padded picture takes up at the top left;
        what lies beyond becomes zero after normalisation, as where the authors pad.
        """
        x = images.float() * self.factor + self.offset
        if sizes is not None:
            grid = images.shape[1], images.shape[2]
            seen = valid_mask(sizes, grid).unflatten(1, grid)  # (B, H, W)
            x = torch.where(seen[..., None], x, 0.0)
        return x.permute(0, 3, 1, 2)
