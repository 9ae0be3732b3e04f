"""Pictures with COCO boxes, as a network sees them, all in memory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from export.demo.training.batches import normalized
from export.demo.training.detect import Boxes
from service.geometry import Size


@dataclass(frozen=True)
class Pictures:
    """``images`` (N, H, W, 3) uint8 squashed to the canvas, what is in them, their ``sizes``
    before, and the names of the classes.
    """

    images: Tensor
    boxes: Boxes
    sizes: list[Size]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Batch:
    """``images`` (B, 3, H, W) in -1..1, and what is in them."""

    images: Tensor
    boxes: Boxes


def read(data: Path, split: str, canvas: tuple[int, int]) -> Pictures:
    """A split of a folder in COCO's layout; classes are counted from 0 by rising category id.

    Crowds are left out, since nothing can be learnt from their boxes.
    """
    content = json.loads((data / "annotations" / f"instances_{split}.json").read_bytes())
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    classes = {category["id"]: index for index, category in enumerate(categories)}
    things: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            things[annotation["image_id"]].append(annotation)
    most = max(map(len, things.values()))
    found = torch.full((len(things), most), -1)
    corners = torch.zeros(len(things), most, 4)
    images = []
    for row, image in enumerate(content["images"]):
        images.append(_squashed(data / split / image["file_name"], canvas))
        sides = torch.tensor([image["width"], image["height"]]).repeat(2)
        for column, thing in enumerate(things[image["id"]]):
            x, y, width, height = thing["bbox"]
            found[row, column] = classes[thing["category_id"]]
            corners[row, column] = torch.tensor([x, y, x + width, y + height]) / sides
    return Pictures(
        torch.from_numpy(np.stack(images)),
        Boxes(found, corners),
        [Size(height=image["height"], width=image["width"]) for image in content["images"]],
        [category["name"] for category in categories],
    )


def plain(pictures: Pictures, chosen: "Tensor | slice") -> Batch:
    """The chosen pictures as they are."""
    boxes = Boxes(pictures.boxes.classes[chosen], pictures.boxes.corners[chosen])
    return Batch(normalized(pictures.images[chosen]), boxes)


def _squashed(path: Path, canvas: tuple[int, int]) -> "np.typing.NDArray[np.uint8]":
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize(canvas[::-1], Image.Resampling.BICUBIC)
    return np.asarray(small)
