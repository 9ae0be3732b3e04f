"""Data with truth, as it is found on disk after download."""

import csv
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from service.errors import BadSettings
from service.evaluate.annotations import (
    annotation_file,
    check_members,
    read_instances,
    read_panoptic,
    with_run_lengths,
    without_mask,
)
from service.evaluate.categories import Category, Match
from service.evaluate.maps import Maps, open_maps
from service.evaluate.semantic import read_classes
from service.predict.sources import SUFFIXES, Source, pictures_below

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

    def checked(self, masks: bool) -> "Dataset":
        """The same, once the truth of its pictures has been looked through, so that a mistake in it
        shows before anything is asked; ``masks`` says whether COCO's masks will be compared.

        Raises:
            BadSettings: a map or mask is missing, or is none.
        """
        if self.kind == "ade20k":
            for source in self.sources:
                read_classes(self.truth[source.name], len(self.categories))
        elif self.maps is not None:
            names = [self.truth[source.name]["file_name"] for source in self.sources]
            if missing := [name for name in names if not self.maps.has(name)]:
                raise BadSettings(
                    f"{self.maps.place} lacks {len(missing)} of {len(names)} maps of the data, "
                    f"like {missing[0]}; --truth-maps names the folder or zip that has all"
                )
        elif self.kind == "coco" and masks and not without_mask(self.document):
            return replace(self, document=with_run_lengths(self.path, self.document))
        return self


def split_data(data: str) -> tuple[str, Path]:
    """The kind and the path of ``KIND:PATH``.

    Raises:
        BadSettings: there is no such kind, or nothing at the path.
    """
    kind, colon, path = data.partition(":")
    if kind not in LAYOUTS or not colon or not path:
        kinds = ", ".join(LAYOUTS)
        raise BadSettings(f"--data takes KIND:PATH with one of {kinds}; found {data!r}")
    if not Path(path).exists():
        raise BadSettings(f"--data {data}: there is no {path}; name a folder or file that is there")
    return kind, Path(path)


def open_dataset(data: str, labels: int | None = None, truth_maps: Path | None = None) -> Dataset:
    """What ``KIND:PATH`` names; ``labels`` is how many classes the model has, where that is known.
    ``truth_maps`` is the folder or zip of a panoptic file's maps, where they do not lie beside it.

    Raises:
        BadSettings: there is no such kind, or the folder does not look like it.
    """
    kind, path = split_data(data)
    if kind == "coco-panoptic":
        dataset = _coco_panoptic(path, truth_maps)
    elif truth_maps is not None:
        raise BadSettings(f"--truth-maps is for coco-panoptic data; found --data {data}")
    else:
        dataset = _OPENERS[kind](path, labels)
    if not dataset.sources:
        raise BadSettings(
            f"--data {data}: there is no picture with truth; {kind} data is {LAYOUTS[kind]}"
        )
    return dataset


def _classified(kind: str) -> Callable[[Path, int | None], Dataset]:
    def opened(path: Path, labels: int | None) -> Dataset:
        root = path / "val" if any(path.glob("val/*/")) else path
        answers = _kaggle(path) if kind == "imagenet" else None
        if answers is None:
            answers = {
                file.relative_to(root).as_posix(): (file, file.relative_to(root).parts[0])
                for file in pictures_below(root)
                if file.parent != root
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
    document, categories = read_instances(file)
    check_members(file, document["images"], file_name=str, height=int, width=int)
    rows = {row["file_name"]: row for row in document["images"]}
    sources = _pictures(root, split, rows)
    return Dataset("coco", file, sources, rows, categories, "name", document)


def _coco_panoptic(path: Path, truth_maps: Path | None) -> Dataset:
    file, root, split = annotation_file(path, "panoptic_")
    document, categories = read_panoptic(file)
    check_members(file, document["images"], file_name=str)
    names = {row["id"]: row["file_name"] for row in document["images"]}
    truth = {}
    for row in document["annotations"]:
        name = names[row["image_id"]]
        truth[name] = {"file_name": f"{PurePosixPath(name).stem}.png"} | row
    sources = _pictures(root, split, truth)
    maps = open_maps(file, [row["file_name"] for row in truth.values()], truth_maps)
    return Dataset("coco-panoptic", file, sources, truth, categories, "name", document, maps)


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
    files = sorted(
        file for file in pictures.iterdir() if file.suffix.lower() in SUFFIXES and not file.is_dir()
    )
    sources = [Source(file, file.name) for file in files]
    truth = {file.name: maps / f"{file.stem}.png" for file in files}
    names = _object_names(path / "objectInfo150.txt", max(labels or 0, 150))
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
    "ade20k": _ade20k,
    "folder": _classified("folder"),
}
