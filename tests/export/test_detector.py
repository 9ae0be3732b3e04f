"""A detector of one's own: VOC boxes, moved and cut pictures, and a lesson that is learnt."""

import itertools
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from export.demo.training.detect import Boxes, learn_statistics
from export.demo.training.loop import Recipe
from export.demo.training.matching import match, match_many
from export.detector import voc
from export.detector.augment import batches, cut, moved_by, random_views, side_by_side
from export.detector.lesson import BoxLesson, cell_shares, detector_config, precision
from export.detector.pictures import Batch, Pictures, plain, read
from export.detector.train import taught
from models.deformable_detr import DeformableDetr
from service.geometry import Size

THING = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def annotation(*things: tuple[object, ...]) -> ElementTree.Element:
    size = "<filename>a.png</filename><size><width>40</width><height>30</height></size>"
    return ElementTree.fromstring(
        f"<annotation>{size}{''.join(THING.format(*thing) for thing in things)}</annotation>"
    )


def test_first_and_last_pixels_become_corner_and_size() -> None:
    tree = annotation(
        ("b", 1, 1, 40, 30), ("a", 11, 6, 20, 10), ("a", 5, 5, 5, 9), ("a", 0, 2, 44, 3)
    )
    found = voc.coco([tree], ["a", "b"])
    assert found["images"] == [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}]
    assert [(thing["category_id"], thing["bbox"]) for thing in found["annotations"]] == [
        (2, [0, 0, 40, 30]),
        (1, [10, 5, 10, 5]),
        (1, [0, 1, 40, 2]),  # cut to the picture; the box of one column is left out
    ]
    assert [thing["area"] for thing in found["annotations"]] == [1200, 50, 80]
    assert [category["name"] for category in found["categories"]] == ["a", "b"]


def voc_folder(root: Path) -> Path:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for split, label in zip(voc.SPLITS, ("dog", "cat", "dog"), strict=True):
        (root / "ImageSets/Main" / f"{split}.txt").write_text(f"{split}\n")
        tree = annotation((label, 11, 16, 20, 30))
        tree.find("filename").text = f"{split}.jpg"  # type: ignore[union-attr]
        ElementTree.ElementTree(tree).write(root / "Annotations" / f"{split}.xml")
        Image.new("RGB", (40, 30), (200, 100, 50)).save(root / "JPEGImages" / f"{split}.jpg")
    return root


def test_a_voc_folder_is_read_as_pictures_of_the_canvas(tmp_path: Path) -> None:
    voc.main(voc_folder(tmp_path / "voc"), tmp_path / "coco")
    assert json.loads((tmp_path / "coco/annotations/instances_val.json").read_bytes())["images"]
    pictures = read(tmp_path / "coco", "train", (16, 20))
    assert pictures.labels == ["cat", "dog"]
    assert pictures.images.shape == (1, 16, 20, 3)
    assert np.abs(pictures.images[0, 3, 7].numpy().astype(int) - (200, 100, 50)).max() <= 3
    assert pictures.boxes.classes.tolist() == [[1]]
    torch.testing.assert_close(pictures.boxes.corners, torch.tensor([[[0.25, 0.5, 0.5, 1.0]]]))
    assert pictures.sizes == [Size(height=30, width=40)]
    assert read(tmp_path / "coco", "val", (16, 20)).boxes.classes.tolist() == [[0]]


def bright_boxes(count: int, size: tuple[int, int] = (48, 64)) -> Pictures:
    """Grey pictures with a bright rectangle, or in every second a dark one."""
    rng = np.random.default_rng(0)
    height, width = size
    images = np.full((count, height, width, 3), 128, dtype=np.uint8)
    corners = torch.zeros(count, 2, 4)
    for row in range(count):
        x, y = int(rng.integers(0, width - 24)), int(rng.integers(0, height - 20))
        images[row, y : y + 18, x : x + 22] = 255 if row % 2 else 0
        corners[row, 0] = torch.tensor([x, y, x + 22, y + 18]) / torch.tensor(
            [width, height]
        ).repeat(2)
    classes = torch.tensor([[row % 2, -1] for row in range(count)])
    sizes = [Size(height=height, width=width)] * count
    return Pictures(torch.from_numpy(images), Boxes(classes, corners), sizes, ["dark", "bright"])


def test_boxes_move_with_their_pictures_in_all_eight_poses() -> None:
    torch.manual_seed(0)
    pictures = bright_boxes(200)
    images = pictures.images.permute(0, 3, 1, 2).float() - 128
    turn, shift = random_views(200, 64 / 48)
    moved = moved_by(Batch(images, pictures.boxes), turn, shift)
    assert len({tuple(one.sign().flatten().tolist()) for one in turn}) == 8
    kept = moved.boxes.classes[:, 0] >= 0
    assert 100 < int(kept.sum()) < 200
    for one, corners in zip(moved.images[kept], moved.boxes.corners[kept, 0], strict=True):
        rows, columns = (one[0].abs() > 64).nonzero().T
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        found = corners * torch.tensor([64, 48, 64, 48])
        torch.testing.assert_close(found, torch.stack(around).float(), atol=1.01, rtol=0)


def test_turned_things_keep_their_form() -> None:
    torch.manual_seed(0)
    aspect = 640 / 480
    turn, _ = random_views(50, aspect)
    # In units of half the height, the frame is a scaled rotation of the picture.
    sides = torch.tensor([aspect, 1.0])
    pixels = turn * sides[:, None] / sides
    gram = pixels @ pixels.mT
    torch.testing.assert_close(gram, gram[:, :1, :1] * torch.eye(2))


def test_boxes_are_cut_and_small_rests_are_nothing() -> None:
    boxes = Boxes(
        torch.tensor([[3, 3, 3, -1]]),
        torch.tensor([[[0.2, 0, 0.6, 1], [0.4, 0, 0.9, 1], [0.6, 0, 0.8, 1], [0.0, 0, 0.1, 1]]]),
    )
    left = cut(boxes, torch.tensor([0.0, 0, 0.5, 1]))
    assert left.classes.tolist() == [[3, -1, -1, -1]]
    torch.testing.assert_close(left.corners[0, 0], torch.tensor([0.2, 0, 0.5, 1]))


def test_joined_pictures_show_each_its_own_boxes() -> None:
    torch.manual_seed(0)
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 4, 100)
    corners = torch.tensor([[0.0, 0, 1, 1]]).repeat(8, 1, 1)
    pair = side_by_side(Batch(images, Boxes(torch.arange(8)[:, None], corners)))
    assert 0 < int((pair.boxes.classes[:, 1] >= 0).sum()) < 8
    for row in range(8):
        shown = pair.images[row, 0, 0]
        for kind, (x0, _, x1, _) in zip(*(part[row] for part in pair.boxes), strict=True):
            if kind >= 0:
                assert (shown[round(float(x0) * 100) : round(float(x1) * 100)] == kind).all()


def test_every_picture_is_seen_once_before_any_is_seen_again() -> None:
    seen = list(itertools.islice(batches(bright_boxes(6), 3, 0), 2))
    assert sum(int((batch.boxes.classes[:, :2] >= 0).sum()) for batch in seen) > 0
    assert all(batch.images.shape == (3, 3, 48, 64) for batch in seen)
    again = list(itertools.islice(batches(bright_boxes(6), 3, 0), 2))
    assert all(torch.equal(a.images, b.images) for a, b in zip(seen, again, strict=True))


def test_cells_show_the_smaller_of_two_ellipses() -> None:
    corners = torch.tensor([[[0.0, 0, 1, 1], [0.25, 0.25, 0.75, 0.75], [0.0, 0, 0.2, 0.2]]])
    batch = Batch(torch.zeros(1, 3, 32, 32), Boxes(torch.tensor([[0, 1, -1]]), corners))
    shares = cell_shares(batch, 2, 4)[0]
    assert shares.shape == (8, 8, 4)
    kinds = shares[..., :3].argmax(dim=-1)
    assert kinds[4, 4] == 1
    assert kinds[4, 0] == 0
    assert kinds[0, 0] == 2  # a corner of the box is beyond its ellipse
    assert shares[4, 4, 3] == 1
    assert shares[4, 0, 3] == 0


def test_many_cells_answer_for_a_box_and_each_for_one() -> None:
    cost = torch.tensor([[[1.0, 2.0], [2.0, 1.5], [3.0, 9.0], [9.0, 9.0]]])
    found = match_many(cost, torch.tensor([[True, True]]), answers=2)
    assert list(zip(found.queries.tolist(), found.segments.tolist(), strict=True)) == [
        (0, 0),
        (1, 1),
    ]
    found = match_many(cost, torch.tensor([[True, False]]), answers=3)
    assert found.queries.tolist() == [0, 1, 2]
    assert found.segments.tolist() == [0, 0, 0]
    one = match_many(cost, torch.tensor([[True, False]]), answers=1)
    assert torch.equal(one.queries, match(cost, torch.tensor([[True, False]])).queries)


def test_a_step_lowers_what_the_lesson_loses() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pictures = bright_boxes(6, (64, 64))
    model = DeformableDetr(detector_config((64, 64), 2, 10))
    learn_statistics(model)
    lesson, batch = BoxLesson(model), plain(pictures, slice(None))
    optimizer = torch.optim.AdamW(lesson.parameters(), lr=1e-3)
    totals = []
    for _ in range(4):
        losses = lesson(batch)
        assert set(losses) == {"class", "distance", "apart", "proposals", "cells"}
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append(total.item())
    assert totals == sorted(totals, reverse=True)


def test_a_small_detector_goes_its_course_and_its_average_is_what_is_kept(tmp_path: Path) -> None:
    pictures = bright_boxes(8, (64, 64))
    torch.manual_seed(0)
    model = DeformableDetr(detector_config((64, 64), 2, 10))
    torch.set_num_threads(1)
    recipe = Recipe(steps=30, batch=4, adam_rate=2e-3, warmup_steps=5, check_every=15)
    lesson = taught(model, pictures, pictures, recipe, tmp_path)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert len(curve) == 2
    assert 0 < curve[0]["cpu_s"] < curve[1]["cpu_s"]
    assert int(lesson.average.n_averaged) == 30
    assert precision(lesson.average.eval(), pictures)["AP50"] == pytest.approx(curve[1]["AP50"])
    state = torch.load(tmp_path / "state.pt", weights_only=True)["lesson"]
    name = "proposals.cells.weight"
    assert not torch.equal(state[f"model.{name}"], state[f"average.module.{name}"])
