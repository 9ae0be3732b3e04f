"""The packaged bundles: what they weigh, what they know and what they state."""

from pathlib import Path

import pytest

from export.demo.measure import measured, show
from export.demo.scenes import CLASSES, STUFF, THINGS
from service.bundle import Bundle, load_bundle, load_repository
from service.worker.runtimes.choose import Choice

REPOSITORY = Path(__file__).parents[2] / "service" / "demo" / "repository"
LEAST = {
    "vit-scenes": {"top-1": 0.95},
    "swin-scenes": {"top-1": 0.95},
    "detr-scenes": {"AP50": 0.85},
    "mask2former-scenes": {"PQ": 0.75},
}


def packaged(name: str) -> Bundle:
    return load_bundle(REPOSITORY / name / "1")


def test_all_bundles_are_whole_and_weigh_at_most_24_mb() -> None:
    bundles = load_repository(REPOSITORY)
    assert {bundle.manifest.name for bundle in bundles} == set(LEAST)
    for bundle in bundles:
        bundle.verify()
    total = sum(path.stat().st_size for path in REPOSITORY.rglob("*") if path.is_file())
    assert total <= 24e6


@pytest.mark.parametrize("name", LEAST)
def test_a_bundle_states_its_accuracy_in_every_precision(name: str) -> None:
    accuracy = packaged(name).manifest.accuracy
    measured_in = {(one.runtime, one.precision) for one in accuracy}
    assert measured_in >= {("onnxruntime", "fp32"), ("openvino", "fp32")}
    for metric, least in LEAST[name].items():
        values = [one.value for one in accuracy if one.metric == metric]
        assert len(values) == len(measured_in)
        assert min(values) >= least
    assert all(one.images >= 2000 for one in accuracy)


@pytest.mark.parametrize("name", LEAST)
def test_a_bundle_finds_in_fresh_scenes_what_is_there(name: str) -> None:
    bundle = packaged(name)
    shown = show(bundle.manifest.geometry, "samples", 48, workers=1)
    found = {
        one.metric: one.value for one in measured(bundle, Choice("onnxruntime", "fp32"), shown)
    }
    for metric, least in LEAST[name].items():
        assert found[metric] >= least - 0.1


def test_labels_are_those_of_the_scenes_and_tell_things_from_stuff() -> None:
    for name in ("vit-scenes", "swin-scenes", "detr-scenes"):
        assert [label.name for label in packaged(name).manifest.labels] == list(THINGS)
    labels = packaged("mask2former-scenes").manifest.labels
    assert [label.name for label in labels] == list(CLASSES)
    assert [label.name for label in labels if not label.isthing] == list(STUFF)
