"""Every published ViT builds from its definition and has the published size.

Published parameters are whole millions, cut and not rounded: DeiT-B's 86.6M is printed 86M, DINO
S/16's 21.7M is printed 21M. So a count agrees when cutting it gives the printed figure, or when it
is within 1% of it. Two rows need the latter. ViT-L/16 at 384 counts 304.7M against 307M, a figure
given for ViT-Large whatever its patches (patches of 32 would give 306.5M). ViT-H/14 at 518 counts
633.5M against 632M, which is the count at 224: at 518 the position table is 1.4M longer. Published
MACs hold the two matrix products of attention (without them ViT-B/16 at 384 would be 49.4G, not
55.4G), and agree within 1%.
"""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.macs import count_macs, count_parameters
from models.vit import ViTConfig
from models.zoo import ZOO, build, vit

PUBLISHED = [  # variant, parameters in millions, MACs in billions
    ("vit-b16-384", 86, 55.4),
    ("vit-l16-384", 307, 190.7),
    ("vit-h14-518", 632, 1021),
    ("deit-ti16-224", 5, None),
    ("deit-s16-224", 22, 4.6),
    ("deit-b16-224", 86, 17.5),
    ("deit-b16-384", 86, 55.4),
    ("dino-s16", 21, None),
    ("dino-s8", 21, None),
    ("dino-b16", 85, None),
    ("dino-b8", 85, None),
]

ACCURACY = {
    "vit-b16-384": {"ImageNet-1k": 77.9, "ImageNet-22k": 84.0},
    "vit-l16-384": {"ImageNet-1k": 76.5, "ImageNet-22k": 85.2},
    "vit-h14-518": {"JFT": 88.55},
    "deit-ti16-224": {"ImageNet-1k": 72.2},
    "deit-ti16-224-distilled": {"ImageNet-1k": 74.5},
    "deit-s16-224": {"ImageNet-1k": 79.8},
    "deit-s16-224-distilled": {"ImageNet-1k": 81.2},
    "deit-b16-224": {"ImageNet-1k": 81.8},
    "deit-b16-224-distilled": {"ImageNet-1k": 83.4},
    "deit-b16-384": {"ImageNet-1k": 83.1},
    "deit-b16-384-distilled": {"ImageNet-1k": 84.5},
    "dino-s16": {"linear": 77.0},
    "dino-s8": {"linear": 79.7},
    "dino-b16": {"linear": 78.2},
    "dino-b8": {"linear": 80.1},
    "mae-b16-224": {"ImageNet-1k": 83.664},
    "mae-l16-224": {"ImageNet-1k": 85.952},
    "mae-h14-224": {"ImageNet-1k": 86.928},
    "dinov2-s14-linear": {"linear": 81.1},
    "dinov2-b14-linear": {"linear": 84.5},
    "dinov2-l14-linear": {"linear": 86.3},
    "dinov2-g14-linear": {"linear": 86.5},
    "dinov2-s14-registers-linear": {"linear": 80.9},
    "dinov2-b14-registers-linear": {"linear": 84.6},
    "dinov2-l14-registers-linear": {"linear": 86.7},
    "dinov2-g14-registers-linear": {"linear": 87.1},
}


def side_branch_macs(config: ViTConfig) -> int:
    """q of one token, k of all, and their product: what ``first_row`` adds to a forward pass."""
    tokens = config.grid[0] * config.grid[1] + config.prefix_tokens
    return config.dim**2 + tokens * config.dim**2 + tokens * config.dim


@pytest.mark.parametrize("name", [variant.name for variant in vit.VARIANTS])
def test_every_variant_builds_without_memory_and_counts_as_stated(name: str) -> None:
    variant = ZOO[name]
    with torch.device("meta"):
        model = build(name)
        images = torch.empty(1, 3, *variant.config.canvas)
    assert count_parameters(model) == variant.parameters
    assert count_macs(model, images) == variant.macs
    logits = model(images).get("logits")
    assert (logits.shape[-1] if logits is not None else 0) == variant.config.classes


@pytest.mark.parametrize("name", ["vit-b16-224", "deit-s16-224-distilled", "dinov2-s14-registers"])
def test_macs_are_what_torch_counts_less_the_side_branch(name: str) -> None:
    config = ZOO[name].config
    with torch.device("meta"):
        model, images = build(name), torch.empty(1, 3, *config.canvas)
    counter = FlopCounterMode(display=False)
    with counter:
        model(images)
    assert counter.get_total_flops() == 2 * (ZOO[name].macs + side_branch_macs(config))


@pytest.mark.parametrize(("name", "millions", "billions"), PUBLISHED)
def test_counts_reproduce_the_published_figures(
    name: str, millions: int, billions: float | None
) -> None:
    variant = ZOO[name]
    cut = variant.parameters // 1_000_000 == millions
    assert cut or variant.parameters == pytest.approx(millions * 1e6, rel=0.01)
    if billions is not None:
        assert variant.macs == pytest.approx(billions * 1e9, rel=0.01)


def test_accuracy_is_stated_exactly_where_it_was_published() -> None:
    stated = {variant.name: dict(variant.top1) for variant in vit.VARIANTS if variant.top1}
    assert stated == ACCURACY


def test_macs_grow_with_the_batch() -> None:
    with torch.device("meta"):
        model, images = build("deit-ti16-224"), torch.empty(3, 3, 224, 224)
    assert count_macs(model, images) == 3 * ZOO["deit-ti16-224"].macs


def test_hub_ids_are_an_owner_and_a_name_and_belong_to_one_variant() -> None:
    ids = [hub_id for variant in ZOO.values() for hub_id in variant.hub_ids]
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+", hub_id) for hub_id in ids)
    assert len(ids) == len(set(ids))


def test_unknown_variant_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"no variant is called 'vit-xxl'; there are vit-b16-224"):
        build("vit-xxl")
