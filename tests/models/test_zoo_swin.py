"""Every published Swin builds from its definition and has the published size.

Published parameters are whole millions, rounded up where they are not within 1%: Swin-T's 28.3M is
printed 29M. MACs agree within 1%. The second version counts up to 0.02M more than its
authors', since our keys have a bias, which loading sets to zero.
"""

import pytest
import torch

from models.macs import count_macs, count_parameters
from models.zoo import ZOO, Variant, build, swin

PUBLISHED = [  # variant, parameters in millions, MACs in billions
    ("swin-t-224", 29, 4.5),
    ("swin-s-224", 50, 8.7),
    ("swin-b-224", 88, 15.4),
    ("swin-b-384", 88, 47.0),
    ("swin-l-384", 197, 103.9),
    ("swinv2-b-384", 88, None),
    ("swinv2-l-384", 197, None),
]

ACCURACY = {
    "swin-t-224": {"ImageNet-1k": 81.3},
    "swin-s-224": {"ImageNet-1k": 83.0},
    "swin-b-224": {"ImageNet-1k": 83.3, "ImageNet-22k": 85.2},
    "swin-b-384": {"ImageNet-1k": 84.2, "ImageNet-22k": 86.4},
    "swin-l-224": {"ImageNet-22k": 86.3},
    "swin-l-384": {"ImageNet-22k": 87.3},
    "swinv2-t-256-window8": {"ImageNet-1k": 81.8},
    "swinv2-t-256-window16": {"ImageNet-1k": 82.8},
    "swinv2-s-256-window8": {"ImageNet-1k": 83.7},
    "swinv2-s-256-window16": {"ImageNet-1k": 84.1},
    "swinv2-b-256-window8": {"ImageNet-1k": 84.2},
    "swinv2-b-256-window16": {"ImageNet-1k": 84.6},
    "swinv2-b-256-from-192": {"ImageNet-22k": 86.2},
    "swinv2-l-256-from-192": {"ImageNet-22k": 86.9},
    "swinv2-b-384": {"ImageNet-22k": 87.1},
    "swinv2-l-384": {"ImageNet-22k": 87.7},
}


@pytest.mark.parametrize("variant", swin.VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_builds_without_memory_and_counts_as_stated(variant: Variant) -> None:
    with torch.device("meta"):
        model = build(variant.name)
        images = torch.empty(1, 3, *variant.config.canvas)
    assert count_parameters(model) == variant.parameters
    assert count_macs(model, images) == variant.macs
    shapes = {name: tuple(tensor.shape) for name, tensor in model(images).items()}
    width, side = 8 * variant.config.dim, variant.config.canvas[0] // 32
    assert shapes == {
        "features": (1, width, side, side),
        "embedding": (1, width),
        "logits": (1, 1000),
    }


@pytest.mark.parametrize(("name", "millions", "billions"), PUBLISHED)
def test_counts_reproduce_the_published_figures(
    name: str, millions: int, billions: float | None
) -> None:
    variant = ZOO[name]
    rounded_up = -(-variant.parameters // 1_000_000) == millions
    assert rounded_up or variant.parameters == pytest.approx(millions * 1e6, rel=0.01)
    if billions is not None:
        assert variant.macs == pytest.approx(billions * 1e9, rel=0.01)


def test_accuracy_is_stated_exactly_where_it_was_published() -> None:
    found = {variant.name: dict(variant.top1) for variant in swin.VARIANTS if variant.top1}
    assert found == ACCURACY


def test_windows_of_published_networks_tile_their_maps() -> None:
    sides = {
        variant.name: [variant.config.windows_of(stage)[0] for stage in range(4)]
        for variant in swin.VARIANTS
    }
    assert sides["swin-t-224"] == [7, 7, 7, 7]
    assert sides["swin-l-384"] == [12, 12, 12, 12]
    assert sides["swinv2-t-256-window8"] == [8, 8, 8, 8]
    assert sides["swinv2-b-256-window16"] == [16, 16, 16, 8]
    assert sides["swinv2-l-384"] == [24, 24, 24, 12]
