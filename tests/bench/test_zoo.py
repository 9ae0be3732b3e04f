"""The page of models says what the code says, and reads what is measured."""

import json
from pathlib import Path

import pytest

from bench.zoo import MEASURED, PAGE, count, measured, page, published, row
from models.zoo import ZOO
from models.zoo.papers import FROM_REPOSITORIES, PAPERS, PRINTED

ROOT = Path(__file__).parents[2]
STATED = {name: (variant.parameters, variant.macs) for name, variant in ZOO.items()}


def test_the_page_is_current() -> None:
    """What is stated of each variant is counted by the tests of its family."""
    assert (ROOT / PAGE).read_text() == page(STATED), "run: python -m bench.zoo"


def test_a_changed_count_changes_the_page() -> None:
    parameters, macs = STATED["vit-b16-384"]
    assert page(STATED | {"vit-b16-384": (parameters + 10**6, macs)}) != page(STATED)


def test_every_variant_is_a_row() -> None:
    lines = page(STATED).splitlines()
    for name in ZOO:
        assert len([line for line in lines if line.startswith(f"| `{name}` |")]) == 1


@pytest.mark.parametrize("name", ["deit-ti16-224", "swin-t-224", "detr-r50-encoder0"])
def test_small_networks_count_as_stated(name: str) -> None:
    assert count(name) == STATED[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_network_counts_as_stated(name: str) -> None:
    assert count(name) == STATED[name]


def test_a_row_holds_counts_beside_what_was_printed() -> None:
    variant = ZOO["detr-r50"]
    assert row(variant, *STATED["detr-r50"]) == (
        "| `detr-r50` | `facebook/detr-resnet-50` | 800 x 1133 | 41.6 M (41) | 86.1 G (86) "
        "| box AP 42.0, box AP50 62.4, box AP75 44.2, box APS 20.5, box APM 45.8, box APL 61.1 | |"
    )
    assert published(ZOO["vit-b16-384"]) == "top-1 77.9 (ImageNet-1k), 84.0 (ImageNet-22k)"
    assert published(ZOO["mae-b16-224"]) == "top-1 83.664 (ImageNet-1k) \\*"


def test_a_score_appears_once_its_file_is_there(tmp_path: Path) -> None:
    model = {"name": "detr", "version": "1", "runtime": "openvino", "precision": "bf16"}
    boxes = {"AP": 0.4196, "AP50": 0.6241, "APs": 0.2}
    document = {"model": model, "pictures": 5000, "bbox": boxes, **boxes, "resamples": 100}
    (tmp_path / "detr-r50.bf16.json").write_text(json.dumps(document))
    assert measured("detr-r50", tmp_path) == ["box AP 42.0 (openvino bf16, 5000 pictures)"]
    assert measured("detr-r101", tmp_path) == []


def test_committed_scores_belong_to_variants() -> None:
    assert {path.name.partition(".")[0] for path in MEASURED.glob("*.json")} <= set(ZOO)


def test_what_is_known_from_papers_is_of_networks_that_are_here() -> None:
    assert set(PRINTED) <= set(ZOO)
    assert set(ZOO) >= FROM_REPOSITORIES
    assert {variant.family for variant in ZOO.values()} == set(PAPERS)
    assert all(ZOO[name].top1 or ZOO[name].published for name in FROM_REPOSITORIES)


OTHERWISE = ("deformable-detr-r50-refine", "deformable-detr-r50-two-stage", "dinov2-s14")
"""Printed with the size of a smaller form, as the page says."""


@pytest.mark.parametrize("name", PRINTED)
def test_counts_are_what_was_printed(name: str) -> None:
    """Parameters cut, rounded up, or within 2%; MACs within 3% with MaskFormer's inference."""
    variant, printed = ZOO[name], PRINTED[name]
    if printed.parameters is not None:
        unit = 100 if printed.parameters >= 300 and printed.parameters % 100 == 0 else 1
        millions = variant.parameters / 1e6
        near = millions == pytest.approx(printed.parameters, rel=0.02)
        cut = millions // unit * unit == printed.parameters
        assert near or cut or -(-millions // 1) == printed.parameters or name in OTHERWISE
    if printed.macs is not None:
        macs = variant.macs / 1e9
        if variant.family == "maskformer":
            config = variant.config
            pixels = config.canvas[0] * config.canvas[1]
            macs += config.queries * config.classes * pixels / 1e9
        assert macs == pytest.approx(printed.macs, rel=0.03)
