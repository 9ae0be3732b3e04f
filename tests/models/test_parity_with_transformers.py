"""Random weights saved by transformers and loaded by us give transformers' numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from models.checkpoints import Loaded, load_model, open_checkpoint

BODY = {
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
MLP = {"intermediate_size": 80}
NATIVE, SMALLER, TALLER, WIDER = (32, 32), (24, 24), (56, 24), (16, 40)
CANVASES = (NATIVE, SMALLER, TALLER, WIDER)

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", MLP),
    "vit without qkv bias": ("ViTForImageClassification", "ViTConfig", MLP | {"qkv_bias": False}),
    "vit features": ("ViTModel", "ViTConfig", MLP),
    "deit": ("DeiTForImageClassification", "DeiTConfig", MLP),
    "deit distilled": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", MLP),
    "deit features": ("DeiTModel", "DeiTConfig", MLP),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", {}),
    "dinov2 swiglu": ("Dinov2ForImageClassification", "Dinov2Config", {"use_swiglu_ffn": True}),
    "dinov2 features": ("Dinov2Model", "Dinov2Config", {"qkv_bias": False}),
    "registers": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        {"num_register_tokens": 3},
    ),
    "registers swiglu features": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {"use_swiglu_ffn": True},
    ),
}


def lively(model: nn.Module) -> nn.Module:
    """Every parameter drawn far from its initial value, so that none can be lost unseen."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = offset + 0.3 * drawn
    return model.eval()


def reference(architecture: str, config: str, options: dict[str, Any]) -> Any:
    made = getattr(transformers, config)(**BODY | options, attn_implementation="eager")
    return lively(getattr(transformers, architecture)(made))


def run(model: Any, images: Tensor, **options: Any) -> Any:
    if "Dinov2" not in type(model).__name__:
        options["interpolate_pos_encoding"] = True
    with torch.no_grad():
        return model(images, **options)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def pictures(batch: int, canvas: tuple[int, int]) -> Tensor:
    return torch.randn(batch, 3, *canvas, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("original_names", [True, False], ids=["published names", "names of 5"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_transformers_at_every_canvas_and_batch(
    case: str, original_names: bool, tmp_path: Path
) -> None:
    theirs = reference(*CASES[case])
    theirs.save_pretrained(tmp_path, save_original_format=original_names)
    checkpoint = open_checkpoint(str(tmp_path))
    for canvas in CANVASES:
        ours = load_model(checkpoint, canvas).model
        for batch in (1, 3):
            images = pictures(batch, canvas)
            expected = run(theirs, images, output_hidden_states=True)
            with torch.no_grad():
                found = ours(images)
            if "logits" in expected:
                assert relative_error(found["logits"], expected.logits) <= 1e-5
            else:
                assert "logits" not in found
                assert relative_error(found["tokens"], expected.last_hidden_state) <= 1e-5
                assert relative_error(found["embedding"], expected.last_hidden_state[:, 0]) <= 1e-5


@pytest.mark.parametrize("case", ["vit", "deit distilled", "registers"])
def test_tokens_of_classifiers_equal_the_normed_hidden_states(case: str, tmp_path: Path) -> None:
    theirs = reference(*CASES[case])
    theirs.save_pretrained(tmp_path)
    ours = load_model(open_checkpoint(str(tmp_path)), TALLER).model
    images = pictures(2, TALLER)
    body = getattr(theirs, theirs.base_model_prefix)
    with torch.no_grad():
        tokens = ours(images)["tokens"]
    assert relative_error(tokens, run_body(theirs, body, images)) <= 1e-5


def run_body(model: Any, body: Any, images: Tensor) -> Tensor:
    kept: dict[str, Tensor] = {}
    handle = body.register_forward_hook(lambda _, __, out: kept.update(out=out.last_hidden_state))
    run(model, images)
    handle.remove()
    return kept["out"]


@pytest.mark.parametrize("architecture", ["ViTMAEModel", "ViTMAEForPreTraining"])
def test_mae_encoder_equals_transformers_without_masking(architecture: str, tmp_path: Path) -> None:
    decoder = {
        "decoder_hidden_size": 32,
        "decoder_num_attention_heads": 2,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 64,
    }
    theirs = reference(architecture, "ViTMAEConfig", MLP | decoder | {"mask_ratio": 0.0})
    theirs.save_pretrained(tmp_path)
    encoder = theirs.vit if architecture == "ViTMAEForPreTraining" else theirs
    checkpoint = open_checkpoint(str(tmp_path))
    for canvas in CANVASES:
        loaded = load_model(checkpoint, canvas)
        images = pictures(2, canvas)
        patches = canvas[0] * canvas[1] // 64
        in_order = torch.arange(patches, dtype=torch.float32).expand(2, -1)
        expected = run(encoder, images, noise=in_order).last_hidden_state
        with torch.no_grad():
            found = loaded.model(images)
        assert relative_error(found["tokens"], expected) <= 1e-5
        assert relative_error(found["embedding"], expected[:, 0]) <= 1e-5
    assert loaded.family == "mae"
    assert all(name.startswith("decoder.") for name in loaded.ignored)
    assert bool(loaded.ignored) == (architecture == "ViTMAEForPreTraining")


@pytest.mark.parametrize("case", ["vit", "deit", "deit distilled", "registers"])
def test_attention_maps_equal_output_attentions_in_every_layer(case: str, tmp_path: Path) -> None:
    theirs = reference(*CASES[case])
    theirs.save_pretrained(tmp_path)
    ours = load_model(open_checkpoint(str(tmp_path)), TALLER).model
    images = pictures(3, TALLER)
    query = torch.tensor([0, 7, 12])
    matrices = torch.stack(run(theirs, images, output_attentions=True).attentions, dim=1)
    prefix = matrices.shape[-1] - 7 * 3
    expected = torch.stack([matrices[i, :, :, row, prefix:] for i, row in enumerate(query)])
    with torch.no_grad():
        found = ours.explain(images, query)["attention"]  # type: ignore[operator]
        last = ours(images)["attention"]
    assert relative_error(found, expected) <= 1e-5
    assert relative_error(last, matrices[:, -1, :, 0, prefix:]) <= 1e-5


def test_shards_give_the_same_weights_as_one_file(tmp_path: Path) -> None:
    theirs = reference(*CASES["vit"])
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    one, many = (load(tmp_path / name) for name in ("one", "many"))
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, many.model.state_dict()[name])


def test_half_precision_checkpoints_are_computed_in_fp32(tmp_path: Path) -> None:
    theirs = reference(*CASES["vit"]).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path).model
    images = pictures(2, NATIVE)
    with torch.no_grad():
        found = ours(images)["logits"]
    assert found.dtype == torch.float32
    assert relative_error(found, run(theirs.float(), images).logits) <= 1e-5


def load(folder: Path) -> Loaded:
    return load_model(open_checkpoint(str(folder)))
