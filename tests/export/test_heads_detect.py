"""Boxes in the graph, against loops, transformers and ONNX Runtime."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from transformers.models.deformable_detr.image_processing_pil_deformable_detr import (
    DeformableDetrImageProcessorPil,
)
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from export.heads import Activation, Boxes, Detect, Entry
from export.to_onnx import save, trace


def raw(queries: int = 50, outputs: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, queries, outputs, generator=generator) * 3
    return logits, torch.rand(2, queries, 4, generator=generator)


def test_softmax_gives_one_row_for_every_query() -> None:
    logits, boxes = raw()
    found = Boxes("softmax")(logits, boxes)
    for picture in range(2):
        for query in range(50):
            powers = np.exp(logits[picture, query].double().numpy())
            best = int(powers[:-1].argmax())
            assert found["classes"][picture, query] == best
            assert found["queries"][picture, query] == query
            score = float(found["scores"][picture, query])
            assert score == pytest.approx(powers[best] / powers.sum(), abs=1e-6)
            x, y, width, height = boxes[picture, query].tolist()
            corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            assert found["boxes"][picture, query].tolist() == pytest.approx(corners, abs=1e-6)


def test_sigmoid_gives_the_hundred_best_pairs_of_query_and_class() -> None:
    logits, boxes = raw()
    found = Boxes("sigmoid")(logits, boxes)
    corners = Boxes("softmax")(logits, boxes)["boxes"]
    assert found["scores"].shape == (2, 100)
    assert found["classes"].dtype == found["queries"].dtype == torch.int32
    for picture in range(2):
        pairs = [
            (1 / (1 + np.exp(-logits[picture, query, index].item())), query, index)
            for query in range(50)
            for index in range(6)
        ]
        for place, (score, query, index) in enumerate(sorted(pairs, reverse=True)[:100]):
            assert float(found["scores"][picture, place]) == pytest.approx(score, abs=1e-6)
            assert found["queries"][picture, place] == query
            assert found["classes"][picture, place] == index
            assert torch.equal(found["boxes"][picture, place], corners[picture, query])


def test_fewer_pairs_than_a_hundred_are_all_given() -> None:
    logits, boxes = raw(queries=3)
    assert Boxes("sigmoid")(logits, boxes)["scores"].shape == (2, 18)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_rows_above_the_threshold_are_those_of_transformers(activation: Activation) -> None:
    logits, boxes = raw()
    softmax = activation == "softmax"
    processor = DetrImageProcessorPil() if softmax else DeformableDetrImageProcessorPil()
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    expected = processor.post_process_object_detection(outputs, threshold=0.6)
    found = Boxes(activation)(logits, boxes)
    for picture, theirs in enumerate(expected):
        kept = found["scores"][picture] > 0.6
        assert 5 < kept.sum() < 50 or not softmax
        for ours, name in (("scores", "scores"), ("boxes", "boxes"), ("classes", "labels")):
            torch.testing.assert_close(found[ours][picture][kept], theirs[name], check_dtype=False)


class Corners(nn.Module):
    """Logits and boxes that depend on the picture and on its size."""

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        logits = images[:, :, 0, :4].transpose(1, 2) * 2  # (B, 4, 3)
        logits = logits + torch.arange(12).view(4, 3) * 0.0137  # so that no two are equal
        shares = sizes.float() / 16
        boxes = torch.cat([shares, shares / 2], dim=1)[:, None].expand(-1, 4, -1)
        return {"logits": logits, "boxes": boxes}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_detector_gives_the_same_in_onnx_runtime(
    activation: Activation, padded: bool, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(4)
    given = {"images": torch.randint(0, 256, (3, 8, 16, 3), generator=generator, dtype=torch.uint8)}
    if padded:
        given["sizes"] = torch.tensor([[8, 16], [4, 2], [8, 3]], dtype=torch.int32)
    head = Detect(Entry(1 / 255, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)), Corners(), activation).eval()
    expected = head(**given)
    assert list(expected) == ["scores", "classes", "boxes", "queries", "logits"]
    # Centre x 8/16 and width half of that: whole canvases where there is no size.
    size = [8.0, 16.0] if not padded else [4.0, 2.0]
    wanted = [size[0] / 16 - size[0] / 64, size[1] / 16 - size[1] / 64]
    assert expected["boxes"][1, 0, :2].tolist() == pytest.approx(wanted)
    save({"model.onnx": trace(head, given)}, tmp_path)
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    values = session.run(None, {name: value.numpy() for name, value in given.items()})
    for name, value in zip(expected, values, strict=True):
        assert value.dtype == expected[name].numpy().dtype
        np.testing.assert_allclose(value, expected[name].numpy(), atol=1e-5)
