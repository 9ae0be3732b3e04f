"""A training and its score in one file, and the page that quotes it."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import detector

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "bench" / "results" / "bloodcells.json"
PAGE = ROOT / "docs" / "bloodcells.md"


def report() -> dict[str, Any]:
    figures = {"AP": 0.4, "AP50": 0.8, "AP75": 0.3}
    return {
        "saccade": "1",
        "machine": {"cores": 2},
        "data": "coco:/somewhere",
        "model": {"name": "cells"},
        "pictures": 3,
        "bbox": figures,
        "intervals": {"bbox": {"AP": [0.3, 0.5], "AP50": [0.7, 0.9]}, "AP": [0.3, 0.5]},
        "per_class": {"7": {"name": "round", "bbox": {"AP": 0.25, "AP50": 0.5}, "AP": 0.25}},
    }


def test_score_and_time_of_a_training_stand_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = [{"step": 1, "wall_s": 2.0, "cpu_s": 3.0}, {"step": 2, "wall_s": 4.0, "cpu_s": 6.0}]
    (tmp_path / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    (tmp_path / "report.json").write_text(json.dumps(report()))
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), str(tmp_path / "report.json"), str(out)])
    detector.main()
    assert json.loads(out.read_bytes()) == {
        "saccade": "1",
        "machine": {"cores": 2},
        "model": {"name": "cells"},
        "pictures": 3,
        "AP50": 0.8,
        "AP": 0.4,
        "intervals": {"AP50": [0.7, 0.9], "AP": [0.3, 0.5]},
        "per_class": {"round": {"AP50": 0.5, "AP": 0.25}},
        "training": curve[1],
        "curve": curve,
    }


def test_the_page_states_what_was_measured() -> None:
    result, page = json.loads(RESULT.read_bytes()), PAGE.read_text(encoding="utf-8")
    rows = {"all": result, **result["per_class"]}
    for name, figures in rows.items():
        cells = re.search(rf"^\| {name} \| (\S+) \| (\S+) \|$", page, re.MULTILINE)
        assert cells is not None
        assert cells.groups() == tuple(f"{100 * figures[key]:.1f}" for key in ("AP50", "AP"))
    training = result["training"]
    assert f"{training['wall_s'] / 60:.0f} minutes" in page
    assert f"{training['cpu_s'] / 60:.0f} minutes" in page
    assert result["AP50"] >= 0.75
    assert training["wall_s"] < 7200
