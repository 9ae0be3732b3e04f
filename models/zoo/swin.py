"""Swin and SwinV2 as published. The larger ones were trained on ImageNet-22k first; networks of one
size that saw other data share a variant.
"""

from dataclasses import replace

from models.swin import SwinConfig
from models.swinv2 import SwinV2Config
from models.zoo.variant import Variant

SWIN_T = SwinConfig((224, 224), classes=1000)
SWIN_S = replace(SWIN_T, depths=(2, 2, 18, 2))
SWIN_B = replace(SWIN_S, dim=128, heads=(4, 8, 16, 32))
SWIN_L = replace(SWIN_B, dim=192, heads=(6, 12, 24, 48))

SWINV2_T = SwinV2Config((256, 256), classes=1000, fitted=(256, 256))
SWINV2_S = replace(SWINV2_T, depths=(2, 2, 18, 2))
SWINV2_B = replace(SWINV2_S, dim=128, heads=(4, 8, 16, 32))
# Trained on ImageNet-22k at 192, whose windows measure the offsets.
SWINV2_B_FROM_192 = replace(SWINV2_B, window=16, trained_windows=(12, 12, 12, 6))
SWINV2_L_FROM_192 = replace(SWINV2_B_FROM_192, dim=192, heads=(6, 12, 24, 48))

VARIANTS = (
    Variant(
        "swin-t-224",
        "swin",
        SWIN_T,
        parameters=28_288_354,
        macs=4_490_566_656,
        hub_ids=("microsoft/swin-tiny-patch4-window7-224",),
        top1={"ImageNet-1k": 81.3},
    ),
    Variant(
        "swin-s-224",
        "swin",
        SWIN_S,
        parameters=49_606_258,
        macs=8_740_875_264,
        hub_ids=("microsoft/swin-small-patch4-window7-224",),
        top1={"ImageNet-1k": 83.0},
    ),
    Variant(
        "swin-b-224",
        "swin",
        SWIN_B,
        parameters=87_768_224,
        macs=15_430_946_816,
        hub_ids=("microsoft/swin-base-patch4-window7-224",),
        top1={"ImageNet-1k": 83.3, "ImageNet-22k": 85.2},
    ),
    Variant(
        "swin-b-384",
        "swin",
        replace(SWIN_B, canvas=(384, 384), window=12),
        parameters=87_903_584,
        macs=47_083_134_976,
        hub_ids=("microsoft/swin-base-patch4-window12-384",),
        top1={"ImageNet-1k": 84.2, "ImageNet-22k": 86.4},
    ),
    Variant(
        "swin-l-224",
        "swin",
        SWIN_L,
        parameters=196_532_476,
        macs=34_475_759_616,
        hub_ids=("microsoft/swin-large-patch4-window7-224",),
        top1={"ImageNet-22k": 86.3},
    ),
    Variant(
        "swin-l-384",
        "swin",
        replace(SWIN_L, canvas=(384, 384), window=12),
        parameters=196_735_516,
        macs=103_919_087_616,
        hub_ids=("microsoft/swin-large-patch4-window12-384",),
        top1={"ImageNet-22k": 87.3},
    ),
    Variant(
        "swinv2-t-256-window8",
        "swinv2",
        SWINV2_T,
        parameters=28_351_570,
        macs=5_939_690_496,
        hub_ids=("microsoft/swinv2-tiny-patch4-window8-256",),
        top1={"ImageNet-1k": 81.8},
    ),
    Variant(
        "swinv2-t-256-window16",
        "swinv2",
        replace(SWINV2_T, window=16),
        parameters=28_351_570,
        macs=6_660_619_264,
        hub_ids=("microsoft/swinv2-tiny-patch4-window16-256",),
        top1={"ImageNet-1k": 82.8},
    ),
    Variant(
        "swinv2-s-256-window8",
        "swinv2",
        SWINV2_S,
        parameters=49_737_442,
        macs=11_545_857_024,
        hub_ids=("microsoft/swinv2-small-patch4-window8-256",),
        top1={"ImageNet-1k": 83.7},
    ),
    Variant(
        "swinv2-s-256-window16",
        "swinv2",
        replace(SWINV2_S, window=16),
        parameters=49_737_442,
        macs=12_783_078_400,
        hub_ids=("microsoft/swinv2-small-patch4-window16-256",),
        top1={"ImageNet-1k": 84.1},
    ),
    Variant(
        "swinv2-b-256-window8",
        "swinv2",
        SWINV2_B,
        parameters=87_930_848,
        macs=20_325_134_336,
        hub_ids=("microsoft/swinv2-base-patch4-window8-256",),
        top1={"ImageNet-1k": 84.2},
    ),
    Variant(
        "swinv2-b-256-window16",
        "swinv2",
        replace(SWINV2_B, window=16),
        parameters=87_930_848,
        macs=21_969_235_968,
        hub_ids=("microsoft/swinv2-base-patch4-window16-256",),
        top1={"ImageNet-1k": 84.6},
    ),
    Variant(
        "swinv2-b-256-from-192",
        "swinv2",
        SWINV2_B_FROM_192,
        parameters=87_930_848,
        macs=21_969_235_968,
        hub_ids=("microsoft/swinv2-base-patch4-window12to16-192to256-22kto1k-ft",),
        top1={"ImageNet-22k": 86.2},
    ),
    Variant(
        "swinv2-b-384",
        "swinv2",
        replace(SWINV2_B_FROM_192, canvas=(384, 384), fitted=(384, 384), window=24),
        parameters=87_930_848,
        macs=55_148_310_528,
        hub_ids=("microsoft/swinv2-base-patch4-window12to24-192to384-22kto1k-ft",),
        top1={"ImageNet-22k": 87.1},
    ),
    Variant(
        "swinv2-l-256-from-192",
        "swinv2",
        SWINV2_L_FROM_192,
        parameters=196_757_980,
        macs=47_740_303_360,
        hub_ids=("microsoft/swinv2-large-patch4-window12to16-192to256-22kto1k-ft",),
        top1={"ImageNet-22k": 86.9},
    ),
    Variant(
        "swinv2-l-384",
        "swinv2",
        replace(SWINV2_L_FROM_192, canvas=(384, 384), fitted=(384, 384), window=24),
        parameters=196_757_980,
        macs=115_991_427_072,
        hub_ids=("microsoft/swinv2-large-patch4-window12to24-192to384-22kto1k-ft",),
        top1={"ImageNet-22k": 87.7},
    ),
)
