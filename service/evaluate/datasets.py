"""Data with truth, as it is found on disk after download."""

import csv
import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from service.errors import BadSettings
from service.evaluate.categories import Category, Match
from service.evaluate.maps import Maps, open_maps
from service.predict.sources import SUFFIXES, Source

SAMPLE_SEED = 0
LAYOUTS = {
    "imagenet": "DIR/val/n01440764/*.JPEG, a folder for each synset, or Kaggle's download",
    "coco": "DIR/annotations/instances_val2017.json and DIR/val2017/*.jpg",
    "coco-panoptic": "as coco with panoptic_val2017.json, and its PNGs in a folder beside it",
    "ade20k": "DIR/images/validation/*.jpg and DIR/annotations/validation/*.png",
    "folder": "DIR/CLASS/*.jpg, a folder for each class of the model",
}
"""What each kind looks like on disk, for people."""
_SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Dataset:
    """Pictures and what is known of each: ``truth`` by the name of its source.

    That is for "imagenet" and "folder" the id of the class, for "coco" the picture's row in
    ``document``, for "coco-panoptic" the annotation, for "ade20k" the file of the map. ``maps``
    are those of "coco-panoptic".
    """

    kind: str
    path: Path
    sources: list[Source]
    truth: dict[str, Any]
    categories: list[Category]
    match: Match = "name"
    document: dict[str, Any] = field(default_factory=dict)
    maps: Maps | None = None

    def limited(self, limit: int | None) -> "Dataset":
        """At most ``limit`` pictures of it, drawn by chance but always the same; a larger limit
        adds to them.
        """
        if limit is None or limit >= len(self.sources):
            return self
        places = list(range(len(self.sources)))
        random.Random(SAMPLE_SEED).shuffle(places)
        chosen = places[:limit]
        return replace(self, sources=[self.sources[place] for place in sorted(chosen)])


def split_data(data: str) -> tuple[str, Path]:
    """The kind and the path of ``KIND:PATH``.

    Raises:
        BadSettings: there is no such kind, or nothing at the path.
    """
    kind, colon, path = data.partition(":")
    if kind not in _OPENERS or not colon or not path:
        kinds = ", ".join(_OPENERS)
        raise BadSettings(f"--data takes KIND:PATH with one of {kinds}; found {data!r}")
    if not Path(path).exists():
        raise BadSettings(f"--data {data}: there is no {path}; name a folder or file that is there")
    return kind, Path(path)


def open_dataset(data: str, labels: int | None = None) -> Dataset:
    """What ``KIND:PATH`` names; ``labels`` is how many classes the model has, where that is known.

    Raises:
        BadSettings: there is no such kind, or the folder does not look like it.
    """
    kind, path = split_data(data)
    dataset = _OPENERS[kind](path, labels)
    if not dataset.sources:
        raise BadSettings(
            f"--data {data}: there is no picture with truth; {kind} data is {LAYOUTS[kind]}"
        )
    return dataset


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


def coco_categories(document: dict[str, Any], path: Path) -> list[Category]:
    """The classes of an annotation file.

    Raises:
        BadSettings: it is none.
    """
    try:
        _ = [*document["images"], *document["annotations"]]
        return [
            Category(row["id"], row["name"], _truth(row.get("isthing")))
            for row in document["categories"]
        ]
    except (KeyError, TypeError):
        raise BadSettings(
            f"{path} is no COCO annotation file: it needs images, annotations and categories"
        ) from None


def _truth(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _classified(kind: str) -> Callable[[Path, int | None], Dataset]:
    def opened(path: Path, labels: int | None) -> Dataset:
        root = path / "val" if any(path.glob("val/*/")) else path
        answers = _kaggle(path) if kind == "imagenet" else None
        if answers is None:
            answers = {
                file.relative_to(root).as_posix(): (file, file.relative_to(root).parts[0])
                for file in sorted(root.glob("*/**/*"))
                if file.suffix.lower() in SUFFIXES
            }
        names = sorted({name for _, name in answers.values()})
        if kind == "imagenet" and names and all(_SYNSET.fullmatch(name) for name in names):
            ranks, match = _synsets(path, names, labels), "id"
        else:
            ranks, match = {name: rank for rank, name in enumerate(names)}, "name"
        return Dataset(
            kind,
            path,
            [Source(file, name) for name, (file, _) in answers.items()],
            {name: ranks[label] for name, (_, label) in answers.items()},
            [Category(rank, name) for name, rank in ranks.items()],
            match,  # type: ignore[arg-type]
        )

    return opened


def _kaggle(path: Path) -> dict[str, tuple[Path, str]] | None:
    """The validation pictures in one folder, with their synsets in a table."""
    table = path / "LOC_val_solution.csv"
    if not table.is_file():
        return None
    folder = path / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    with table.open(newline="") as file:
        rows = sorted((row["ImageId"], row["PredictionString"]) for row in csv.DictReader(file))
    return {
        f"{name}.JPEG": (folder / f"{name}.JPEG", answer.partition(" ")[0]) for name, answer in rows
    }


def _synsets(path: Path, names: list[str], labels: int | None) -> dict[str, int]:
    """The number of each synset: its place among all that the model knows, in order of their names,
    as every ImageNet model counts them.
    """
    listed = next(
        (
            path / name
            for name in ("LOC_synset_mapping.txt", "synsets.txt")
            if (path / name).is_file()
        ),
        None,
    )
    if listed is not None:
        known = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
        if missing := sorted(set(names) - set(known)):
            raise BadSettings(f"{listed} does not list {missing[0]}, which {path} has pictures of")
        return {name: rank for rank, name in enumerate(known)}
    if labels is not None and labels != len(names):
        raise BadSettings(
            f"{path} has {len(names)} of the {labels} classes that the model knows; put all of "
            f"them into {path / 'synsets.txt'}, one WordNet id a line in the order of the labels"
        )
    return {name: rank for rank, name in enumerate(names)}


def _coco(path: Path, labels: int | None) -> Dataset:
    del labels
    file, root, split = annotation_file(path, "instances_")
    document = read_json(file)
    categories = coco_categories(document, file)
    rows = {row["file_name"]: row for row in document["images"]}
    sources = _pictures(root, split, rows)
    return Dataset("coco", path, sources, rows, categories, "name", document)


def _coco_panoptic(path: Path, labels: int | None) -> Dataset:
    del labels
    file, root, split = annotation_file(path, "panoptic_")
    document = read_json(file)
    categories = coco_categories(document, file)
    names = {row["id"]: row["file_name"] for row in document["images"]}
    truth = {names[row["image_id"]]: row for row in document["annotations"]}
    sources = _pictures(root, split, truth)
    maps = open_maps(file, [row["file_name"] for row in document["annotations"]])
    return Dataset("coco-panoptic", path, sources, truth, categories, "name", document, maps)


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


def _pictures(root: Path, split: str, names: Iterable[str]) -> list[Source]:
    listed = sorted(names)
    folders = [root / split, root / "images" / split, root / "images", root]
    for folder in folders:
        if listed and (folder / listed[0]).is_file():
            return [Source(folder / name, name) for name in listed]
    looked = ", ".join(map(str, folders))
    raise BadSettings(f"{listed[0] if listed else 'a picture'} is in none of {looked}")


def _ade20k(path: Path, labels: int | None) -> Dataset:
    """ADEChallengeData2016: pictures, and maps of class numbers from 1 on, 0 for void."""
    split = "validation"
    pictures, maps = path / "images" / split, path / "annotations" / split
    if not pictures.is_dir() or not maps.is_dir():
        raise BadSettings(f"{path} must hold images/{split} and annotations/{split}")
    files = sorted(file for file in pictures.iterdir() if file.suffix.lower() in SUFFIXES)
    sources = [Source(file, file.name) for file in files]
    truth = {file.name: maps / f"{file.stem}.png" for file in files}
    names = _object_names(path / "objectInfo150.txt", labels or 150)
    categories = [Category(number, name) for number, name in enumerate(names)]
    return Dataset("ade20k", path, sources, truth, categories, "id")


def _object_names(table: Path, classes: int) -> list[str]:
    """The last column of ADE20K's table; numbers where it is absent."""
    if not table.is_file():
        return [str(number) for number in range(classes)]
    lines = table.read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t")[-1].strip() for line in lines if line.strip()]


_OPENERS: dict[str, Callable[[Path, int | None], Dataset]] = {
    "imagenet": _classified("imagenet"),
    "coco": _coco,
    "coco-panoptic": _coco_panoptic,
    "ade20k": _ade20k,
    "folder": _classified("folder"),
}
