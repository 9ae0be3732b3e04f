"""The lesson beside the lesson: what every cell of a feature map shows."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from export.demo.scenes import CLASSES
from export.demo.training.batches import Batch, class_shares

# Side of the cells, in pixels of the canvas.
CELL_PX = 4


class CellHeads(nn.Module):
    """Tells from every position of feature maps what its cells of ``CELL_PX`` show.

    It has no part in the finished network; it teaches the features outlines and shapes in a
    training so short that labels alone would teach them nothing. ``channels`` by stride in pixels.
    """

    def __init__(self, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {
                str(stride): nn.Conv2d(width, (stride // CELL_PX) ** 2 * (len(CLASSES) + 1), 1)
                for stride, width in channels.items()
            }
        )

    def forward(self, maps: Mapping[int, Tensor], batch: Batch) -> Tensor:
        """Cross-entropy of the classes and of the dominant thing's share, mean over the maps."""
        truth = class_shares(batch, CELL_PX).permute(0, 3, 1, 2)  # (B, K + 1, h, w)
        total = truth.new_zeros(())
        for stride, features in maps.items():
            seen = F.pixel_shuffle(self.heads[str(stride)](features).float(), stride // CELL_PX)
            total = total + F.cross_entropy(seen[:, :-1], truth[:, :-1])
            dominant = F.binary_cross_entropy_with_logits(seen[:, -1], truth[:, -1])
            total = total + dominant
        return total / len(maps)
