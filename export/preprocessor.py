"""From a checkpoint's ``preprocessor_config.json`` to the geometry of a manifest and the numbers of
a graph's entry.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from export.processor_types import (
    COMMON,
    DEFAULTS,
    HARMLESS,
    INTERPOLATIONS,
    MASKING,
    PADDING,
    RENAMED,
    UNDERSTOOD,
)
from service.geometry import Geometry, Interpolation, Resize, Size

Config = Mapping[str, Any]
Triple = tuple[float, float, float]


class PreprocessorError(ValueError):
    """The file asks for something that cannot be reproduced; the message names the key."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before the network sees it.

    Geometry first, outside the graph. In the graph, per channel in RGB order, ``(pixel * scale -
    mean) / std``. Where ``placement`` is "pad", what lies beyond the valid size is zero after that
    arithmetic, not before it.
    """

    geometry: Geometry
    scale: float
    mean: Triple
    std: Triple


def read_preprocessor(config: Config, canvas: tuple[int, int] | None = None) -> Preprocessing:
    """Read every field that changes pixels, with the defaults of its ``image_processor_type``.

    ``canvas`` (height, width) is used where the file does not fix one: it pads, or does not resize.
    ``crop_rounding`` is our own key, for settings
    of timm, which crops as torchvision does.

    Raises:
        PreprocessorError: the type is not named or unknown, a key is unknown and set, a value is
        out of range, or pictures would end in sizes that vary.
    """
    kind = _kind(config)
    options = {RENAMED.get(key, key): value for key, value in config.items() if value is not None}
    _refuse_unknown(options)
    options = COMMON | DEFAULTS[kind] | options | _detection_size(kind, options)
    geometry = _padded(kind, options, canvas) if kind in PADDING else _fixed(kind, options, canvas)
    normalize = bool(options["do_normalize"])
    return Preprocessing(
        geometry=geometry,
        scale=_positive(options, "rescale_factor") if options["do_rescale"] else 1.0,
        mean=_triple(options, "image_mean") if normalize else (0.0, 0.0, 0.0),
        std=_triple(options, "image_std") if normalize else (1.0, 1.0, 1.0),
    )


def _kind(config: Config) -> str:
    """The class without its suffix."""
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    match = re.fullmatch(r"(\w+?)(?:ImageProcessor|FeatureExtractor)(?:Fast|Pil)?", str(name))
    if match and match[1] in DEFAULTS:
        return match[1]
    known = ", ".join(f"{kind}ImageProcessor" for kind in sorted(DEFAULTS))
    raise PreprocessorError(f"image_processor_type is {name!r}; known are {known}.")


def _refuse_unknown(options: Config) -> None:
    for key, value in options.items():
        if value and key not in UNDERSTOOD | HARMLESS:
            raise PreprocessorError(
                f"{key} is {value!r}, which this exporter does not know and so cannot reproduce. "
                "Remove the key if it does not change pixels."
            )


def _fixed(kind: str, options: Config, canvas: tuple[int, int] | None) -> Geometry:
    """Every picture ends at the same size, by squashing or by cropping the middle."""
    for key in ("do_pad", "size_divisor"):
        if options[key]:
            raise PreprocessorError(
                f"{key} is {options[key]!r}, which {kind}ImageProcessor is not known to use."
            )
    resize, crop = _fixed_resize(kind, options)
    if resize.mode == "squash" and crop in (None, _target(resize)):
        return Geometry(nominal=_target(resize), resize=resize, placement="stretch")
    if crop is not None:
        return Geometry(
            nominal=crop, resize=resize, placement="crop", crop_rounding=_crop_rounding(options)
        )
    if resize.mode == "none" and canvas is not None:
        # Only a picture of exactly the canvas works in the reference, and squashing keeps that one.
        squash = _squash(*canvas, resize.interpolation)
        return Geometry(nominal=_target(squash), resize=squash, placement="stretch")
    raise PreprocessorError(
        f"size is {options['size']!r} and do_center_crop is false, so that every picture would end "
        "in another size. Set do_center_crop and crop_size."
        if resize.mode != "none"
        else "do_resize and do_center_crop are false, so that the size of the input is not known. "
        "Name a canvas."
    )


def _fixed_resize(kind: str, options: Config) -> tuple[Resize, Size | None]:
    """The resize rule, and the size that is then cropped."""
    crop = _crop(options) if options["do_center_crop"] else None
    if not options["do_resize"]:
        return Resize(mode="none", interpolation=_interpolation(options)), crop
    resize = _resize(options)
    edge = resize.shortest_edge
    if kind == "Levit" and edge is not None:
        return resize.model_copy(update={"shortest_edge": int(256 / 224 * edge)}), crop
    if kind != "ConvNext":
        return resize, crop
    if edge is None or resize.longest_edge is not None:
        raise PreprocessorError(
            f"size is {options['size']!r}; ConvNextImageProcessor takes shortest_edge alone."
        )
    own = Size(height=edge, width=edge)
    if crop not in (None, own):
        raise PreprocessorError(
            f"crop_size is {options['crop_size']!r}; ConvNextImageProcessor already ends at {own}."
        )
    if edge >= 384:
        return _squash(edge, edge, resize.interpolation), None
    enlarged = int(edge / _positive(options, "crop_pct"))
    return resize.model_copy(update={"shortest_edge": enlarged}), own


def _padded(kind: str, options: Config, canvas: tuple[int, int] | None) -> Geometry:
    """Pictures keep their aspect ratio and are padded, unless the file squashes them."""
    if options["do_center_crop"]:
        raise PreprocessorError(f"do_center_crop is true; {kind}ImageProcessor does not crop.")
    multiple = _whole(options, "size_divisor") if options["size_divisor"] else 1
    if multiple > 1 and kind not in MASKING:
        raise PreprocessorError(f"size_divisor is {multiple}; {kind}ImageProcessor has none.")
    pad = _sides(options, "pad_size") if "pad_size" in options else None
    nominal = pad or (Size(height=canvas[0], width=canvas[1]) if canvas else None)
    if not options["do_resize"]:
        resize = Resize(mode="none", interpolation=_interpolation(options))
        if nominal is None:
            raise PreprocessorError("do_resize is false and there is no pad_size. Name a canvas.")
        return Geometry(nominal=nominal, resize=resize, placement="pad")
    resize = _resize(options)
    if resize.mode == "squash":
        target = _target(resize)
        resize = _squash(
            ceil(target.height / multiple) * multiple,
            ceil(target.width / multiple) * multiple,
            resize.interpolation,
        )
        if pad in (None, _target(resize)):
            return Geometry(nominal=_target(resize), resize=resize, placement="stretch")
        return Geometry(nominal=pad, resize=resize, placement="pad")
    if nominal is None:
        nominal = Size(
            height=resize.height or resize.shortest_edge or 1,
            width=resize.width or resize.longest_edge or 1,
        )
    resize = resize.model_copy(update={"multiple_of": multiple})
    return Geometry(nominal=nominal, resize=resize, placement="pad")


def _detection_size(kind: str, stated: Config) -> dict[str, Any]:
    """``max_size`` is the longest edge of a size that is one number, or that is not stated."""
    size, max_size = stated.get("size"), stated.get("max_size")
    if kind not in PADDING:
        return {}
    if size is None and kind in MASKING and max_size is not None:
        return {"size": {"shortest_edge": 800, "longest_edge": max_size}}
    if isinstance(size, int):
        if max_size is None and kind in MASKING:
            raise PreprocessorError(f"size is {size} without max_size; {kind} needs both.")
        return {"size": {"shortest_edge": size, "longest_edge": max_size or 1333}}
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        raise PreprocessorError(f"size is {dict(size)}; {kind}ImageProcessor needs longest_edge.")
    return {}


def _resize(options: Config) -> Resize:
    """The rule that ``size`` states: a number, (height, width), or one of four sets of keys."""
    size = options["size"]
    interpolation = _interpolation(options)
    if isinstance(size, int) and not options["default_to_square"]:
        size = {"shortest_edge": size}
    if not isinstance(size, Mapping):
        target = _sides(options, "size")
        return _squash(target.height, target.width, interpolation)
    edges = {key: _whole(size, key, "size") for key in size}
    match sorted(size):
        case ["height", "width"]:
            return _squash(edges["height"], edges["width"], interpolation)
        case ["max_height", "max_width"]:
            return Resize(
                mode="fit",
                height=edges["max_height"],
                width=edges["max_width"],
                interpolation=interpolation,
            )
        case ["shortest_edge"] | ["longest_edge", "shortest_edge"]:
            return Resize(
                mode="shortest_edge",
                shortest_edge=edges["shortest_edge"],
                longest_edge=edges.get("longest_edge"),
                interpolation=interpolation,
            )
    raise PreprocessorError(
        f"size is {dict(size)}; known are height and width, shortest_edge with or without "
        "longest_edge, and max_height and max_width."
    )


def _crop(options: Config) -> Size:
    if "crop_size" not in options:
        raise PreprocessorError("do_center_crop is true and there is no crop_size.")
    return _sides(options, "crop_size")


def _crop_rounding(options: Config) -> Literal["huggingface", "torchvision"]:
    value = options["crop_rounding"]
    if value not in ("huggingface", "torchvision"):
        raise PreprocessorError(f"crop_rounding is {value!r}; known are huggingface, torchvision.")
    return "torchvision" if value == "torchvision" else "huggingface"


def _squash(height: int, width: int, interpolation: Interpolation) -> Resize:
    return Resize(mode="squash", height=height, width=width, interpolation=interpolation)


def _target(resize: Resize) -> Size:
    assert resize.height is not None
    assert resize.width is not None
    return Size(height=resize.height, width=resize.width)


def _sides(options: Config, key: str) -> Size:
    """A square from one number, else (height, width) from a list or a dict."""
    value = options[key]
    if isinstance(value, int):
        value = (value, value)
    if isinstance(value, list | tuple) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    if not isinstance(value, Mapping) or set(value) != {"height", "width"}:
        raise PreprocessorError(
            f"{key} is {value!r}; known are one number, a list of height and width, or a dict of "
            "height and width."
        )
    return Size(height=_whole(value, "height", key), width=_whole(value, "width", key))


def _whole(options: Config, key: str, inside: str = "") -> int:
    value = options[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        name = f"{inside}.{key}" if inside else key
        raise PreprocessorError(f"{name} is {value!r}, not a whole number of at least 1.")
    return value


def _positive(options: Config, key: str) -> float:
    value = options[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise PreprocessorError(f"{key} is {value!r}, not a number above 0.")
    return float(value)


def _triple(options: Config, key: str) -> Triple:
    value = options[key]
    channels = [value] * 3 if isinstance(value, int | float) else value
    if not isinstance(channels, list | tuple) or len(channels) != 3:
        raise PreprocessorError(f"{key} is {value!r}, not one number for each of three channels.")
    if key == "image_std" and not all(channel > 0 for channel in channels):
        raise PreprocessorError(f"image_std is {value!r}; a deviation must be above 0.")
    red, green, blue = map(float, channels)
    return red, green, blue


def _interpolation(options: Config) -> Interpolation:
    value = options["resample"]
    if not isinstance(value, int) or value not in INTERPOLATIONS:
        raise PreprocessorError(f"resample is {value!r}; known are {INTERPOLATIONS}.")
    return INTERPOLATIONS[value]
