"""A MaskFormer of random weights saved by transformers and loaded by us gives its numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoints import CheckpointError, Loaded, load_model, open_checkpoint
from models.maskformer import MaskFormer
from models.resnet import ResNetConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 4}
RESNET = {"hidden_sizes": [16, 16, 32, 64], "embedding_size": 8, "depths": [1, 2, 1, 1]}
DECODER = {
    "d_model": 32,
    "encoder_layers": 0,
    "decoder_layers": 6,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "num_queries": 7,
}
WIDE, TALL, ODD = (64, 96), (96, 32), (75, 101)


def reference(backbone: str, **options: Any) -> Any:
    """transformers' model with every parameter and statistic drawn far from its initial value."""
    torch.set_num_threads(1)
    if backbone == "swin":
        inner = transformers.SwinConfig(**SWIN, out_features=STAGES)
    else:
        inner = transformers.ResNetConfig(**RESNET, out_features=STAGES)
    config = transformers.MaskFormerConfig(
        backbone_config=inner,
        decoder_config=transformers.DetrConfig(**DECODER),
        fpn_feature_size=32,
        mask_feature_size=32,
        attn_implementation="eager",
        **{"num_labels": 5} | options,
    )
    model = transformers.MaskFormerForInstanceSegmentation(config)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        drawn = 0.2 * torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.data = 1 + drawn.abs()
        elif tensor.is_floating_point():
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            tensor.data = offset + drawn
    return model.eval()


def load(folder: Path, canvas: tuple[int, int] = WIDE) -> Loaded:
    return load_model(open_checkpoint(str(folder)), canvas)


def pictures(batch: int, canvas: tuple[int, int]) -> Tensor:
    return torch.randn(batch, 3, *canvas, generator=torch.Generator().manual_seed(batch))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("original_names", [True, False], ids=["published names", "names of 5"])
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_predictions_equal_transformers_at_every_canvas_and_batch(
    backbone: str, original_names: bool, tmp_path: Path
) -> None:
    theirs = reference(backbone)
    theirs.save_pretrained(tmp_path, save_original_format=original_names)
    for canvas in (WIDE, TALL, ODD):
        ours: Any = load(tmp_path, canvas).model
        for batch in (1, 3):
            images = pictures(batch, canvas)
            with torch.no_grad():
                found = ours(images)
                expected = theirs(images)
            assert relative_error(found["masks"], expected.masks_queries_logits) <= 1e-4
            assert relative_error(found["logits"], expected.class_queries_logits) <= 1e-4


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_predictions_of_every_layer_are_those_of_its_normed_states(
    backbone: str, tmp_path: Path
) -> None:
    """As the authors have it: transformers leaves the norm out of its auxiliary predictions."""
    theirs = reference(backbone)
    theirs.save_pretrained(tmp_path)
    images = pictures(2, TALL)
    ours: Any = load(tmp_path, TALL).model
    with torch.no_grad():
        found = ours.predictions(images)
        answer = theirs(images, output_hidden_states=True)
        pixels = answer.pixel_decoder_last_hidden_state
        *states, last = answer.transformer_decoder_hidden_states[1:]
        norm = theirs.model.transformer_module.decoder.layernorm
        assert len(found) == len(states) + 1 == 6
        for stage, state in zip(found, [*map(norm, states), last], strict=True):
            masks = torch.einsum("bqc,bchw->bqhw", theirs.mask_embedder(state), pixels)
            assert relative_error(stage["masks"], masks) <= 1e-4
            assert relative_error(stage["logits"], theirs.class_predictor(state)) <= 1e-4


def test_where_queries_look_equals_transformers(tmp_path: Path) -> None:
    theirs = reference("swin")
    theirs.save_pretrained(tmp_path)
    kept: list[Tensor] = []
    for layer in theirs.model.transformer_module.decoder.layers:
        layer.encoder_attn.register_forward_hook(lambda _, __, output: kept.append(output[1]))
    images, query = pictures(2, WIDE), torch.tensor([6, 1])
    ours: Any = load(tmp_path).model
    with torch.no_grad():
        theirs(images)
        found = ours.explain(images, query)
    assert len(kept) == 6
    for index, weights in enumerate(kept):
        rows = torch.stack([weights[0, :, 6], weights[1, :, 1]])
        torch.testing.assert_close(found[f"decoder.{index}"], rows, rtol=0, atol=1e-5)


def test_what_is_loaded_is_described(tmp_path: Path) -> None:
    labels = {"id2label": {0: "cat", 1: "grass"}, "label2id": {"cat": 0, "grass": 1}}
    reference("resnet", num_labels=2, **labels).save_pretrained(tmp_path)
    loaded = load(tmp_path, TALL)
    assert isinstance(loaded.model, MaskFormer)
    config = loaded.model.config
    assert (loaded.family, loaded.architecture, loaded.activation) == (
        "maskformer",
        "MaskFormerForInstanceSegmentation",
        "softmax",
    )
    assert loaded.labels == {0: "cat", 1: "grass"}
    assert (config.canvas, config.classes, config.queries, config.heads) == (TALL, 2, 7, 4)
    assert config.backbone == ResNetConfig((1, 2, 1, 1), (16, 16, 32, 64), stem_width=8)
    assert not loaded.model.training
    assert "criterion.empty_weight" in loaded.ignored


def test_a_missing_and_an_unexpected_weight_are_named(tmp_path: Path) -> None:
    reference("swin").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.pixel_level_module.decoder.fpn.layers.2.proj.0.weight")
    weights["model.transformer_module.decoder.layers.6.fc1.bias"] = torch.zeros(48)
    weights["mask_embedder.1.0.bias"] = torch.zeros(9)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "missing: model.pixel_level_module.decoder.fpn.layers.2.proj.0.weight" in message
    assert "unexpected: model.transformer_module.decoder.layers.6.fc1.bias [48]" in message
    assert "mask_embedder.1.0.bias is [9], expected [32]" in message


@pytest.mark.parametrize(
    ("changes", "decoder", "sentence"),
    [
        (
            {},
            {"auxiliary_loss": True},
            "config.json asks for auxiliary_loss True; supported is False",
        ),
        (
            {},
            {"activation_function": "gelu"},
            "config.json asks for activation_function 'gelu'; supported is 'relu'",
        ),
        (
            {"fpn_feature_size": 64},
            {},
            "config.json asks for d_model 32, fpn_feature_size 64, mask_feature_size 32; "
            "supported are equal ones",
        ),
        (
            {},
            {"decoder_attention_heads": 5},
            "width 32 does not divide into 5 heads and 32 groups",
        ),
        (
            {"backbone_config": {"model_type": "convnext"}},
            {},
            "the backbone is of type 'convnext'; supported are 'swin' and 'resnet'",
        ),
    ],
)
def test_what_we_do_not_implement_is_refused(
    changes: dict[str, Any], decoder: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    reference("swin").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["decoder_config"] |= decoder
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=sentence):
        load(tmp_path)
