"""Every published Deformable DETR builds from its definition and has the published size.

MACs agree within 2% at 800 x 1120; sampling is not counted. Parameters agree within 1% with the
authors' repository. Their paper prints 40M for all forms with four levels, which is the first's.
"""

import pytest
import torch

from models.macs import count_macs, count_parameters
from models.zoo import ZOO, Variant, build, deformable_detr

PUBLISHED = [  # variant, parameters in millions, MACs in billions
    ("deformable-detr-r50", 40, 173),
    ("deformable-detr-r50-refine", 41, 173),
    ("deformable-detr-r50-two-stage", 41, 173),
    ("deformable-detr-r50-single-scale", 34, 78),
    ("deformable-detr-r50-single-scale-dc5", 34, 128),
]


@pytest.mark.parametrize("variant", deformable_detr.VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_builds_without_memory_and_counts_as_stated(variant: Variant) -> None:
    with torch.device("meta"):
        model = build(variant.name)
        images = torch.empty(1, 3, *variant.config.canvas)
        sizes = torch.empty(1, 2, dtype=torch.int32)
    assert count_parameters(model) == variant.parameters
    assert count_macs(model, images, sizes) == variant.macs
    named = {name: tuple(tensor.shape) for name, tensor in model(images, sizes).items()}
    expected = {"logits": (1, 300, 91), "boxes": (1, 300, 4)}
    assert named == expected | ({"cells": (1, 300)} if variant.config.two_stage else {})


@pytest.mark.parametrize(("name", "millions", "billions"), PUBLISHED)
def test_counts_reproduce_the_published_figures(name: str, millions: int, billions: int) -> None:
    assert ZOO[name].parameters == pytest.approx(millions * 1e6, rel=0.01)
    assert ZOO[name].macs == pytest.approx(billions * 1e9, rel=0.02)


def test_accuracy_is_that_of_the_paper_and_of_the_repository() -> None:
    assert {name: ZOO[name].published["box AP"] for name, *_ in PUBLISHED} == {
        "deformable-detr-r50": 43.8,
        "deformable-detr-r50-refine": 45.4,
        "deformable-detr-r50-two-stage": 46.2,
        "deformable-detr-r50-single-scale": 39.4,
        "deformable-detr-r50-single-scale-dc5": 41.5,
    }
