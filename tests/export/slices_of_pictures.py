"""What our geometry makes of the pictures and annotations in transformers' tests, in their terms.

Boxes, masks and areas of the truth go with the picture, so that they show where it is placed.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.preprocessor import Preprocessing, read_preprocessor
from service.geometry import Geometry, Placement, Resize, Size, place, to_canvas
from tests.export.slices import DATA, Names, Test

PROCESSORS = {
    "detr": "DetrImageProcessor",
    "conditional_detr": "ConditionalDetrImageProcessor",
    "deformable_detr": "DeformableDetrImageProcessor",
    "grounding_dino": "DetrImageProcessor",  # whose preprocessing it has
    "rt_detr": "RTDetrImageProcessor",
    "yolos": "DetrImageProcessor",  # but for its sizes
}
PADDED = Size(height=800, width=1066)
"""What a batch of the two cats, and of the same made square, is padded to."""
SQUARE = (800, 800)
YOLOS_MULTIPLE = 16
Row = dict[str, Any]


def encodings(test: Test) -> list[Names]:
    """Names for every check of a test, in its order; one entry where all look at the same."""
    if "max_width_max_height" in test["test"]:
        return [{"inputs": {"pixel_values": one}} for one in _bounded(test["arch"])]
    if "multiple_images" in test["test"]:
        paths = [DATA / one["local"] for one in test["images"]]
        ours = _preprocessing(test["arch"])
        pixels = [_pixels(_picture(path), ours, ours.geometry.nominal) for path in paths]
        return [{"encoding": {"pixel_values": np.stack(pixels)}}]
    if "batched" in test["test"]:
        return [_batched(test)]
    return [_single(test)]


def _single(test: Test) -> Names:
    picture = _picture(DATA / "hf_coco_fixtures" / "000000039769.png")
    ours = _preprocessing(test["arch"], picture)
    if "annotations" not in test["test"]:
        pixels = _pixels(picture, ours, ours.geometry.nominal)
        return {"encoding": {"pixel_values": pixels[None]}}
    placement = _placed(picture, ours, None)
    rows, masks = _truth("panoptic" in test["test"])
    boxes = _boxes_of(masks) if masks is not None else _boxes_xyxy_px(rows, (1.0, 1.0), picture)
    labels = _labels(rows, boxes, placement, placement.resized) | {
        "image_id": [39769],
        "iscrowd": [row["iscrowd"] for row in rows],
        "class_labels": [row["category_id"] for row in rows],
        "orig_size": [placement.image.height, placement.image.width],
        "size": [placement.resized.height, placement.resized.width],
    }
    if masks is not None:
        labels["masks"] = _resized(masks, placement.resized)
    pixels = _pixels(picture, ours, placement.canvas)
    return {"encoding": {"pixel_values": pixels[None], "labels": [labels]}}


def _batched(test: Test) -> Names:
    """A picture and the same made square. The test stretches the boxes of its annotations for the
    square, and both pictures share them; masks it does not stretch.
    """
    first = _picture(DATA / "hf_coco_fixtures" / "000000039769.png")
    rows, masks = _truth("panoptic" in test["test"])
    stretch = SQUARE[0] / first.width, SQUARE[1] / first.height
    labels = []
    for picture in (first, first.resize(SQUARE)):
        ours = _preprocessing(test["arch"], picture)
        padded = _padded_size(test["arch"]) if ours.geometry.placement == "pad" else None
        placement = _placed(picture, ours, padded)
        boxes = _boxes_of(masks) if masks is not None else _boxes_xyxy_px(rows, stretch, picture)
        truth = masks if masks is not None else np.zeros((len(rows), 8, 8), dtype=bool)
        labels.append(
            _labels(rows, boxes, placement, placement.canvas)
            | {"masks": np.zeros((len(truth), placement.canvas.height, placement.canvas.width))}
        )
    return {"encoding": {"labels": labels}}


def _bounded(arch: str) -> list[NDArray[np.float64]]:
    """Pixel values of four settings of transformers' test of sizes that are bounded twice."""
    tall, wide = (Image.new("RGB", size, (1, 1, 1)) for size in ((100, 200), (150, 100)))

    def made(bounds: tuple[int, int], pad: tuple[int, int] | None, *pictures: Image.Image) -> Any:
        config: Row = {
            "image_processor_type": PROCESSORS[arch],
            "size": {"max_height": bounds[0], "max_width": bounds[1]},
            "do_pad": pad is not None,
        }
        if pad is not None:
            config["pad_size"] = {"height": pad[0], "width": pad[1]}
        ours = read_preprocessor(config)
        values = []
        for picture in pictures:
            placement = place(ours.geometry, _size(picture), ours.geometry.nominal)
            values.append(
                _pixels(picture, ours, placement.canvas if pad is not None else placement.resized)
            )
        return np.stack(values)

    return [
        made((100, 100), None, tall),
        made((100, 100), (100, 100), tall),
        made((300, 100), (301, 101), tall),
        made((150, 100), (150, 100), tall, wide),
    ]


def _preprocessing(arch: str, picture: Image.Image | None = None) -> Preprocessing:
    ours = read_preprocessor({"image_processor_type": PROCESSORS[arch]})
    if arch != "yolos":
        return ours
    assert picture is not None
    resized = place(ours.geometry, _size(picture), Size(height=1333, width=1333)).resized
    height, width = (
        side // YOLOS_MULTIPLE * YOLOS_MULTIPLE for side in (resized.height, resized.width)
    )
    squash = Resize(mode="squash", height=height, width=width)
    geometry = Geometry(nominal=ours.geometry.nominal, resize=squash, placement="pad")
    return Preprocessing(geometry, ours.scale, ours.mean, ours.std)


def _padded_size(arch: str) -> Size:
    width = PADDED.width // YOLOS_MULTIPLE * YOLOS_MULTIPLE if arch == "yolos" else PADDED.width
    return Size(height=PADDED.height, width=width)


def _placed(picture: Image.Image, ours: Preprocessing, canvas: Size | None) -> Placement:
    """On ``canvas``, or on one that just holds it."""
    if ours.geometry.placement != "pad":
        return place(ours.geometry, _size(picture), ours.geometry.nominal)
    wide = place(ours.geometry, _size(picture), Size(height=1400, width=1400))
    return place(ours.geometry, _size(picture), canvas or wide.resized)


def _pixels(picture: Image.Image, ours: Preprocessing, canvas: Size) -> NDArray[np.float64]:
    placement = place(ours.geometry, _size(picture), canvas)
    values = (to_canvas(picture, placement) * ours.scale - ours.mean) / ours.std
    return np.asarray(values).transpose(2, 0, 1)


def _labels(
    rows: list[Row], boxes_xyxy_px: NDArray[np.float64], placement: Placement, whole: Size
) -> Row:
    """Areas on the canvas, and boxes by centre and size as shares of ``whole``."""
    scale = np.array([placement.scale_x, placement.scale_y] * 2)
    corners = boxes_xyxy_px / scale / [whole.width, whole.height, whole.width, whole.height]
    middles, extents = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    area = np.array([row["area"] for row in rows]) / (placement.scale_x * placement.scale_y)
    return {"boxes": np.concatenate([middles, extents], axis=1), "area": area}


def _boxes_xyxy_px(
    rows: list[Row], stretch: tuple[float, float], picture: Image.Image
) -> NDArray[np.float64]:
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float64) * (stretch * 2)
    boxes[:, 2:] += boxes[:, :2]
    return boxes.clip(0, [picture.width, picture.height] * 2)


def _boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """First and last pixels, as transformers encloses masks."""
    found = [np.nonzero(mask) for mask in masks]
    return np.array([[x.min(), y.min(), x.max(), y.max()] for y, x in found], dtype=np.float64)


def _resized(masks: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    target = (size.width, size.height)
    nearest = Image.Resampling.NEAREST
    return np.stack([np.asarray(Image.fromarray(m).resize(target, nearest)) for m in masks])


def _truth(panoptic: bool) -> tuple[list[Row], NDArray[np.bool_] | None]:
    """Annotations of the two cats; of the panoptic ones the masks (n, H, W), too."""
    folder = DATA / "hf_coco_fixtures"
    if not panoptic:
        return json.loads((folder / "coco_annotations.txt").read_text()), None
    rows = json.loads((folder / "coco_panoptic_annotations.txt").read_text())
    pixels = np.asarray(_picture(folder / "coco_panoptic" / "000000039769.png"), dtype=np.int64)
    ids = pixels @ [1, 256, 65536]
    masks = np.stack([ids == row["id"] for row in rows])
    return rows, masks


def _picture(path: Any) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def _size(picture: Image.Image) -> Size:
    return Size(height=picture.height, width=picture.width)
