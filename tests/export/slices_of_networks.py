"""What our networks make of a checkpoint and a picture, under the names of transformers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from export.heads.detect import Boxes
from export.heads.entry import Entry
from export.preprocessor import read_preprocessor
from models.checkpoints import Loaded, load_model, open_checkpoint
from models.mask2former import Mask2Former
from models.maskformer import MaskFormer
from service.geometry import Placement, Size, place, to_canvas
from service.tasks.framing import Frame, Merging
from service.tasks.merging import merge_panoptic
from tests.export.slices import Names, Test

SIZED = ("detr", "deformable_detr")
DETECTION_THRESHOLD = SEGMENT_THRESHOLD = 0.3  # of transformers' tests of networks
OVERLAP = 0.8
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("vit", "test_inference_interpolate_pos_encoding"): {"size": {"height": 480, "width": 480}},
    ("deit", "test_inference_interpolate_pos_encoding"): {
        "size": {"height": 480, "width": 480},
        "do_center_crop": False,
    },
    ("swin", "test_inference_interpolate_pos_encoding"): {"size": {"height": 481, "width": 481}},
    ("swinv2", "test_inference_interpolate_pos_encoding"): {"size": {"height": 481, "width": 481}},
}
"""What the tests change in a processor when they call it."""
THRESHOLDS = {  # of pipelines, by class and test; of segmentation for each check
    ("ObjectDetectionPipelineTests", "test_threshold"): (0.9985,),
    ("ObjectDetectionPipelineTests", ""): (0.5,),
    ("ImageSegmentationPipelineTests", "test_integration_torch_image_segmentation"): (0.0, 0.0),
    ("ImageSegmentationPipelineTests", "test_threshold"): (0.999, 0.5),
}
PIPELINE_OVERLAP = 0.5


def find(folder: Path, hub_id: str) -> Path | None:
    """Where a checkpoint lies: ORG/NAME or ORG--NAME."""
    places = folder / hub_id, folder / hub_id.replace("/", "--")
    return next((place for place in places if (place / "config.json").is_file()), None)


def checkpoint_of(test: Test) -> str:
    """The hub id of a test's weights, with ``@`` and the revision where it names one."""
    network = next(
        one
        for one in [*test["pretrained"], *test.get("class_level_pretrained", [])]
        if "Processor" not in one["class"] and one["checkpoint"]
    )
    revision = network.get("revision")
    return network["checkpoint"] + (f"@{revision}" if revision else "")


@dataclass(frozen=True)
class Seen:
    """A loaded network, and what it makes of one picture."""

    loaded: Loaded
    images: Tensor
    placement: Placement
    raw: dict[str, Tensor]
    states: dict[str, Tensor]


def look(folder: Path, picture: Image.Image, options: Mapping[str, Any] | None = None) -> Seen:
    """Run the checkpoint in ``folder``; ``options`` change its preprocessor.

    Pictures that are padded get a canvas that just holds them, so that the network sees what
    transformers shows it.
    """
    config = json.loads((folder / "preprocessor_config.json").read_bytes()) | dict(options or {})
    size = Size(height=picture.height, width=picture.width)
    ours = read_preprocessor(config)
    canvas = ours.geometry.nominal
    if ours.geometry.placement == "pad":
        canvas = place(ours.geometry, size, Size(height=2048, width=2048)).resized
    placement = place(ours.geometry, size, canvas)
    loaded = load_model(open_checkpoint(str(folder)), (canvas.height, canvas.width))
    entry = Entry(ours.scale, ours.mean, ours.std)
    images = entry(torch.from_numpy(to_canvas(picture, placement).copy())[None])
    with torch.no_grad():
        raw, states = _run(loaded, images, placement)
    return Seen(loaded, images, placement, raw, states)


def observe(folder: Path, picture: Image.Image, options: Mapping[str, Any] | None = None) -> Names:
    """All that a check of a network may look up, under the names of transformers."""
    seen = look(folder, picture, options)
    canvas = seen.placement.canvas
    patch = _patch(folder)
    with torch.no_grad():
        outputs = _outputs(seen.loaded, seen.raw, seen.states, seen.images)
    names: dict[str, Any] = {
        "outputs": outputs,
        "cpu_outputs": outputs,
        "inputs_shape": list(seen.images.shape),
        "model": {"config": _config(folder)},
        "num_patches": (canvas.height // patch) * (canvas.width // patch),
        **outputs,
    }
    if "boxes" in seen.raw:
        names["results"] = _detections(seen, DETECTION_THRESHOLD)
    if "masks" in seen.raw and "boxes" in seen.raw:
        ids, rows = _segments(seen, SEGMENT_THRESHOLD, OVERLAP)
        names["results"] = {"segmentation": ids, "segments_info": rows}
    return names


def pipelines(test: Test, folder: Path, picture: Image.Image) -> list[Names]:
    """What the checks of a pipeline's test look up, in their order: rows of the one picture, or as
    many times the same as they expect pictures.
    """
    seen = look(folder, picture)
    kind, checks = test["class"], test["checks"]
    if kind == "ImageFeatureExtractionPipelineTests":
        return [{"outputs": seen.raw["tokens"]}]
    if kind == "ImageClassificationPipelineTests":
        made = [_classes(seen)] * len(checks)
    else:
        of = _boxed if kind == "ObjectDetectionPipelineTests" else _masked
        thresholds = THRESHOLDS.get((kind, test["test"])) or THRESHOLDS[kind, ""] * len(checks)
        made = [of(seen, threshold) for threshold in thresholds]
    names: list[Names] = []
    for rows, check in zip(made, checks, strict=True):
        several = bool(check["expected"]) and isinstance(check["expected"][0], list)
        names.append({"outputs": [rows] * len(check["expected"]) if several else rows})
    return names


def _classes(seen: Seen) -> list[dict[str, Any]]:
    scores = seen.raw["logits"][0].softmax(dim=-1)
    order = scores.argsort(descending=True).tolist()
    return [{"label": seen.loaded.labels[i], "score": float(scores[i])} for i in order]


def _boxed(seen: Seen, threshold: float) -> list[dict[str, Any]]:
    found = _detections(seen, threshold)
    columns = (found[name].tolist() for name in ("scores", "labels", "boxes"))
    sides = ("xmin", "ymin", "xmax", "ymax")
    return [
        {
            "score": score,
            "label": seen.loaded.labels[label],
            "box": dict(zip(sides, map(int, box), strict=True)),
        }
        for score, label, box in zip(*columns, strict=True)
    ]


def _masked(seen: Seen, threshold: float) -> list[dict[str, Any]]:
    """Without the digests of the masks, which a single pixel changes."""
    ids, rows = _segments(seen, threshold, PIPELINE_OVERLAP)
    return [
        {
            "score": row["score"],
            "label": seen.loaded.labels[row["label_id"]],
            "mask": {"shape": list(ids.shape), "white_pixels": int((ids == row["id"]).sum())},
        }
        for row in rows
    ]


def _run(
    loaded: Loaded, images: Tensor, placement: Placement
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our outputs, and the last input of some modules: what they call hidden states."""
    states: dict[str, Tensor] = {}
    handles = []
    for name in ("norm", "classify"):
        module = getattr(loaded.model, name, None)
        if isinstance(module, nn.Module):

            def keep(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                states[name] = inputs[0]

            handles.append(module.register_forward_pre_hook(keep))
    sizes = torch.tensor([[placement.valid.height, placement.valid.width]], dtype=torch.int32)
    raw = loaded.model(images, sizes) if loaded.family in SIZED else loaded.model(images)
    for handle in handles:
        handle.remove()
    return raw, states


def _outputs(
    loaded: Loaded, raw: dict[str, Tensor], states: dict[str, Tensor], images: Tensor
) -> dict[str, Tensor]:
    model = loaded.model
    if isinstance(model, MaskFormer | Mask2Former):
        maps = model.backbone(images)
        named = {
            "class_queries_logits": raw["logits"],
            "masks_queries_logits": raw["masks"],
            "encoder_last_hidden_state": maps[-1],
        }
        if isinstance(model, MaskFormer):
            named["pixel_decoder_last_hidden_state"] = model._look(images)[1]
            named["transformer_decoder_last_hidden_state"] = states["classify"]
        else:
            named["pixel_decoder_last_hidden_state"] = model.pixel_decoder(maps)[1]
            named["transformer_decoder_last_hidden_state"] = states["norm"]
        return named
    named = {"logits": raw["logits"]} if "logits" in raw else {}
    if "boxes" in raw:
        named |= {"pred_boxes": raw["boxes"], "last_hidden_state": states.get("classify", images)}
    if "masks" in raw:
        named["pred_masks"] = raw["masks"]
    if "tokens" in raw:
        named["last_hidden_state"] = raw["tokens"]
    if "features" in raw:
        named["last_hidden_state"] = raw["features"].flatten(2).transpose(1, 2)
    return named


def _detections(seen: Seen, threshold: float) -> dict[str, Tensor]:
    """Rows above the threshold: ``scores``, ``labels``, and ``boxes`` xyxy in pixels."""
    activation, raw = seen.loaded.activation, seen.raw
    assert activation is not None
    rows = Boxes(activation)(raw["logits"], raw["boxes"], raw.get("cells"))
    kept = rows["scores"][0] > threshold
    image = seen.placement.image
    return {
        "scores": rows["scores"][0, kept],
        "labels": rows["classes"][0, kept],
        "boxes": rows["boxes"][0, kept] * torch.tensor([image.width, image.height] * 2),
    }


def _segments(
    seen: Seen, threshold: float, overlap: float
) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """The map of ids and the rows of panoptic segments in the profile "hf", nothing fused."""
    merging = Merging("detr", "hf", ("panoptic",), (True,) * len(seen.loaded.labels))
    logits, masks = (seen.raw[name][0].numpy() for name in ("logits", "masks"))
    found = merge_panoptic(merging, Frame.of(seen.placement), logits, masks, threshold, overlap)
    rows = [
        {"id": row.id, "label_id": row.class_index, "was_fused": False, "score": row.score}
        for row in found.rows
    ]
    return found.ids.astype(np.int64), rows


def _config(folder: Path) -> Any:
    """config.json by attributes, with what transformers derives of it."""
    text = (folder / "config.json").read_text()
    config = json.loads(text, object_hook=lambda row: SimpleNamespace(**row))
    labels = json.loads(text).get("id2label")
    config.num_labels = len(labels) if labels else 2
    return config


def _patch(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_bytes()).get("patch_size") or 1)


def picture_of(path: Path) -> Image.Image:
    """A picture in RGB."""
    with Image.open(path) as file:
        return file.convert("RGB")
