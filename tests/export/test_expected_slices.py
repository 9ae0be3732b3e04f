"""Numbers that the tests of transformers expect, observed through our own code."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.export.family_checkpoints import KINDS, Written, write
from tests.export.slices import (
    DATA,
    FILE,
    Check,
    Names,
    Test,
    compare,
    load,
    look_up,
    name_of,
    plain,
    verdict,
)
from tests.export.slices_of_networks import (
    OPTIONS,
    checkpoint_of,
    find,
    observe,
    picture_of,
    pipelines,
)
from tests.export.slices_of_pictures import encodings

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="../shared/data is not here")

WITHOUT_WEIGHTS = [test for test in load() if verdict(test)[0] == "run"]
PUBLISHED = [test for test in load() if verdict(test)[0] == "published"]


@pytest.mark.parametrize("test", WITHOUT_WEIGHTS, ids=name_of)
def test_pictures_and_their_truth_are_placed_as_transformers_places_them(test: Test) -> None:
    absent = [one["local"] for one in test["images"] if not (DATA / one["local"]).exists()]
    if absent:
        pytest.skip(f"{len(absent)} pictures are absent, such as {absent[0]}")
    names = encodings(test)
    names = names * len(test["checks"]) if len(names) == 1 else names
    assert faults(test["checks"], names) == []


@pytest.mark.published
@pytest.mark.parametrize("test", PUBLISHED, ids=name_of)
def test_published_weights_give_the_numbers_of_transformers(test: Test) -> None:
    named = os.environ.get("PUBLISHED_CHECKPOINTS")
    if not named:
        pytest.skip("PUBLISHED_CHECKPOINTS names no folder")
    folder = find(Path(named), checkpoint_of(test))
    if folder is None:
        pytest.skip(f"{named} has no {checkpoint_of(test)}, as ORG/NAME or ORG--NAME")
    assert faults(test["checks"], names_of(test, folder)) == []


def names_of(test: Test, folder: Path) -> list[Names]:
    """What the checks of a test look up in what we make of the checkpoint in ``folder``."""
    picture = picture_of(DATA / test["images"][0]["local"])
    if test["arch"] == "pipelines":
        return pipelines(test, folder, picture)
    options = OPTIONS.get((test["arch"], test["test"]))
    return [observe(folder, picture, options)] * len(test["checks"])


def faults(checks: list[Check], names: list[Names]) -> list[str]:
    """What checks find wrong with what they look up."""
    found = [compare(*pair) for pair in zip(checks, names, strict=True)]
    return [fault for fault in found if fault]


# That this works is shown with random weights, which transformers writes and reads.

OBSERVED: dict[str, list[str]] = {
    "ViTForImageClassification": ["outputs.logits.shape", "outputs.logits[0, :3]"],
    "ViTModel": ["outputs.last_hidden_state.shape", "outputs.last_hidden_state[0, :3, :3]"],
    "SwinForImageClassification": ["outputs.logits.shape", "outputs.logits[0, :3]"],
    "Swinv2ForImageClassification": ["outputs.logits.shape", "outputs.logits[0, :3]"],
    "DetrForObjectDetection": [
        "outputs.logits[0, :3, :3]",
        "outputs.pred_boxes[0, :3, :3]",
        "outputs.last_hidden_state[0, :3, :3]",
        "len(results['scores'])",
        "results['scores']",
        "results['labels'].tolist()",
        "results['boxes'][0, :]",
    ],
    "DetrForSegmentation": [
        "outputs.pred_masks.shape",
        "outputs.pred_masks[0, 0, :3, :3]",
        "results['segmentation'].shape",
        "results['segmentation'][:3, :3]",
        "len(results['segments_info'])",
    ],
    "DeformableDetrForObjectDetection": [
        "outputs.logits[0, :3, :3]",
        "outputs.pred_boxes[0, :3, :3]",
        "results['scores']",
        "results['labels'].tolist()",
        "results['boxes'][0, :]",
    ],
}
OBSERVED["MaskFormerForInstanceSegmentation"] = OBSERVED["Mask2FormerForUniversalSegmentation"] = [
    "masks_queries_logits[0, 0, :3, :3]",
    "outputs.class_queries_logits[0, :3, :3]",
    "outputs.encoder_last_hidden_state[0, 0, :3, :3]",
    "outputs.pixel_decoder_last_hidden_state[0, 0, :3, :3]",
    "outputs.transformer_decoder_last_hidden_state[0, :3, :3]",
]
VIT = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 64}


def written(kind: str, folder: Path) -> Written:
    """A random checkpoint of a class of transformers, with its processor."""
    if kind in KINDS:
        return write(kind, folder)
    torch.manual_seed(0)
    config = transformers.ViTConfig(**VIT, intermediate_size=80, num_labels=7)
    network, processor = getattr(transformers, kind)(config).eval(), ViTImageProcessorPil(size=64)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Written(folder, network, processor)


def theirs(one: Written, kind: str) -> Names:
    """What transformers itself observes."""
    picture = picture_of(DATA / "hf_coco_fixtures" / "000000039769.png")
    inputs = one.processor(images=picture, return_tensors="pt")
    former = "Former" in kind
    with torch.no_grad():
        outputs = one.model(**inputs, **({"output_hidden_states": True} if former else {}))
    names: dict[str, Any] = {"outputs": outputs, **(dict(outputs) if former else {})}
    sizes = [picture.size[::-1]]
    if kind == "DetrForSegmentation":
        processed = one.processor.post_process_panoptic_segmentation
        names["results"] = processed(outputs, threshold=0.3, target_sizes=sizes)[0]
    elif "Detection" in kind:
        processed = one.processor.post_process_object_detection
        names["results"] = processed(outputs, threshold=0.3, target_sizes=sizes)[0]
    return names


def as_test(kind: str, names: Names) -> Test:
    """A test in the form of the file, with what transformers observes as what is expected."""
    checks = []
    for observed in OBSERVED[kind]:
        value = plain(look_up(observed, names))
        exact = observed.startswith("len") or observed.endswith(("shape", "tolist()"))
        check = {"check": "equal"} if exact else {"check": "close", "atol": 5e-4 * largest(value)}
        checks.append(
            {
                "observed": observed,
                "expected": list(value) if exact and observed.endswith("shape") else value,
                **check,
            }
        )
    image = {"local": "hf_coco_fixtures/000000039769.png"}
    pretrained = [{"class": kind, "checkpoint": "someone/something"}]
    return {"arch": kind, "test": "", "images": [image], "pretrained": pretrained, "checks": checks}


def largest(value: Any) -> float:
    """The largest number of nested lists, by its size."""
    return max(map(largest, value)) if isinstance(value, list) else abs(value)


@pytest.mark.parametrize("kind", OBSERVED)
def test_a_checkpoint_of_transformers_gives_its_numbers(kind: str, tmp_path: Path) -> None:
    layout = "someone/something" if "Former" in kind else "someone--something"
    one = written(kind, tmp_path / layout)
    test = as_test(kind, theirs(one, kind))
    folder = find(tmp_path, checkpoint_of(test))
    assert folder == tmp_path / layout
    names = names_of(test, folder)
    assert faults(test["checks"], names) == []
    wrong = [{**check, "expected": changed(check["expected"])} for check in test["checks"]]
    assert len(faults(wrong, names)) == len(wrong) == len(OBSERVED[kind])


def changed(value: Any) -> Any:
    """The same with its last number off."""
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])]
    return 1.05 * value + 0.1


def test_every_test_is_run_or_has_a_reason() -> None:
    verdicts = {name_of(test): verdict(test) for test in load()}
    assert len(load()) == 231
    assert all(reason for kind, reason in verdicts.values() if kind == "out of scope")
    kinds = [kind for kind, _ in verdicts.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "run": len(WITHOUT_WEIGHTS),
        "published": len(PUBLISHED),
        "out of scope": len(verdicts) - len(WITHOUT_WEIGHTS) - len(PUBLISHED),
    }


PIPELINES: dict[
    tuple[str, str], tuple[str, str, list[dict[str, Any]]]
] = {  # class and test of the file, as it sets the thresholds: network, task, what is asked
    ("ImageClassificationPipelineTests", "test_small_model_pt"): (
        "ViTForImageClassification",
        "image-classification",
        [{"top_k": 7}],
    ),
    ("ObjectDetectionPipelineTests", "test_large_model_pt"): (
        "DetrForObjectDetection",
        "object-detection",
        [{"threshold": 0.5}, {"threshold": 0.5}],
    ),
    ("ImageSegmentationPipelineTests", "test_threshold"): (
        "DetrForSegmentation",
        "image-segmentation",
        [{"threshold": 0.999}, {"threshold": 0.5}],
    ),
}


@pytest.mark.parametrize("which", PIPELINES, ids=lambda which: which[0])
def test_a_pipeline_of_transformers_gives_its_rows(which: tuple[str, str], tmp_path: Path) -> None:
    kind, task, asked = PIPELINES[which]
    one = written(kind, tmp_path)
    picture = picture_of(DATA / "hf_coco_fixtures" / "000000039769.png")
    pipeline = transformers.pipeline(task, model=one.model, image_processor=one.processor)
    answers: list[Any] = [
        [with_counts(row) for row in pipeline(picture, **options)] for options in asked
    ]
    assert any(answers)
    if len(asked) > 1 and asked[0] == asked[1]:
        answers[1] = [answers[1], answers[1]]
    observed = "nested_simplify(outputs, decimals=4)"
    checks = [{"observed": observed, "expected": rows, "check": "equal"} for rows in answers]
    image = {"local": "hf_coco_fixtures/000000039769.png"}
    test = {"arch": "pipelines", "class": which[0], "test": which[1], "images": [image]}
    names = names_of({**test, "checks": checks}, tmp_path)
    assert faults(checks, names) == []
    fewer = {**checks[-1], "expected": checks[-1]["expected"][:-1]}
    assert faults([fewer], names[-1:]) != []


def with_counts(row: dict[str, Any]) -> dict[str, Any]:
    """A pipeline's row with a mask as the file states it."""
    if "mask" not in row:
        return row
    mask = np.asarray(row["mask"])
    return {**row, "mask": {"shape": list(mask.shape), "white_pixels": int((mask == 255).sum())}}
