"""Files of predictions: single errors are caught, layouts are understood, mistakes are named."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from service.cli import app
from service.errors import BadSettings
from service.evaluate.average_precision import NAMES, compress, encode, load_truth, measure
from service.evaluate.bootstrap import interval, resample
from service.evaluate.panoptic import PanopticQuality, Segment
from service.evaluate.predictions import score_boxes_and_masks, score_panoptic

Row = dict[str, Any]
CATEGORIES = [
    {"id": 1, "name": "star", "isthing": 1},
    {"id": 2, "name": "ring", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
]


def run(*arguments: str | Path) -> Row:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    document: Row = json.loads(result.stdout)
    return document


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


# Boxes and masks.


def boxes() -> tuple[Row, list[Row]]:
    """Two pictures with two things each, all found to the pixel."""
    truth: Row = {
        "images": [{"id": 7, "height": 100, "width": 200}, {"id": 8, "height": 100, "width": 200}],
        "categories": CATEGORIES,
        "annotations": [],
    }
    rows = []
    for number, (image_id, kind, left) in enumerate(
        [(7, 1, 10), (7, 2, 90), (8, 1, 30), (8, 2, 99)]
    ):
        mask = np.zeros((100, 200), dtype=bool)
        mask[20:60, left : left + 50] = True
        row = {"image_id": image_id, "category_id": kind, "bbox": [left, 20, 50, 40]}
        row |= {"segmentation": compress(mask)}
        truth["annotations"].append(row | {"id": number, "iscrowd": 0, "area": 2000})
        rows.append(row | {"score": 0.9 - number / 10})
    return truth, rows


def scored(tmp_path: Path, truth: Row, rows: Any, *options: str) -> Row:
    where = write(tmp_path / "truth.json", truth)
    return run("--from-predictions", write(tmp_path / "rows.json", rows), "--data",
               f"coco:{where}", *options)  # fmt: skip


def test_what_is_right_to_the_pixel_scores_one(tmp_path: Path) -> None:
    found = scored(tmp_path, *boxes())
    assert found["segm"]["AP"] == found["bbox"]["AP"] == found["AP"] == 1
    assert found["APs"] == -1  # there is nothing small to find
    assert {row["name"]: row["AP"] for row in found["per_class"].values()} == {
        "star": 1,
        "ring": 1,
        "sky": -1,
    }


def test_one_wrong_class_id_is_caught(tmp_path: Path) -> None:
    truth, rows = boxes()
    rows[0]["category_id"] = 2
    found = scored(tmp_path, truth, rows)
    # A star is missed: half the recalls. Of the rings the best is wrong: two of three, at last.
    assert found["per_class"]["1"]["AP"] == pytest.approx(51 / 101)
    assert found["per_class"]["2"]["AP"] == pytest.approx(2 / 3)


def test_one_pixel_of_shift_is_caught(tmp_path: Path) -> None:
    truth, rows = boxes()
    for row in rows:
        row["bbox"] = [row["bbox"][0] + 2, *row["bbox"][1:]]  # an IoU of 48 / 52
        del row["segmentation"]
    assert scored(tmp_path, truth, rows)["AP"] == pytest.approx(0.9)
    rows = boxes()[1]
    for row in rows:
        row["bbox"] = [row["bbox"][0], row["bbox"][1] + 1, *row["bbox"][2:]]  # 39 / 41: above 0.95
        del row["segmentation"]
    assert scored(tmp_path, truth, rows)["AP"] == 1
    rows[0]["bbox"][1] += 1  # 38 / 42
    assert scored(tmp_path, truth, rows)["AP"] < 1


def test_one_wrong_crowd_flag_is_caught(tmp_path: Path) -> None:
    truth, rows = boxes()
    del rows[0]  # a star that is missed, unless it is a crowd
    assert scored(tmp_path, truth, rows)["per_class"]["1"]["AP"] == pytest.approx(51 / 101)
    truth["annotations"][0]["iscrowd"] = 1
    assert scored(tmp_path, truth, rows)["per_class"]["1"]["AP"] == pytest.approx(1)


def test_masks_are_read_in_every_spelling(tmp_path: Path) -> None:
    truth, rows = boxes()
    x, y, width, height = rows[0]["bbox"]
    outline = [x, y, x + width, y, x + width, y + height, x, y + height]
    rows[0]["segmentation"] = [outline]
    counts = [90 * 100 + 20, 40, *[60, 40] * 49, 40 + 60 * 100]  # down the columns
    rows[1]["segmentation"] = {"size": [100, 200], "counts": counts}
    truth["annotations"][2]["segmentation"] = [[30, 20, 80, 20, 80, 60, 30, 60]]
    assert scored(tmp_path, truth, rows)["segm"]["AP"] == 1


@pytest.mark.parametrize("wrapper", ["annotations", "predictions"])
def test_rows_may_lie_in_a_document(tmp_path: Path, wrapper: str) -> None:
    truth, rows = boxes()
    assert scored(tmp_path, truth, {wrapper: rows})["AP"] == 1


def test_no_predictions_find_nothing(tmp_path: Path) -> None:
    truth, _ = boxes()
    found = scored(tmp_path, truth, [])
    assert (found["AP"], found["AR100"]) == (0, 0)


def test_boxes_alone_are_scored_where_that_is_wished(tmp_path: Path) -> None:
    found = scored(tmp_path, *boxes(), "--iou-type", "bbox")
    assert "segm" not in found
    assert found["bbox"]["AP"] == found["AP"] == 1


def test_rows_of_unknown_classes_are_told_of(tmp_path: Path) -> None:
    truth, rows = boxes()
    rows[3]["category_id"] = 77
    found = scored(tmp_path, truth, rows)
    assert found["remarks"] == [
        "1 rows are of classes that the truth does not have (77); they do not count"
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_id": 99}, "row 2 of .* is about the picture 99, which .* does not list"),
        ({"image_id": "7"}, "is about the picture '7'"),
        ({"score": None}, "has the score None; every row needs a number"),
        ({"score": float("nan")}, "has the score nan"),
        ({"bbox": [1, 2, 3]}, r"has the bbox \[1, 2, 3\]; it takes four numbers"),
        (
            {"segmentation": {"size": [5, 5], "counts": "x"}},
            "its size is 5x5, its picture's 200x100",
        ),
        ({"segmentation": {"size": [100, 200], "counts": [3]}}, "add up to 3"),
        ({"segmentation": "x"}, "neither a list of polygons nor run lengths"),
        ({"segmentation": [[]]}, "of at least three points"),
        ({"segmentation": [[1, 2]]}, "of at least three points"),
        ({"segmentation": [1, 2, 3]}, "has an unusable mask"),
        ({"segmentation": [["a"] * 6]}, "has an unusable mask: could not convert string"),
        ({"segmentation": {"size": [100, 200], "counts": "52203"}}, "add up to 16, not to the pic"),
        ({"segmentation": {"size": [100, 200], "counts": 5}}, "has an unusable mask"),
        ({"segmentation": {"size": [100, 200], "counts": "\u00e9"}}, "has an unusable mask"),
        ({"image_id": [7]}, r"is about the picture \[7\]"),
        ({"category_id": [1]}, r"has the category_id \[1\]"),
    ],
)
def test_a_row_that_cannot_be_is_named(tmp_path: Path, change: Row, sentence: str) -> None:
    truth, rows = boxes()
    rows[1] |= change
    with pytest.raises(BadSettings, match=sentence):
        scored(tmp_path, truth, rows)


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    truth, rows = boxes()
    where = write(tmp_path / "truth.json", truth)
    good = write(tmp_path / "rows.json", rows)
    with pytest.raises(BadSettings, match="holds no predictions; it must be a JSON list"):
        score_boxes_and_masks(write(tmp_path / "odd.json", {"a": 1}), where)
    (tmp_path / "text.json").write_text("no")
    with pytest.raises(BadSettings, match="is no JSON"):
        score_boxes_and_masks(tmp_path / "text.json", where)
    with pytest.raises(BadSettings, match="is no COCO annotation file: it needs images"):
        score_boxes_and_masks(good, good)
    for row in rows:
        row["category_id"] += 100
    with pytest.raises(BadSettings, match=r"no category_id of .* \(101, 102\) is one of"):
        score_boxes_and_masks(write(tmp_path / "far.json", rows), where)
    for row in truth["annotations"]:
        del row["segmentation"]
    with pytest.raises(BadSettings, match=r"4 annotations of .* have no mask"):
        score_boxes_and_masks(good, write(tmp_path / "boxes.json", truth), "segm")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_id": [7]}, r"annotation 2 of .* is about the picture \[7\]"),
        ({"image_id": 9}, "annotation 2 of .* is about the picture 9, which its images do not"),
        ({"category_id": None, "segments_info": []}, "is in COCO's panoptic format; say coco-pan"),
        ({"bbox": [1, 2]}, r"annotation 2 of .* has the bbox \[1, 2\]"),
        ({"segmentation": [[]]}, "annotation 2 of .* has an unusable mask: a polygon is a list"),
        ({"segmentation": {"size": [100, 200], "counts": "52203"}}, "annotation 2 .* add up to 16"),
    ],
)
def test_truth_that_cannot_be_is_named(tmp_path: Path, change: Row, sentence: str) -> None:
    truth, rows = boxes()
    truth["annotations"][1] |= change
    with pytest.raises(BadSettings, match=sentence):
        scored(tmp_path, truth, rows)


def test_truth_that_lacks_something_is_named(tmp_path: Path) -> None:
    truth, rows = boxes()
    with pytest.raises(BadSettings, match="lists no picture"):
        scored(tmp_path, truth | {"images": []}, rows)
    with pytest.raises(BadSettings, match=r"picture 1 of .* has the id None"):
        scored(tmp_path, truth | {"images": [{"file_name": "a.jpg"}]}, rows)
    with pytest.raises(BadSettings, match="it needs images, annotations and categories"):
        scored(tmp_path, truth | {"annotations": [3]}, rows)
    bare = [{"id": row["id"]} for row in truth["images"]]
    with pytest.raises(BadSettings, match="unusable mask: the picture 7 has no height and width"):
        scored(tmp_path, truth | {"images": bare}, rows)
    assert scored(tmp_path, truth | {"images": bare}, rows, "--iou-type", "bbox")["AP"] == 1
    for row in truth["annotations"]:
        del row["bbox"], row["segmentation"]
    with pytest.raises(BadSettings, match=r"annotation 1 of .* and bbox or segmentation"):
        scored(tmp_path, truth, rows)


def test_truth_with_nothing_to_find_has_no_figures_and_no_intervals(tmp_path: Path) -> None:
    truth, rows = boxes()
    found = scored(tmp_path, truth | {"annotations": []}, rows, "--iou-type", "bbox")
    assert (found["AP"], found["AR100"], found["intervals"]) == (-1, -1, {})


def test_a_mask_may_have_polygons_too_short_to_cover_anything(tmp_path: Path) -> None:
    truth, rows = boxes()
    x, y, width, height = rows[0]["bbox"]
    outline = [x, y, x + width, y, x + width, y + height, x, y + height]
    for polygons in ([outline, [1, 2, 3, 4]], [[1, 2, 3, 4], outline]):
        rows[0]["segmentation"] = truth["annotations"][0]["segmentation"] = polygons
        assert scored(tmp_path, truth, rows)["segm"]["AP"] == 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("ade20k:{}", "takes coco:ANNOTATIONS_JSON or coco-panoptic:ANNOTATIONS_JSON"),
        ("coco", "--data takes KIND:PATH with one of imagenet, coco"),
        ("voc:{}", "--data takes KIND:PATH"),
        ("coco:{}/nowhere", "there is no .*nowhere"),
    ],
)
def test_data_that_cannot_be_is_named(tmp_path: Path, data: str, sentence: str) -> None:
    rows = write(tmp_path / "rows.json", [])
    with pytest.raises(BadSettings, match=sentence):
        run("--from-predictions", rows, "--data", data.format(tmp_path))


# Panoptic maps.


def panoptic(folder: Path, name: str, shift: int = 0) -> Row:
    """Two pictures: a star, a ring and the sky behind them."""
    document: Row = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "categories": CATEGORIES,
        "annotations": [],
    }
    for image_id in (7, 8):
        ids = np.full((60, 90), 300)  # which needs the second colour
        ids[10:30, 10 + shift : 40 + shift] = 1
        ids[35:55, 50 + shift : 80 + shift] = 70_000  # and the third
        pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{image_id}.png")
        segments = [
            {"id": number, "category_id": kind, "iscrowd": 0}
            for number, kind in ((1, 1), (70_000, 2), (300, 9))
        ]
        document["annotations"].append(
            {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments}
        )
    write(folder / f"{name}.json", document)
    return document


def quality(tmp_path: Path, *options: str | Path, found: str = "found") -> Row:
    data = f"coco-panoptic:{tmp_path / 'truth.json'}"
    return run("--from-predictions", tmp_path / f"{found}.json", "--data", data, *options)


def test_maps_like_the_truth_have_full_quality(tmp_path: Path) -> None:
    panoptic(tmp_path, "truth")
    panoptic(tmp_path, "found")
    found = quality(tmp_path)
    assert [found[name] for name in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")] == [1] * 5
    assert found["per_class"]["9"]["name"] == "sky"


def test_one_wrong_class_id_in_a_map_is_caught(tmp_path: Path) -> None:
    panoptic(tmp_path, "truth")
    document = panoptic(tmp_path, "found")
    document["annotations"][0]["segments_info"][0]["category_id"] = 2
    write(tmp_path / "found.json", document)
    found = quality(tmp_path)
    assert found["per_class"]["1"]["PQ"] == pytest.approx(1 / 1.5)  # one found, one missed
    assert found["per_class"]["2"]["PQ"] == pytest.approx(2 / 2.5)  # two found, one invented
    assert found["PQ"] == pytest.approx((1 / 1.5 + 2 / 2.5 + 1) / 3)


def test_one_pixel_of_shift_in_a_map_is_caught(tmp_path: Path) -> None:
    panoptic(tmp_path, "truth")
    panoptic(tmp_path, "found", shift=1)
    found = quality(tmp_path)
    assert found["per_class"]["1"]["SQ"] == pytest.approx(29 / 31)
    sky = 60 * 90 - 2 * 600
    assert found["per_class"]["9"]["SQ"] == pytest.approx((sky - 40) / (sky + 40))
    assert found["RQ"] == 1


def test_one_wrong_crowd_flag_in_a_map_is_caught(tmp_path: Path) -> None:
    truth = panoptic(tmp_path, "truth")
    panoptic(tmp_path, "found")
    truth["annotations"][0]["segments_info"][0]["iscrowd"] = 1
    write(tmp_path / "truth.json", truth)
    found = quality(tmp_path)["per_class"]["1"]
    # What lies on a crowd is neither found nor invented.
    assert (found["found"], found["invented"], found["missed"]) == (1, 0, 0)


def test_a_crowd_excuses_only_its_own_class() -> None:
    from service.evaluate.categories import Category

    ids = np.ones((4, 4), dtype=np.int64)
    counted = PanopticQuality([Category(1, "star", True), Category(2, "ring", True)])
    counted.add(ids, [Segment(1, 1, iscrowd=True)], ids, [Segment(1, 2)])
    assert counted.per_class()[2]["invented"] == 1
    counted.add(np.zeros_like(ids), [], ids, [Segment(1, 2)])  # on void
    assert counted.per_class()[2]["invented"] == 1


def test_maps_are_found_in_every_usual_place(tmp_path: Path) -> None:
    panoptic(tmp_path / "data", "truth")
    truth = tmp_path / "data" / "truth.json"
    panoptic(tmp_path / "whole", "panoptic_val2017")
    panoptic(tmp_path / "model", "found")
    predictions = tmp_path / "model" / "found.json"
    assert score_panoptic(predictions, truth).scores.figures()["PQ"] == 1
    assert score_panoptic(predictions, tmp_path / "whole").scores.figures()["PQ"] == 1
    maps = (tmp_path / "model" / "found").rename(tmp_path / "model" / "pngs")
    assert score_panoptic(predictions, truth).scores.figures()["PQ"] == 1
    shutil.make_archive(str(tmp_path / "model" / "found"), "zip", maps)
    shutil.rmtree(maps)
    assert score_panoptic(predictions, truth).scores.figures()["PQ"] == 1
    archive = (tmp_path / "model" / "found.zip").rename(tmp_path / "elsewhere.zip")
    with pytest.raises(BadSettings, match="name the folder or zip of the PNGs with --maps"):
        score_panoptic(predictions, truth)
    assert score_panoptic(predictions, truth, archive).scores.figures()["PQ"] == 1


def test_a_zip_holds_the_json_and_the_maps(tmp_path: Path) -> None:
    panoptic(tmp_path, "truth")
    panoptic(tmp_path / "sent", "found")
    shutil.make_archive(str(tmp_path / "sent"), "zip", tmp_path / "sent")
    found = score_panoptic(tmp_path / "sent.zip", tmp_path / "truth.json")
    assert found.scores.figures()["PQ"] == 1


def test_the_truths_own_maps_are_never_taken_for_predictions(tmp_path: Path) -> None:
    panoptic(tmp_path, "truth")
    panoptic(tmp_path, "found")
    shutil.rmtree(tmp_path / "found")
    with pytest.raises(BadSettings, match=r"7\.png is not in the folder or zip called found"):
        quality(tmp_path)
    assert quality(tmp_path, found="truth")["PQ"] == 1  # unless that is what is asked


def test_a_picture_without_a_prediction_counts_as_missed_and_is_told_of(tmp_path: Path) -> None:
    panoptic(tmp_path, "truth")
    document = panoptic(tmp_path, "found")
    write(tmp_path / "found.json", document["annotations"][:1])
    found = quality(tmp_path)
    assert found["RQ"] == pytest.approx(1 / 1.5)
    assert "1 of 2 pictures have no prediction" in found["remarks"][0]
    write(tmp_path / "found.json", [document["annotations"][0] | {"image_id": 1}])
    with pytest.raises(BadSettings, match="no prediction for any of the 2 pictures"):
        quality(tmp_path)


def test_names_of_maps_may_be_left_out(tmp_path: Path) -> None:
    panoptic(tmp_path, "truth")
    document = panoptic(tmp_path, "found")
    for row in document["annotations"]:
        del row["file_name"]
    write(tmp_path / "found.json", document)
    assert quality(tmp_path)["PQ"] == 1


def test_maps_that_contradict_their_json_are_named(tmp_path: Path) -> None:
    panoptic(tmp_path, "truth")
    document = panoptic(tmp_path, "found")
    segments = document["annotations"][0]["segments_info"]

    def refused(sentence: str) -> None:
        write(tmp_path / "found.json", document)
        with pytest.raises(BadSettings, match=sentence):
            quality(tmp_path)

    removed = segments.pop()
    refused("picture 7 of .*: its PNG has the segment 300, its JSON has not")
    segments += [removed, {"id": 5, "category_id": 1}]
    refused("its JSON has the segment 5, its PNG has not")
    segments[-1] = {"id": 300, "category_id": 4}
    refused("there is no class with the id 4")
    del segments[-1]["category_id"]
    refused("annotation 1 of .* is not in COCO's panoptic format")
    segments.pop()
    document["annotations"][0]["image_id"] = [7]
    refused("annotation 1 of .* is not in COCO's panoptic format")
    document["annotations"][0]["image_id"] = 7
    Image.new("RGB", (9, 9)).save(tmp_path / "found" / "7.png")
    refused(r"7\.png is 9x9, its truth 90x60")
    Image.new("L", (90, 60)).save(tmp_path / "found" / "7.png")
    refused("is a PNG of mode L")
    (tmp_path / "found" / "7.png").write_bytes(b"no")
    refused(r"has no readable PNG called 7\.png")


def test_panoptic_truth_that_cannot_be_is_named(tmp_path: Path) -> None:
    panoptic(tmp_path, "found")
    document = panoptic(tmp_path, "truth")

    def refused(sentence: str, **change: Any) -> None:
        write(tmp_path / "truth.json", document | change)
        with pytest.raises(BadSettings, match=sentence):
            quality(tmp_path)

    refused("has no annotation to compare with", annotations=[])
    refused("lists no picture", images=[])
    refused("annotation 1 of .* is about the picture 7, which its", images=[{"id": 8}])
    refused("there is no class with the id 2", categories=[CATEGORIES[0], CATEGORIES[2]])


# How sure one can be.


def test_a_resample_of_every_picture_once_is_the_score_itself() -> None:
    truth, rows = boxes()
    rows[0]["category_id"], rows[3]["bbox"] = 2, [99, 20, 40, 40]
    counted = measure(load_truth(truth), rows, "bbox")
    without = measure(load_truth(truth), rows, "bbox", image_ids=[7])
    for weights, other in (([1.0, 1.0], counted), ([1.0, 0.0], without)):
        resampled = counted.resampled(np.array(weights))
        assert list(resampled) == list(NAMES)
        assert resampled == pytest.approx(
            {n: np.nan if value == -1 else value for n, value in other.figures.items()},
            abs=1e-12,
            nan_ok=True,
        )


def test_every_one_of_the_twelve_is_resampled_as_pycocotools_counts_it() -> None:
    rng = np.random.default_rng(0)
    count, truth, rows = 12, boxes()[0], []
    truth["images"] = [{"id": number, "height": 500, "width": 500} for number in range(count)]
    truth["annotations"] = []
    for number in range(count):
        for _ in range(14):
            side = float(rng.choice([20, 60, 200]))
            box = [float(edge) for edge in (*rng.integers(0, 300, 2), side, side)]
            row = {"image_id": number, "category_id": int(rng.integers(1, 3)), "bbox": box}
            truth["annotations"].append(row | {"iscrowd": int(rng.random() < 0.1)})
            moved = [box[0] + float(rng.integers(0, 9)), *box[1:]]
            rows.append(row | {"bbox": moved, "score": float(rng.random())})
    counted = measure(load_truth(truth), rows, "bbox")
    few = [0, 3, 4, 9]
    weights = np.isin(np.arange(count), few).astype(float)
    without = measure(load_truth(truth), rows, "bbox", image_ids=few)
    assert counted.resampled(np.ones(count)) == pytest.approx(counted.figures, abs=1e-12)
    assert counted.resampled(weights) == pytest.approx(without.figures, abs=1e-12)
    assert len({round(value, 6) for value in without.figures.values()}) > 8


def test_a_draw_with_nothing_to_find_is_no_part_of_an_interval() -> None:
    draws = np.array([np.nan, 0.5, 0.6, 0.7, np.nan])
    low, high = interval(draws, 0.6) or (-1, -1)
    assert 0.5 <= low <= high <= 0.7
    assert interval(np.full(5, np.nan), -1) is None


def test_every_figure_of_coco_has_an_interval(tmp_path: Path) -> None:
    found = scored(tmp_path, *boxes())
    there = {name for name in NAMES if found[name] >= 0}
    assert found["intervals"].keys() - {"segm", "bbox"} == there
    assert set(NAMES) - there == {"APs", "APl", "ARs", "ARl"}  # all are of medium size


def test_whole_run_lengths_of_any_mask_are_told_from_cut_ones() -> None:
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        for size in ((1, 1), (33, 57), (480, 640)):
            packed = compress(rng.random(size) < share)
            assert encode(packed, *size)["counts"] == packed["counts"].encode()
            with pytest.raises(ValueError, match="counts add up to"):
                encode(packed | {"counts": packed["counts"] + "1"}, *size)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        hits = (rng.random(300) < 0.7).astype(float)
        draws = resample(300, lambda w, hits=hits: {"top-1": w @ hits / w.sum()}, 200)  # type: ignore[misc]
        low, high = interval(draws["top-1"], float(hits.mean())) or (1, 0)
        held += low <= 0.7 <= high
    assert 180 <= held <= 199


def test_a_file_beside_the_json_is_for_people(tmp_path: Path) -> None:
    truth, rows = boxes()
    where = write(tmp_path / "truth.json", truth)
    predictions = write(tmp_path / "rows.json", rows)
    arguments = ["--from-predictions", str(predictions), "--data", f"coco:{where}"]
    result = CliRunner().invoke(
        app, ["evaluate", *arguments, "--out", str(tmp_path / "a" / "b.json")]
    )
    assert result.exception is None
    written = json.loads((tmp_path / "a" / "b.json").read_text())
    page = (tmp_path / "a" / "b.md").read_text()
    assert result.stdout == page
    assert written["AP"] == 1
    assert "| mask AP | 100.00 | 100.00 to 100.00 |" in page
    assert "| star | 100.00 | 100.00 |" in page
    assert "| sky |" not in page  # which does not occur
