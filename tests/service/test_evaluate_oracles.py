"""The metrics against numbers that nobody here made, through the command line where files allow."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from service.cli import app
from service.evaluate import average_precision
from service.evaluate.categories import Category
from service.evaluate.panoptic import PanopticQuality, Segment

EXACT, CLOSE = 1e-6, 1e-5
Row = dict[str, Any]
Pixels = NDArray[np.int64]


def score(predictions: Path, data: str, *options: str | Path) -> Row:
    arguments = ["evaluate", "--from-predictions", predictions, "--data", data, *options]
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception is not None:
        raise result.exception
    document: Row = json.loads(result.stdout)
    return document


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_average_precision_is_that_of_cocos_own_example(shared_data: Path, kind: str) -> None:
    folder = shared_data / "coco_eval_oracle"
    expected = json.loads((folder / "expected_stats.json").read_text())
    found = score(
        folder / expected["predictions"][kind], f"coco:{folder / expected['ground_truth']}"
    )
    for name, value in expected["stated_by_faster_coco_eval_tests"][kind].items():
        assert found[name] == pytest.approx(value, abs=EXACT)
        assert found[kind][name] == found[name]
    classes = expected["recomputed_here_with_pycocotools_2.0.11"][kind]["AP_per_category_id"]
    assert found["per_class"].keys() == classes.keys()
    for category_id, value in classes.items():
        assert found["per_class"][category_id]["AP"] == pytest.approx(value, abs=EXACT)
    low, high = found["intervals"]["AP"]
    assert low < found["AP"] < high


@pytest.mark.parametrize("name", ["pred_shift", "pred_mixed"])
def test_panoptic_quality_is_that_of_the_official_evaluator(shared_data: Path, name: str) -> None:
    folder = shared_data / "pq_oracle"
    truth = folder / "ground_truth" / "panoptic_val2017.json"
    expected = json.loads((folder / "expected_pq.json").read_text())
    found = score(folder / f"{name}.json", f"coco-panoptic:{truth}")
    compare_quality(found, expected[name])


def test_panoptic_quality_of_some_pictures_out_of_a_zip(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "pq_oracle"
    expected = json.loads((folder / "expected_pq.json").read_text())
    few = set(json.loads((folder / "redistributable_val_image_ids.json").read_text()))
    truth = json.loads((folder / "ground_truth" / "panoptic_val2017.json").read_text())
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] in few]
    truth["images"] = [row for row in truth["images"] if row["id"] in few]
    (tmp_path / "few.json").write_text(json.dumps(truth))
    shutil.copy(folder / "pred_mixed.json", tmp_path / "pred_mixed.json")
    shutil.make_archive(str(tmp_path / "pred_mixed"), "zip", folder, base_dir="pred_mixed")
    found = score(
        tmp_path / "pred_mixed.json",
        f"coco-panoptic:{tmp_path / 'few.json'}",
        *("--truth-maps", folder / "ground_truth" / "panoptic_val2017"),
    )
    compare_quality(found, expected["pred_mixed on the 27 redistributable images"])
    assert found["pictures"] == 27
    assert found["remarks"] == ["73 predictions are about other pictures; they do not count"]


def compare_quality(found: Row, expected: Row) -> None:
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for name in ("pq", "sq", "rq"):
            assert found[name.upper() + suffix] == pytest.approx(expected[group][name], abs=CLOSE)
    assert found["per_class"].keys() == expected["per_class"].keys()
    for category_id, row in expected["per_class"].items():
        ours = found["per_class"][category_id]
        for name in ("pq", "sq", "rq"):
            assert ours[name.upper()] == pytest.approx(row[name], abs=CLOSE)
        counts = (ours["found"], ours["invented"], ours["missed"])
        assert counts == (row["tp"], row["fp"], row["fn"])


def segments_of(pixels: Pixels, known: set[int]) -> tuple[Pixels, list[Segment]]:
    """Ids (H, W) and segments of pixels of (category, instance); other categories are void."""
    pairs = sorted({tuple(map(int, pair)) for pair in pixels.reshape(-1, 2) if pair[0] in known})
    ids = np.zeros(pixels.shape[:-1], dtype=np.int64)
    for number, pair in enumerate(pairs, 1):
        ids[(pixels == pair).all(axis=-1)] = number
    return ids, [Segment(number, pair[0]) for number, pair in enumerate(pairs, 1)]


def quality_of(case: Row) -> PanopticQuality:
    things, stuffs = set(case["things"]), set(case["stuffs"])
    quality = PanopticQuality(
        [Category(kind, str(kind), kind in things) for kind in sorted(things | stuffs)]
    )
    truth, found = (np.array(case[part]) for part in ("target", "preds"))
    # Of stuff there is one segment a picture, whatever instance is written.
    for pixels in (truth, found):
        pixels[..., 1] = np.where(np.isin(pixels[..., 0], list(stuffs)), 0, pixels[..., 1])
    pictures = zip(truth, found, strict=True) if truth.ndim == 4 else [(truth, found)]
    for true, said in pictures:
        quality.add(*segments_of(true, things | stuffs), *segments_of(said, things | stuffs))
    return quality


def test_panoptic_quality_of_small_cases(shared_data: Path) -> None:
    cases = json.loads((shared_data / "metric_cases" / "torchmetrics_cases.json").read_text())
    stated = [case for case in cases["panoptic_quality"]["cases"] if "preds" in case]
    whole = [case for case in stated if "expected_pq" in case]
    found = [quality_of(case).figures()["PQ"] for case in whole]
    assert found == pytest.approx([case["expected_pq"] for case in whole], abs=5e-5)
    (classes,) = (case for case in stated if "expected_pq_per_class" in case)
    rows = quality_of(classes).per_class().values()
    expected = classes["expected_pq_per_class"]
    assert [row["PQ"] for row in rows] == pytest.approx(expected, abs=CLOSE)
    example = cases["panoptic_quality"]["doc_example"]
    figures = quality_of(example).figures()
    found = [figures[name] for name in ("PQ", "SQ", "RQ")]
    assert found == pytest.approx(example["expected_pq_sq_rq"], abs=5e-5)  # digits as stated


def test_a_picture_is_itself_and_nothing_like_its_neighbour(shared_data: Path) -> None:
    cases = json.loads((shared_data / "metric_cases" / "torchmetrics_cases.json").read_text())
    case = cases["panoptic_quality"]["cases"][0]
    truth = np.array(case["target"])
    same = quality_of(case | {"preds": case["target"]}).figures()
    other = quality_of(case | {"preds": (truth + 1).tolist()}).figures()
    assert (same["PQ"], other["PQ"]) == (1, 0)


def coco_of(targets: list[Row], predictions: list[Row]) -> tuple[Row, list[Row]]:
    """Boxes given by their corners as COCO has them."""
    kinds = sorted({kind for one in (*targets, *predictions) for kind in one["labels"]})
    truth: Row = {
        "images": [{"id": number} for number in range(len(targets))],
        "categories": [{"id": kind, "name": str(kind)} for kind in kinds],
        "annotations": [
            {"id": 0, "image_id": number, "category_id": kind, "bbox": box_of(box)}
            for number, one in enumerate(targets)
            for box, kind in zip(one["boxes"], one["labels"], strict=True)
        ],
    }
    rows = [
        {"image_id": number, "category_id": kind, "bbox": box_of(box), "score": value}
        for number, one in enumerate(predictions)
        for box, kind, value in zip(one["boxes"], one["labels"], one["scores"], strict=True)
    ]
    return truth, rows


def box_of(corners: list[float]) -> list[float]:
    x0, y0, x1, y1 = corners
    return [x0, y0, x1 - x0, y1 - y0]


def test_average_precision_of_small_cases(shared_data: Path, tmp_path: Path) -> None:
    cases = json.loads((shared_data / "metric_cases" / "torchmetrics_cases.json").read_text())
    case = cases["map_4_images"]
    truth, rows = coco_of(case["target"], case["preds"])
    files = tmp_path / "truth.json", tmp_path / "rows.json"
    for path, document in zip(files, (truth, rows), strict=True):
        path.write_text(json.dumps(document))
    found = score(files[1], f"coco:{files[0]}")
    expected = case["expected_3_digits"]
    names = [*("map", "map_50", "map_75", "map_small", "map_medium", "map_large")]
    names += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]
    for ours, theirs in zip(average_precision.NAMES, names, strict=True):
        assert found[ours] == pytest.approx(expected[theirs], abs=1e-3)
    classes = [found["per_class"][str(kind)]["AP"] for kind in expected["classes"]]
    # Stated with recalls in single precision, where a tie falls to the other side.
    assert classes == pytest.approx(expected["map_per_class"], abs=2e-3)


def test_a_picture_with_nothing_in_it_lowers_the_precision(shared_data: Path) -> None:
    cases = json.loads((shared_data / "metric_cases" / "torchmetrics_cases.json").read_text())
    edges = cases["map_edge_cases"]
    both = edges["same_box_with_and_without_gt (issue 943)"]
    truth, rows = coco_of(both["target"], both["preds"])
    alone = average_precision.measure(average_precision.load_truth(truth), rows[:1], "bbox")
    found = average_precision.measure(average_precision.load_truth(truth), rows, "bbox")
    assert 0 < found.figures["AP"] <= alone.figures["AP"]
    nothing = edges["empty_predictions (issues 981, 1147)"]
    truth, rows = coco_of(nothing["target"], nothing["preds"])
    found = average_precision.measure(average_precision.load_truth(truth), rows, "bbox")
    assert found.per_class[1]["AP"] == 0
    assert found.figures["AP"] == pytest.approx(found.per_class[0]["AP"] / 2)
