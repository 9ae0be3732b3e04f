"""COCO's annotation files, looked through once before anything is scored against them."""

import json
import math
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from service.errors import BadSettings
from service.evaluate.average_precision import Row, encode, with_box
from service.evaluate.categories import Category


def read_json(path: Path) -> Any:
    """A JSON document.

    Raises:
        BadSettings: it cannot be read as one.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BadSettings(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise BadSettings(f"{path} is no JSON: {error}") from None


def annotation_file(path: Path, prefix: str) -> tuple[Path, Path, str]:
    """The file, the folder of the whole set, and the name of its split, like val2017.

    Raises:
        BadSettings: there is none, or several.
    """
    if path.is_file():
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        return path, root, path.stem.removeprefix(prefix)
    folder = path / "annotations" if (path / "annotations").is_dir() else path
    found = sorted(folder.glob(f"{prefix}*.json"))
    chosen = [file for file in found if "val" in file.stem] or found
    if len(chosen) != 1:
        there = ", ".join(file.name for file in chosen) or "none"
        raise BadSettings(
            f"{folder} must hold one {prefix}*.json for validation; found {there}; name the file "
            "itself to choose it"
        )
    return chosen[0], path, chosen[0].stem.removeprefix(prefix)


def read_instances(file: Path) -> tuple[Row, list[Category]]:
    """A file of boxes and masks, and its classes.

    Raises:
        BadSettings: it is none, or an annotation contradicts the rest.
    """
    document, categories = _read(file)
    images = {row["id"]: row for row in document["images"]}
    rows = []
    for number, row in enumerate(document["annotations"], 1):
        if "segments_info" in row:
            raise BadSettings(f"{file} is in COCO's panoptic format; say coco-panoptic:{file}")
        _check_image(file, number, row, images.keys())
        if "category_id" not in row or not (row.get("segmentation") or "bbox" in row):
            raise BadSettings(
                f"annotation {number} of {file} is not in COCO's format: it needs image_id, "
                "category_id, and bbox or segmentation"
            )
        if "bbox" in row and not is_box(row["bbox"]):
            raise BadSettings(
                f"annotation {number} of {file} has the bbox {row['bbox']!r}; it takes four "
                "numbers: x, y, width, height"
            )
        what = f"annotation {number} of {file}"
        rows.append(_of_mask(what, row, images[row["image_id"]], with_box))
    return document | {"annotations": rows}, categories


def read_panoptic(file: Path) -> tuple[Row, list[Category]]:
    """A panoptic file and its classes.

    Raises:
        BadSettings: it is none, or an annotation contradicts the rest.
    """
    document, categories = _read(file)
    images = {row["id"] for row in document["images"]}
    known = {one.id for one in categories}
    for number, row in enumerate(document["annotations"], 1):
        check_panoptic(file, number, row)
        _check_image(file, number, row, images)
        check_classes(file, row, known)
    if not document["annotations"]:
        raise BadSettings(f"{file} has no annotation to compare with")
    return document, categories


def with_run_lengths(file: Path, document: Row) -> Row:
    """The document with every mask as compressed run lengths.

    Raises:
        BadSettings: an annotation has none, or one that cannot be read.
    """
    images = {row["id"]: row for row in document["images"]}
    rows = []
    for number, row in enumerate(document["annotations"], 1):
        encoded = encoded_mask(f"annotation {number} of {file}", row, images[row["image_id"]])
        rows.append(row | {"segmentation": encoded})
    return document | {"annotations": rows}


def without_mask(document: Row) -> int:
    """How many annotations have no mask."""
    return sum(not row.get("segmentation") for row in document["annotations"])


def encoded_mask(what: str, row: Row, image: Row) -> Row:
    """Compressed run lengths of a row's mask.

    Raises:
        BadSettings: ``what``, for people, has none that fits the picture.
    """
    return _of_mask(what, row, image, lambda row, *size: encode(row["segmentation"], *size))


def check_members(file: Path, rows: list[Row], **kinds: type) -> None:
    """Raises BadSettings where an image has not all of these members."""
    for row in rows:
        for name, kind in kinds.items():
            if not isinstance(row.get(name), kind):
                raise BadSettings(
                    f"picture {row['id']!r} of {file} has the {name} {row.get(name)!r}; every "
                    "picture needs one"
                )


def check_panoptic(path: Path, number: int, row: Any) -> None:
    """Raises BadSettings unless a row is a picture in COCO's panoptic format."""
    try:
        good = is_id(row["image_id"]) and all(
            isinstance(one["id"], int) and is_id(one["category_id"]) for one in row["segments_info"]
        )
    except (KeyError, TypeError):
        good = False
    if not good:
        raise BadSettings(
            f"annotation {number} of {path} is not in COCO's panoptic format: it needs image_id, "
            "file_name, and segments_info with id and category_id"
        )


def check_classes(path: Path, row: Row, known: set[int]) -> None:
    """Raises BadSettings where a segment is of a class that the truth does not list."""
    for one in row["segments_info"]:
        if one["category_id"] not in known:
            raise BadSettings(
                f"picture {row['image_id']} of {path}: there is no class with the id "
                f"{one['category_id']!r} among the categories of the truth"
            )


def is_id(value: Any) -> bool:
    """Whether it may be the id of a picture or class."""
    return isinstance(value, int | float | str)  # which JSON may write, and a dict can look up


def is_number(value: Any) -> bool:
    """Whether it can be counted with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_box(value: Any) -> bool:
    """Whether it is four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _read(file: Path) -> tuple[Row, list[Category]]:
    document = read_json(file)
    try:
        for name in ("images", "annotations", "categories"):
            _ = [row.keys() for row in document[name]]
        categories = [
            Category(row["id"], row["name"], _truth(row.get("isthing")))
            for row in document["categories"]
        ]
    except (KeyError, TypeError, AttributeError):
        raise BadSettings(
            f"{file} is no COCO annotation file: it needs images, annotations and categories"
        ) from None
    if not document["images"]:
        raise BadSettings(f"{file} lists no picture")
    for number, row in enumerate(document["images"], 1):
        if not is_id(row.get("id")):
            raise BadSettings(
                f"picture {number} of {file} has the id {row.get('id')!r}; every picture needs one"
            )
    return document, categories


def _of_mask(what: str, row: Row, image: Row, make: Callable[[Row, Any, Any], Row]) -> Row:
    try:
        return make(row, image.get("height"), image.get("width"))
    except (KeyError, TypeError, ValueError) as error:
        sized = all(isinstance(image.get(side), int) for side in ("height", "width"))
        why = error if sized else f"the picture {image['id']!r} has no height and width"
        raise BadSettings(f"{what} has an unusable mask: {why}") from None


def _check_image(file: Path, number: int, row: Row, known: Container[Any]) -> None:
    image_id = row.get("image_id")
    if not is_id(image_id) or image_id not in known:
        raise BadSettings(
            f"annotation {number} of {file} is about the picture {image_id!r}, which its images "
            "do not list"
        )


def _truth(value: Any) -> bool | None:
    return None if value is None else bool(value)
