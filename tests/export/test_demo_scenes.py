"""The demo scenes and their truth."""

import io
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.demo.pool import SERVED_SIZES, cached_examples, draw_examples, scene
from export.demo.scenes import CLASSES, DOMINANCE, STUFF, THINGS, Scene, draw
from export.demo.shapes import Shape, shapes, stamp

SAMPLES = Path(__file__).parents[2] / "service/demo/scenes"
SIZES = [(64, 64), (64, 192), (128, 128), (180, 130), (240, 320)]


def some_scenes(count: int = 60) -> list[Scene]:
    return [draw(np.random.default_rng(seed), SIZES[seed % len(SIZES)]) for seed in range(count)]


def test_a_seed_leads_to_one_scene() -> None:
    first, again, other = (draw(np.random.default_rng(seed), (120, 160)) for seed in (5, 5, 6))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.ids.tobytes() == again.ids.tobytes()
    assert (first.segments, first.label) == (again.segments, again.label)
    assert first.image.tobytes() != other.image.tobytes()


def test_segments_partition_the_picture() -> None:
    for drawn in some_scenes():
        assert drawn.image.shape == (*drawn.ids.shape, 3)
        assert [segment.id for segment in drawn.segments] == np.unique(drawn.ids).tolist()
        assert drawn.segments[0].id == 1
        assert drawn.segments[-1].id == len(drawn.segments)
        assert sum(segment.area_px for segment in drawn.segments) == drawn.ids.size
        for segment in drawn.segments:
            assert segment.area_px == drawn.mask(segment).sum()


def test_things_and_stuff_are_told_apart_and_stuff_has_one_segment_per_class() -> None:
    assert not set(THINGS) & set(STUFF)
    assert CLASSES == THINGS + STUFF
    for drawn in some_scenes():
        stuff = [segment.label for segment in drawn.segments if not segment.isthing]
        assert set(stuff) <= set(STUFF)
        assert len(set(stuff)) == len(stuff) >= 1
        assert {thing.label for thing in drawn.objects} <= set(THINGS)


def test_boxes_touch_the_visible_pixels_on_all_sides() -> None:
    for drawn in some_scenes():
        for segment in drawn.segments:
            left, top, right, bottom = segment.box_xyxy_px
            mask = drawn.mask(segment)
            inside = mask[top:bottom, left:right]
            assert inside.sum() == mask.sum()
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_the_label_is_the_class_of_the_clearly_largest_thing() -> None:
    for drawn in some_scenes(120):
        largest, *others = sorted(drawn.objects, key=lambda thing: -thing.area_px)
        assert drawn.label == largest.label
        assert largest.area_px >= 0.03 * drawn.ids.size
        assert all(largest.area_px >= DOMINANCE * other.area_px for other in others)


def test_no_segment_is_degenerate() -> None:
    for drawn in some_scenes(120):
        for segment in drawn.segments:
            left, top, right, bottom = segment.box_xyxy_px
            assert segment.area_px >= 0.002 * drawn.ids.size
            assert min(right - left, bottom - top) >= 3


def test_labels_and_layouts_vary() -> None:
    drawn = some_scenes(150)
    assert {one.label for one in drawn} == set(THINGS)
    assert {segment.label for one in drawn for segment in one.segments} == set(CLASSES)
    assert {len(one.objects) for one in drawn} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("size", [(63, 100), (100, 301)])
def test_a_picture_too_small_or_too_long_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}"):
        draw(np.random.default_rng(0), size)


@pytest.mark.parametrize("shape", shapes(), ids=THINGS)
def test_a_stamp_covers_the_area_of_its_outline_at_any_angle(shape: Shape) -> None:
    for angle in (0.0, 0.4, 2.0):
        placed = stamp(shape, 60, angle, (1.0, 0.0), (200, 300))
        exact = shape.unit_area * 60**2
        assert placed.coverage.sum() == pytest.approx(exact, rel=0.03)
        assert placed.solid.sum() == pytest.approx(exact, rel=0.03)
        assert placed.top + placed.coverage.shape[0] == 200
        assert placed.left == 0


def test_the_ring_is_open_and_the_unit_shapes_fill_the_unit_circle() -> None:
    for shape in shapes():
        assert np.hypot(*shape.outlines[0].T).max() == pytest.approx(1)
        assert shape.unit_area <= math.pi
    ring = next(shape for shape in shapes() if shape.name == "ring")
    placed = stamp(ring, 30, 0, (0, 0), (100, 100))
    assert not placed.solid[placed.solid.shape[0] // 2, placed.solid.shape[1] // 2]


def test_splits_share_no_scene_and_files_decode_to_their_size() -> None:
    held_out, file = scene("held-out", 1)
    assert held_out.ids.shape == SERVED_SIZES[1]
    assert Image.open(io.BytesIO(file)).size == SERVED_SIZES[1][::-1]
    validation, _ = scene("validation", 1)
    assert validation.image.tobytes() != held_out.image.tobytes()


def test_examples_carry_the_label_and_every_segment_at_the_canvas() -> None:
    drawn_examples = draw_examples("train", (64, 96), 0, 3)
    assert drawn_examples.images.shape == (3, 64, 96, 3)
    assert len(drawn_examples) == 3
    for index in range(3):
        drawn, _ = scene("train", index)
        assert THINGS[drawn_examples.labels[index]] == drawn.label
        classes, ids = drawn_examples.classes[index], drawn_examples.ids[index]
        count = len(drawn.segments)
        assert [CLASSES[kind] for kind in classes[:count]] == [s.label for s in drawn.segments]
        assert (classes[count:] == -1).all()
        largest = max(drawn.objects, key=lambda thing: thing.area_px)
        assert drawn_examples.dominant[index] == largest.id
        for segment, box in zip(drawn.segments, drawn_examples.boxes[index], strict=False):
            mask = ids == segment.id
            assert mask.mean() == pytest.approx(segment.area_px / drawn.ids.size, abs=0.01)
            rows, columns = np.nonzero(mask)
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            inwards = np.array([1, 1, -1, -1]) * (around - box * [96, 64, 96, 64])
            assert inwards.min() > -1  # slivers of a few pixels may be lost, so that no more holds


def test_the_cache_draws_what_it_lacks_and_keeps_it(tmp_path: Path) -> None:
    first = cached_examples(tmp_path, "validation", 2, (64, 64), workers=1)
    file = tmp_path / "validation-64x64" / "000000.npz"
    written = file.stat().st_mtime_ns
    again = cached_examples(tmp_path, "validation", 3, (64, 64), workers=1)
    assert file.stat().st_mtime_ns == written
    assert (len(first), len(again)) == (2, 3)
    np.testing.assert_array_equal(again.images[:2], first.images)


def test_the_sample_scenes_of_the_package_are_what_their_seeds_draw() -> None:
    truth = json.loads((SAMPLES / "scenes.json").read_text())
    assert {entry["class"] for entry in truth.values()} == set(THINGS)
    assert {path.name for path in SAMPLES.glob("*.jpg")} == set(truth)
    for name, entry in truth.items():
        file = SAMPLES / name
        drawn = draw(np.random.default_rng(entry["seed"]), (entry["height"], entry["width"]))
        segments = [json.loads(json.dumps(asdict(segment))) for segment in drawn.segments]
        assert (entry["class"], entry["segments"]) == (drawn.label, segments)
        assert entry["boxes"] == [segment for segment in segments if segment["isthing"]]
        assert file.stat().st_size <= 60_000
        pixels = np.asarray(Image.open(file), dtype=np.float64)
        assert np.abs(pixels - drawn.image).mean() < 4
