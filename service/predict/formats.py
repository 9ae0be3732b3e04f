"""What a finished run is turned into besides JSON lines: COCO's formats, and Parquet."""

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from saccade_client.results import Detections, Segmentation
from service.errors import BadSettings, StartError
from service.predict.journal import REFUSED, read_rows

Row = dict[str, Any]
Labels = list[dict[str, Any]]
Write = Callable[[Path, Path, Labels], None]
"""Turns a journal into the file ``out``, given the labels of the models that answered."""

CHUNK_ROWS = 10_000

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
    images, have_maps = [], []
    for row in _answered(journal):  # which may hold more maps than fit into memory
        images.append({"file_name": row["file"], **row["image"]})
        have_maps.append("segment_map" in row)
    files = [image["file_name"] for image in images]
    numbers = _image_ids(files)
    numbered = zip(numbers, _answered(journal), strict=True)
    if have_maps and all(have_maps):
        names, folder = _png_names(files, numbers), out.with_suffix("")
        annotations = [
            _panoptic(number, row, folder, name)
            for (number, row), name in zip(numbered, names, strict=True)
        ]
    else:
        found = (one for number, row in numbered for one in _annotations(number, row))
        annotations = [row | {"id": number} for number, row in enumerate(found, 1)]
    document = {
        "images": [{"id": number} | image for number, image in zip(numbers, images, strict=True)],
        "annotations": annotations,
        "categories": _categories(labels),
    }
    _replace(out, lambda part: part.write_text(json.dumps(document)))


def write_parquet(journal: Path, out: Path, labels: Labels) -> None:
    """A table with a row for each finding, and one for a picture without any."""
    import pyarrow
    from pyarrow import parquet

    rows = (flat for row in read_rows(journal) for flat in _flat(row))
    tables = []
    while chunk := list(islice(rows, CHUNK_ROWS)):  # a table is far smaller than its rows
        names = dict.fromkeys(name for row in chunk for name in row)
        tables.append(pyarrow.table({name: [row.get(name) for row in chunk] for name in names}))
    table = pyarrow.concat_tables(tables, promote_options="permissive")
    _replace(out, lambda part: parquet.write_table(table, part))


def map_names(out: Path) -> set[str]:
    """The maps that an earlier run wrote with ``out``; none if that was another format."""
    try:
        annotations = json.loads(out.read_bytes())["annotations"]
        return {row["file_name"] for row in annotations if "segments_info" in row}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _answered(journal: Path) -> Iterator[Row]:
    return (row for row in read_rows(journal) if REFUSED not in row)


def _image_ids(files: list[str]) -> list[int]:
    """Numbers that file names are, as those of COCO's own pictures; else 1, 2, 3."""
    stems = [PurePosixPath(file).stem for file in files]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    return numbers if len(set(numbers)) == len(files) else list(range(1, len(files) + 1))


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


def _png_names(files: list[str], numbers: list[int]) -> list[str]:
    """Each picture's own, ending in .png; its number where two would share one, or one would lie
    outside the folder.
    """
    names = [PurePosixPath(file).with_suffix(".png") for file in files]
    outside = any(name.is_absolute() or ".." in name.parts for name in names)
    if outside or len(set(names)) < len(names):
        return [f"{number:012}.png" for number in numbers]
    return [name.as_posix() for name in names]


def _panoptic(number: int, row: Row, folder: Path, name: str) -> Row:
    png = folder / name
    try:
        png.parent.mkdir(parents=True, exist_ok=True)
        png.write_bytes(base64.b64decode(row["segment_map"]))
    except OSError as error:
        raise StartError(f"cannot write {png}: {error.strerror}") from None
    return Segmentation.of(row).to_coco_panoptic(number, name)


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
