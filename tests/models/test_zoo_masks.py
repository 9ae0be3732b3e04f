"""Every published MaskFormer and Mask2Former builds from its definition and has the published size.

Parameters agree within 1% and MACs within 3%: of COCO at 800 x 1133, a picture of usual shape, of
ADE20K at the training crop. MaskFormer's authors counted what their network runs for every picture,
and that ends with semantic inference: a product of every query's classes with its mask at the
picture's size, queries x classes x pixels. Without it their ADE20K figures are met at no crop that
they name (R50 at 512 would have 48.5G, not 53G); with it all nine rows are met, those of COCO at
the canvas of Mask2Former's. The R50 and R101 of COCO are the ones with six encoder layers, as their
45M and 64M parameters show: without an encoder they have 41M and 60M, as on ADE20K.
"""

import pytest
import torch

from models.macs import count_macs, count_parameters
from models.mask2former import Mask2FormerConfig
from models.maskformer import MaskFormerConfig
from models.zoo import ZOO, Variant, build, mask2former, maskformer

VARIANTS = (*maskformer.VARIANTS, *mask2former.VARIANTS)

PUBLISHED = [  # variant, parameters in millions, MACs in billions
    ("maskformer-r50", 45, 181),
    ("maskformer-r101", 64, 248),
    ("maskformer-swin-l", 212, 792),
    ("maskformer-r50-ade20k", 41, 53),
    ("maskformer-r101-ade20k", 60, 73),
    ("maskformer-swin-t-ade20k", 42, 55),
    ("maskformer-swin-s-ade20k", 63, 79),
    ("maskformer-swin-b-ade20k", 102, 195),
    ("maskformer-swin-l-ade20k", 212, 375),
    ("mask2former-r50", 44, 226),
    ("mask2former-r101", 63, 293),
    ("mask2former-swin-l", 216, 868),
]

QUALITY = {
    "maskformer-r50": (46.5, 51.0, 39.8, 33.0, 57.8),
    "maskformer-r101": (47.6, 52.5, 40.3, 34.1, 59.3),
    "maskformer-swin-l": (52.7, 58.5, 44.0, 40.1, 64.8),
    "maskformer-r50-ade20k": (44.5, 46.7),
    "maskformer-r101-ade20k": (45.5, 47.2),
    "maskformer-swin-t-ade20k": (46.7, 48.8),
    "maskformer-swin-s-ade20k": (49.8, 51.0),
    "maskformer-swin-b-ade20k": (52.7, 53.9),
    "maskformer-swin-l-ade20k": (54.1, 55.6),
    "mask2former-r50": (51.9, 57.7, 43.0, 41.7, 61.7),
    "mask2former-r101": (52.6, 58.5, 43.7, 42.6, 62.4),
    "mask2former-swin-t": (53.2, 43.3, 63.2),
    "mask2former-swin-s": (54.6, 44.7, 64.2),
    "mask2former-swin-b": (55.1, 45.2, 65.1),
    "mask2former-swin-l": (57.8, 64.2, 48.1, 48.6, 67.4),
}


def semantic_inference_macs(config: MaskFormerConfig | Mask2FormerConfig) -> int:
    if isinstance(config, Mask2FormerConfig):
        return 0
    return config.queries * config.classes * config.canvas[0] * config.canvas[1]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_builds_without_memory_and_counts_as_stated(variant: Variant) -> None:
    config = variant.config
    with torch.device("meta"):
        model = build(variant.name)
        images = torch.empty(1, 3, *config.canvas)
    assert count_parameters(model) == variant.parameters
    assert count_macs(model, images) == variant.macs
    rows, columns = (-(-side // 4) for side in config.canvas)
    assert {name: tuple(tensor.shape) for name, tensor in model(images).items()} == {
        "logits": (1, config.queries, config.classes + 1),
        "masks": (1, config.queries, rows, columns),
    }


@pytest.mark.parametrize(("name", "millions", "billions"), PUBLISHED)
def test_counts_reproduce_the_published_figures(name: str, millions: int, billions: int) -> None:
    variant = ZOO[name]
    assert variant.parameters == pytest.approx(millions * 1e6, rel=0.01)
    counted = variant.macs + semantic_inference_macs(variant.config)
    assert counted == pytest.approx(billions * 1e9, rel=0.03)


def test_quality_is_stated_exactly_where_it_was_published() -> None:
    found = {variant.name: variant.published for variant in VARIANTS if variant.published}
    assert {name: tuple(figures.values()) for name, figures in found.items()} == QUALITY
    assert found["mask2former-swin-l"]["PQ"] == 57.8
    assert found["maskformer-swin-t-ade20k"]["mIoU"] == 46.7


def test_only_the_largest_mask2former_has_200_queries() -> None:
    queries = {variant.name: variant.config.queries for variant in VARIANTS}
    assert [name for name, count in queries.items() if count != 100] == ["mask2former-swin-l"]
    assert queries["mask2former-swin-l"] == 200
