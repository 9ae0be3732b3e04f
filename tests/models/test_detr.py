"""DETR by itself: batches, padding, the shared mask head, attention rows, and its graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.to_onnx import save, trace
from models.detr import Detr, DetrConfig
from models.detr_masks import MaskHead
from models.resnet import ResNetConfig, fold_norms

CANVAS = (70, 95)
BACKBONE = ResNetConfig(depths=(1, 2, 1, 2), widths=(16, 32, 64, 128), stem_width=8)
SIZES = [CANVAS, (40, 61), (33, 17)]


def network(masks: bool = False, **options: Any) -> Detr:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "dim": 32,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "mlp_dim": 24,
        "queries": 7,
        "classes": 5,
    }
    model = Detr(DetrConfig(CANVAS, BACKBONE, masks=masks, **sizes | options)).eval()
    fold_norms(model)
    return model


def pictures(sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Noise on the valid part of the canvas and zeros beyond, with the sizes."""
    images = torch.zeros(len(sizes), 3, *CANVAS)
    generator = torch.Generator().manual_seed(1)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    return images, torch.tensor(sizes, dtype=torch.int32)


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def test_the_last_of_the_predictions_is_what_forward_gives() -> None:
    model, inputs = network(masks=True), pictures(SIZES)
    predictions = model.predictions(*inputs)
    assert [sorted(found) for found in predictions] == [
        ["boxes", "logits"],
        ["boxes", "logits"],
        ["boxes", "logits", "masks"],
    ]
    for name, tensor in model(*inputs).items():
        assert torch.equal(tensor, predictions[-1][name])
    assert not torch.equal(predictions[0]["logits"], predictions[1]["logits"])


@torch.no_grad()
def test_answers_do_not_depend_on_the_other_pictures_of_a_batch() -> None:
    model, (images, sizes) = network(masks=True), pictures(SIZES)
    together = model(images, sizes)
    for index in range(len(SIZES)):
        alone = model(images[index : index + 1], sizes[index : index + 1])
        for name, tensor in alone.items():
            assert relative_error(tensor[0], together[name][index]) <= 1e-5


@torch.no_grad()
def test_an_encoder_of_no_layers_hands_on_the_projected_features() -> None:
    model, inputs = network(encoder_layers=0), pictures(SIZES)
    found = model(*inputs)
    assert found["logits"].shape == (3, 7, 6)
    assert set(model.explain(*inputs, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2))) == {
        "decoder.0",
        "decoder.1",
        "decoder.2",
        "logits",
        "boxes",
        "chosen",
    }


def per_query(head: MaskHead, attention: Tensor, features: Tensor, maps: list[Tensor]) -> Tensor:
    """The mask (h, w) of one query, by convolving its features and attention side by side."""
    steps: list[Any] = list(zip(head.adapters, head.refine, reversed(maps), strict=True))
    first = torch.cat([head.from_features.weight, head.from_attention.weight], dim=1)
    x = torch.cat([features, attention], dim=0)[None]
    x = F.group_norm(F.conv2d(x, first, head.from_features.bias, padding=1), 8).relu()
    x = F.group_norm(head.narrow.conv(x), 8).relu()
    for adapter, refine, finer in steps:
        rows, columns = (
            torch.arange(side) * x.shape[2 + axis] // side
            for axis, side in enumerate(finer.shape[1:])
        )
        x = x[:, :, rows][:, :, :, columns] + adapter(finer[None])
        x = refine.conv(x)
        x = F.group_norm(x, min(8, x.shape[1])).relu()
    return head.out(x)[0, 0]


@torch.no_grad()
def test_shared_features_give_the_masks_of_queries_taken_one_by_one() -> None:
    torch.manual_seed(0)
    head = MaskHead(32, 8, (16, 32, 64)).eval()
    queries, memory = torch.randn(2, 5, 32), torch.randn(2, 12, 32)
    features = torch.randn(2, 32, 3, 4)
    maps = [torch.randn(2, 16, 20, 27), torch.randn(2, 32, 10, 14), torch.randn(2, 64, 5, 7)]
    bias = torch.zeros(2, 1, 1, 12)
    bias[1, :, :, 7:] = -1e4
    found = head(queries, memory, bias, features, maps)
    attention = head.attention(queries, memory, bias)
    assert found.shape == (2, 5, 20, 27)
    assert torch.allclose(attention.sum(dim=(2, 3)), torch.ones(2, 5), atol=1e-5)
    assert (attention[1, :, :, 7:] == 0).all()
    for image in range(2):
        for query in range(5):
            seen = attention[image, query].unflatten(-1, (3, 4))
            expected = per_query(head, seen, features[image], [each[image] for each in maps])
            assert relative_error(found[image, query], expected) <= 1e-5


@torch.no_grad()
def test_attention_rows_sum_to_one_and_never_leave_the_picture() -> None:
    model, (images, sizes) = network(), pictures(SIZES)
    rows = model.explain(images, sizes, torch.tensor([0, 3, 6]), torch.zeros(3, 2))
    named = [name for name in rows if "coder" in name]
    assert named == ["encoder.0", "encoder.1", "decoder.0", "decoder.1", "decoder.2"]
    for name in named:
        assert rows[name].shape == (3, 8, 9)
        assert torch.allclose(rows[name].sum(dim=-1), torch.ones(3, 8), atol=1e-5)
    used = [[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 3, 4], [0, 3]]  # cells of a 3 x 3 grid
    for image, cells in enumerate(used):
        beyond = [cell for cell in range(9) if cell not in cells]
        assert (rows["decoder.2"][image][:, beyond] == 0).all()
        assert (rows["encoder.1"][image][:, beyond] == 0).all()
        assert (rows["decoder.2"][image][:, cells] > 0).all()


@torch.no_grad()
def test_a_negative_query_is_the_one_that_is_surest_of_its_object() -> None:
    model, inputs = network(), pictures(SIZES)
    places = torch.zeros(3, 2)
    chosen = model.explain(*inputs, torch.tensor([-1, 2, -1]), places)
    logits = chosen["logits"]
    assert torch.equal(logits, model(*inputs)["logits"])
    surest = logits.softmax(dim=-1)[:, :, :5].amax(dim=-1).argmax(dim=-1)
    surest[1] = 2
    named = model.explain(*inputs, surest, places)
    for name, tensor in named.items():
        assert torch.equal(tensor, chosen[name])


@torch.no_grad()
@pytest.mark.parametrize(
    ("place", "cell"),
    [
        ((0, 0), 0),
        ((0, 0.34), 1),
        ((0, 0.33), 0),
        ((0.46, 0), 3),
        ((1, 1), 8),
        ((0.92, 0.66), 7),
        ((0.91, 0.68), 5),
    ],
)
def test_a_place_is_the_cell_of_32_pixels_that_contains_it(
    place: tuple[float, float], cell: int
) -> None:
    model, (images, sizes) = network(), pictures([CANVAS])
    found = model.explain(images, sizes, torch.tensor([0]), torch.tensor([place]))["encoder.0"]
    features = model.project(model.backbone(images)[-1]).flatten(2).transpose(1, 2)
    placed = features + model.positions(torch.tensor([[3, 3]]), (3, 3))
    attention: Any = model.encoder[0].attn
    matrix = attention.forward_with_weights(placed, placed, features)[1]
    assert relative_error(found, matrix[:, :, cell]) <= 1e-5


class Explaining(nn.Module):
    """``explain`` as a forward pass, for the exporter."""

    def __init__(self, model: Detr) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, sizes: Tensor, query: Tensor, place: Tensor
    ) -> dict[str, Tensor]:
        return self.model.explain(images, sizes, query, place)


@pytest.mark.parametrize("kind", ["masks", "explain"])
def test_graphs_equal_the_network_in_both_runtimes_at_any_batch(kind: str, tmp_path: Path) -> None:
    model = network(masks=kind == "masks")
    module = Explaining(model) if kind == "explain" else model
    images, sizes = pictures(SIZES)
    inputs = {"images": images, "sizes": sizes}
    if kind == "explain":
        inputs |= {
            "query": torch.tensor([-1, 3, 6]),
            "place": torch.tensor([[0.0, 0.0], [0.4, 0.5], [1.0, 0.3]]),
        }
    save({"model.onnx": trace(module, {name: t[:2] for name, t in inputs.items()})}, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", options)
    with torch.no_grad():
        expected = module(**inputs)
    for batch in (1, 3):
        feed = {name: tensor[:batch].numpy() for name, tensor in inputs.items()}
        answers = session.run(list(expected), feed), compiled(feed).to_tuple()
        for answer in answers:
            for found, tensor in zip(answer, expected.values(), strict=True):
                torch_found = torch.from_numpy(np.array(found))
                assert relative_error(torch_found, tensor[:batch]) <= 2e-5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": 7}, "width 256 does not divide into 7 heads"),
        (
            {"masks": True, "backbone": ResNetConfig(returned=(4,))},
            r"the mask head needs four maps; the backbone returns \(4,\)",
        ),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, Any], sentence: str) -> None:
    asked: dict[str, Any] = {"canvas": CANVAS, "backbone": ResNetConfig()} | options
    with pytest.raises(ValueError, match=sentence):
        DetrConfig(**asked)
