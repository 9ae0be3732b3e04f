"""Writes held-out scenes as data sets to evaluate on: ``python -m export.demo.datasets``."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.progress import track

from export.demo.pool import scene
from export.demo.scenes import CLASSES, THINGS, Scene
from service.evaluate import average_precision

SPLIT = "val"


def write_datasets(folder: Path, count: int) -> None:
    """The first ``count`` held-out scenes for ``saccade evaluate``, with what is known of each in
    the layouts of folders by class, COCO's boxes and masks, its panoptic maps, and ADE20K. Ids of
    classes are those of the demo models' labels.
    """
    folders = {
        name: folder / name
        for name in (SPLIT, f"annotations/panoptic_{SPLIT}", "ade20k", "by-class")
    }
    maps = folders["ade20k"] / "annotations" / "validation"
    pictures = folders["ade20k"] / "images" / "validation"
    for path in (*folders.values(), maps, pictures):
        path.mkdir(parents=True, exist_ok=True)
    boxes, panoptic = _document(THINGS), _document(CLASSES)
    for number in track(range(count), f"drawing {count} scenes"):
        drawn, file = scene("held-out", number)
        stem = f"{number:012}"
        by_class = folders["by-class"] / drawn.label
        by_class.mkdir(exist_ok=True)
        for place in (folders[SPLIT], pictures, by_class):
            (place / f"{stem}.jpg").write_bytes(file)
        _note(boxes, panoptic, drawn, number)
        _write_map(folders[f"annotations/panoptic_{SPLIT}"] / f"{stem}.png", drawn)
        Image.fromarray(_classes(drawn)).save(maps / f"{stem}.png")
    (folder / "annotations" / f"instances_{SPLIT}.json").write_text(json.dumps(boxes))
    (folder / "annotations" / f"panoptic_{SPLIT}.json").write_text(json.dumps(panoptic))
    names = "".join(f"{place}\t0\t0\t0\t{name}\n" for place, name in enumerate(CLASSES, 1))
    table = folders["ade20k"] / "objectInfo150.txt"
    table.write_text("Idx\tRatio\tTrain\tVal\tName\n" + names)


def _document(classes: tuple[str, ...]) -> dict[str, Any]:
    categories = [
        {"id": number, "name": name, "isthing": int(name in THINGS)}
        for number, name in enumerate(classes)
    ]
    return {"images": [], "annotations": [], "categories": categories}


def _note(boxes: dict[str, Any], panoptic: dict[str, Any], drawn: Scene, number: int) -> None:
    height, width = drawn.ids.shape
    image = {"id": number, "file_name": f"{number:012}.jpg", "height": height, "width": width}
    rows = []
    for segment in drawn.segments:
        x0, y0, x1, y1 = segment.box_xyxy_px
        row = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": segment.area_px, "iscrowd": 0}
        rows.append(row | {"id": segment.id, "category_id": CLASSES.index(segment.label)})
        if segment.isthing:
            kind = THINGS.index(segment.label)
            thing = row | {"id": len(boxes["annotations"]) + 1, "image_id": number}
            mask = average_precision.compress(drawn.ids == segment.id)
            boxes["annotations"].append(thing | {"category_id": kind, "segmentation": mask})
    for document in (boxes, panoptic):
        document["images"].append(image)
    name = f"{number:012}.png"
    panoptic["annotations"].append({"image_id": number, "file_name": name, "segments_info": rows})


def _write_map(path: Path, drawn: Scene) -> None:
    """Ids as colours, as COCO has them."""
    pixels = np.zeros((*drawn.ids.shape, 3), dtype=np.uint8)
    pixels[..., 0] = drawn.ids
    Image.fromarray(pixels).save(path)


def _classes(drawn: Scene) -> Any:
    """Class numbers from 1 on, as ADE20K has them."""
    table = np.zeros(256, dtype=np.uint8)
    for segment in drawn.segments:
        table[segment.id] = CLASSES.index(segment.label) + 1
    return table[drawn.ids]


def main(
    out: Annotated[Path, typer.Option(help="folder for the data sets")],
    count: Annotated[int, typer.Option(min=1, help="how many scenes")] = 200,
) -> None:
    """Write held-out scenes as data sets."""
    write_datasets(out, count)


if __name__ == "__main__":
    typer.run(main)
