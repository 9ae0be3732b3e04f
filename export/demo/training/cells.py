"""The lesson beside the lesson: what every cell of a feature map shows."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from export.demo.scenes import CLASSES

# Side of the cells, in pixels of the canvas.
CELL_PX = 4


class CellHeads(nn.Module):
    """Tells from every position of feature maps what its cells of ``CELL_PX`` show.

    It has no part in the finished network; it teaches the features outlines and shapes in a
    training so short that labels alone would teach them nothing. ``channels`` by stride in pixels;
    of ``classes`` a pixel has one.
    """

    def __init__(self, channels: Mapping[int, int], classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {
                str(stride): nn.Conv2d(width, (stride // CELL_PX) ** 2 * (classes + 1), 1)
                for stride, width in channels.items()
            }
        )

    def forward(self, maps: Mapping[int, Tensor], shares: Tensor) -> Tensor:
        """Cross-entropy of the classes and of the last share, mean over the maps.

        ``shares`` (B, h, w, K + 1) are how much of a cell each class covers, and how much one
        more thing does, such as the dominant one.
        """
        truth = shares.permute(0, 3, 1, 2)  # (B, K + 1, h, w)
        total = truth.new_zeros(())
        for stride, features in maps.items():
            seen = F.pixel_shuffle(self.heads[str(stride)](features).float(), stride // CELL_PX)
            total = total + F.cross_entropy(seen[:, :-1], truth[:, :-1])
            more = F.binary_cross_entropy_with_logits(seen[:, -1], truth[:, -1])
            total = total + more
        return total / len(maps)
