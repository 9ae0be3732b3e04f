"""Augmented batches of examples, and what the cells of a grid show."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from export.demo.pool import MAX_SEGMENTS, Examples
from export.demo.scenes import CLASSES


@dataclass(frozen=True)
class Batch:
    """Examples as tensors: ``images`` (B, 3, H, W) in -1..1, all else as in ``Examples``."""

    images: Tensor
    labels: Tensor
    ids: Tensor
    classes: Tensor
    boxes: Tensor
    dominant: Tensor


def batches(examples: Examples, batch: int, seed: int) -> Iterator[Batch]:
    """Augmented batches without end; every example is seen once before any is seen again."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, dtype=np.int64)
    while True:
        while len(order) < batch:
            order = np.concatenate([order, rng.permutation(len(examples))])
        chosen, order = order[:batch], order[batch:]
        drawn = plain(examples, chosen)
        images, ids, boxes = posed(drawn.images, drawn.ids, drawn.boxes)
        images = tinted(swapped(images))
        yield Batch(images, drawn.labels, ids, drawn.classes, boxes, drawn.dominant)


def plain(examples: Examples, chosen: "np.ndarray | slice") -> Batch:
    """The chosen examples as they are."""
    return Batch(
        images=normalized(torch.from_numpy(examples.images[chosen])),
        labels=torch.from_numpy(examples.labels[chosen]),
        ids=torch.from_numpy(examples.ids[chosen]),
        classes=torch.from_numpy(examples.classes[chosen]),
        boxes=torch.from_numpy(examples.boxes[chosen]),
        dominant=torch.from_numpy(examples.dominant[chosen]),
    )


def normalized(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) in -1..1, by mean and deviation 0.5."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def swapped(images: Tensor) -> Tensor:
    """The channels in another order in half the pictures."""
    chosen = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(chosen, images[:, torch.randperm(3)], images)


def tinted(images: Tensor) -> Tensor:
    """Gain and offset of every channel a little different."""
    gain = 1 + 0.15 * torch.randn(len(images), 3, 1, 1)
    offset = 0.1 * torch.randn(len(images), 3, 1, 1)
    return (images * gain + offset).clamp(-1, 1)


def posed(images: Tensor, ids: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every picture (..., H, W), H = W, with its ids and boxes in one of the square's eight poses.

    Boxes are x0, y0, x1, y1 in 0..1.
    """
    transposed, upended, mirrored = (torch.rand(len(images)) < 0.5 for _ in range(3))
    images, ids = (
        _where(mirrored, _where(upended, _where(transposed, a.mT, a), (-2,)), (-1,))
        for a in (images, ids)
    )
    boxes = _where(transposed, boxes[..., [1, 0, 3, 2]], boxes)
    x0, y0, x1, y1 = boxes.unbind(-1)
    boxes = _where(upended, torch.stack([x0, 1 - y1, x1, 1 - y0], dim=-1), boxes)
    x0, y0, x1, y1 = boxes.unbind(-1)
    boxes = _where(mirrored, torch.stack([1 - x1, y0, 1 - x0, y1], dim=-1), boxes)
    return images, ids, boxes


def _where(chosen: Tensor, changed: Tensor, other: "Tensor | tuple[int, ...]") -> Tensor:
    """``changed`` for the chosen of a batch, else ``other``; dimensions mean a flip."""
    if isinstance(other, tuple):
        changed, other = changed.flip(other), changed
    return torch.where(chosen.view(-1, *[1] * (changed.ndim - 1)), changed, other)


def shares(values: Tensor, kinds: int, side: int) -> Tensor:
    """How much of every cell of ``side`` pixels has each value: (B, H, W) to (B, h, w, kinds)."""
    batch, height, width = values.shape
    rows, columns = height // side, width // side
    across = torch.arange(width, dtype=torch.int32) // side
    down = torch.arange(height, dtype=torch.int32) // side * columns
    pictures = torch.arange(batch, dtype=torch.int32) * (rows * columns)
    first = (pictures[:, None, None] + (down[:, None] + across)) * kinds  # (B, H, W)
    index = (first + values.int()).flatten()
    counts = torch.bincount(index, minlength=batch * rows * columns * kinds)
    return counts.view(batch, rows, columns, kinds).float() / side**2


def class_shares(batch: Batch, side: int) -> Tensor:
    """What cells show: the share of every class, and of the dominant thing (B, h, w, K + 1)."""
    ids = batch.ids.long()
    classes = batch.classes.gather(1, ids.flatten(1) - 1).view_as(ids)
    by_class = shares(classes, len(CLASSES), side)
    dominant = shares(batch.ids == batch.dominant[:, None, None], 2, side)
    return torch.cat([by_class, dominant[..., 1:]], dim=-1)


def segment_shares(batch: Batch, side: int) -> Tensor:
    """How much of every cell belongs to each segment (B, S, h, w)."""
    return shares(batch.ids.int() - 1, MAX_SEGMENTS, side).permute(0, 3, 1, 2)
