"""Deformable DETR of random weights, saved by transformers and loaded by us."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.checkpoints import CheckpointError, load_model, open_checkpoint
from models.checkpoints.deformable_detr import _returned
from models.deformable_detr import DeformableDetr, Memory

RESNET = {
    "model_type": "resnet",
    "depths": [1, 2, 1, 1],
    "hidden_sizes": [16, 32, 48, 64],
    "embedding_size": 8,
    "out_features": ["stage2", "stage3", "stage4"],
}
BODY = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 9,
    "two_stage_num_proposals": 7,
    "num_labels": 5,
}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "single-scale": {
        "num_feature_levels": 1,
        "backbone_config": RESNET | {"out_features": ["stage4"]},
    },
    "refining": {"with_box_refine": True},
    "two-stage": {"with_box_refine": True, "two_stage": True},
    "two levels of one map": {
        "num_feature_levels": 2,
        "backbone_config": RESNET | {"out_features": ["stage4"]},
    },
}
SEED = 10  # with it no two of the best proposals are within 1e-4 of each other
CANVASES = ((96, 128), (104, 72))  # the second divides by no stride above 8


def lively(model: nn.Module) -> nn.Module:
    """Every weight drawn far from its initial value, so that none can be lost unseen."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        drawn = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.data = 0.5 + drawn.abs()
        else:
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            tensor.data = offset + 0.3 * drawn
    return model.eval()


def reference(form: str) -> Any:
    options: dict[str, Any] = {"backbone_config": RESNET} | BODY | FORMS[form]
    config = transformers.DeformableDetrConfig(**options, attn_implementation="eager")
    return lively(transformers.DeformableDetrForObjectDetection(config))


def saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def loaded(folder: Path, canvas: tuple[int, int] = CANVASES[0]) -> DeformableDetr:
    model = load_model(open_checkpoint(str(folder)), canvas).model
    assert isinstance(model, DeformableDetr)
    return model


def inputs(batch: int, canvas: tuple[int, int], padded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Images that are zero beside the picture, the sizes of the pictures, and transformers' mask of
    them.
    """
    generator = torch.Generator().manual_seed(batch)
    images = torch.randn(batch, 3, *canvas, generator=generator)
    sizes = torch.tensor([canvas] * batch, dtype=torch.int32)
    if padded:
        shares = 0.3 + 0.6 * torch.rand(batch, 2, generator=generator)
        sizes = (shares * torch.tensor(canvas)).int()
    masks = torch.zeros(batch, *canvas, dtype=torch.long)
    for mask, (height, width) in zip(masks, sizes.tolist(), strict=True):
        mask[:height, :width] = 1
    return images * masks[:, None], sizes, masks


def stages(model: DeformableDetr, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
    """Everything that transformers reports too, by the names below."""
    seen: dict[str, Tensor] = {}

    def keep_memory(_: nn.Module, __: Any, output: tuple[Memory, Any]) -> None:
        seen["memory"] = output[0].cells * output[0].mask[..., None]

    def keep_queries(_: nn.Module, __: Any, output: tuple[Tensor, Any]) -> None:
        seen[f"queries {len(seen)}"] = output[0]

    handles = [model.encoder[-1].register_forward_hook(keep_memory)]
    handles += [layer.register_forward_hook(keep_queries) for layer in model.decoder]
    with torch.no_grad():
        predictions = model.predictions(images, sizes)
    for handle in handles:
        handle.remove()
    for index, prediction in enumerate(predictions, start=1):
        seen[f"boxes {index}"] = prediction["boxes"]
    return seen | predictions[-1] | {"mask": masks_of(model, sizes)}


def masks_of(model: DeformableDetr, sizes: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = model.encoder[0].register_forward_hook(lambda _, __, out: kept.append(out[0].mask))
    with torch.no_grad():
        model(torch.zeros(len(sizes), 3, *model.config.canvas), sizes)
    handle.remove()
    return kept[0]


def their_stages(model: Any, images: Tensor, masks: Tensor, cells: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        out = model(pixel_values=images, pixel_mask=masks)
    named = {
        "logits": out.logits,
        "boxes": out.pred_boxes,
        "memory": out.encoder_last_hidden_state * cells[..., None],
    }
    for index, queries in enumerate(out.intermediate_hidden_states.unbind(1), start=1):
        named[f"queries {index}"] = queries
    if model.config.with_box_refine:
        for index, boxes in enumerate(out.intermediate_reference_points.unbind(1), start=1):
            named[f"boxes {index}"] = boxes
    if model.config.two_stage:
        scores = out.enc_outputs_class[..., 0].sort(dim=1, descending=True).values
        count = model.config.two_stage_num_proposals
        assert (scores[:, :count] - scores[:, 1 : count + 1]).min() > 1e-4
        named["proposal_logits"] = out.enc_outputs_class
        named["proposal_boxes"] = out.enc_outputs_coord_logits.sigmoid()
    return named


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("original_names", [True, False], ids=["published names", "names of 5"])
@pytest.mark.parametrize("form", FORMS)
def test_numbers_are_those_of_transformers(form: str, original_names: bool, tmp_path: Path) -> None:
    theirs = reference(form)
    saved(theirs, tmp_path, save_original_format=original_names)
    for canvas in CANVASES:
        ours = loaded(tmp_path, canvas)
        for batch, padded in ((1, False), (1, True), (3, False), (3, True)):
            images, sizes, masks = inputs(batch, canvas, padded)
            found = stages(ours, images, sizes)
            for name, expected in their_stages(theirs, images, masks, found["mask"]).items():
                error = relative_error(found[name], expected)
                assert error <= 1e-4, f"{name}, canvas {canvas}, batch {batch}: {error:.1e}"


def rewritten(folder: Path, change: dict[str, str | None], **config: Any) -> Path:
    """The checkpoint with copies of weights under further names (to None: without those), and with
    other values in its config.
    """
    weights = load_file(folder / "model.safetensors")
    for old, new in change.items():
        for name in [name for name in weights if name.startswith(old)]:
            if new is None:
                del weights[name]
            else:
                weights[new + name.removeprefix(old)] = weights[name].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def logits(model: DeformableDetr) -> Tensor:
    images, sizes, _ = inputs(1, CANVASES[0], padded=True)
    with torch.no_grad():
        return model(images, sizes)["logits"]


def test_shared_heads_load_from_one_copy_and_from_one_for_each_layer(tmp_path: Path) -> None:
    saved(reference("plain"), tmp_path)
    once = logits(loaded(tmp_path))
    for layer in (1, 2):
        for head in ("class_embed", "bbox_embed"):
            rewritten(tmp_path, {f"{head}.0.": f"{head}.{layer}."})
    assert "bbox_embed.2.layers.0.bias" in load_file(tmp_path / "model.safetensors")
    assert torch.equal(logits(loaded(tmp_path)), once)


def test_refining_heads_load_from_beside_the_body_and_from_both_places(tmp_path: Path) -> None:
    saved(reference("two-stage"), tmp_path)
    within = logits(loaded(tmp_path))
    for head in ("bbox_embed.", "class_embed."):
        rewritten(tmp_path, {f"model.decoder.{head}": head})
    assert torch.equal(logits(loaded(tmp_path)), within)
    rewritten(tmp_path, {"model.decoder.bbox_embed.": None, "model.decoder.class_embed.": None})
    assert torch.equal(logits(loaded(tmp_path)), within)


def test_class_head_of_each_refining_layer_is_its_own_where_the_checkpoint_has_them(
    tmp_path: Path,
) -> None:
    saved(reference("refining"), tmp_path)
    for layer in (1, 2):
        rewritten(tmp_path, {"class_embed.0.": f"class_embed.{layer}."})
    weights = load_file(tmp_path / "model.safetensors")
    weights["class_embed.2.bias"] += 1
    save_file(weights, tmp_path / "model.safetensors")
    model = loaded(tmp_path)
    difference = model.classify[2].bias - model.classify[1].bias  # type: ignore[operator]
    torch.testing.assert_close(difference, torch.ones(5))


def test_heads_that_should_be_shared_but_differ_are_refused(tmp_path: Path) -> None:
    saved(reference("plain"), tmp_path)
    rewritten(tmp_path, {"class_embed.0.": "class_embed.1."})
    weights = load_file(tmp_path / "model.safetensors")
    weights["class_embed.1.bias"] += 1
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"class_embed.0.bias and class_embed.1.bias differ"):
        loaded(tmp_path)


def test_what_the_checkpoint_lacks_or_has_too_much_is_named(tmp_path: Path) -> None:
    saved(reference("refining"), tmp_path)
    rewritten(
        tmp_path,
        {"model.level_embed": "model.extra", "model.decoder.bbox_embed.2.layers.1.bias": None},
    )
    with pytest.raises(
        CheckpointError,
        match=r"missing: bbox_embed.2.layers.1.bias \[32\]; unexpected: model.extra \[4, 32\]",
    ):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "learned"}, "position_embedding_type 'learned'; .* 'sine'"),
        ({"activation_function": "gelu"}, "activation_function 'gelu'; supported is 'relu'"),
        ({"decoder_n_points": 2}, "encoder_n_points 4 and decoder_n_points 2; .* one value"),
        ({"two_stage": True}, "two stages need iterative box refinement"),
        ({"num_feature_levels": 2}, "returns 3 maps for 2 levels"),
        (
            {"backbone_config": RESNET | {"out_features": ["stem", "stage4"]}},
            "reads stem, stage4 of its backbone; supported are stages 1 to 4",
        ),
    ],
)
def test_what_our_definition_lacks_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved(reference("plain"), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        loaded(rewritten(tmp_path, {}, **change))


def test_maps_of_the_backbone_are_those_that_every_generation_of_configs_means() -> None:
    timm = {"model_type": "timm_backbone", "backbone": "resnet50", "out_indices": [2, 3, 4]}
    assert _returned({"use_timm_backbone": True, "backbone": "resnet50"}) == (2, 3, 4)
    assert _returned({"backbone": "resnet50", "num_feature_levels": 1}) == (4,)
    assert _returned({"backbone_config": timm, "num_feature_levels": 4}) == (2, 3, 4)
    assert _returned({"backbone_kwargs": {"out_indices": [3, 4]}}) == (3, 4)
    assert _returned({"backbone_config": RESNET}) == (2, 3, 4)
    assert _returned({"backbone_config": {"model_type": "resnet"}}) == (4,)
