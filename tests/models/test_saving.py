"""Networks saved as transformers saves them: loaded back by us, and opened by transformers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from models.checkpoints import CheckpointError, load_model, open_checkpoint, save_checkpoint
from models.deformable_detr import DeformableDetr, DeformableDetrConfig
from models.mask2former import Mask2Former, Mask2FormerConfig
from models.resnet import ResNetConfig
from models.swin import SwinClassifier, SwinConfig

CANVAS = (64, 64)
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": CANVAS[0], "width": CANVAS[1]},
}
SWIN = SwinConfig(
    canvas=CANVAS, dim=8, depths=(2, 1, 1, 1), heads=(1, 2, 2, 2), window=2, classes=3
)


def swin() -> SwinClassifier:
    return SwinClassifier(SWIN)


def detector() -> DeformableDetr:
    backbone = ResNetConfig((1, 1, 1, 1), (16, 32, 48, 64), 8, returned=(2, 3, 4))
    return DeformableDetr(
        DeformableDetrConfig(
            canvas=CANVAS,
            backbone=backbone,
            classes=3,
            queries=7,
            dim=32,
            heads=2,
            encoder_layers=1,
            decoder_layers=2,
            mlp_dim=40,
            levels=3,
            refine=True,
            two_stage=True,
        )
    )


def segmenter() -> Mask2Former:
    return Mask2Former(
        Mask2FormerConfig(
            canvas=CANVAS,
            backbone=replace(SWIN, classes=0, always_pad=True),
            classes=3,
            queries=5,
            dim=32,
            heads=2,
            encoder_layers=1,
            encoder_mlp_dim=24,
            decoder_layers=3,
            decoder_mlp_dim=40,
        )
    )


def scattered(model: nn.Module) -> nn.Module:
    """Weights that all differ, so that none can stand in another's place."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            spread = 0.1 * torch.randn(tensor.shape) if tensor.ndim else tensor
            tensor.copy_(1 + spread.abs() if name.endswith("running_var") else tensor + spread)
    return model.eval()


def inputs(model: nn.Module) -> tuple[Tensor, ...]:
    images = torch.randn(2, 3, *CANVAS, generator=torch.Generator().manual_seed(1))
    return (images, torch.tensor([CANVAS] * 2)) if isinstance(model, DeformableDetr) else (images,)


def save(model: nn.Module, folder: Path) -> None:
    save_checkpoint(model, folder, {0: "a", 1: "b", 2: "c"}, PREPROCESSOR)


@pytest.mark.parametrize("make", [swin, detector, segmenter])
def test_a_saved_network_loads_as_it_was(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = scattered(make())
    save(model, tmp_path)
    loaded = load_model(open_checkpoint(str(tmp_path)))
    assert loaded.labels == {0: "a", 1: "b", 2: "c"}
    with torch.inference_mode():
        expected, found = model(*inputs(model)), loaded.model(*inputs(model))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "architecture", "theirs"),
    [
        (swin, "SwinForImageClassification", {"logits": "logits"}),
        (
            detector,
            "DeformableDetrForObjectDetection",
            {"logits": "logits", "boxes": "pred_boxes"},
        ),
        (
            segmenter,
            "Mask2FormerForUniversalSegmentation",
            {"logits": "class_queries_logits", "masks": "masks_queries_logits"},
        ),
    ],
)
def test_transformers_opens_what_was_saved_and_gives_the_same(
    make: Callable[[], nn.Module], architecture: str, theirs: dict[str, str], tmp_path: Path
) -> None:
    model = scattered(make())
    save(model, tmp_path)
    reference, info = getattr(transformers, architecture).from_pretrained(
        tmp_path, output_loading_info=True
    )
    # A buffer of the loss, which no checkpoint needs.
    assert set(info["missing_keys"]) <= {"criterion.empty_weight"}
    assert not info["unexpected_keys"]
    with torch.inference_mode():
        expected = reference.eval()(inputs(model)[0])
        found = model(*inputs(model))
    for ours, name in theirs.items():
        torch.testing.assert_close(found[ours], expected[name], atol=2e-5, rtol=1e-4)


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"labels have the ids \[0\]; the head has 3 classes"):
        save_checkpoint(swin(), tmp_path, {0: "a"}, PREPROCESSOR)
    with pytest.raises(CheckpointError, match="a Linear cannot be saved here"):
        save_checkpoint(nn.Linear(2, 2), tmp_path, {}, PREPROCESSOR)
    dilated = ResNetConfig((1,), (16,), 8, dilated=True, returned=(1,))
    config = DeformableDetrConfig(
        canvas=CANVAS, backbone=dilated, classes=3, queries=4, dim=32, heads=2, levels=1
    )
    with pytest.raises(CheckpointError, match="no dilation"):
        save(DeformableDetr(config), tmp_path)
    assert not list(tmp_path.iterdir())
