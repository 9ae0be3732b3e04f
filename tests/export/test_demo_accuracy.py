"""Scores of the demo bundles are noted where they belong, and nothing is lost of other machines."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from export.demo.accuracy import app, keep, merged
from export.demo.build import REPOSITORY
from service.bundle import Accuracy, load_bundle

PACKAGED = Path(__file__).parents[2] / REPOSITORY


def score(runtime: str, precision: Any, value: float) -> Accuracy:
    return Accuracy(
        dataset="some",
        metric="top-1",
        value=value,
        images=8,
        runtime=runtime,
        precision=precision,
    )


def test_a_score_replaces_that_of_the_same_runtime_and_precision() -> None:
    manifest = load_bundle(PACKAGED / "vit-scenes" / "1").manifest
    before = [score("openvino", "bf16", 0.1), score("onnxruntime", "fp32", 0.2)]
    manifest = manifest.model_copy(update={"accuracy": before})
    after = merged(manifest, [score("onnxruntime", "fp32", 0.3)]).accuracy
    assert [(one.precision, one.value) for one in after] == [("fp32", 0.3), ("bf16", 0.1)]


def test_a_row_replaces_that_of_the_same_model(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    for model, value in (("vit", 1), ("detr", 2), ("vit", 3)):
        keep(out, {"model": model, "value": value})
    rows = json.loads(out.read_bytes())["models"]
    assert [(row["model"], row["value"]) for row in rows] == [("detr", 2), ("vit", 3)]


@pytest.mark.slow
def test_a_bundle_is_measured_in_all_that_runs_it_and_in_int8(tmp_path: Path) -> None:
    repository, out = tmp_path / "repository", tmp_path / "int8.json"
    shutil.copytree(PACKAGED / "vit-scenes", repository / "vit-scenes")
    flags = ["--held-out", "32", "--scenes", "64", "--workers", "1", "--model", "vit-scenes"]
    where = ["--repository", str(repository), "--out", str(out)]
    assert CliRunner().invoke(app, [*flags, *where]).exit_code == 0
    accuracy = load_bundle(repository / "vit-scenes" / "1").manifest.accuracy
    fp32 = [one for one in accuracy if (one.runtime, one.precision) == ("onnxruntime", "fp32")]
    assert [one.images for one in fp32] == [32]
    assert fp32[0].value > 0.8
    (row,) = json.loads(out.read_bytes())["models"]
    assert row["model"] == "vit-scenes"
    assert "refused" in row or row["accuracy"][0]["value"] > 0.8
