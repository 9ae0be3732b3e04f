"""DETR as published, for boxes and for panoptic segmentation, at the size that gives its authors'
figures: a COCO picture of usual shape, 800 pixels on its shorter side.
"""

from dataclasses import replace

from models.detr import DetrConfig
from models.resnet import ResNetConfig
from models.zoo.variant import Variant

CANVAS = (800, 1133)
DEPTHS_101 = (3, 4, 23, 3)


def _detector(depths: tuple[int, ...] = (3, 4, 6, 3), dilated: bool = False) -> DetrConfig:
    return DetrConfig(CANVAS, ResNetConfig(depths, dilated=dilated, returned=(4,)))


def _panoptic(depths: tuple[int, ...] = (3, 4, 6, 3), dilated: bool = False) -> DetrConfig:
    return DetrConfig(CANVAS, ResNetConfig(depths, dilated=dilated), classes=250, masks=True)


def _box_ap(*figures: float) -> dict[str, float]:
    names = ("box AP", "box AP50", "box AP75", "box APS", "box APM", "box APL")
    return dict(zip(names, figures, strict=True))


def _pq(*figures: float) -> dict[str, float]:
    names = ("PQ", "PQ things", "PQ stuff", "SQ", "RQ", "mask AP")
    return dict(zip(names, figures, strict=True))


VARIANTS = (
    Variant(
        "detr-r50",
        "detr",
        _detector(),
        parameters=41_577_888,
        macs=86_137_369_600,
        hub_ids=("facebook/detr-resnet-50",),
        published=_box_ap(42.0, 62.4, 44.2, 20.5, 45.8, 61.1),
    ),
    Variant(
        "detr-dc5-r50",
        "detr",
        _detector(dilated=True),
        parameters=41_577_888,
        macs=185_699_353_600,
        hub_ids=("facebook/detr-resnet-50-dc5",),
        published=_box_ap(43.3, 63.1, 45.9, 22.5, 47.3, 61.1),
    ),
    Variant(
        "detr-r101",
        "detr",
        _detector(DEPTHS_101),
        parameters=60_570_016,
        macs=153_374_028_800,
        hub_ids=("facebook/detr-resnet-101",),
        published=_box_ap(43.5, 63.8, 46.4, 21.9, 48.0, 61.8),
    ),
    Variant(
        "detr-dc5-r101",
        "detr",
        _detector(DEPTHS_101, dilated=True),
        parameters=60_570_016,
        macs=252_936_012_800,
        hub_ids=("facebook/detr-resnet-101-dc5",),
        published=_box_ap(44.9, 64.7, 47.7, 23.7, 49.5, 62.3),
    ),
    Variant(
        "detr-r50-encoder0",
        "detr",
        replace(_detector(), encoder_layers=0),
        parameters=33_687_456,
        macs=76_571_161_600,
    ),
    Variant(
        "detr-r50-encoder3",
        "detr",
        replace(_detector(), encoder_layers=3),
        parameters=37_632_672,
        macs=81_354_265_600,
    ),
    Variant(
        "detr-r50-encoder12",
        "detr",
        replace(_detector(), encoder_layers=12),
        parameters=49_468_320,
        macs=95_703_577_600,
    ),
    Variant(
        "detr-r50-panoptic",
        "detr",
        _panoptic(),
        parameters=42_952_408,
        macs=196_593_843_200,
        hub_ids=("facebook/detr-resnet-50-panoptic",),
        published=_pq(43.4, 48.2, 36.3, 79.3, 53.8, 31.1),
    ),
    Variant(
        "detr-dc5-r50-panoptic",
        "detr",
        _panoptic(dilated=True),
        parameters=42_952_408,
        macs=383_640_256_000,
        hub_ids=("facebook/detr-resnet-50-dc5-panoptic",),
        published=_pq(44.6, 49.4, 37.3, 79.8, 55.0, 31.9),
    ),
    Variant(
        "detr-r101-panoptic",
        "detr",
        _panoptic(DEPTHS_101),
        parameters=61_944_536,
        macs=263_830_502_400,
        hub_ids=("facebook/detr-resnet-101-panoptic",),
        published=_pq(45.1, 50.5, 37.0, 79.9, 55.5, 33.0),
    ),
)
