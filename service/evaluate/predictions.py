"""Predictions that other systems have written in COCO's formats."""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import BadSettings
from service.evaluate import average_precision
from service.evaluate.annotations import (
    annotation_file,
    check_classes,
    check_panoptic,
    encoded_mask,
    is_box,
    is_id,
    is_number,
    read_instances,
    read_json,
    read_panoptic,
    with_run_lengths,
    without_mask,
)
from service.evaluate.average_precision import Kind, Row
from service.evaluate.categories import Category
from service.evaluate.maps import open_maps
from service.evaluate.panoptic import PanopticQuality, Segment, run_starts
from service.evaluate.scorers import FoundScores, PanopticScores, Scores, segments_of

_WRAPPERS = ("annotations", "predictions", "results", "detections")
"""Where other programs put the rows if not at the top."""


@dataclass(frozen=True)
class Predicted:
    """Scored predictions: how many pictures the truth has, and what was odd about the file."""

    scores: Scores
    categories: list[Category]
    pictures: int
    remarks: list[str]


def score_boxes_and_masks(predictions: Path, truth: Path, kind: Kind | None = None) -> Predicted:
    """Boxes and masks in COCO's results format against an annotation file.

    Every kind that the rows have is scored; ``kind`` says which is wanted where there are both.

    Raises:
        BadSettings: a file is not in its format, or the two do not belong together.
    """
    file, _, _ = annotation_file(truth, "instances_")
    document, categories = read_instances(file)
    rows = _rows_of(predictions)
    images = {row["id"]: row for row in document["images"]}
    remarks = _check_rows(predictions, rows, images, {one.id for one in categories}, file)
    kinds = _kinds_of(predictions, rows, document, kind)
    if "segm" in kinds:
        if lacking := without_mask(document):
            raise BadSettings(
                f"{lacking} annotations of {file} have no mask to compare with; "
                "--iou-type bbox scores the boxes"
            )
        document = with_run_lengths(file, document)
        rows = [_with_run_lengths(predictions, number, row, images) for number, row in _each(rows)]
    indexed = average_precision.load_truth(document)
    counted = {name: average_precision.measure(indexed, rows, name) for name in kinds}
    return Predicted(FoundScores(counted), categories, len(images), remarks)


def score_panoptic(
    predictions: Path, truth: Path, maps: Path | None = None, truth_maps: Path | None = None
) -> Predicted:
    """COCO's panoptic format against an annotation file, each with its PNGs in a folder or zip.

    A picture without a prediction counts as one in which nothing was found.

    Raises:
        BadSettings: a file is not in its format, or the two do not belong together.
    """
    file, _, _ = annotation_file(truth, "panoptic_")
    document, categories = read_panoptic(file)
    known, wanted = {one.id for one in categories}, document["annotations"]
    found = {row["image_id"]: row for row in _annotations_of(predictions)}
    missing = [row for row in wanted if row["image_id"] not in found]
    if wanted and len(missing) == len(wanted):
        raise BadSettings(
            f"{predictions} has no prediction for any of the {len(wanted)} pictures of {file}; "
            "both must have the same image_id"
        )
    names = [row.setdefault("file_name", _name_of(found, row)) for row in wanted]
    true_maps = open_maps(file, names, truth_maps)
    apart = None if predictions.resolve() == file.resolve() else true_maps.place
    used = [found[row["image_id"]] for row in wanted if row["image_id"] in found]
    for row, name in zip(wanted, names, strict=True):
        found.get(row["image_id"], {}).setdefault("file_name", name)
    found_maps = open_maps(predictions, [row["file_name"] for row in used], maps, apart)
    quality = PanopticQuality(categories)
    for row, name in zip(wanted, names, strict=True):
        true_ids = true_maps.read(name)
        answer = found.get(row["image_id"])
        found_ids, segments = np.zeros_like(true_ids), list[Segment]()
        if answer is not None:
            found_ids, segments = found_maps.read(answer["file_name"]), segments_of(answer)
            if found_ids.shape != true_ids.shape:
                raise BadSettings(_other_size(answer["file_name"], found_ids, true_ids))
            _check_segments(predictions, answer, found_ids, segments, known)
        quality.add(true_ids, segments_of(row), found_ids, segments)
    remarks = _left_out(missing, found, wanted)
    return Predicted(PanopticScores(quality), categories, len(wanted), remarks)


def _rows_of(path: Path) -> list[Row]:
    """The rows of a results file: a list, or a list under one of the usual names."""
    document = read_json(path)
    if isinstance(document, dict):
        document = next((document[name] for name in _WRAPPERS if name in document), None)
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise BadSettings(
            f"{path} holds no predictions; it must be a JSON list of rows with image_id, "
            "category_id, score, and bbox or segmentation"
        )
    return document


def _annotations_of(path: Path) -> list[Row]:
    rows = _zipped(path) if zipfile.is_zipfile(path) else _rows_of(path)
    for number, row in _each(rows):
        check_panoptic(path, number, row)
    return rows


def _zipped(path: Path) -> list[Row]:
    """The annotations of the one JSON file in a zip, as a test server takes it."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".json")]
        if len(names) != 1:
            raise BadSettings(f"{path} must hold one JSON file; found {', '.join(names) or 'none'}")
        try:
            rows: list[Row] = list(json.loads(archive.read(names[0]))["annotations"])
        except (ValueError, KeyError, TypeError):
            raise BadSettings(f"{names[0]} in {path} has no list of annotations") from None
    return rows


def _each(rows: list[Row]) -> Iterator[tuple[int, Row]]:
    return enumerate(rows, 1)


def _check_rows(
    path: Path, rows: list[Row], images: dict[Any, Row], known: set[Any], truth: Path
) -> list[str]:
    """What is odd about them; raises for what cannot be scored."""
    for number, row in _each(rows):
        if missing := [name for name in ("image_id", "category_id") if name not in row]:
            raise BadSettings(f"row {number} of {path} has no {missing[0]}")
        if not is_id(row["category_id"]):
            raise BadSettings(
                f"row {number} of {path} has the category_id {row['category_id']!r}; it takes one "
                "of the annotation file"
            )
        if not is_id(row["image_id"]) or row["image_id"] not in images:
            raise BadSettings(
                f"row {number} of {path} is about the picture {row['image_id']!r}, which {truth} "
                f"does not list; it lists {len(images)}, like {next(iter(images), 'none')!r}"
            )
        if not is_number(row.get("score")):
            raise BadSettings(
                f"row {number} of {path} has the score {row.get('score')!r}; every row needs a "
                "number, for rows are ranked by it"
            )
        if "bbox" in row and not is_box(row["bbox"]):
            raise BadSettings(
                f"row {number} of {path} has the bbox {row['bbox']!r}; it takes four numbers: x, "
                "y, width, height"
            )
    strange = sorted({str(row["category_id"]) for row in rows if row["category_id"] not in known})
    if strange and not any(row["category_id"] in known for row in rows):
        raise BadSettings(
            f"no category_id of {path} ({', '.join(strange[:5])}) is one of {truth} "
            f"({', '.join(map(str, sorted(known)[:5]))}, ...); write the ids of the annotation file"
        )
    lost = sum(row["category_id"] not in known for row in rows)
    remark = f"{lost} rows are of classes that the truth does not have ({', '.join(strange[:5])})"
    return [f"{remark}; they do not count"] if lost else []


def _kinds_of(path: Path, rows: list[Row], truth: Row, wish: Kind | None) -> list[Kind]:
    """What every row has, the wanted one first."""
    members: dict[Kind, str] = {"segm": "segmentation", "bbox": "bbox"}
    if not rows:  # nothing was found, of whatever kind
        return [wish] if wish else ["bbox"] if without_mask(truth) else ["segm", "bbox"]
    there = [kind for kind, name in members.items() if all(row.get(name) for row in rows)]
    if wish is not None and wish not in there:
        raise BadSettings(f"--iou-type {wish}: not every row of {path} has a {members[wish]}")
    if not there:
        number = next(n for n, row in _each(rows) if not (row.get("bbox")))
        raise BadSettings(
            f"row {number} of {path} has no bbox; every row needs one, or every row a segmentation"
        )
    return [wish] if wish else there


def _with_run_lengths(path: Path, number: int, row: Row, images: dict[Any, Row]) -> Row:
    encoded = encoded_mask(f"row {number} of {path}", row, images[row["image_id"]])
    return row | {"segmentation": encoded}


def _name_of(found: dict[Any, Row], row: Row) -> str:
    """The PNG's name where the truth does not say it."""
    name = found.get(row["image_id"], {}).get("file_name")
    return str(name) if name else f"{row['image_id']:012}.png"


def _check_segments(
    path: Path, row: Row, ids: Any, segments: list[Segment], known: set[int]
) -> None:
    """Raises where a PNG and its JSON contradict each other, as COCO's own evaluator does."""
    flat = ids.ravel()
    seen, listed = set(flat[run_starts(flat)].tolist()) - {0}, {one.id for one in segments}
    what = f"picture {row['image_id']} of {path}"
    if unlisted := sorted(seen - listed):
        raise BadSettings(f"{what}: its PNG has the segment {unlisted[0]}, its JSON has not")
    if undrawn := sorted(listed - seen):
        raise BadSettings(f"{what}: its JSON has the segment {undrawn[0]}, its PNG has not")
    check_classes(path, row, known)


def _other_size(name: str, found: Any, truth: Any) -> str:
    height, width = found.shape
    return f"{name} is {width}x{height}, its truth {truth.shape[1]}x{truth.shape[0]}"


def _left_out(missing: list[Row], found: dict[Any, Row], wanted: list[Row]) -> list[str]:
    remarks = []
    if missing:
        remarks.append(
            f"{len(missing)} of {len(wanted)} pictures have no prediction; nothing counts as found "
            f"in them (picture {missing[0]['image_id']}, ...)"
        )
    if extra := len(found) - (len(wanted) - len(missing)):
        remarks.append(f"{extra} predictions are about other pictures; they do not count")
    return remarks
