"""Segments, instances and classes merged in the graph, against loops over queries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.heads import Entry, Merge, Segment
from export.to_onnx import save, trace
from service.bundle import Mode, Profile, Rule
from service.worker.runtimes.base import Runtime
from service.worker.runtimes.onnx import OnnxRuntime
from service.worker.runtimes.openvino import OpenVino
from tests.export import naive_merging as naive
from tests.export.mask_cases import KINDS, Case, draw

ALL: list[tuple[Rule, Profile]] = [
    ("detr", "reference"),
    ("maskformer", "reference"),
    ("mask2former", "reference"),
    ("detr", "hf"),
    ("maskformer", "hf"),
    ("mask2former", "hf"),
]
MODES: tuple[Mode, ...] = ("panoptic", "instance", "semantic")
STRIDE = 4
Found = dict[str, NDArray[Any]]


def cases(count: int) -> list[tuple[Case, tuple[int, int]]]:
    """With the rows and columns of the grid that show the picture."""
    rng = np.random.default_rng(3)
    found = []
    for index in range(count):
        case = draw(rng, KINDS[index % len(KINDS)])
        rows, columns = (int(rng.integers(2, side + 1)) for side in case.masks.shape[1:])
        found.append((case, (rows, columns)))
    return found


def merge(
    rule: Rule, profile: Profile, case: Case, seen: tuple[int, int], modes: tuple[Mode, ...] = MODES
) -> Found:
    """The head's outputs for a picture that ends inside the last of the ``seen`` cells."""
    grid = case.masks.shape[1:]
    head = Merge(rule, profile, modes, case.things, (grid[0] * STRIDE, grid[1] * STRIDE))
    sizes = torch.tensor([[side * STRIDE - 3 for side in seen]], dtype=torch.int32)
    thresholds = torch.tensor([0.4]), torch.tensor([0.37])
    logits, masks = torch.from_numpy(case.logits)[None], torch.from_numpy(case.masks)[None]
    with torch.no_grad():
        outputs = head(logits, masks, *thresholds, sizes)
    return {name: value[0].numpy() for name, value in outputs.items()}


def segments_of(rule: Rule, profile: Profile, case: Case, masks: NDArray[Any]) -> naive.Answer:
    if (rule, profile) == ("detr", "reference"):
        return naive.detr_panoptic(case.logits, masks, case.things, 0.4, 4 / STRIDE**2)
    return naive.panoptic(rule, profile, case.logits, naive.sigmoid(masks), case.things, 0.4, 0.37)


def instances_of(rule: Rule, profile: Profile, case: Case, masks: NDArray[Any]) -> list[naive.Row]:
    if (rule, profile) == ("detr", "reference"):
        return naive.best_classes(case.logits, masks, 0.4)
    if rule == "detr":
        answer = segments_of(rule, profile, case, masks)
        scores = naive.softmax(case.logits).max(axis=1)
        return [
            naive.Row(query, index, float(scores[query]), answer.map == query + 1)
            for query, index in answer.classes.items()
        ]
    if profile == "reference":
        return naive.best_pairs(case.logits, masks, list(case.things), 0.4, 100)
    allowed = [True] * len(case.things)
    rows = naive.best_pairs(case.logits, masks, allowed, 0.4, len(case.logits))
    return naive.drawn_over(rows)


@pytest.mark.parametrize(("rule", "profile"), ALL)
def test_segments_are_those_of_the_loops(rule: Rule, profile: Profile) -> None:
    cells = wrong = segments = 0
    for case, (rows, columns) in cases(108):
        found = merge(rule, profile, case, (rows, columns), ("panoptic",))
        expected = segments_of(rule, profile, case, case.masks[:, :rows, :columns])
        classes = found["panoptic_classes"]
        assert {query: classes[query] for query in np.flatnonzero(classes >= 0)} == (
            expected.classes
        )
        seen = found["panoptic_map"][:rows, :columns]
        cells += seen.size
        wrong += int((seen != expected.map).sum())
        segments += len(expected.classes)
        assert found["panoptic_map"].sum() == seen.sum()
    assert segments > 150
    assert wrong / cells < 1e-4


@pytest.mark.parametrize(("rule", "profile"), ALL)
def test_instances_are_those_of_the_loops(rule: Rule, profile: Profile) -> None:
    rows_seen = 0
    for case, (rows, columns) in cases(54):
        if case.kind == "tie":  # which of two equal rows comes first is the runtime's choice
            continue
        found = merge(rule, profile, case, (rows, columns))
        expected = instances_of(rule, profile, case, case.masks[:, :rows, :columns])
        places = np.flatnonzero(found["instance_classes"] >= 0)
        assert [
            (int(found["instance_queries"][place]), int(found["instance_classes"][place]))
            for place in places
        ] == [(row.query, row.index) for row in expected]
        for place, row in zip(places, expected, strict=True):
            assert found["instance_scores"][place] == pytest.approx(row.score, abs=1e-5)
            mask = found["instance_masks"][place]
            assert np.array_equal(mask[:rows, :columns], row.mask)
            assert mask.sum() == row.mask.sum()
        rows_seen += len(expected)
    assert rows_seen > 50


@pytest.mark.parametrize(("rule", "profile"), ALL)
def test_the_semantic_map_is_that_of_the_loops_and_void_beyond(
    rule: Rule, profile: Profile
) -> None:
    for case, (rows, columns) in cases(18):
        found = merge(rule, profile, case, (rows, columns), ("semantic",))
        assert list(found) == ["semantic_map"]
        expected = naive.semantic(case.logits, case.masks[:, :rows, :columns])
        seen = found["semantic_map"][:rows, :columns]
        assert (seen != expected).mean() <= (0.01 if case.kind == "tie" else 0.001)
        assert (found["semantic_map"] >= 0).sum() == seen.size


def test_a_segment_that_the_first_round_credits_with_a_duplicate_is_dropped_in_the_second() -> None:
    # Stuff twice: the first has a cell of its own, the second all the others but one thing's.
    logits = torch.full((1, 3, 4), -9.0)
    for query, index in enumerate((2, 2, 0)):
        logits[0, query, index] = 9.0
    masks = torch.zeros(1, 3, 4, 4)
    masks[0, 0, 0, 0] = masks[0, 1, 1:] = masks[0, 2, 0, 1:] = 5.0
    masks[0, 0, 1:], masks[0, 2, 1:] = -2.0, -1.0
    head = Merge("detr", "reference", ["panoptic"], [True, True, False], (8, 8))
    found = head(logits, masks, torch.tensor([0.5]), torch.tensor([0.0]))
    # Its share of one cell is four pixels, no more than DETR drops; the thing gets everything.
    assert found["panoptic_classes"].tolist() == [[-1, -1, 0]]
    assert found["panoptic_map"].unique().tolist() == [3]


def test_the_head_gives_what_the_modes_ask_for_alone() -> None:
    case = draw(np.random.default_rng(0), "smooth")
    seen = case.masks.shape[1], case.masks.shape[2]
    assert list(merge("mask2former", "hf", case, seen, ("instance",))) == [
        "instance_masks",
        "instance_classes",
        "instance_scores",
        "instance_queries",
    ]
    # Without a panoptic mode the authors keep instances of stuff too.
    alone = merge("mask2former", "reference", case, seen, ("instance",))["instance_classes"]
    both = merge("mask2former", "reference", case, seen)["instance_classes"]
    stuff = case.things.index(False)
    assert (alone >= stuff).any()
    assert not (both >= stuff).any()


class Blobs(nn.Module):
    """Masks and boxes that follow the picture: enough of a network to export."""

    def __init__(self, queries: int = 7, classes: int = 6) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.queries = queries
        self.masks = nn.Conv2d(3, queries, 4, 4)
        self.logits = nn.Linear(3, queries * (classes + 1))

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        logits = self.logits(images.mean(dim=(2, 3))).unflatten(1, (self.queries, -1)) * 6
        boxes = logits[..., :4].sigmoid() * sizes[:, None, :1] / sizes[:, None, :1]
        return {"logits": logits, "masks": self.masks(images) * 4, "boxes": boxes}


@pytest.fixture(scope="module", params=ALL, ids="-".join)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Segment, Path]:
    rule, profile = request.param
    things = [True] * 3 + [False] * 3
    entry = Entry(1 / 255, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    head = Segment(entry, Blobs(), Merge(rule, profile, MODES, things, (32, 40)), True).eval()
    folder = tmp_path_factory.mktemp(f"{rule}-{profile}")
    save({"model.onnx": trace(head, inputs())}, folder)
    return head, folder / "model.onnx"


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (3, 32, 40, 3), generator=generator, dtype=torch.uint8)
    images[1] //= 2
    return {
        "images": images,
        "threshold": torch.tensor([0.2, 0.3, 0.05]),
        "overlap_threshold": torch.tensor([0.1, 0.5, 0.3]),
        "sizes": torch.tensor([[32, 40], [17, 40], [30, 9]], dtype=torch.int32),
    }


def run(runtime: type[Runtime], path: Path, given: dict[str, Tensor]) -> Found:
    opened: Runtime = runtime(path, threads=1)  # type: ignore[call-arg]
    return opened.run({name: value.numpy() for name, value in given.items()})


@pytest.mark.parametrize("runtime", [OnnxRuntime, OpenVino])
def test_runtimes_give_what_torch_gives(
    exported: tuple[Segment, Path], runtime: type[Runtime]
) -> None:
    head, path = exported
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in head(**inputs()).items()}
    found = run(runtime, path, inputs())
    assert found.keys() == expected.keys()
    assert (expected["panoptic_classes"] >= 0).any(axis=1).all()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        if value.dtype == np.float32:
            np.testing.assert_allclose(found[name], value, atol=1e-4)
        else:
            assert np.array_equal(found[name], value), name


def test_a_batch_of_mixed_thresholds_and_sizes_equals_one_by_one(
    exported: tuple[Segment, Path],
) -> None:
    together = run(OnnxRuntime, exported[1], inputs())
    for index in range(3):
        alone = {name: value[index : index + 1] for name, value in inputs().items()}
        for name, value in run(OnnxRuntime, exported[1], alone).items():
            if value.dtype == np.float32:
                np.testing.assert_allclose(value[0], together[name][index], atol=1e-5)
            else:
                assert np.array_equal(value[0], together[name][index]), name
