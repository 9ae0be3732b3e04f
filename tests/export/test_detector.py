"""A detector of one's own: VOC boxes, moved and cut pictures, and a lesson that is learnt."""

import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from export.demo.training.detect import Boxes, learn_statistics
from export.detector import train, voc
from export.detector.augment import batches, cut, moved_by, random_views, side_by_side
from export.detector.lesson import BoxLesson, cell_shares, detector_config
from export.detector.pictures import Batch, Pictures, plain, read
from models.checkpoints import load_model, open_checkpoint
from models.deformable_detr import DeformableDetr
from service.cli import app
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
        assert set(losses) == {"class", "distance", "apart", "cells"}
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append(total.item())
    assert totals == sorted(totals, reverse=True)


def coco_folder(root: Path, count: int, size: tuple[int, int]) -> Path:
    """``bright_boxes`` on disk; every split has pictures of its own."""
    pictures = bright_boxes(3 * count, size)
    (root / "annotations").mkdir(parents=True)
    names = dict(enumerate(pictures.labels, 1))
    for number, split in enumerate(voc.SPLITS):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (root / split).mkdir()
        for row in range(number * count, (number + 1) * count):
            name = f"{row}.png"
            Image.fromarray(pictures.images[row].numpy()).save(root / split / name)
            images.append({"id": row, "file_name": name, "height": size[0], "width": size[1]})
            x0, y0, x1, y1 = (
                pictures.boxes.corners[row, 0] * torch.tensor(size[::-1] * 2)
            ).tolist()
            kind = int(pictures.boxes.classes[row, 0]) + 1
            box = [x0, y0, x1 - x0, y1 - y0]
            annotations.append({"id": row, "image_id": row, "category_id": kind, "bbox": box})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": kind, "name": name} for kind, name in names.items()],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def curve_of(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "curve.jsonl").read_text().splitlines()]


def test_a_training_goes_on_where_it_ended_and_keeps_the_average(tmp_path: Path) -> None:
    data, work = coco_folder(tmp_path / "data", 4, (64, 64)), tmp_path / "work"
    for steps in (2, 3):
        train.main(data, work, (64, 64), queries=10, steps=steps, batch=4, threads=1)
    first, second = curve_of(work)
    assert (first["step"], second["step"]) == (2, 3)
    assert 0 < first["cpu_s"] < second["cpu_s"]
    lesson = torch.load(work / "state.pt", weights_only=True)["lesson"]
    average = lesson["average.module.queries"]
    assert not torch.equal(lesson["model.queries"], average)
    loaded = load_model(open_checkpoint(str(work / "checkpoint")))
    assert torch.equal(loaded.model.state_dict()["queries"], average)
    assert loaded.labels == {0: "dark", 1: "bright"}


def test_the_page_names_every_option_of_the_training() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(train.main)
    options = {flag for one in typer.main.get_command(app).params for flag in one.opts}
    page = (Path(__file__).parents[2] / "docs" / "bloodcells.md").read_text(encoding="utf-8")
    told = re.findall(r"^(--\w+)", page, re.MULTILINE)
    assert sorted(told) == sorted(flag for flag in options if flag.startswith("--"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_is_learnt_is_what_the_served_model_scores(tmp_path: Path) -> None:
    data, work = coco_folder(tmp_path / "data", 24, (64, 96)), tmp_path / "work"
    train.main(data, work, (64, 96), queries=10, steps=300, batch=8, threads=2)
    learnt = curve_of(work)[-1]["AP50"]
    assert learnt > 0.9
    repository, report = tmp_path / "repository", tmp_path / "report.json"
    exported = ["export", work / "checkpoint", "--name", "boxes", "--precision", "fp32"]
    truth = f"coco:{data}/annotations/instances_val.json"
    evaluated = ["evaluate", "boxes", "--repository", repository, "--data", truth]
    for command in ([*exported, "--out", repository], [*evaluated, "--out", report]):
        assert CliRunner().invoke(app, [str(argument) for argument in command]).exit_code == 0
    served = json.loads(report.read_bytes())
    assert served["AP50"] == pytest.approx(learnt, abs=1e-3)
    assert [row["name"] for row in served["per_class"].values()] == ["dark", "bright"]
