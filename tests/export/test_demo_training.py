"""The lessons of the demo models: batches, matching, losses and the loop."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from export.demo.pool import MAX_SEGMENTS, Examples
from export.demo.scenes import CLASSES, THINGS
from export.demo.training.batches import (
    Batch,
    batches,
    class_shares,
    normalized,
    plain,
    posed,
    segment_shares,
)
from export.demo.training.cells import CellHeads
from export.demo.training.detect import box_losses, learn_statistics, things_of
from export.demo.training.loop import Losses, Recipe, fit, rate
from export.demo.training.matching import (
    centers,
    corners,
    focal_cost,
    generalized_iou,
    mask_costs,
    match,
)
from export.demo.training.segment import mask_losses, merged
from models.resnet import ResNet, ResNetConfig


def two_segments(count: int = 6, side: int = 16) -> Examples:
    """Pictures of a star in the upper half and a square in the lower, each in a colour."""
    ids = np.ones((count, side, side), dtype=np.uint8)
    ids[:, side // 2 :] = 2
    classes = np.full((count, MAX_SEGMENTS), -1)
    classes[:, :2] = CLASSES.index("star"), CLASSES.index("square")
    boxes = np.zeros((count, MAX_SEGMENTS, 4), dtype=np.float32)
    boxes[:, 0], boxes[:, 1] = (0, 0, 1, 0.5), (0, 0.5, 1, 1)
    return Examples(
        images=np.stack([ids * 50, ids * 90, 255 - ids * 90], axis=-1),
        labels=np.arange(count) % len(THINGS),
        ids=ids,
        classes=classes,
        boxes=boxes,
        dominant=np.ones(count, dtype=np.uint8),
    )


def test_pictures_ids_and_boxes_take_the_same_of_eight_poses() -> None:
    torch.manual_seed(0)
    ids = torch.zeros(60, 12, 12, dtype=torch.uint8)
    ids[:, 2:5, 1:9] = 1
    ids[:, 2, 1] = 2  # a corner, so that no pose looks like another
    images = ids[:, None].float().repeat(1, 3, 1, 1)
    boxes = torch.tensor([1, 2, 9, 5]).div(12).repeat(60, 2, 1)
    turned_images, turned_ids, turned_boxes = posed(images, ids, boxes)
    assert torch.equal(turned_images[:, 0], turned_ids.float())
    assert len({tuple(one.flatten().tolist()) for one in turned_ids}) == 8
    for one, box in zip(turned_ids, turned_boxes[:, 1] * 12, strict=True):
        rows, columns = one.nonzero().T
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        torch.testing.assert_close(box, torch.stack(around).float())


def test_cells_hold_the_share_of_every_class_and_segment() -> None:
    batch = plain(two_segments(2, side=8), slice(0, 2))
    by_segment = segment_shares(batch, 8)
    assert by_segment.shape == (2, MAX_SEGMENTS, 1, 1)
    assert by_segment[0, :, 0, 0].tolist() == [0.5, 0.5, *[0] * (MAX_SEGMENTS - 2)]
    by_class = class_shares(batch, 4)
    assert by_class.shape == (2, 2, 2, len(CLASSES) + 1)
    assert by_class[1, 0, 1, CLASSES.index("star")] == 1
    assert by_class[1, 1, 1, CLASSES.index("square")] == 1
    assert by_class[..., -1].tolist() == [[[1, 1], [0, 0]]] * 2  # the dominant is the star


def test_every_example_is_seen_once_before_any_is_seen_again() -> None:
    torch.manual_seed(0)
    seen = [batch.labels for batch in itertools.islice(batches(two_segments(6), 2, 0), 6)]
    assert sorted(torch.cat(seen[:3]).tolist()) == list(range(6))
    assert sorted(torch.cat(seen[3:]).tolist()) == list(range(6))


def test_pixels_are_normalised_to_minus_one_and_one() -> None:
    pixels = torch.tensor([0, 255, 0], dtype=torch.uint8).view(1, 1, 1, 3)
    assert normalized(pixels).flatten().tolist() == [-1, 1, -1]


def test_matches_are_the_cheapest_of_all_assignments() -> None:
    torch.manual_seed(1)
    cost = torch.randn(5, 4, 6)
    wanted = torch.rand(5, 6) < 0.5
    wanted[:, 4:] = False
    found = match(cost, wanted)
    for picture in range(5):
        mine = found.pictures == picture
        segments = wanted[picture].nonzero()[:, 0].tolist()
        assert sorted(found.segments[mine].tolist()) == segments
        total = cost[picture, found.queries[mine], found.segments[mine]].sum().item()
        best = min(
            cost[picture, list(queries), segments].sum().item()
            for queries in itertools.permutations(range(4), len(segments))
        )
        assert total == pytest.approx(best)


def test_boxes_change_between_corners_and_centres() -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.8]])
    torch.testing.assert_close(centers(boxes), torch.tensor([[0.3, 0.5, 0.4, 0.6]]))
    torch.testing.assert_close(corners(centers(boxes)), boxes)


def test_generalized_iou_is_negative_between_boxes_apart() -> None:
    first = torch.tensor([0.0, 0.0, 2.0, 2.0])
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [3.0, 0.0, 4.0, 2.0]])
    expected = torch.tensor([1.0, 1 / 3, 0.0 - 2 / 8])
    torch.testing.assert_close(generalized_iou(first, others), expected)


def test_mask_costs_are_those_of_each_pair() -> None:
    torch.manual_seed(0)
    masks, truth = torch.randn(2, 3, 10), torch.rand(2, 4, 10)
    entropy, dice = mask_costs(masks, truth)
    chance = masks[1, 2].sigmoid()
    pair = torch.nn.functional.binary_cross_entropy(chance, truth[1, 3])
    torch.testing.assert_close(entropy[1, 2, 3], pair)
    overlap = 1 - (2 * (chance * truth[1, 3]).sum() + 1) / (chance.sum() + truth[1, 3].sum() + 1)
    torch.testing.assert_close(dice[1, 2, 3], overlap)


def test_saying_yes_to_the_right_class_is_cheap() -> None:
    logits = torch.tensor([[[4.0, -4.0]]])
    cost = focal_cost(logits, torch.tensor([[0, 1, -1]]))[0, 0]
    assert cost[0] < 0 < cost[1]
    assert cost[2] == cost[0]


def test_right_boxes_and_masks_cost_next_to_nothing() -> None:
    batch = plain(two_segments(2), slice(0, 2))
    logits = torch.full((2, 3, len(THINGS)), -12.0)
    logits[:, 1, CLASSES.index("star")] = logits[:, 0, CLASSES.index("square")] = 12
    boxes = torch.zeros(2, 3, 4)
    boxes[:, 1], boxes[:, 0] = centers(batch.boxes[0, 0]), centers(batch.boxes[0, 1])
    right = box_losses(logits, boxes, things_of(batch))
    assert sum(right.values()) < 1e-3
    assert sum(box_losses(logits, boxes.flip(1), things_of(batch)).values()) > 1

    truth = segment_shares(batch, 4)
    masks = torch.full((2, 3, 4, 4), -12.0)
    masks[:, 2, :2], masks[:, 0, 2:] = 12, 12
    logits = torch.full((2, 3, len(CLASSES) + 1), -12.0)
    logits[:, 2, CLASSES.index("star")] = logits[:, 0, CLASSES.index("square")] = 12
    logits[:, 1, -1] = 12
    assert sum(mask_losses(logits, masks, batch.classes, truth).values()) < 1e-3
    assert sum(mask_losses(logits.flip(1), masks, batch.classes, truth).values()) > 1


def test_queries_of_one_stuff_are_one_segment_and_hidden_ones_none() -> None:
    scores = torch.zeros(4, len(CLASSES) + 1)
    for query, name in enumerate(["sky", "sky", "star"]):
        scores[query, CLASSES.index(name)] = 0.9
    scores[3, -1] = 0.9
    masks = torch.zeros(4, 2, 6)
    masks[0, :, :2] = masks[1, :, 2:4] = 0.9
    masks[2, :, 4:] = 0.8
    masks[3] = 1
    ids, labels = merged(scores, masks)
    assert labels == ["sky", "star"]
    assert ids.tolist() == [[1, 1, 1, 1, 2, 2]] * 2


class _CellLesson(nn.Module):
    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.backbone = backbone
        self.cell_heads = CellHeads(dict(zip(backbone.strides, backbone.channels, strict=True)))

    def forward(self, batch: Batch) -> Losses:
        maps = self.backbone(batch.images)
        maps = dict(zip(self.backbone.strides, maps, strict=True))
        return {"cells": self.cell_heads(maps, class_shares(batch, 4))}


def test_a_small_network_learns_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    losses: list[float] = []

    def lesson() -> tuple[_CellLesson, list[Tensor]]:
        torch.manual_seed(0)
        backbone = ResNet(ResNetConfig((1, 1), (16, 32), 8, returned=(1, 2)))
        learn_statistics(backbone)
        return _CellLesson(backbone), []

    def learn(model: _CellLesson, stop: int | None) -> None:
        def validate() -> dict[str, float]:
            losses.append(model(plain(two_segments(), slice(None)))["cells"].item())
            return {}

        recipe = Recipe(
            steps=60, stop=stop, batch=6, adam_rate=1e-2, warmup_steps=5, check_every=30
        )
        draw = partial(batches, two_segments(), recipe.batch)
        console = Console(file=(tmp_path / "log").open("w"))
        fit(model, [], draw, recipe, validate, tmp_path / "state.pt", console)
        console.file.close()

    first, matrices = lesson()
    assert matrices == []
    untaught = first(plain(two_segments(), slice(None)))["cells"].item()
    learn(first, stop=30)
    second, _ = lesson()
    learn(second, stop=None)
    assert len(losses) == 2
    assert losses[1] < 0.5 * untaught
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 60


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    recipe = Recipe(steps=100, warmup_steps=10)
    rates = [rate(step, recipe) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1)
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert rates[100] == pytest.approx(0)
