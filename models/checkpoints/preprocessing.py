"""What a checkpoint says of the pictures it expects, in the terms of preprocessor_config.json."""

import math
from typing import Any

from models.checkpoints.errors import CheckpointError

RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def preprocessor_from_timm(config: dict[str, Any]) -> dict[str, Any]:
    """timm's evaluation transform for ``pretrained_cfg``.

    The short side goes to floor(side / crop_pct), or, for crop mode "squash", both sides do; then
    the middle is cropped (timm.data.transforms_factory.transforms_imagenet_eval).
    """
    pretrained = config["pretrained_cfg"]
    absent = [name for name in ("input_size", "mean", "std") if name not in pretrained]
    if absent:
        raise CheckpointError(f"pretrained_cfg in config.json lacks {', '.join(absent)}")
    height, width = sides(pretrained["input_size"][1:])
    # What is null counts as not stated, in timm too.
    crop_mode = pretrained.get("crop_mode") or "center"
    interpolation = pretrained.get("interpolation") or "bicubic"
    crop_pct = pretrained.get("crop_pct") or 0.875
    if not isinstance(crop_pct, int | float) or not crop_pct > 0:
        raise CheckpointError(f"pretrained_cfg has crop_pct {crop_pct!r}; expected a share above 0")
    if crop_mode not in ("center", "squash") or interpolation not in RESAMPLE:
        raise CheckpointError(
            f"pretrained_cfg asks for crop_mode {crop_mode!r} and interpolation {interpolation!r}; "
            f"supported are center and squash, and {', '.join(RESAMPLE)}"
        )
    if crop_mode == "center" and height != width:
        raise CheckpointError(
            f"pretrained_cfg asks for a centre crop of {height}x{width}; only square centre crops "
            "are supported, or crop_mode squash"
        )
    scaled = [math.floor(side / crop_pct) for side in (height, width)]
    squash = {"height": scaled[0], "width": scaled[1]}
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": squash if crop_mode == "squash" else {"shortest_edge": scaled[0]},
        "resample": RESAMPLE[interpolation],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "crop_rounding": "torchvision",  # read by our preprocessor alone; timm crops as torchvision
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": pretrained["mean"],
        "image_std": pretrained["std"],
    }


def canvas_of(preprocessor: dict[str, Any] | None) -> tuple[int, int] | None:
    """Height and width that the preprocessor always ends at; None where it does not fix them: it
    keeps the aspect ratio, or does not resize.
    """
    if preprocessor is None:
        return None
    crop = preprocessor.get("crop_size")
    if crop is not None and preprocessor.get("do_center_crop", True):
        return sides(crop)
    size = preprocessor.get("size")
    if size is None or not preprocessor.get("do_resize", True):
        return None
    if isinstance(size, dict) and not {"height", "width"} <= size.keys():
        return None
    if isinstance(size, int) and preprocessor.get("max_size") is not None:
        return None  # the shortest and the longest edge
    return sides(size)


def sides(size: Any) -> tuple[int, int]:
    """Height and width from any of the ways in which Hugging Face configs write them."""
    match size:
        case int():
            return size, size
        case {"height": int(height), "width": int(width)} | [int(height), int(width)]:
            return height, width
    raise CheckpointError(
        f"{size!r} is no size; expected a number, [height, width] or "
        '{"height": ..., "width": ...}'
    )
