"""Random Swin weights saved by transformers and loaded by us give transformers' numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.checkpoints import CheckpointError, load_model, open_checkpoint
from models.checkpoints.files import read_weights
from models.checkpoints.strict import StrictReader
from models.checkpoints.swin import swin_config, swin_weights
from models.swin import Swin, as_map, grids

BODY = {
    "embed_dim": 12,
    "depths": [2, 2, 3, 2],
    "num_heads": [1, 2, 2, 4],
    "window_size": 3,
    "image_size": 96,
    "num_labels": 5,
}
NATIVE, NO_MULTIPLE, OBLONG, ODD = (96, 96), (128, 128), (96, 160), (110, 102)
CANVASES = (NATIVE, NO_MULTIPLE, OBLONG, ODD)

SWIN: dict[str, tuple[str, dict[str, Any]]] = {
    "classifier": ("SwinForImageClassification", {}),
    "patches of 2": ("SwinForImageClassification", {"patch_size": 2, "image_size": 48}),
    "without qkv bias": ("SwinForImageClassification", {"qkv_bias": False, "mlp_ratio": 3.0}),
    "body": ("SwinModel", {"layer_norm_eps": 1e-3}),
}
PRETRAINED = {"pretrained_window_sizes": [2, 3, 2, 2]}
SWINV2: dict[str, tuple[str, dict[str, Any]]] = {
    "v2": ("Swinv2ForImageClassification", {}),
    "v2 of other windows": ("Swinv2ForImageClassification", PRETRAINED),
    "v2 of shrunken windows": ("Swinv2ForImageClassification", PRETRAINED | {"window_size": 7}),
    "v2 body": ("Swinv2Model", {"qkv_bias": False}),
}


def lively(model: nn.Module) -> Any:
    """Every parameter drawn far from its initial value, so that none can be lost unseen."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = offset + 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def made(case: str) -> Any:
    """Fresh, for transformers' Swin keeps the windows of the first canvas that shrinks them."""
    architecture, options = (SWIN | SWINV2)[case]
    config = transformers.Swinv2Config if case in SWINV2 else transformers.SwinConfig
    made = config(**BODY | options, attn_implementation="eager")
    return lively(getattr(transformers, architecture)(made))


def pictures(batch: int, canvas: tuple[int, int]) -> Tensor:
    return torch.randn(batch, 3, *canvas, generator=torch.Generator().manual_seed(batch))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def stages(model: Any, images: Tensor) -> list[Tensor]:
    """What transformers' blocks leave of every stage, before merging."""
    kept: list[Tensor] = []
    body = getattr(model, model.base_model_prefix, model)
    handles = [
        stage.blocks[-1].register_forward_hook(lambda _, __, out: kept.append(out[0]))
        for stage in body.encoder.layers
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("original_names", [True, False], ids=["published names", "names of 5"])
@pytest.mark.parametrize("case", [*SWIN, *SWINV2])
def test_outputs_equal_transformers_at_every_canvas_and_batch(
    case: str, original_names: bool, tmp_path: Path
) -> None:
    made(case).save_pretrained(tmp_path, save_original_format=original_names)
    checkpoint = open_checkpoint(str(tmp_path))
    for canvas in CANVASES:
        loaded = load_model(checkpoint, canvas)
        for batch in (1, 3):
            images, theirs = pictures(batch, canvas), made(case)
            with torch.no_grad():
                expected, found = theirs(images), loaded.model(images)
                maps = loaded.model.trunk(images)  # type: ignore[operator]
            for ours, reference in zip(maps, stages(made(case), images), strict=True):
                assert relative_error(ours, reference) <= 1e-4
            if "logits" in expected:
                assert relative_error(found["logits"], expected.logits) <= 1e-4
            else:
                assert "logits" not in found
                tokens = as_map(expected.last_hidden_state, grids(loaded.model.config)[-1])  # type: ignore[arg-type]
                assert relative_error(found["features"], tokens) <= 1e-4
                assert relative_error(found["embedding"], expected.pooler_output) <= 1e-4
    assert loaded.family == ("swinv2" if case in SWINV2 else "swin")
    assert loaded.ignored == []
    assert len(loaded.labels) == loaded.model.config.classes  # type: ignore[union-attr]


def backbone(kind: str) -> tuple[Any, str]:
    """A segmentation network of transformers, and the prefix of its Swin backbone."""
    body = {"embed_dim": 32, "depths": [2, 2, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 3}
    out = [f"stage{index}" for index in (1, 2, 3, 4)]
    swin = transformers.SwinConfig(**body, image_size=64, out_features=out)
    small = {"mask_feature_size": 32, "backbone_config": swin}
    if kind == "mask2former":
        config = transformers.Mask2FormerConfig(
            **small,
            feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            dim_feedforward=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=4,
        )
        model = transformers.Mask2FormerForUniversalSegmentation(config)
    else:
        decoder = transformers.DetrConfig(
            d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16
        )
        model = transformers.MaskFormerForInstanceSegmentation(
            transformers.MaskFormerConfig(**small, decoder_config=decoder, fpn_feature_size=32)
        )
    return lively(model), "model.pixel_level_module.encoder."


@pytest.mark.parametrize("original_names", [True, False], ids=["published names", "names of 5"])
@pytest.mark.parametrize("kind", ["mask2former", "maskformer"])
def test_backbones_within_other_networks_give_the_same_maps(
    kind: str, original_names: bool, tmp_path: Path
) -> None:
    whole, prefix = backbone(kind)
    whole.save_pretrained(tmp_path, save_original_format=original_names)
    checkpoint = open_checkpoint(str(tmp_path))
    theirs = whole.model.pixel_level_module.encoder
    for canvas in ((64, 64), (96, 160), (32, 64)):
        config = swin_config(checkpoint.config["backbone_config"], canvas, always_pad=True)
        weights = {k: v for k, v in read_weights(checkpoint).items() if k.startswith(prefix)}
        reader = StrictReader(weights, "the checkpoint")
        state, aside = swin_weights(reader, prefix, config)
        left = reader.finish(aside)
        assert all("layernorm." in name or "relative_position_index" in name for name in left)
        ours = Swin(config).eval()
        ours.load_state_dict(state)
        assert (ours.channels, ours.strides) == ((32, 64, 128, 256), (4, 8, 16, 32))
        for batch in (1, 3):
            images = pictures(batch, canvas)
            with torch.no_grad():
                found, expected = ours(images), theirs(images).feature_maps
            for map, reference in zip(found, expected, strict=True):
                assert relative_error(map, reference) <= 1e-4


def test_maps_smaller_than_a_window_use_the_middle_of_the_bias_table(tmp_path: Path) -> None:
    made("classifier").save_pretrained(tmp_path)
    whole, small = (load_model(open_checkpoint(str(tmp_path)), (side, side)) for side in (96, 64))
    biases = [
        loaded.model.get_submodule("trunk.stages.3.0.attn.relative")() for loaded in (whole, small)
    ]
    assert biases[1].shape == (4, 4, 4)  # windows of 2 x 2 in place of 3 x 3
    kept = torch.tensor([0, 1, 3, 4])  # those tokens of the larger window
    assert torch.equal(biases[1], biases[0][:, kept][:, :, kept])


def test_tables_that_transformers_4_stored_are_left_aside_by_name(tmp_path: Path) -> None:
    made("classifier").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    index = "swin.encoder.layers.1.blocks.0.attention.self.relative_position_index"
    weights[index] = torch.zeros(9, 9, dtype=torch.int64)
    save_file(weights, tmp_path / "model.safetensors")
    assert load_model(open_checkpoint(str(tmp_path))).ignored == [index]


def test_strict_loading_lists_every_wrong_weight_at_once(tmp_path: Path) -> None:
    made("v2").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["swinv2.encoder.layers.2.blocks.1.attention.self.logit_scale"]
    weights["swinv2.encoder.layers.2.blocks.3.intermediate.dense.bias"] = torch.zeros(2)
    weights["classifier.weight"] = torch.zeros(4, 96)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as raised:
        load_model(open_checkpoint(str(tmp_path)))
    message = str(raised.value)
    assert (
        "missing: swinv2.encoder.layers.2.blocks.1.attention.self.logit_scale [2, 1, 1]" in message
    )
    assert "unexpected: swinv2.encoder.layers.2.blocks.3.intermediate.dense.bias [2]" in message
    assert "classifier.weight is [4, 96], expected [5, 96]" in message


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu'; supported is 'gelu'"),
        ({"num_channels": 1}, "num_channels 1; supported is 3"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings True; supported is False"),
        ({"patch_size": [2, 4]}, r"patch_size \[2, 4\] is not square"),
        ({"num_heads": [1, 2, 2, 5]}, "width 96 does not divide into 5 heads"),
        ({"depths": [2, 2]}, "2 depths, but 4 numbers of heads"),
    ],
)
def test_config_that_we_do_not_implement_is_refused(
    config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    made("classifier").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(CheckpointError, match=named):
        load_model(open_checkpoint(str(tmp_path)))
