"""The training of the demo models, and the bundle that came out of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from export.demo.build import score
from export.demo.pool import CELL_PX, Examples
from export.demo.scenes import CLASSES, THINGS
from export.demo.train import Recipe, batches, grouped, normalized, rate, turned
from service.bundle import load_bundle
from service.geometry import Size, place, to_canvas
from service.images import ImageLimits, decode
from service.worker.runtimes.choose import Choice

DEMO = Path(__file__).parents[2] / "service" / "demo"


def test_turned_pictures_and_their_cells_stay_together() -> None:
    torch.manual_seed(0)
    cells = torch.randint(256, (40, 8, 8, 3), dtype=torch.uint8)
    images = cells.repeat_interleave(CELL_PX, 1).repeat_interleave(CELL_PX, 2)
    turned_images, turned_cells = turned(images, cells)
    assert torch.equal(turned_images[:, ::CELL_PX, ::CELL_PX], turned_cells)
    poses = {
        tuple(
            torch.equal(after, torch.rot90(pose, turns))
            for pose in (before, before.flip(0))
            for turns in range(4)
        )
        for before, after in zip(cells, turned_cells, strict=True)
    }
    assert len(poses) == 8
    assert all(sum(pose) == 1 for pose in poses)


def test_cells_are_grouped_by_the_patch_they_lie_in() -> None:
    patch_of = torch.arange(6, dtype=torch.uint8).view(2, 3)  # patches row by row
    cells = patch_of.repeat_interleave(4, 0).repeat_interleave(4, 1)[None, :, :, None]
    by_patch = grouped(cells, patch_size=4 * CELL_PX)
    assert by_patch.shape == (1, 6, 16, 1)
    expected = torch.arange(6.0).view(1, 6, 1, 1).expand_as(by_patch) / 255
    torch.testing.assert_close(by_patch, expected)


def test_every_example_is_seen_once_before_any_is_seen_again() -> None:
    torch.manual_seed(0)
    examples = Examples(
        np.zeros((6, 16, 16, 3), dtype=np.uint8),
        np.arange(6),
        np.zeros((6, 4, 4, len(CLASSES) + 1), dtype=np.uint8),
    )
    seen = [labels for _, labels, _ in batches(examples, 16, Recipe(steps=6, batch=2))]
    assert sorted(torch.cat(seen[:3]).tolist()) == list(range(6))
    assert sorted(torch.cat(seen[3:]).tolist()) == list(range(6))


def test_pixels_are_normalised_to_minus_one_and_one() -> None:
    pixels = torch.tensor([0, 255, 0], dtype=torch.uint8).view(1, 1, 1, 3)
    assert normalized(pixels).flatten().tolist() == [-1, 1, -1]


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    recipe = Recipe(steps=100, warmup_steps=10)
    rates = [rate(step, recipe) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1)
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert rates[100] == pytest.approx(0)


def test_the_packaged_classifier_knows_the_sample_scenes() -> None:
    bundle = load_bundle(DEMO / "repository" / "vit-scenes" / "1")
    geometry = bundle.manifest.geometry
    assert [label.name for label in bundle.manifest.labels] == list(THINGS)
    truth = json.loads((DEMO / "scenes" / "scenes.json").read_text())
    pictures = []
    for name in truth:
        image = decode((DEMO / "scenes" / name).read_bytes(), ImageLimits())
        size = Size(height=image.height, width=image.width)
        pictures.append(to_canvas(image, place(geometry, size, geometry.nominal)))
    labels = np.array([THINGS.index(entry["class"]) for entry in truth.values()])
    found = score(bundle, Choice("onnxruntime", "fp32"), np.stack(pictures), labels)
    assert found.value == 1


def test_the_packaged_classifier_states_its_accuracy() -> None:
    bundle = load_bundle(DEMO / "repository" / "vit-scenes" / "1")
    bundle.verify()
    assert {(a.runtime, a.precision) for a in bundle.manifest.accuracy} >= {
        ("onnxruntime", "fp32"),
        ("openvino", "fp32"),
    }
    assert all(a.value >= 0.95 and a.images >= 2000 for a in bundle.manifest.accuracy)
