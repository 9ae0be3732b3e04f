"""What was printed of the published networks' sizes, and where their figures stand.

"FLOPs" of the papers are multiply-accumulates. Figures are as coarse as they were printed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """Who described a family, and where (an arXiv id)."""

    title: str
    authors: str
    arxiv: str


@dataclass(frozen=True)
class Printed:
    """Sizes: ``parameters`` in millions, ``macs`` in billions."""

    parameters: float | None = None
    macs: float | None = None


PAPERS = {
    "vit": Paper("ViT", "Dosovitskiy et al. 2020", "2010.11929"),
    "deit": Paper("DeiT", "Touvron et al. 2020", "2012.12877"),
    "mae": Paper("MAE", "He et al. 2021", "2111.06377"),
    "dino": Paper("DINO", "Caron et al. 2021", "2104.14294"),
    "dinov2": Paper("DINOv2", "Oquab et al. 2023", "2304.07193"),
    "swin": Paper("Swin", "Liu et al. 2021", "2103.14030"),
    "swinv2": Paper("SwinV2", "Liu et al. 2021", "2111.09883"),
    "detr": Paper("DETR", "Carion et al. 2020", "2005.12872"),
    "deformable_detr": Paper("Deformable DETR", "Zhu et al. 2020", "2010.04159"),
    "maskformer": Paper("MaskFormer", "Cheng et al. 2021", "2107.06278"),
    "mask2former": Paper("Mask2Former", "Cheng et al. 2021", "2112.01527"),
}

FROM_REPOSITORIES = {
    *("mae-b16-224", "mae-l16-224", "mae-h14-224"),
    *(f"dinov2-{size}14{registers}-linear" for size in "sblg" for registers in ("", "-registers")),
    *("swin-l-224", "swinv2-t-256-window8", "swinv2-t-256-window16", "swinv2-s-256-window8"),
    *("swinv2-s-256-window16", "swinv2-b-256-window8", "swinv2-b-256-window16"),
    *("swinv2-b-256-from-192", "swinv2-l-256-from-192"),
    *("deformable-detr-r50-single-scale", "deformable-detr-r50-single-scale-dc5"),
    *("mask2former-swin-t", "mask2former-swin-s", "mask2former-swin-b"),
}
"""Variants whose scores are those of the authors' repositories rather than of the papers."""

PRINTED = {
    "vit-b16-384": Printed(86, 55.4),
    "vit-l16-384": Printed(307, 190.7),
    "vit-h14-518": Printed(632, 1021),
    "deit-ti16-224": Printed(5),
    "deit-s16-224": Printed(22, 4.6),
    "deit-b16-224": Printed(86, 17.5),
    "deit-b16-384": Printed(86, 55.4),
    "dino-s16": Printed(21),
    "dino-s8": Printed(21),
    "dino-b16": Printed(85),
    "dino-b8": Printed(85),
    "dinov2-s14": Printed(21),
    "dinov2-b14": Printed(86),
    "dinov2-l14": Printed(300),
    "dinov2-g14": Printed(1100),
    "swin-t-224": Printed(29, 4.5),
    "swin-s-224": Printed(50, 8.7),
    "swin-b-224": Printed(88, 15.4),
    "swin-b-384": Printed(88, 47.0),
    "swin-l-224": Printed(197, 34.5),
    "swin-l-384": Printed(197, 103.9),
    "swinv2-t-256-window8": Printed(28, 5.9),
    "swinv2-t-256-window16": Printed(28, 6.6),
    "swinv2-s-256-window8": Printed(50, 11.5),
    "swinv2-s-256-window16": Printed(50, 12.6),
    "swinv2-b-256-window8": Printed(88, 20.3),
    "swinv2-b-256-window16": Printed(88, 21.8),
    "swinv2-b-256-from-192": Printed(88, 21.8),
    "swinv2-b-384": Printed(88, 54.7),
    "swinv2-l-256-from-192": Printed(197, 47.5),
    "swinv2-l-384": Printed(197, 115.4),
    "detr-r50": Printed(41, 86),
    "detr-dc5-r50": Printed(41, 187),
    "detr-r101": Printed(60, 152),
    "detr-dc5-r101": Printed(60, 253),
    "detr-r50-encoder0": Printed(33.4, 76),
    "detr-r50-encoder3": Printed(37.4, 81),
    "detr-r50-encoder12": Printed(49.2, 95),
    "deformable-detr-r50": Printed(40, 173),
    "deformable-detr-r50-refine": Printed(40, 173),
    "deformable-detr-r50-two-stage": Printed(40, 173),
    "deformable-detr-r50-single-scale": Printed(34, 78),
    "deformable-detr-r50-single-scale-dc5": Printed(34, 128),
    "maskformer-r50": Printed(45, 181),
    "maskformer-r101": Printed(64, 248),
    "maskformer-swin-l": Printed(212, 792),
    "maskformer-r50-ade20k": Printed(41, 53),
    "maskformer-r101-ade20k": Printed(60, 73),
    "maskformer-swin-t-ade20k": Printed(42, 55),
    "maskformer-swin-s-ade20k": Printed(63, 79),
    "maskformer-swin-b-ade20k": Printed(102, 195),
    "maskformer-swin-l-ade20k": Printed(212, 375),
    "mask2former-r50": Printed(44, 226),
    "mask2former-r101": Printed(63, 293),
    "mask2former-swin-l": Printed(216, 868),
}
