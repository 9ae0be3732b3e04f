"""A Mask2Former of random weights saved by transformers and loaded by us gives its numbers.

Masked attention has a hard threshold, so that a mask value within rounding of zero may hide a cell
in one computation and not in the other. The seeds below give none: every test of parity asserts how
near to zero the values come.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoints import CheckpointError, Loaded, load_model, open_checkpoint
from models.mask2former import Mask2Former
from models.swin import SwinConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 4}
RESNET = {"hidden_sizes": [16, 16, 32, 64], "embedding_size": 8, "depths": [1, 2, 1, 1]}
SIZES = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 40,
    "dim_feedforward": 48,
    "num_attention_heads": 4,
    "encoder_layers": 2,
    "num_queries": 7,
    "num_labels": 5,
}
WIDE, TALL, ODD = (64, 96), (96, 32), (75, 101)


def reference(backbone: str, **options: Any) -> Any:
    """transformers' model with every parameter and statistic drawn far from its initial value."""
    torch.set_num_threads(1)
    if backbone == "swin":
        inner = transformers.SwinConfig(**SWIN, out_features=STAGES)
    else:
        inner = transformers.ResNetConfig(**RESNET, out_features=STAGES)
    config = transformers.Mask2FormerConfig(backbone_config=inner, **SIZES | options)
    model = transformers.Mask2FormerForUniversalSegmentation(config)
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


def nearest_to_threshold(model: Any, masks: list[Tensor]) -> float:
    """The smallest resized mask value before any decoder layer, as a share of the largest."""
    shares = []
    for mask, grid in zip(masks, model.layer_grids, strict=False):
        resized = F.interpolate(mask, size=grid, mode="bilinear").abs()
        shares.append((resized.min() / resized.max()).item())
    return min(shares)


@pytest.mark.parametrize("original_names", [True, False], ids=["published names", "names of 5"])
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_all_ten_predictions_equal_transformers_at_every_canvas_and_batch(
    backbone: str, original_names: bool, tmp_path: Path
) -> None:
    theirs = reference(backbone)
    theirs.save_pretrained(tmp_path, save_original_format=original_names)
    for canvas in (WIDE, TALL, ODD):
        ours: Any = load(tmp_path, canvas).model
        for batch in (1, 3):
            images = pictures(batch, canvas)
            with torch.no_grad():
                found = ours.predictions(images)
                answer = theirs(images, output_auxiliary_logits=True)
            expected = [*answer.auxiliary_logits, answer]
            assert len(found) == 10
            masks = [stage["masks_queries_logits"] for stage in expected]
            assert nearest_to_threshold(ours, masks) > 1e-6
            for stage, mask, each in zip(found, masks, expected, strict=True):
                assert relative_error(stage["masks"], mask) <= 1e-4
                assert relative_error(stage["logits"], each["class_queries_logits"]) <= 1e-4


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_where_queries_look_equals_transformers(backbone: str, tmp_path: Path) -> None:
    theirs = reference(backbone, decoder_layers=5)
    theirs.save_pretrained(tmp_path)
    kept: list[Tensor] = []  # transformers keeps the mean over heads
    for layer in theirs.model.transformer_module.decoder.layers:
        layer.cross_attn.register_forward_hook(lambda _, __, output: kept.append(output[1]))
    images, query = pictures(2, WIDE), torch.tensor([6, 1])
    ours: Any = load(tmp_path).model
    with torch.no_grad():
        theirs(images)
        found = ours.explain(images, query)
    assert len(kept) == 4
    for index, weights in enumerate(kept):
        rows = torch.stack([weights[0, 6], weights[1, 1]])
        torch.testing.assert_close(found[f"decoder.{index}"].mean(dim=1), rows, rtol=0, atol=1e-5)


def test_a_resnet_in_timms_names_gives_the_same_numbers(tmp_path: Path) -> None:
    theirs = reference("resnet")
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    timm = {timm_name(name): tensor for name, tensor in weights.items()}
    assert "model.pixel_level_module.encoder._backbone.layer2.1.bn3.running_var" in timm
    save_file(timm, tmp_path / "model.safetensors", metadata={"format": "pt"})
    images = pictures(2, WIDE)
    with torch.no_grad():
        expected, found = theirs(images), load(tmp_path).model(images)
    assert relative_error(found["masks"], expected.masks_queries_logits) <= 1e-4
    assert relative_error(found["logits"], expected.class_queries_logits) <= 1e-4


def timm_name(name: str) -> str:
    """A weight of transformers' ResNet by the name that it has in timm's."""
    prefix = "model.pixel_level_module.encoder."
    if not name.startswith(prefix):
        return name
    kind = {"convolution": ("conv", "0"), "normalization": ("bn", "1")}
    match name.removeprefix(prefix).split("."):
        case ["embedder", "embedder", part, leaf]:
            place = f"{kind[part][0]}1.{leaf}"
        case ["encoder", "stages", stage, "layers", block, "shortcut", part, leaf]:
            place = f"layer{int(stage) + 1}.{block}.downsample.{kind[part][1]}.{leaf}"
        case ["encoder", "stages", stage, "layers", block, "layer", layer, part, leaf]:
            place = f"layer{int(stage) + 1}.{block}.{kind[part][0]}{int(layer) + 1}.{leaf}"
        case _:
            raise AssertionError(name)
    return f"{prefix}_backbone.{place}"


def test_what_is_loaded_is_described(tmp_path: Path) -> None:
    reference(
        "swin", id2label={0: "cat", 1: "grass"}, label2id={"cat": 0, "grass": 1}, num_labels=2
    ).save_pretrained(tmp_path)
    loaded = load(tmp_path, TALL)
    assert isinstance(loaded.model, Mask2Former)
    config = loaded.model.config
    assert (loaded.family, loaded.architecture, loaded.activation) == (
        "mask2former",
        "Mask2FormerForUniversalSegmentation",
        "softmax",
    )
    assert loaded.labels == {0: "cat", 1: "grass"}
    assert (config.canvas, config.classes, config.queries, config.decoder_layers) == (TALL, 2, 7, 9)
    assert isinstance(config.backbone, SwinConfig)
    assert config.backbone.always_pad
    assert not loaded.model.training
    assert "criterion.empty_weight" in loaded.ignored


def test_a_missing_and_an_unexpected_weight_are_named(tmp_path: Path) -> None:
    reference("swin").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = weights.pop("model.transformer_module.decoder.layers.3.cross_attn.in_proj_weight")
    weights["model.transformer_module.decoder.layers.9.fc1.bias"] = torch.zeros(48)
    weights["class_predictor.bias"] = torch.zeros(9)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert lost.shape == (96, 32)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "layers.3.cross_attn.in_proj_weight [96, 32]" in message
    assert "unexpected: model.transformer_module.decoder.layers.9.fc1.bias [48]" in message
    assert "class_predictor.bias is [9], expected [6]" in message


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pre_norm": True}, "config.json asks for pre_norm True; supported is False"),
        (
            {"enforce_input_projection": True},
            "config.json asks for enforce_input_projection True; supported is False",
        ),
        (
            {"activation_function": "gelu"},
            "config.json asks for activation_function 'gelu'; supported is 'relu'",
        ),
        (
            {"feature_strides": [2, 4, 8, 16]},
            r"config.json asks for feature_strides \[2, 4, 8, 16\]; supported is \[4, 8, 16, 32\]",
        ),
        (
            {"mask_feature_size": 64},
            "config.json asks for hidden_dim 32, feature_size 32, mask_feature_size 64; "
            "supported are equal ones",
        ),
        (
            {"num_attention_heads": 5},
            "width 32 does not divide into 5 heads and 32 groups",
        ),
        (
            {"backbone_config": {"model_type": "convnext"}},
            "the backbone is of type 'convnext'; supported are 'swin' and 'resnet'",
        ),
        ({"backbone_config": None}, "config.json names neither a backbone nor a backbone_config"),
    ],
)
def test_what_we_do_not_implement_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    reference("swin").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=sentence):
        load(tmp_path)
