"""ViT, DeiT, MAE, DINO and DINOv2 as published."""

from dataclasses import replace

from models.vit import ViTConfig
from models.zoo.variant import Variant

VIT_TI16 = ViTConfig((224, 224), 16, dim=192, depth=12, heads=3, mlp_dim=768, classes=1000)
VIT_S16 = ViTConfig((224, 224), 16, dim=384, depth=12, heads=6, mlp_dim=1536, classes=1000)
VIT_B16 = ViTConfig((224, 224), 16, dim=768, depth=12, heads=12, mlp_dim=3072, classes=1000)
VIT_L16 = ViTConfig((224, 224), 16, dim=1024, depth=24, heads=16, mlp_dim=4096, classes=1000)
VIT_H14 = ViTConfig((224, 224), 14, dim=1280, depth=32, heads=16, mlp_dim=5120, classes=1000)

# DINOv2 was trained at 224 and finished at 518, the canvas of its position tables.
DINOV2_S14 = ViTConfig((518, 518), 14, dim=384, depth=12, heads=6, mlp_dim=1536, layer_scale=True)
DINOV2_B14 = replace(DINOV2_S14, dim=768, heads=12, mlp_dim=3072)
DINOV2_L14 = replace(DINOV2_S14, dim=1024, depth=24, heads=16, mlp_dim=4096)
DINOV2_G14 = replace(DINOV2_S14, dim=1536, depth=40, heads=24, mlp_dim=4096, swiglu=True)

VARIANTS = (
    Variant(
        "vit-b16-224",
        "vit",
        VIT_B16,
        parameters=86_567_656,
        macs=17_563_828_224,
        hub_ids=(
            "google/vit-base-patch16-224",
            "timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
        ),
    ),
    Variant(
        "vit-b16-384",
        "vit",
        replace(VIT_B16, canvas=(384, 384)),
        parameters=86_859_496,
        macs=55_484_350_464,
        hub_ids=(
            "google/vit-base-patch16-384",
            "timm/vit_base_patch16_384.augreg_in21k_ft_in1k",
        ),
        top1={"ImageNet-1k": 77.9, "ImageNet-22k": 84.0},
    ),
    Variant(
        "vit-l16-224",
        "vit",
        VIT_L16,
        parameters=304_326_632,
        macs=61_554_712_576,
        hub_ids=(
            "google/vit-large-patch16-224",
            "timm/vit_large_patch16_224.augreg_in21k_ft_in1k",
        ),
    ),
    Variant(
        "vit-l16-384",
        "vit",
        replace(VIT_L16, canvas=(384, 384)),
        parameters=304_715_752,
        macs=191_066_300_416,
        hub_ids=(
            "google/vit-large-patch16-384",
            "timm/vit_large_patch16_384.augreg_in21k_ft_in1k",
        ),
        top1={"ImageNet-1k": 76.5, "ImageNet-22k": 85.2},
    ),
    Variant(
        "vit-h14-224-features",
        "vit",
        replace(VIT_H14, classes=0),
        parameters=630_764_800,
        macs=167_293_829_120,
        hub_ids=("google/vit-huge-patch14-224-in21k",),
    ),
    Variant(
        "vit-h14-518",
        "vit",
        replace(VIT_H14, canvas=(518, 518)),
        parameters=633_470_440,
        macs=1_016_716_764_160,
        top1={"JFT": 88.55},
    ),
    Variant(
        "deit-ti16-224",
        "deit",
        VIT_TI16,
        parameters=5_717_416,
        macs=1_253_683_200,
        hub_ids=(
            "facebook/deit-tiny-patch16-224",
            "timm/deit_tiny_patch16_224.fb_in1k",
        ),
        top1={"ImageNet-1k": 72.2},
    ),
    Variant(
        "deit-ti16-224-distilled",
        "deit",
        replace(VIT_TI16, pool="distilled"),
        parameters=5_910_800,
        macs=1_261_003_776,
        hub_ids=(
            "facebook/deit-tiny-distilled-patch16-224",
            "timm/deit_tiny_distilled_patch16_224.fb_in1k",
        ),
        top1={"ImageNet-1k": 74.5},
    ),
    Variant(
        "deit-s16-224",
        "deit",
        VIT_S16,
        parameters=22_050_664,
        macs=4_598_882_304,
        hub_ids=(
            "facebook/deit-small-patch16-224",
            "timm/deit_small_patch16_224.fb_in1k",
        ),
        top1={"ImageNet-1k": 79.8},
    ),
    Variant(
        "deit-s16-224-distilled",
        "deit",
        replace(VIT_S16, pool="distilled"),
        parameters=22_436_432,
        macs=4_624_140_288,
        hub_ids=(
            "facebook/deit-small-distilled-patch16-224",
            "timm/deit_small_distilled_patch16_224.fb_in1k",
        ),
        top1={"ImageNet-1k": 81.2},
    ),
    Variant(
        "deit-b16-224",
        "deit",
        VIT_B16,
        parameters=86_567_656,
        macs=17_563_828_224,
        hub_ids=(
            "facebook/deit-base-patch16-224",
            "timm/deit_base_patch16_224.fb_in1k",
        ),
        top1={"ImageNet-1k": 81.8},
    ),
    Variant(
        "deit-b16-224-distilled",
        "deit",
        replace(VIT_B16, pool="distilled"),
        parameters=87_338_192,
        macs=17_656_811_520,
        hub_ids=(
            "facebook/deit-base-distilled-patch16-224",
            "timm/deit_base_distilled_patch16_224.fb_in1k",
        ),
        top1={"ImageNet-1k": 83.4},
    ),
    Variant(
        "deit-b16-384",
        "deit",
        replace(VIT_B16, canvas=(384, 384)),
        parameters=86_859_496,
        macs=55_484_350_464,
        hub_ids=(
            "facebook/deit-base-patch16-384",
            "timm/deit_base_patch16_384.fb_in1k",
        ),
        top1={"ImageNet-1k": 83.1},
    ),
    Variant(
        "deit-b16-384-distilled",
        "deit",
        replace(VIT_B16, canvas=(384, 384), pool="distilled"),
        parameters=87_630_032,
        macs=55_591_342_080,
        hub_ids=(
            "facebook/deit-base-distilled-patch16-384",
            "timm/deit_base_distilled_patch16_384.fb_in1k",
        ),
        top1={"ImageNet-1k": 84.5},
    ),
    Variant(
        "mae-b16-224",
        "mae",
        replace(VIT_B16, pool="mean"),
        parameters=86_567_656,
        macs=17_563_828_224,
        top1={"ImageNet-1k": 83.664},
    ),
    Variant(
        "mae-l16-224",
        "mae",
        replace(VIT_L16, pool="mean"),
        parameters=304_326_632,
        macs=61_554_712_576,
        top1={"ImageNet-1k": 85.952},
    ),
    Variant(
        "mae-h14-224",
        "mae",
        replace(VIT_H14, pool="mean"),
        parameters=632_045_800,
        macs=167_295_109_120,
        top1={"ImageNet-1k": 86.928},
    ),
    Variant(
        "dino-s16",
        "dino",
        replace(VIT_S16, classes=0),
        parameters=21_665_664,
        macs=4_598_498_304,
        hub_ids=(
            "facebook/dino-vits16",
            "timm/vit_small_patch16_224.dino",
        ),
        top1={"linear": 77.0},
    ),
    Variant(
        "dino-s8",
        "dino",
        replace(VIT_S16, patch_size=8, classes=0),
        parameters=21_670_272,
        macs=22_405_358_592,
        hub_ids=(
            "facebook/dino-vits8",
            "timm/vit_small_patch8_224.dino",
        ),
        top1={"linear": 79.7},
    ),
    Variant(
        "dino-b16",
        "dino",
        replace(VIT_B16, classes=0),
        parameters=85_798_656,
        macs=17_563_060_224,
        hub_ids=(
            "facebook/dino-vitb16",
            "timm/vit_base_patch16_224.dino",
        ),
        top1={"linear": 78.2},
    ),
    Variant(
        "dino-b8",
        "dino",
        replace(VIT_B16, patch_size=8, classes=0),
        parameters=85_807_872,
        macs=78_147_569_664,
        hub_ids=(
            "facebook/dino-vitb8",
            "timm/vit_base_patch8_224.dino",
        ),
        top1={"linear": 80.1},
    ),
    Variant(
        "dinov2-s14",
        "dinov2",
        DINOV2_S14,
        parameters=22_056_192,
        macs=46_696_739_328,
        hub_ids=(
            "facebook/dinov2-small",
            "timm/vit_small_patch14_dinov2.lvd142m",
        ),
    ),
    Variant(
        "dinov2-s14-linear",
        "dinov2",
        replace(DINOV2_S14, classes=1000, pool="class_and_mean"),
        parameters=22_825_192,
        macs=46_697_507_328,
        hub_ids=("facebook/dinov2-small-imagenet1k-1-layer",),
        top1={"linear": 81.1},
    ),
    Variant(
        "dinov2-b14",
        "dinov2",
        DINOV2_B14,
        parameters=86_579_712,
        macs=151_573_718_016,
        hub_ids=(
            "facebook/dinov2-base",
            "timm/vit_base_patch14_dinov2.lvd142m",
        ),
    ),
    Variant(
        "dinov2-b14-linear",
        "dinov2",
        replace(DINOV2_B14, classes=1000, pool="class_and_mean"),
        parameters=88_116_712,
        macs=151_575_254_016,
        hub_ids=("facebook/dinov2-base-imagenet1k-1-layer",),
        top1={"linear": 84.5},
    ),
    Variant(
        "dinov2-l14",
        "dinov2",
        DINOV2_L14,
        parameters=304_367_616,
        macs=506_803_826_688,
        hub_ids=(
            "facebook/dinov2-large",
            "timm/vit_large_patch14_dinov2.lvd142m",
        ),
    ),
    Variant(
        "dinov2-l14-linear",
        "dinov2",
        replace(DINOV2_L14, classes=1000, pool="class_and_mean"),
        parameters=306_416_616,
        macs=506_805_874_688,
        hub_ids=("facebook/dinov2-large-imagenet1k-1-layer",),
        top1={"linear": 86.3},
    ),
    Variant(
        "dinov2-g14",
        "dinov2",
        DINOV2_G14,
        parameters=1_136_479_232,
        macs=1_783_342_958_592,
        hub_ids=(
            "facebook/dinov2-giant",
            "timm/vit_giant_patch14_dinov2.lvd142m",
        ),
    ),
    Variant(
        "dinov2-g14-linear",
        "dinov2",
        replace(DINOV2_G14, classes=1000, pool="class_and_mean"),
        parameters=1_139_552_232,
        macs=1_783_346_030_592,
        hub_ids=("facebook/dinov2-giant-imagenet1k-1-layer",),
        top1={"linear": 86.5},
    ),
    Variant(
        "dinov2-s14-registers",
        "dinov2",
        replace(DINOV2_S14, registers=4),
        parameters=22_057_728,
        macs=46_882_828_800,
        hub_ids=(
            "facebook/dinov2-with-registers-small",
            "timm/vit_small_patch14_reg4_dinov2.lvd142m",
        ),
    ),
    Variant(
        "dinov2-s14-registers-linear",
        "dinov2",
        replace(DINOV2_S14, registers=4, classes=1000, pool="class_and_mean"),
        parameters=22_826_728,
        macs=46_883_596_800,
        hub_ids=("facebook/dinov2-with-registers-small-imagenet1k-1-layer",),
        top1={"linear": 80.9},
    ),
    Variant(
        "dinov2-b14-registers",
        "dinov2",
        replace(DINOV2_B14, registers=4),
        parameters=86_582_784,
        macs=152_115_766_272,
        hub_ids=(
            "facebook/dinov2-with-registers-base",
            "timm/vit_base_patch14_reg4_dinov2.lvd142m",
        ),
    ),
    Variant(
        "dinov2-b14-registers-linear",
        "dinov2",
        replace(DINOV2_B14, registers=4, classes=1000, pool="class_and_mean"),
        parameters=88_119_784,
        macs=152_117_302_272,
        hub_ids=("facebook/dinov2-with-registers-base-imagenet1k-1-layer",),
        top1={"linear": 84.6},
    ),
    Variant(
        "dinov2-l14-registers",
        "dinov2",
        replace(DINOV2_L14, registers=4),
        parameters=304_371_712,
        macs=508_551_278_592,
        hub_ids=(
            "facebook/dinov2-with-registers-large",
            "timm/vit_large_patch14_reg4_dinov2.lvd142m",
        ),
    ),
    Variant(
        "dinov2-l14-registers-linear",
        "dinov2",
        replace(DINOV2_L14, registers=4, classes=1000, pool="class_and_mean"),
        parameters=306_420_712,
        macs=508_553_326_592,
        hub_ids=("facebook/dinov2-with-registers-large-imagenet1k-1-layer",),
        top1={"linear": 86.7},
    ),
    Variant(
        "dinov2-g14-registers",
        "dinov2",
        replace(DINOV2_G14, registers=4),
        parameters=1_136_485_376,
        macs=1_789_221_537_792,
        hub_ids=(
            "facebook/dinov2-with-registers-giant",
            "timm/vit_giant_patch14_reg4_dinov2.lvd142m",
        ),
    ),
    Variant(
        "dinov2-g14-registers-linear",
        "dinov2",
        replace(DINOV2_G14, registers=4, classes=1000, pool="class_and_mean"),
        parameters=1_139_558_376,
        macs=1_789_224_609_792,
        hub_ids=("facebook/dinov2-with-registers-giant-imagenet1k-1-layer",),
        top1={"linear": 87.1},
    ),
)
