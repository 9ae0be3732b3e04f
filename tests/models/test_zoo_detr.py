"""Every published DETR builds from its definition and has the published size.

MACs agree within 3% at 800 x 1133, a COCO picture of usual shape. Parameters agree within 1%, or
when cutting them to whole millions gives the printed figure, as 41.6M is printed 41M. The authors
did not count the stem and first stage of the backbone, which they did not train: 0.2M.
"""

import pytest
import torch

from models.macs import count_macs, count_parameters
from models.zoo import ZOO, Variant, build, detr

PUBLISHED = [  # variant, parameters in millions, MACs in billions
    ("detr-r50", 41, 86),
    ("detr-dc5-r50", 41, 187),
    ("detr-r101", 60, 152),
    ("detr-dc5-r101", 60, 253),
    ("detr-r50-encoder0", 33.4, 76),
    ("detr-r50-encoder3", 37.4, 81),
    ("detr-r50", 41.3, 86),
    ("detr-r50-encoder12", 49.2, 95),
]

ACCURACY = {
    "detr-r50": (42.0, 62.4, 44.2, 20.5, 45.8, 61.1),
    "detr-dc5-r50": (43.3, 63.1, 45.9, 22.5, 47.3, 61.1),
    "detr-r101": (43.5, 63.8, 46.4, 21.9, 48.0, 61.8),
    "detr-dc5-r101": (44.9, 64.7, 47.7, 23.7, 49.5, 62.3),
    "detr-r50-panoptic": (43.4, 48.2, 36.3, 79.3, 53.8, 31.1),
    "detr-dc5-r50-panoptic": (44.6, 49.4, 37.3, 79.8, 55.0, 31.9),
    "detr-r101-panoptic": (45.1, 50.5, 37.0, 79.9, 55.5, 33.0),
}


@pytest.mark.parametrize("variant", detr.VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_builds_without_memory_and_counts_as_stated(variant: Variant) -> None:
    config = variant.config
    with torch.device("meta"):
        model = build(variant.name)
        inputs = torch.empty(1, 3, *config.canvas), torch.empty(1, 2, dtype=torch.int32)
    assert count_parameters(model) == variant.parameters
    assert count_macs(model, *inputs) == variant.macs
    named = {name: tuple(tensor.shape) for name, tensor in model(*inputs).items()}
    expected = {"logits": (1, 100, config.classes + 1), "boxes": (1, 100, 4)}
    assert named == expected | ({"masks": (1, 100, 200, 284)} if config.masks else {})


@pytest.mark.parametrize(("name", "millions", "billions"), PUBLISHED)
def test_counts_reproduce_the_published_figures(
    name: str, millions: float, billions: float
) -> None:
    variant = ZOO[name]
    cut = variant.parameters // 1_000_000 == millions
    assert cut or variant.parameters == pytest.approx(millions * 1e6, rel=0.01)
    assert variant.macs == pytest.approx(billions * 1e9, rel=0.03)


def test_accuracy_is_stated_exactly_where_it_was_published() -> None:
    found = {variant.name: variant.published for variant in detr.VARIANTS if variant.published}
    assert {name: tuple(figures.values()) for name, figures in found.items()} == ACCURACY
    assert found["detr-dc5-r101"]["box AP"] == 44.9
    assert found["detr-r50-panoptic"]["PQ"] == 43.4
