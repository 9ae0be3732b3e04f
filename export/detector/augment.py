"""Pictures in ever new poses, sizes, crops, colours and pairs, so that a few hundred are enough."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from export.demo.training.batches import tinted
from export.demo.training.detect import Boxes
from export.detector.pictures import Batch, Pictures, plain

# The least share of a box that must be left of it.
VISIBLE = 0.25


def batches(pictures: Pictures, batch: int, seed: int) -> Iterator[Batch]:
    """Changed pictures without end; each is seen once before any is seen again."""
    torch.manual_seed(seed)
    aspect = pictures.sizes[0].width / pictures.sizes[0].height
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(len(pictures))])
        drawn = plain(pictures, order[:batch])
        order = order[batch:]
        moved = moved_by(drawn, *random_views(batch, aspect))
        yield side_by_side(Batch(tinted(moved.images), moved.boxes))


def random_views(count: int, aspect: float) -> tuple[Tensor, Tensor]:
    """Where the frame lies on the picture: ``turn`` (N, 2, 2) and ``shift`` (N, 2), which take
    places of the frame to those of the picture, both in -1..1 from edge to edge.

    Any of the eight poses of flips and right angles, at 0.7 to 1.15 of the picture's scale, and a
    frame that lies within the picture or contains it. ``aspect`` is the picture's width by height.
    """
    turned = torch.rand(count, 1, 1) < 0.5
    signs = torch.randint(0, 2, (count, 2)) * 2.0 - 1
    upright = torch.diag_embed(signs)
    scale = _between(count, 0.7, 1.15)[:, None, None]
    # A turned frame of the same aspect is as wide as the picture is high.
    scale = torch.where(turned, scale / aspect, scale)
    turn = scale * torch.where(turned, upright.flip(-1), upright)
    frame = torch.tensor([aspect, 1.0])
    turn = turn * frame / frame[:, None]
    room = 1 - turn.abs().sum(dim=-1)
    return turn, room.abs() * (torch.rand(count, 2) * 2 - 1)


def moved_by(batch: Batch, turn: Tensor, shift: Tensor) -> Batch:
    """What frames show of the pictures, see ``random_views``; grey where there is none."""
    theta = torch.cat([turn, shift[:, :, None]], dim=-1)
    grid = F.affine_grid(theta, list(batch.images.shape), align_corners=False)
    images = F.grid_sample(batch.images, grid, align_corners=False)
    back = torch.linalg.inv(turn)
    ends = (batch.boxes.corners * 2 - 1).unflatten(-1, (2, 2))  # (B, S, 2 corners, x y)
    ends = (ends - shift[:, None, None]) @ back[:, None].mT
    low, high = ends.amin(dim=2), ends.amax(dim=2)
    corners = (torch.cat([low, high], dim=-1) + 1) / 2
    return Batch(images, cut(Boxes(batch.boxes.classes, corners), torch.tensor([0.0, 0, 1, 1])))


def side_by_side(batch: Batch) -> Batch:
    """In half the pictures the right side is that of another, from a cut in the middle half on."""
    count, width = len(batch.images), batch.images.shape[-1]
    at = torch.where(torch.rand(count) < 0.5, 0.25 + 0.5 * torch.rand(count), 1.0)
    at = (at * width).round() / width
    other = torch.arange(count).roll(1)
    left = (torch.arange(width) + 0.5) / width < at[:, None]  # (B, W)
    images = torch.where(left[:, None, None], batch.images, batch.images[other])
    zeros, ones = torch.zeros(count), torch.ones(count)
    mine = cut(batch.boxes, torch.stack([zeros, zeros, at, ones], dim=-1)[:, None])
    theirs = Boxes(batch.boxes.classes[other], batch.boxes.corners[other])
    theirs = cut(theirs, torch.stack([at, zeros, ones, ones], dim=-1)[:, None])
    pairs = zip(mine, theirs, strict=True)
    return Batch(images, _packed(Boxes(*(torch.cat(pair, dim=1) for pair in pairs))))


def cut(boxes: Boxes, window: Tensor) -> Boxes:
    """What is left of boxes within ``window`` (..., 4), x0, y0, x1, y1; too little is nothing."""
    corners = torch.minimum(
        torch.maximum(boxes.corners, window[..., [0, 1, 0, 1]]), window[..., [2, 3, 2, 3]]
    )
    seen = _area(corners) / _area(boxes.corners).clamp(min=1e-9)
    return Boxes(boxes.classes.where(seen >= VISIBLE, torch.tensor(-1)), corners)


def _packed(boxes: Boxes) -> Boxes:
    """The same without columns where no picture has anything."""
    there = boxes.classes >= 0
    first = there.int().argsort(dim=1, descending=True, stable=True)
    first = first[:, : max(int(there.sum(dim=1).max()), 1)]
    corners = boxes.corners.gather(1, first[..., None].expand(-1, -1, 4))
    return Boxes(boxes.classes.gather(1, first), corners)


def _area(corners: Tensor) -> Tensor:
    return (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(dim=-1)


def _between(count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count)
