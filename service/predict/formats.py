"""What a finished run is turned into besides JSON lines: COCO's formats, and Parquet."""

import base64
import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from saccade_client.results import Detections, Segmentation
from service.errors import BadSettings, StartError
from service.predict.journal import REFUSED, read_rows

Row = dict[str, Any]
Labels = list[dict[str, Any]]
Write = Callable[[Path, Path, Labels], None]
"""Turns a journal into the file ``out``, given the labels of the models that answered."""

_SPREAD = {"classify": "predictions", "detect": "predictions", "segment": "segments"}
_DROPPED = ("segment_map", "image", "parameters", "mask", *_SPREAD.values())


def choose_format(out: Path, task: str) -> Write | None:
    """How to write ``out``; None where the journal is all that is wanted.

    Raises:
        BadSettings: there is no such format, or the task's answers do not fit into it.
        StartError: its library is not installed.
    """
    if out.suffix == ".jsonl":
        return None
    if out.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            raise StartError(
                "Parquet needs pyarrow; install it with: pip install pyarrow"
            ) from None
        return write_parquet
    if out.suffix != ".json":
        raise BadSettings(
            f"--out {out}: the name must end in .jsonl (an answer a line), .json (COCO) or .parquet"
        )
    if task not in ("detect", "segment"):
        raise BadSettings(f"--out {out}: COCO knows no answers to {task}; write .jsonl or .parquet")
    return write_coco


def write_coco(journal: Path, out: Path, labels: Labels) -> None:
    """A COCO data set with the answers as its annotations, each with its score.

    Segments that have a map become COCO's panoptic format: their maps are written as PNG into the
    folder beside ``out`` that is named like it.
    """
    rows = [row for row in read_rows(journal) if REFUSED not in row]
    numbered = list(zip(_image_ids(rows), rows, strict=True))
    panoptic = [row for row in rows if "segment_map" in row]
    if panoptic and len(panoptic) == len(rows):
        annotations = [_panoptic(number, row, out.with_suffix("")) for number, row in numbered]
    else:
        found = (one for number, row in numbered for one in _annotations(number, row))
        annotations = [row | {"id": number} for number, row in enumerate(found, 1)]
    images = [{"id": number, "file_name": row["file"], **row["image"]} for number, row in numbered]
    document = {"images": images, "annotations": annotations, "categories": _categories(labels)}
    _replace(out, lambda part: part.write_text(json.dumps(document)))


def write_parquet(journal: Path, out: Path, labels: Labels) -> None:
    """A table with a row for each finding, and one for a picture without any."""
    import pyarrow
    from pyarrow import parquet

    rows = [flat for row in read_rows(journal) for flat in _flat(row)]
    names = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    _replace(out, lambda part: parquet.write_table(table, part))


def _image_ids(rows: list[Row]) -> list[int]:
    """Numbers that file names are, as those of COCO's own pictures; else 1, 2, 3."""
    stems = [PurePosixPath(row["file"]).stem for row in rows]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    return numbers if len(set(numbers)) == len(rows) else list(range(1, len(rows) + 1))


def _categories(labels: Labels) -> list[Row]:
    return [
        {"id": label["id"], "name": label["name"]}
        | ({} if label.get("isthing") is None else {"isthing": int(label["isthing"])})
        for label in labels
    ]


def _annotations(number: int, row: Row) -> Iterable[Row]:
    found = Segmentation.of(row) if row["task"] == "segment" else Detections.of(row)
    sizes: list[float] = [one.area for one in found] if isinstance(found, Segmentation) else []
    for place, annotation in enumerate(found.to_coco(number)):
        _, _, width, height = annotation["bbox"]
        area = sizes[place] if sizes else round(width * height, 6)
        yield annotation | {"area": area, "iscrowd": 0}


def _panoptic(number: int, row: Row, folder: Path) -> Row:
    png = folder / PurePosixPath(row["file"]).with_suffix(".png")
    png.parent.mkdir(parents=True, exist_ok=True)
    png.write_bytes(base64.b64decode(row["segment_map"]))
    return Segmentation.of(row).to_coco_panoptic(number, png.relative_to(folder).as_posix())


def _flat(row: Row) -> Iterable[Row]:
    """A row for each finding, its members beside those of its answer."""
    shared = {name: value for name, value in row.items() if name not in _DROPPED}
    if REFUSED in row:
        shared[REFUSED] = row[REFUSED].get("detail")
    shared |= row.get("image", {})
    findings = row.get(_SPREAD.get(row["task"], ""), [])
    for finding in findings or [{}]:
        own = {name: value for name, value in finding.items() if name not in ("box", *_DROPPED)}
        own |= finding.get("box", {})
        if isinstance(finding.get("mask"), dict):
            own["rle"] = finding["mask"]["counts"]
        yield shared | own


def _replace(out: Path, write: Callable[[Path], Any]) -> None:
    """Put a file in place in one move: there is never half of it."""
    part = out.with_name(out.name + ".part")
    try:
        write(part)
        part.replace(out)
    except OSError as error:
        raise StartError(f"cannot write {out}: {error.strerror or error}") from None
