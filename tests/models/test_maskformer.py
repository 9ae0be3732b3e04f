"""MaskFormer on small networks of lively random weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import openvino
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.to_onnx import trace
from models.maskformer import MaskFormer, MaskFormerConfig
from models.resnet import ResNetConfig
from models.swin import SwinConfig

SWIN = SwinConfig(
    (64, 96), dim=16, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=4, always_pad=True
)
RESNET = ResNetConfig(depths=(1, 1, 1, 1), widths=(16, 16, 32, 64), stem_width=8)
TINY = MaskFormerConfig(
    (64, 96), SWIN, classes=5, queries=6, dim=32, heads=4, decoder_layers=3, mlp_dim=48, groups=8
)
ENCODED = replace(TINY, backbone=RESNET, encoder_layers=2)


def lively(config: MaskFormerConfig) -> Any:
    torch.set_num_threads(1)
    model, generator = MaskFormer(config), torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = offset + 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def pictures(batch: int, canvas: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randn(batch, 3, *canvas, generator=torch.Generator().manual_seed(batch))


def torch_layer(ours: Any, kind: type[Any], places: tuple[str, ...]) -> Any:
    """torch's own transformer layer, here without dropout, with our weights."""
    layer = kind(32, 4, 48, dropout=0.0, batch_first=True).eval()
    state = dict(zip(("linear1", "linear2"), ours.mlp.layers, strict=True))
    state |= {f"norm{index}": getattr(ours, f"norm{index}") for index in range(1, len(places) + 2)}
    for name, module in state.items():
        getattr(layer, name).load_state_dict(module.state_dict())
    for name, place in zip(("self_attn", "multihead_attn"), places, strict=False):
        attention = getattr(ours, place)
        parts = (attention.q, attention.k, attention.v)
        getattr(layer, name).load_state_dict(
            {
                "in_proj_weight": torch.cat([part.weight for part in parts]),
                "in_proj_bias": torch.cat([part.bias for part in parts]),
                "out_proj.weight": attention.proj.weight,
                "out_proj.bias": attention.proj.bias,
            }
        )
    return layer


def test_without_positions_the_layers_are_torchs_own() -> None:
    model = lively(ENCODED)
    with torch.no_grad():
        model.queries.zero_()
        model.positions.zero_()
        values = model.project(model.backbone(pictures(2))[-1]).flatten(2).transpose(1, 2)
        for layer in model.encoder:
            values = torch_layer(layer, nn.TransformerEncoderLayer, ("attn",))(values)
        x = torch.zeros(2, 6, 32)
        for layer in model.layers:
            decoder = torch_layer(layer, nn.TransformerDecoderLayer, ("self_attn", "cross_attn"))
            x = decoder(x, values)
        logits = model.classify(model.norm(x))
        torch.testing.assert_close(model(pictures(2))["logits"], logits, rtol=0, atol=1e-4)


def test_positions_are_added_to_keys_and_queries_alone() -> None:
    model, images = lively(TINY), pictures(2)
    with torch.no_grad():
        values = model.project(model.backbone(images)[-1]).flatten(2).transpose(1, 2)
        keys = values + model.positions
        x = torch.zeros(2, 6, 32)
        for layer in model.layers:
            placed = x + model.queries
            x = layer.norm1(x + layer.self_attn(placed, placed, x))
            x = layer.norm2(x + layer.cross_attn(x + model.queries, keys, values))
            x = layer.norm3(x + layer.mlp(x))
        logits = model.classify(model.norm(x))
        torch.testing.assert_close(model(images)["logits"], logits, rtol=0, atol=1e-4)


def test_masks_are_the_products_of_queries_and_pixels() -> None:
    model, images = lively(TINY), pictures(2)
    kept: dict[str, Tensor] = {}
    model.mask_embed.register_forward_hook(lambda _, __, out: kept.update(queries=out))
    model.pixel_decoder.register_forward_hook(lambda _, __, out: kept.update(pixels=out))
    with torch.no_grad():
        masks = model(images)["masks"]
    assert kept["pixels"].shape == (2, 32, 16, 24)
    expected = torch.einsum("bqc,bchw->bqhw", kept["queries"], kept["pixels"])
    torch.testing.assert_close(masks, expected, rtol=0, atol=1e-4)


def test_a_coarser_map_is_enlarged_by_repeating_its_cells() -> None:
    step: Any = lively(TINY).pixel_decoder.steps[0]
    finer, coarser = torch.randn(1, 64, 4, 6), torch.randn(1, 32, 2, 3)
    repeated = coarser.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    with torch.no_grad():
        joined = step.lateral_norm(step.lateral(finer)) + repeated
        expected = F.relu(step.smooth_norm(step.smooth(joined)))
        torch.testing.assert_close(step(finer, coarser), expected, rtol=0, atol=1e-5)


def test_the_last_prediction_is_the_answer() -> None:
    model, images = lively(TINY), pictures(2)
    with torch.no_grad():
        answer, predictions = model(images), model.predictions(images)
    assert len(predictions) == 3
    assert {name: tuple(tensor.shape) for name, tensor in answer.items()} == {
        "logits": (2, 6, 6),
        "masks": (2, 6, 16, 24),
    }
    assert all(torch.equal(answer[name], predictions[-1][name]) for name in answer)


def test_the_query_minus_one_is_the_surest_of_an_object() -> None:
    model, images = lively(TINY), pictures(3)
    with torch.no_grad():
        logits = model(images)["logits"]
        surest = logits.softmax(dim=-1)[:, :, :5].amax(dim=-1).argmax(dim=-1)
        found = model.explain(images, torch.tensor([-1, 2, -1]))
        expected = model.explain(images, torch.tensor([surest[0], 2, surest[2]]))
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert found["decoder.2"].shape == (3, 4, 6)
    torch.testing.assert_close(found["decoder.2"].sum(dim=-1), torch.ones(3, 4))


def test_an_encoder_works_on_the_coarsest_map() -> None:
    model = lively(ENCODED)
    assert model.pixel_decoder.stem.in_channels == 32
    assert lively(replace(ENCODED, encoder_layers=0)).pixel_decoder.stem.in_channels == 64
    with torch.no_grad():
        answer = model(pictures(1))
        model.encoder[0].mlp.layers[1].bias[0] += 5
        changed = model(pictures(1))
    for name in ("logits", "masks"):
        assert (changed[name] - answer[name]).abs().mean() > 0.01


@pytest.mark.parametrize("config", [TINY, ENCODED], ids=["swin", "resnet, encoder"])
def test_a_picture_gets_the_same_answer_alone_and_in_a_batch(config: MaskFormerConfig) -> None:
    model, images = lively(config), pictures(3)
    with torch.no_grad():
        together = model(images)
        for index in range(3):
            alone = model(images[index : index + 1])
            for name, tensor in alone.items():
                torch.testing.assert_close(tensor[0], together[name][index], rtol=0, atol=1e-4)


def test_every_parameter_learns_from_the_predictions() -> None:
    model = MaskFormer(ENCODED)
    predictions = model.predictions(pictures(2))
    loss = torch.stack([each[name].square().mean() for each in predictions for name in each]).sum()
    loss.backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 36 does not divide into 4 heads and 8 groups"):
        replace(TINY, dim=36)


class Explaining(nn.Module):
    """``explain`` as a module of its own, to be exported."""

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, query: Tensor) -> dict[str, Tensor]:
        return self.model.explain(images, query)


@pytest.mark.parametrize(
    "config", [replace(TINY, canvas=(75, 101)), ENCODED], ids=["swin, odd canvas", "encoder"]
)
def test_exported_graphs_answer_as_torch_does(config: MaskFormerConfig, tmp_path: Path) -> None:
    model = lively(config)
    inputs = {"images": pictures(3, config.canvas), "query": torch.tensor([-1, 0, 5])}
    with torch.no_grad():
        expected = model.explain(**inputs)
    example = {"images": pictures(2, config.canvas), "query": torch.tensor([0, 1])}
    path = tmp_path / "explain.onnx"
    ir.save(trace(Explaining(model), example), path)
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for name, found in zip(expected, session.run(list(expected), feeds), strict=True):
        np.testing.assert_allclose(found, expected[name].numpy(), rtol=0, atol=1e-3, err_msg=name)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = compiled(feeds)
    for name, tensor in expected.items():
        np.testing.assert_allclose(answers[name], tensor.numpy(), rtol=0, atol=1e-3, err_msg=name)
