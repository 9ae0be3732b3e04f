"""Pascal VOC boxes as COCO files: ``python -m export.detector.voc VOC_FOLDER OUT``."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import typer

SPLITS = ("train", "val", "test")


def main(
    voc: Annotated[Path, typer.Argument(help="with Annotations, ImageSets/Main and JPEGImages")],
    out: Annotated[Path, typer.Argument(help="folder for the data set in COCO's layout")],
) -> None:
    """Write OUT/annotations/instances_SPLIT.json, and copy the pictures to OUT/SPLIT.

    Classes are numbered by name, from 1. Boxes without an area are left out.
    """
    names = {split: _names(voc, split) for split in SPLITS}
    trees = {name: _read(voc, name) for split in SPLITS for name in names[split]}
    labels = sorted(
        {str(thing.findtext("name")) for tree in trees.values() for thing in tree.iter("object")}
    )
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        content = coco([trees[name] for name in names[split]], labels)
        path = out / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        (out / split).mkdir(exist_ok=True)
        for image in content["images"]:
            shutil.copy(voc / "JPEGImages" / image["file_name"], out / split)
        found = f"{len(content['images'])} pictures, {len(content['annotations'])} boxes"
        typer.echo(f"{split}: {found} of {', '.join(labels)}")


def coco(trees: Sequence[ElementTree.Element], labels: Sequence[str]) -> dict[str, Any]:
    """Annotations in COCO's form, of pictures in the given order; category i is label i - 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, tree in enumerate(trees, 1):
        width, height = (int(tree.findtext(f"size/{side}", "0")) for side in ("width", "height"))
        name = tree.findtext("filename")
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for thing in tree.iter("object"):
            box = _box(thing, width, height)
            w, h = box[2:]
            if w <= 1 or h <= 1:  # both corners in one row or column of pixels
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": labels.index(str(thing.findtext("name"))) + 1,
                    "bbox": box,
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": label} for number, label in enumerate(labels, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _box(thing: ElementTree.Element, width: int, height: int) -> list[int]:
    """x, y, width and height in pixels within the picture. VOC's corners are the first and the last
    pixel, counted from 1.
    """
    corners = ("xmin", "ymin", "xmax", "ymax")
    x0, y0, x1, y1 = (int(thing.findtext(f"bndbox/{name}", "0")) for name in corners)
    left, top = max(x0 - 1, 0), max(y0 - 1, 0)
    return [left, top, min(x1, width) - left, min(y1, height) - top]


def _names(voc: Path, split: str) -> list[str]:
    return (voc / "ImageSets" / "Main" / f"{split}.txt").read_text(encoding="utf-8").split()


def _read(voc: Path, name: str) -> ElementTree.Element:
    return ElementTree.parse(voc / "Annotations" / f"{name}.xml").getroot()


if __name__ == "__main__":
    typer.run(main)
