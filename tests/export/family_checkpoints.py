"""Small random checkpoints of every family as transformers writes them, with their processors."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.deformable_detr.image_processing_pil_deformable_detr import (
    DeformableDetrImageProcessorPil,
)
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)
from transformers.models.maskformer.image_processing_pil_maskformer import (
    MaskFormerImageProcessorPil,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

CLASSES = 7
EDGES = {"shortest_edge": 160, "longest_edge": 266}


@dataclass(frozen=True)
class Written:
    """A checkpoint folder, and transformers' own model and processor of it."""

    folder: Path
    model: Any
    processor: Any


def write(kind: str, folder: Path) -> Written:
    """Write the checkpoint of a transformers class, one of ``KINDS``."""
    torch.manual_seed(0)
    network, processor = KINDS[kind]()
    lively(network)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Written(folder, network, processor)


def lively(network: nn.Module) -> None:
    """Weights large enough that every layer changes the answer, small enough that none saturates.

    Queries and the heads of classes and masks are louder, so that both differ from query to query.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            offset = 1.0 if name.endswith("weight") else 0.0
            scale = 0.1
        else:
            offset, scale = 0.0, 1.2 / parameter[0].numel() ** 0.5
        if "quer" in name and parameter.ndim == 2 and "proj" not in name:
            scale = 3.0
        if "class" in name or name.startswith("mask_head.output_conv"):
            scale *= 6
        parameter.data = offset + scale * torch.randn(parameter.shape, generator=generator)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.data = 0.1 * torch.randn(buffer.shape, generator=generator)
        if name.endswith("running_var"):
            buffer.data = 1 + 0.2 * torch.rand(buffer.shape, generator=generator)
    network.eval()


def _labels() -> dict[str, Any]:
    return {
        "id2label": {i: f"class {i}" for i in range(CLASSES)},
        "label2id": {f"class {i}": i for i in range(CLASSES)},
    }


def _resnet(stages: tuple[int, ...]) -> transformers.ResNetConfig:
    return transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 48],
        depths=[1, 1, 2, 1],
        out_features=[f"stage{stage}" for stage in stages],
    )


def _swin_backbone() -> dict[str, Any]:
    return {
        "embed_dim": 16,
        "depths": [1, 2, 1, 1],
        "num_heads": [1, 2, 4, 4],
        "window_size": 5,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }


def _swin() -> tuple[Any, Any]:
    config = transformers.SwinConfig(
        image_size=96, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=6, **_labels()
    )
    return transformers.SwinForImageClassification(config), _squash(96)


def _swinv2() -> tuple[Any, Any]:
    config = transformers.Swinv2Config(
        image_size=96,
        embed_dim=24,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=6,
        pretrained_window_sizes=[0, 0],
        **_labels(),
    )
    return transformers.Swinv2ForImageClassification(config), _squash(96)


def _squash(side: int) -> Any:
    return ViTImageProcessorPil(size={"height": side, "width": side}, resample=3)


def _detr_config() -> transformers.DetrConfig:
    return transformers.DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=_resnet((1, 2, 3, 4)),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=12,
        **_labels(),
    )


def _detr() -> tuple[Any, Any]:
    return transformers.DetrForObjectDetection(_detr_config()), DetrImageProcessorPil(size=EDGES)


def _detr_masks() -> tuple[Any, Any]:
    config = _detr_config()  # width and heads together have to make groups of eight
    config.d_model, config.encoder_attention_heads, config.decoder_attention_heads = 64, 8, 8
    return transformers.DetrForSegmentation(config), DetrImageProcessorPil(size=EDGES)


def _deformable_detr() -> tuple[Any, Any]:
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=_resnet((2, 3, 4)),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=12,
        with_box_refine=True,
        **_labels(),
    )
    network = transformers.DeformableDetrForObjectDetection(config)
    return network, DeformableDetrImageProcessorPil(size=EDGES)


def _maskformer() -> tuple[Any, Any]:
    config = transformers.MaskFormerConfig(
        backbone_config=transformers.SwinConfig(**_swin_backbone()),
        decoder_config=transformers.DetrConfig(
            d_model=32,
            decoder_layers=2,
            decoder_attention_heads=4,
            decoder_ffn_dim=64,
            num_queries=12,
        ),
        fpn_feature_size=32,
        mask_feature_size=32,
        **_labels(),
    )
    network = transformers.MaskFormerForInstanceSegmentation(config)
    return network, MaskFormerImageProcessorPil(size=EDGES, size_divisor=32)


def _mask2former() -> tuple[Any, Any]:
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(**_swin_backbone()),
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=2,
        decoder_layers=4,
        encoder_feedforward_dim=64,
        dim_feedforward=64,
        num_attention_heads=4,
        num_queries=12,
        **_labels(),
    )
    network = transformers.Mask2FormerForUniversalSegmentation(config)
    return network, Mask2FormerImageProcessorPil(size=EDGES, size_divisor=32)


KINDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "SwinForImageClassification": _swin,
    "Swinv2ForImageClassification": _swinv2,
    "DetrForObjectDetection": _detr,
    "DetrForSegmentation": _detr_masks,
    "DeformableDetrForObjectDetection": _deformable_detr,
    "MaskFormerForInstanceSegmentation": _maskformer,
    "Mask2FormerForUniversalSegmentation": _mask2former,
}
