"""Random weights of DETR saved by transformers and loaded by us give transformers' numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.checkpoints import CheckpointError, load_model, open_checkpoint
from models.checkpoints import resnet as resnet_checkpoints
from models.detr import Detr
from models.resnet import FrozenBatchNorm, ResNetConfig

EVEN, ODD = (64, 96), (70, 95)
PADDED = {EVEN: [EVEN, (33, 61), (64, 17)], ODD: [(40, 95), ODD, (33, 32)]}
TINY = ResNetConfig(depths=(1, 2, 1, 2), widths=(16, 32, 64, 128), stem_width=8)


def lively(model: Any) -> Any:
    """Every weight and statistic drawn far from its initial value, so that none can be lost unseen;
    queries far from each other, and features small enough to share attention.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + drawn.abs())
        elif "query_position" in name:
            tensor.copy_(2 * drawn)
        elif tensor.dim() > 1:
            scale = 0.1 if "input_projection" in name else 1.0
            tensor.copy_(scale * drawn * (2 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(0.3 * drawn + ("norm" in name and name.endswith("weight")))
    return model.eval()


def reference(masks: bool, **options: Any) -> Any:
    backbone = transformers.ResNetConfig(
        embedding_size=TINY.stem_width,
        hidden_sizes=list(TINY.widths),
        depths=list(TINY.depths),
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    sizes: dict[str, Any] = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "num_queries": 7,
        "num_labels": 5,
    }
    config = transformers.DetrConfig(
        backbone_config=backbone, attn_implementation="eager", **sizes | options
    )
    name = "DetrForSegmentation" if masks else "DetrForObjectDetection"
    return lively(getattr(transformers, name)(config))


def load(folder: Path, canvas: tuple[int, int]) -> Detr:
    model = load_model(open_checkpoint(str(folder)), canvas).model
    assert isinstance(model, Detr)
    return model


def pictures(
    canvas: tuple[int, int], sizes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise on the valid part and zeros beyond, our sizes, and the reference's mask."""
    mask = torch.zeros(len(sizes), *canvas, dtype=torch.int64)
    for each, (height, width) in zip(mask, sizes, strict=True):
        each[:height, :width] = 1
    generator = torch.Generator().manual_seed(len(sizes))
    images = torch.randn(len(sizes), 3, *canvas, generator=generator) * mask[:, None]
    return images, torch.tensor(sizes, dtype=torch.int32), mask


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def compare(ours: Detr, theirs: Any, canvas: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    """Final answers, and what the shared norm and heads make of every decoder layer."""
    detector = theirs.detr if ours.config.masks else theirs
    states: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, __, output: states.append(output))
        for layer in detector.model.decoder.layers
    ]
    images, valid, mask = pictures(canvas, sizes)
    expected = theirs(images, pixel_mask=mask)
    for handle in handles:
        handle.remove()
    assert len(states) == 3
    predictions = ours.predictions(images, valid)
    for found, state in zip(predictions, states, strict=True):
        normed = detector.model.decoder.layernorm(state)
        logits = detector.class_labels_classifier(normed)
        assert relative_error(found["logits"], logits) <= 1e-4
        assert relative_error(found["boxes"], detector.bbox_predictor(normed).sigmoid()) <= 1e-4
    found = predictions[-1]
    assert relative_error(found["logits"], expected.logits) <= 1e-4
    assert relative_error(found["boxes"], expected.pred_boxes) <= 1e-4
    if ours.config.masks:
        assert relative_error(found["masks"], expected.pred_masks) <= 1e-4


@pytest.mark.parametrize("original_names", [True, False], ids=["published names", "names of 5"])
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_outputs_of_every_layer_equal_transformers_at_every_canvas_padding_and_batch(
    masks: bool, original_names: bool, tmp_path: Path
) -> None:
    theirs = reference(masks)
    theirs.save_pretrained(tmp_path, save_original_format=original_names)
    for canvas, padded in PADDED.items():
        ours = load(tmp_path, canvas)
        for sizes in ([canvas], [canvas] * 3, padded[:1], padded):
            compare(ours, theirs, canvas, sizes)


def test_loaded_network_states_its_labels_and_holds_no_norms_in_its_backbone(
    tmp_path: Path,
) -> None:
    reference(masks=True).save_pretrained(tmp_path)
    loaded = load_model(open_checkpoint(str(tmp_path)), EVEN)
    assert (loaded.family, loaded.architecture) == ("detr", "DetrForSegmentation")
    assert loaded.labels == {index: f"LABEL_{index}" for index in range(5)}
    assert (loaded.activation, loaded.ignored) == ("softmax", [])
    assert not loaded.model.training
    assert not any(isinstance(module, FrozenBatchNorm) for module in loaded.model.modules())


@torch.no_grad()
def test_attention_rows_equal_output_attentions_in_every_layer(tmp_path: Path) -> None:
    theirs = reference(masks=False)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path, ODD)
    images, sizes, mask = pictures(ODD, PADDED[ODD])
    expected = theirs(images, pixel_mask=mask, output_attentions=True)
    query, cells = torch.tensor([0, 6, 3]), [0, 5, 4]  # of a 3 x 3 grid
    place = torch.tensor([[0.1, 0.2], [0.5, 0.9], [0.47, 0.4]])
    found = ours.explain(images, sizes, query, place)
    assert relative_error(found["logits"], expected.logits) <= 1e-4
    assert relative_error(found["boxes"], expected.pred_boxes) <= 1e-4
    for image in range(3):
        for layer, matrix in enumerate(expected.cross_attentions):
            row = found[f"decoder.{layer}"][image]
            assert relative_error(row, matrix[image, :, query[image]]) <= 1e-4
        for layer, matrix in enumerate(expected.encoder_attentions):
            row = found[f"encoder.{layer}"][image]
            assert relative_error(row, matrix[image, :, cells[image]]) <= 1e-4


@torch.no_grad()
def test_states_are_normed_between_layers_where_the_auxiliary_loss_made_it_so(
    tmp_path: Path,
) -> None:
    theirs = reference(masks=False, auxiliary_loss=True)
    theirs.save_pretrained(tmp_path)
    images, sizes, mask = pictures(ODD, PADDED[ODD])
    expected = theirs(images, pixel_mask=mask)
    states = theirs.model(images, pixel_mask=mask).intermediate_hidden_states
    *earlier, last = load(tmp_path, ODD).predictions(images, sizes)
    assert relative_error(last["logits"], expected.logits) <= 1e-4
    assert relative_error(last["boxes"], expected.pred_boxes) <= 1e-4
    for found, state in zip(earlier, states[:-1], strict=True):
        assert relative_error(found["logits"], theirs.class_labels_classifier(state)) <= 1e-4


def timm_name(name: str) -> str:
    """A weight of transformers' ResNet by the name that timm has for it."""
    head, found, tail = name.partition("backbone.conv_encoder.model.")
    if not found:
        return name
    kinds = {"convolution": ("conv", "0"), "normalization": ("bn", "1")}
    parts = tail.split(".")
    kind, leaf = kinds[parts[-2]], parts[-1]
    if parts[0] == "embedder":
        return f"{head}{found}{kind[0]}1.{leaf}"
    place = f"layer{int(parts[2]) + 1}.{parts[4]}"
    if parts[5] == "shortcut":
        return f"{head}{found}{place}.downsample.{kind[1]}.{leaf}"
    return f"{head}{found}{place}.{kind[0]}{int(parts[6]) + 1}.{leaf}"


def save_with_timm_backbone(theirs: Any, folder: Path, **config: Any) -> None:
    """As the published checkpoints are: timm's names, the backbone by name alone, and counters."""
    theirs.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = {timm_name(name): tensor for name, tensor in load_file(file).items()}
    prefix = next(name for name in weights if name.endswith("model.bn1.weight"))
    counter = prefix.replace("bn1.weight", "layer1.0.downsample.1.num_batches_tracked")
    save_file(weights | {counter: torch.tensor(7)}, file, metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))


def dilate(theirs: Any) -> None:
    """The last stage of transformers' ResNet without its stride, and with spread 3x3 kernels."""
    detector = getattr(theirs, "detr", theirs)
    blocks = detector.model.backbone.model.encoder.stages[3].layers
    blocks[0].shortcut.convolution.stride = (1, 1)
    blocks[0].layer[1].convolution.stride = (1, 1)
    for block in blocks[1:]:
        block.layer[1].convolution.dilation = (2, 2)
        block.layer[1].convolution.padding = (2, 2)


GENERATIONS: dict[str, dict[str, Any]] = {
    "transformers 4": {
        "backbone": "resnet50",
        "use_timm_backbone": True,
        "use_pretrained_backbone": True,
        "backbone_config": None,
    },
    "transformers 5": {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "resnet50",
            "out_indices": [1, 2, 3, 4],
            "features_only": True,
        }
    },
}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("dilation", [False, True], ids=["C5", "DC5"])
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_backbones_named_as_timm_does_load_with_and_without_dilation(
    masks: bool, dilation: bool, generation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(resnet_checkpoints.BY_NAME, "resnet50", TINY)
    theirs = reference(masks)
    save_with_timm_backbone(theirs, tmp_path, dilation=dilation, **GENERATIONS[generation])
    if dilation:
        dilate(theirs)
    for canvas in (EVEN, ODD):
        ours = load(tmp_path, canvas)
        assert ours.config.backbone.dilated == dilation
        compare(ours, theirs, canvas, PADDED[canvas])
    loaded = load_model(open_checkpoint(str(tmp_path)), EVEN)
    base = "detr." if masks else ""
    assert loaded.ignored == [
        f"{base}model.backbone.conv_encoder.model.layer1.0.downsample.1.num_batches_tracked"
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"d_model": None}, "config.json lacks d_model"),
        ({"num_queries": 8}, r"query_position_embeddings.weight is \[7, 32\], expected \[8, 32\]"),
        ({"decoder_layers": 2}, r"unexpected: model.decoder.layers.2.encoder_attn.k_proj.bias"),
        ({"encoder_layers": 3}, r"missing: .*model.encoder.layers.2.self_attn.q_proj.weight"),
        ({"activation_function": "gelu"}, "activation_function 'gelu'; supported is 'relu'"),
        ({"position_embedding_type": "learned"}, "'learned'; supported is 'sine'"),
        (
            {"decoder_ffn_dim": 48},
            "encoder_ffn_dim 24 and decoder_ffn_dim 48; supported is one value for both",
        ),
        ({"encoder_attention_heads": 5, "decoder_attention_heads": 5}, "does not divide into 5"),
    ],
)
def test_configs_beyond_the_definition_are_refused(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    reference(masks=False).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text()) | change
    kept = {name: value for name, value in written.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    with pytest.raises(CheckpointError, match=sentence):
        load(tmp_path, EVEN)


def test_half_precision_checkpoints_are_computed_in_fp32(tmp_path: Path) -> None:
    theirs: nn.Module = reference(masks=True).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    compare(load(tmp_path, EVEN), theirs.float(), EVEN, [EVEN])
