"""Mask2Former as published for panoptic segmentation of COCO, at the size that gives its authors'
figures: a picture of usual shape, 800 pixels on its shorter side.
"""

from models.mask2former import Mask2FormerConfig
from models.resnet import RESNET50, RESNET101, ResNetConfig
from models.swin import SwinConfig
from models.zoo.variant import Variant

CANVAS = (800, 1133)
THINGS_AND_STUFF = 133

# Window 12 belongs to the bodies that were trained on ImageNet-22k at 384 pixels.
SWIN_T = SwinConfig(CANVAS, always_pad=True)
SWIN_S = SwinConfig(CANVAS, depths=(2, 2, 18, 2), always_pad=True)
SWIN_B = SwinConfig(
    CANVAS, dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12, always_pad=True
)
SWIN_L = SwinConfig(
    CANVAS, dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12, always_pad=True
)


def _panoptic(backbone: SwinConfig | ResNetConfig, queries: int = 100) -> Mask2FormerConfig:
    return Mask2FormerConfig(CANVAS, backbone, classes=THINGS_AND_STUFF, queries=queries)


def panoptic_figures(*figures: float) -> dict[str, float]:
    """The columns of the papers' tables, by metric."""
    return dict(zip(("PQ", "PQ things", "PQ stuff", "mask AP", "mIoU"), figures, strict=True))


VARIANTS = (
    Variant(
        "mask2former-r50",
        "mask2former",
        _panoptic(RESNET50),
        parameters=44_036_998,
        macs=226_281_856_000,
        published=panoptic_figures(51.9, 57.7, 43.0, 41.7, 61.7),
    ),
    Variant(
        "mask2former-r101",
        "mask2former",
        _panoptic(RESNET101),
        parameters=63_029_126,
        macs=293_518_515_200,
        published=panoptic_figures(52.6, 58.5, 43.7, 42.6, 62.4),
    ),
    Variant(
        "mask2former-swin-t",
        "mask2former",
        _panoptic(SWIN_T),
        parameters=47_435_264,
        macs=233_984_258_176,
        hub_ids=("facebook/mask2former-swin-tiny-coco-panoptic",),
        published={"PQ": 53.2, "mask AP": 43.3, "mIoU": 63.2},
    ),
    Variant(
        "mask2former-swin-s",
        "mask2former",
        _panoptic(SWIN_S),
        parameters=68_753_168,
        macs=316_704_346_240,
        hub_ids=("facebook/mask2former-swin-small-coco-panoptic",),
        published={"PQ": 54.6, "mask AP": 44.7, "mIoU": 64.2},
    ),
    Variant(
        "mask2former-swin-b",
        "mask2former",
        _panoptic(SWIN_B),
        parameters=106_917_822,
        macs=460_549_908_480,
        hub_ids=("facebook/mask2former-swin-base-coco-panoptic",),
        published={"PQ": 55.1, "mask AP": 45.2, "mIoU": 65.1},
    ),
    Variant(
        "mask2former-swin-l",
        "mask2former",
        _panoptic(SWIN_L, queries=200),
        parameters=215_535_610,
        macs=856_890_413_056,
        hub_ids=("facebook/mask2former-swin-large-coco-panoptic",),
        published=panoptic_figures(57.8, 64.2, 48.1, 48.6, 67.4),
    ),
)
