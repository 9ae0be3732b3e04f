"""Mask2Former on small networks of lively random weights.

Masked attention has a hard threshold: a resized mask value that lies within rounding of zero could
fall on either side of it in another computation. ``lively`` networks and pictures below are such
that none does; ``nearest_to_threshold`` is asserted where it matters.
"""

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
from models.mask2former import Mask2Former, Mask2FormerConfig, MaskedDecoderLayer
from models.resnet import ResNetConfig
from models.swin import SwinConfig

SWIN = SwinConfig(
    (64, 96), dim=16, depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), window=4, always_pad=True
)
RESNET = ResNetConfig(depths=(1, 1, 1, 1), widths=(16, 16, 32, 64), stem_width=8)
TINY = Mask2FormerConfig(
    (64, 96),
    SWIN,
    classes=5,
    queries=6,
    dim=32,
    heads=4,
    encoder_layers=2,
    encoder_mlp_dim=40,
    decoder_layers=4,
    decoder_mlp_dim=48,
    groups=8,
)

SHALLOW = replace(TINY, encoder_layers=1, decoder_layers=3)


def lively(config: Mask2FormerConfig) -> Mask2Former:
    torch.set_num_threads(1)
    model, generator = Mask2Former(config), torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = offset + 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def pictures(batch: int, canvas: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randn(batch, 3, *canvas, generator=torch.Generator().manual_seed(batch))


def nearest_to_threshold(model: Mask2Former, images: Tensor) -> float:
    """The smallest resized mask value, as a share of the largest, before any decoder layer."""
    with torch.no_grad():
        stages = model.predictions(images)
    shares = []
    for stage, grid in zip(stages, model.layer_grids, strict=False):
        resized = F.interpolate(stage["masks"], size=grid, mode="bilinear").abs()
        shares.append((resized.min() / resized.max()).item())
    return min(shares)


def torch_attention(layer: MaskedDecoderLayer, name: str) -> nn.MultiheadAttention:
    ours = getattr(layer, name)
    attention = nn.MultiheadAttention(ours.q.in_features, ours.heads, batch_first=True).eval()
    state = {
        "in_proj_weight": torch.cat([part.weight for part in (ours.q, ours.k, ours.v)]),
        "in_proj_bias": torch.cat([part.bias for part in (ours.q, ours.k, ours.v)]),
        "out_proj.weight": ours.proj.weight,
        "out_proj.bias": ours.proj.bias,
    }
    attention.load_state_dict(state)
    return attention


def restated(model: Mask2Former, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Masks at every stage and cross-attention of every layer, as the paper has them: boolean
    masks and minus infinity in torch's own attention.
    """
    tokens, pixels = model.pixel_decoder(model.backbone(images))
    grids = model.pixel_decoder.grids
    positions = model.pixel_decoder.positions.split([tensor.shape[1] for tensor in tokens], dim=1)
    x = model.queries.expand(len(images), -1, -1)
    masks, matrices = [], []
    for index in range(len(model.layers) + 1):
        embeddings = model.mask_embed(model.norm(x))
        masks.append(torch.einsum("bqc,bchw->bqhw", embeddings, pixels))
        if index == len(model.layers):
            break
        layer: Any = model.layers[index]
        level = index % 3
        values = tokens[level] + model.level_embed[level]
        outside = F.interpolate(masks[-1], size=grids[level], mode="bilinear").sigmoid() < 0.5
        outside = outside.flatten(2)
        outside[outside.all(dim=-1)] = False
        attended, weights = torch_attention(layer, "cross_attn")(
            x + model.query_positions,
            values + positions[level],
            values,
            attn_mask=outside.repeat_interleave(model.config.heads, dim=0),
            average_attn_weights=False,
        )
        matrices.append(weights)
        x = layer.norm1(x + attended)
        places = x + model.query_positions
        x = layer.norm2(x + torch_attention(layer, "self_attn")(places, places, x)[0])
        x = layer.norm3(x + layer.mlp(x))
    return masks, matrices


@pytest.mark.parametrize("backbone", [SWIN, RESNET], ids=["swin", "resnet"])
def test_every_stage_is_what_the_paper_defines(backbone: SwinConfig | ResNetConfig) -> None:
    model, images = lively(replace(TINY, backbone=backbone)), pictures(3)
    assert nearest_to_threshold(model, images) > 1e-5
    with torch.no_grad():
        masks, matrices = restated(model, images)
        found = model.predictions(images)
        explained = model.explain(images, torch.tensor([0, 5, 2]))
    assert len(found) == 5
    for stage, expected in zip(found, masks, strict=True):
        torch.testing.assert_close(stage["masks"], expected, rtol=0, atol=1e-4)
    for index, expected in enumerate(matrices):
        rows = torch.stack([expected[0, :, 0], expected[1, :, 5], expected[2, :, 2]])
        torch.testing.assert_close(explained[f"decoder.{index}"], rows, rtol=0, atol=1e-5)
    for index, expected in enumerate(masks):
        rows = torch.stack([expected[0, 0], expected[1, 5], expected[2, 2]]).flatten(1).sigmoid()
        torch.testing.assert_close(explained[f"mask.{index}"], rows, rtol=0, atol=1e-5)
    assert any((weights == 0).any() for weights in matrices)  # some mask did hide something


def test_a_query_looks_only_within_its_mask() -> None:
    model, images = lively(TINY), pictures(1)
    hidden = 0
    for query in range(6):
        with torch.no_grad():
            explained = model.explain(images, torch.tensor([query]))
            stages = model.predictions(images)
        for index, grid in enumerate(model.layer_grids):
            masks = F.interpolate(stages[index]["masks"], size=grid, mode="bilinear").flatten(2)
            mask, weights = masks[0, query], explained[f"decoder.{index}"][0]
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4), rtol=0, atol=1e-5)
            if (mask >= 0).any():
                assert (weights[:, mask < 0] == 0).all()
                hidden += int((mask < 0).sum())
    assert hidden > 20


def test_a_query_without_a_mask_looks_everywhere() -> None:
    model, images = lively(TINY), pictures(1)
    with torch.no_grad():
        last: Any = model.mask_embed.layers[2]
        pixels: Any = model.pixel_decoder.mask_features
        for layer, bias in ((last, -1.0), (pixels, 1.0)):
            layer.weight.zero_()
            layer.bias.fill_(bias)
        explained = model.explain(images, torch.tensor([3]))
    assert (explained["masks"] == -32).all()
    assert all((explained[f"decoder.{index}"] > 0).all() for index in range(4))


def test_layers_look_at_the_coarsest_level_first_and_at_each_in_turn() -> None:
    model = lively(TINY)
    assert model.layer_grids == [(2, 3), (4, 6), (8, 12), (2, 3)]
    with torch.no_grad():
        explained = model.explain(pictures(1), torch.tensor([0]))
    shapes = {name: tuple(tensor.shape) for name, tensor in explained.items()}
    assert shapes == {
        "logits": (1, 6, 6),
        "masks": (1, 6, 16, 24),
        "chosen": (1,),
        "decoder.0": (1, 4, 6),
        "decoder.1": (1, 4, 24),
        "decoder.2": (1, 4, 96),
        "decoder.3": (1, 4, 6),
        **{f"mask.{index}": (1, 384) for index in range(5)},
    }


def test_the_query_minus_one_is_the_surest_of_an_object() -> None:
    model, images = lively(TINY), pictures(3)
    with torch.no_grad():
        logits = model(images)["logits"]
        surest = logits.softmax(dim=-1)[:, :, :5].amax(dim=-1).argmax(dim=-1)
        found = model.explain(images, torch.tensor([-1, 2, -1]))
        expected = model.explain(images, torch.tensor([surest[0], 2, surest[2]]))
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_last_prediction_is_the_answer() -> None:
    model, images = lively(TINY), pictures(2)
    with torch.no_grad():
        answer, predictions = model(images), model.predictions(images)
    assert {name: tuple(tensor.shape) for name, tensor in answer.items()} == {
        "logits": (2, 6, 6),
        "masks": (2, 6, 16, 24),
    }
    assert all(torch.equal(answer[name], predictions[-1][name]) for name in answer)


def test_a_finer_backbone_gives_finer_masks() -> None:
    model = lively(replace(TINY, backbone=replace(SWIN, patch_size=2)))
    assert model.pixel_decoder.grids == ((4, 6), (8, 12), (16, 24))
    with torch.no_grad():
        assert model(pictures(1))["masks"].shape == (1, 6, 32, 48)


def test_a_backbone_of_five_levels_takes_two_steps_to_the_finest() -> None:
    deeper = replace(SWIN, patch_size=2, depths=(1, 1, 1, 1, 1), heads=(1, 2, 2, 4, 4))
    model = lively(replace(TINY, backbone=deeper))
    assert len(model.pixel_decoder.steps) == 2
    with torch.no_grad():
        assert model(pictures(1))["masks"].shape == (1, 6, 32, 48)


def test_a_picture_gets_the_same_answer_alone_and_in_a_batch() -> None:
    model, images = lively(TINY), pictures(3)
    with torch.no_grad():
        together = model(images)
        for index in range(3):
            alone = model(images[index : index + 1])
            for name, tensor in alone.items():
                torch.testing.assert_close(tensor[0], together[name][index], rtol=0, atol=1e-4)


def test_both_forms_of_sampling_give_the_same_masks() -> None:
    by_grid_sample = lively(TINY)
    by_gather = lively(replace(TINY, sampling="gather"))
    by_gather.load_state_dict(by_grid_sample.state_dict())
    with torch.no_grad():
        expected, found = by_grid_sample(pictures(2)), by_gather(pictures(2))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)


def test_every_parameter_learns_from_the_predictions() -> None:
    model = Mask2Former(TINY)
    predictions = model.predictions(pictures(2))
    loss = torch.stack([each[name].square().mean() for each in predictions for name in each]).sum()
    loss.backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 36 does not divide into 4 heads and 8 groups"):
        replace(TINY, dim=36)


class Explaining(nn.Module):
    """``explain`` as a module of its own, to be exported."""

    def __init__(self, model: Mask2Former) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, query: Tensor) -> dict[str, Tensor]:
        return self.model.explain(images, query)


@pytest.mark.parametrize(
    "config",
    [
        SHALLOW,
        replace(SHALLOW, backbone=RESNET, sampling="gather"),
        replace(SHALLOW, canvas=(75, 101)),
    ],
    ids=["swin", "resnet, gather", "odd canvas"],
)
def test_exported_graphs_answer_as_torch_does(config: Mask2FormerConfig, tmp_path: Path) -> None:
    model = lively(config)
    images, query = pictures(3, config.canvas), torch.tensor([-1, 0, 5])
    assert nearest_to_threshold(model, images) > 1e-5
    inputs = {"images": images, "query": query}
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
