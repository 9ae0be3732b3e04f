"""MaskFormer as published: panoptic segmentation of COCO at the size of a picture of usual shape,
and semantic segmentation of ADE20K at the size of its training crops.
"""

from models.maskformer import MaskFormerConfig
from models.resnet import RESNET50, RESNET101, ResNetConfig
from models.swin import SwinConfig
from models.zoo.mask2former import (
    CANVAS,
    SWIN_B,
    SWIN_L,
    SWIN_S,
    SWIN_T,
    THINGS_AND_STUFF,
    panoptic_figures,
)
from models.zoo.variant import Variant

ADE20K_CLASSES = 150


def _panoptic(backbone: SwinConfig | ResNetConfig, encoder_layers: int = 0) -> MaskFormerConfig:
    return MaskFormerConfig(CANVAS, backbone, THINGS_AND_STUFF, encoder_layers=encoder_layers)


def _semantic(backbone: SwinConfig | ResNetConfig, crop_px: int) -> MaskFormerConfig:
    return MaskFormerConfig((crop_px, crop_px), backbone, ADE20K_CLASSES)


def _miou(single_scale: float, multi_scale: float) -> dict[str, float]:
    return {"mIoU": single_scale, "mIoU multi-scale": multi_scale}


VARIANTS = (
    Variant(
        "maskformer-r50",
        "maskformer",
        _panoptic(RESNET50, encoder_layers=6),
        parameters=45_065_158,
        macs=172_117_478_400,
        published=panoptic_figures(46.5, 51.0, 39.8, 33.0, 57.8),
    ),
    Variant(
        "maskformer-r101",
        "maskformer",
        _panoptic(RESNET101, encoder_layers=6),
        parameters=64_057_286,
        macs=239_354_137_600,
        published=panoptic_figures(47.6, 52.5, 40.3, 34.1, 59.3),
    ),
    Variant(
        "maskformer-swin-l",
        "maskformer",
        _panoptic(SWIN_L),
        parameters=211_571_258,
        macs=776_772_704_256,
        hub_ids=("facebook/maskformer-swin-large-coco",),
        published=panoptic_figures(52.7, 58.5, 44.0, 40.1, 64.8),
    ),
    Variant(
        "maskformer-r50-ade20k",
        "maskformer",
        _semantic(RESNET50, 512),
        parameters=41_307_863,
        macs=48_540_400_640,
        hub_ids=("facebook/maskformer-resnet50-ade",),
        published=_miou(44.5, 46.7),
    ),
    Variant(
        "maskformer-r101-ade20k",
        "maskformer",
        _semantic(RESNET101, 512),
        parameters=60_299_991,
        macs=67_934_862_336,
        hub_ids=("facebook/maskformer-resnet101-ade",),
        published=_miou(45.5, 47.2),
    ),
    Variant(
        "maskformer-swin-t-ade20k",
        "maskformer",
        _semantic(SWIN_T, 512),
        parameters=41_757_009,
        macs=50_676_474_752,
        hub_ids=("facebook/maskformer-swin-tiny-ade",),
        published=_miou(46.7, 48.8),
    ),
    Variant(
        "maskformer-swin-s-ade20k",
        "maskformer",
        _semantic(SWIN_S, 512),
        parameters=63_074_913,
        macs=74_395_592_576,
        hub_ids=("facebook/maskformer-swin-small-ade",),
        published=_miou(49.8, 51.0),
    ),
    Variant(
        "maskformer-swin-b-ade20k",
        "maskformer",
        _semantic(SWIN_B, 640),
        parameters=101_829_391,
        macs=187_944_320_000,
        hub_ids=("facebook/maskformer-swin-base-ade",),
        published=_miou(52.7, 53.9),
    ),
    Variant(
        "maskformer-swin-l-ade20k",
        "maskformer",
        _semantic(SWIN_L, 640),
        parameters=211_575_627,
        macs=367_524_887_552,
        hub_ids=("facebook/maskformer-swin-large-ade",),
        published=_miou(54.1, 55.6),
    ),
)
