"""Weights under timm's names give the numbers of the same weights in transformers.

timm itself is no dependency: each reference is a transformers model of the same arithmetic, whose
weights are written here under timm's names.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints import CheckpointError, Loaded, default_canvas, load_model, open_checkpoint

PRETRAINED = {
    "input_size": [3, 224, 224],
    "crop_pct": 0.9,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "license": "apache-2.0",
}
ARGUMENTS = {"embed_dim": 48, "depth": 3, "num_heads": 3}
RENAMED = (
    ("attention.o_proj", "attn.proj"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("mlp.down_proj", "mlp.fc2"),
    ("encoder.layer.", "blocks."),
    ("layers.", "blocks."),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("layernorm.", "norm."),
    ("distillation_classifier", "head_dist"),
    ("cls_classifier", "head"),
    ("classifier", "head"),
)
JOINED = {
    "attention.q_proj": ("attn.qkv", ("attention.k_proj", "attention.v_proj")),
    "mlp.gate_proj": ("mlp.fc1", ("mlp.up_proj",)),
}


def lively(architecture: str, config: str, **options: Any) -> Any:
    torch.set_num_threads(1)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "num_labels": 5}
    model = getattr(transformers, architecture)(getattr(transformers, config)(**sizes | options))
    for seed, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(seed)
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def timm_weights(model: Any) -> dict[str, Tensor]:
    """The model's weights under timm's names."""
    prefix = f"{model.base_model_prefix}."
    theirs = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()}
    skipped = ("pooler", "embeddings.mask_token")
    weights = {}
    for name, tensor in theirs.items():
        first = next((part for part in JOINED if part in name), None)
        later = any(part in name for _, parts in JOINED.values() for part in parts)
        if later or name.startswith(skipped):
            continue
        if first is not None:
            joined, others = JOINED[first]
            tensor = torch.cat([tensor, *(theirs[name.replace(first, other)] for other in others)])
            name = name.replace(first, joined)
        for old, new in RENAMED:
            name = name.replace(old, new)
        weights[name] = tensor.contiguous()
    return weights


def save(folder: Path, architecture: str, weights: dict[str, Tensor], **config: Any) -> None:
    image_side = config.pop("img_size")
    stated = {
        "architecture": architecture,
        "num_classes": 5,
        "global_pool": "token",
        "model_args": ARGUMENTS | {"img_size": [image_side, image_side], "in_chans": 3},
        "pretrained_cfg": PRETRAINED,
    }
    (folder / "config.json").write_text(json.dumps(stated | config))
    save_file(weights, folder / "model.safetensors")


def load(folder: Path, canvas: tuple[int, int]) -> Loaded:
    return load_model(open_checkpoint(str(folder)), canvas)


def pictures(canvas: tuple[int, int]) -> Tensor:
    return torch.randn(3, 3, *canvas, generator=torch.Generator().manual_seed(0))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_vit_of_timm_equals_the_same_weights_in_transformers(tmp_path: Path) -> None:
    theirs = lively(
        "ViTForImageClassification",
        "ViTConfig",
        intermediate_size=192,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    save(tmp_path, "vit_base_patch8_224", timm_weights(theirs), img_size=32)
    loaded = load(tmp_path, (32, 32))
    images = pictures((32, 32))
    with torch.no_grad():
        assert relative_error(loaded.model(images)["logits"], theirs(images).logits) <= 1e-5
    assert loaded.family == "vit"
    assert loaded.activation == "softmax"
    assert loaded.labels == {index: f"LABEL_{index}" for index in range(5)}


def test_mean_pooled_network_norms_the_mean_of_the_patches(tmp_path: Path) -> None:
    theirs = lively(
        "ViTForImageClassification",
        "ViTConfig",
        intermediate_size=192,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    weights = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: tensor
        for name, tensor in timm_weights(theirs).items()
    }
    save(tmp_path, "vit_base_patch8_224", weights, img_size=32, global_pool="avg")
    images = pictures((32, 32))
    with torch.no_grad():
        hidden = theirs(images, output_hidden_states=True).hidden_states[-1]
        pooled = theirs.vit.layernorm(hidden[:, 1:].mean(dim=1))
        found = load(tmp_path, (32, 32)).model(images)
        assert relative_error(found["embedding"], pooled) <= 1e-5
        assert relative_error(found["logits"], theirs.classifier(pooled)) <= 1e-5


def test_distilled_deit_of_timm_averages_its_two_heads(tmp_path: Path) -> None:
    theirs = lively(
        "DeiTForImageClassificationWithTeacher",
        "DeiTConfig",
        intermediate_size=192,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    save(tmp_path, "deit_small_distilled_patch8_224", timm_weights(theirs), img_size=32)
    loaded = load(tmp_path, (32, 32))
    images = pictures((32, 32))
    with torch.no_grad():
        assert relative_error(loaded.model(images)["logits"], theirs(images).logits) <= 1e-5
    assert loaded.family == "deit"


@pytest.mark.parametrize("canvas", [(42, 42), (70, 42), (28, 28)])
@pytest.mark.parametrize("swiglu", [False, True])
def test_dinov2_of_timm_has_antialiased_positions_for_patches_only(
    canvas: tuple[int, int], swiglu: bool, tmp_path: Path
) -> None:
    theirs = lively(
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        image_size=42,
        patch_size=14,
        use_swiglu_ffn=swiglu,
    )
    theirs.embeddings.position_embeddings.data[:, 0] = 0
    weights = timm_weights(theirs)
    weights["pos_embed"] = weights["pos_embed"][:, 1:].contiguous()
    size = "giant" if swiglu else "base"
    name = f"vit_{size}_patch14_reg4_dinov2"
    save(tmp_path, name, weights, img_size=42, num_classes=0)
    loaded = load(tmp_path, canvas)
    images = pictures(canvas)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        assert relative_error(loaded.model(images)["tokens"], expected) <= 1e-5
    assert loaded.family == "dinov2"
    assert loaded.activation is None
    assert loaded.labels == {}


def test_deit3_of_timm_has_no_position_for_its_class_token(tmp_path: Path) -> None:
    theirs = lively("Dinov2Model", "Dinov2Config", image_size=32, patch_size=8)
    theirs.embeddings.position_embeddings.data[:, 0] = 0
    weights = timm_weights(theirs)
    weights["pos_embed"] = weights["pos_embed"][:, 1:].contiguous()
    save(tmp_path, "deit3_base_patch8_224", weights, img_size=32, num_classes=0)
    images = pictures((32, 32))
    with torch.no_grad():
        found = load(tmp_path, (32, 32)).model(images)["tokens"]
        assert relative_error(found, theirs(images).last_hidden_state) <= 1e-5


def test_timm_transform_is_restated_as_a_preprocessor(tmp_path: Path) -> None:
    save(tmp_path, "vit_base_patch16_224", {}, img_size=224)
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.preprocessor == {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 248},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "crop_rounding": "torchvision",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    assert default_canvas(checkpoint) == (224, 224)
    assert checkpoint.license == "apache-2.0"


def test_what_timm_leaves_null_is_its_default(tmp_path: Path) -> None:
    null = {"crop_pct": None, "crop_mode": None, "interpolation": None}
    save(tmp_path, "vit_base_patch16_224", {}, img_size=224, pretrained_cfg=PRETRAINED | null)
    preprocessor = open_checkpoint(str(tmp_path)).preprocessor
    assert preprocessor is not None
    assert (preprocessor["size"], preprocessor["resample"]) == ({"shortest_edge": 256}, 3)


@pytest.mark.parametrize(
    ("pretrained", "named"),
    [
        ({"crop_mode": "border"}, "'border'"),
        ({"interpolation": "random"}, "'random'"),
        ({"input_size": [3, 224, 192]}, "224x192"),
        ({"input_size": [3, 224]}, "is no size"),
        ({"crop_pct": "0.9"}, "crop_pct '0.9'"),
    ],
)
def test_timm_transform_that_has_no_equal_is_refused(
    pretrained: dict[str, Any], named: str, tmp_path: Path
) -> None:
    stated = PRETRAINED | pretrained
    save(tmp_path, "vit_base_patch16_224", {}, img_size=224, pretrained_cfg=stated)
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"architecture": "swin_tiny_patch4_window7_224"}, "swin_tiny_patch4_window7_224"),
        ({"architecture": "vit_giant_patch14_224"}, "vit_giant_patch14_224"),
        ({"global_pool": "map"}, "'map'"),
        ({"model_args": {"qk_norm": True}}, "qk_norm"),
        ({"model_args": {"in_chans": 1}}, "in_chans"),
        ({"label_names": ["cat", "dog"]}, "2 names for 5 classes"),
        ({"label_names": {"cat": 0}}, "label_names is"),
    ],
)
def test_timm_network_that_we_do_not_define_is_refused(
    config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    theirs = lively(
        "ViTForImageClassification",
        "ViTConfig",
        intermediate_size=192,
        image_size=32,
        patch_size=8,
    )
    architecture = config.pop("architecture", "vit_base_patch8_224")
    save(tmp_path, architecture, timm_weights(theirs), img_size=32, **config)
    with pytest.raises(CheckpointError, match=named):
        load(tmp_path, (32, 32))


@pytest.mark.parametrize(
    ("tag", "family"), [("mae", "mae"), ("dino", "dino"), ("augreg_in1k", "vit"), (None, "vit")]
)
def test_family_is_read_from_the_tag_of_the_weights(
    tag: str | None, family: str, tmp_path: Path
) -> None:
    theirs = lively(
        "ViTForImageClassification",
        "ViTConfig",
        intermediate_size=192,
        image_size=32,
        patch_size=8,
    )
    stated = PRETRAINED | {"tag": tag, "label_names": ["a", "b", "c", "d", "e"]}
    described = {"label_descriptions": {"a": "apple"}}
    weights = timm_weights(theirs)
    stated |= described
    save(tmp_path, "vit_base_patch8_224", weights, img_size=32, pretrained_cfg=stated)
    loaded = load(tmp_path, (32, 32))
    assert loaded.family == family
    assert loaded.labels == {0: "apple", 1: "b", 2: "c", 3: "d", 4: "e"}
