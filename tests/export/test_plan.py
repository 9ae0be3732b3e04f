"""What a network is asked for, and what is left out where nobody asks for it."""

import pytest
import torch

from export.heads import Detect, Entry, Segment
from export.plan import Wishes, labels_of, narrowed, segmentation_of, serving_head, tasks_of
from models.checkpoints import Loaded, load_model, open_checkpoint
from models.macs import count_macs, count_parameters
from service.bundle import Task
from service.geometry import Size
from tests.export.family_checkpoints import Written, write

CANVAS = Size(height=96, width=128)
ENTRY = Entry(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A DETR with masks."""
    return write("DetrForSegmentation", tmp_path_factory.mktemp("detr"))


def loaded(written: Written) -> Loaded:
    return load_model(open_checkpoint(str(written.folder)), (CANVAS.height, CANVAS.width))


def test_a_detr_that_is_to_detect_has_the_boxes_of_transformers_and_no_masks(
    written: Written,
) -> None:
    wishes = Wishes(tasks=["detect"])
    found = narrowed(loaded(written), wishes)
    assert tasks_of(found, wishes.tasks) == ["detect"]
    assert segmentation_of(found, wishes) is None
    assert {label.isthing for label in labels_of(found, wishes)} == {None}
    head = serving_head(found, ENTRY, CANVAS, wishes)
    assert isinstance(head, Detect)
    generator = torch.Generator().manual_seed(0)
    shape = (2, CANVAS.height, CANVAS.width, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        answer = head(images)
        theirs = written.model(pixel_values=ENTRY(images))
    assert set(answer) == {"scores", "classes", "boxes", "queries", "logits"}
    torch.testing.assert_close(answer["logits"], theirs.logits, rtol=1e-3, atol=1e-4)
    middle, extent = theirs.pred_boxes.split(2, dim=-1)
    corners = torch.cat([middle - extent / 2, middle + extent / 2], dim=-1)
    torch.testing.assert_close(answer["boxes"], corners, rtol=1e-3, atol=1e-4)


def test_what_the_masks_cost_is_not_counted_where_nobody_asks_for_them(written: Written) -> None:
    whole, boxes = loaded(written), narrowed(loaded(written), Wishes(tasks=["detect"]))
    sizes = (CANVAS.height, CANVAS.width)
    inputs = (torch.zeros(1, 3, *sizes), torch.tensor([sizes]))
    assert count_macs(boxes.model, *inputs) < count_macs(whole.model, *inputs)
    assert count_parameters(boxes.model) < count_parameters(whole.model)
    left = set(boxes.ignored) - set(whole.ignored)
    assert "mask_head.attention.q.weight" in left
    assert all(name.startswith("mask_head.") for name in left)


@pytest.mark.parametrize("tasks", [None, ["segment"], ["detect", "segment"]])
def test_a_detr_that_is_to_segment_keeps_its_masks(
    written: Written, tasks: list[Task] | None
) -> None:
    wishes = Wishes(tasks=tasks)
    found = narrowed(loaded(written), wishes)
    assert segmentation_of(found, wishes) is not None
    assert isinstance(serving_head(found, ENTRY, CANVAS, wishes), Segment)
