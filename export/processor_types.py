"""Defaults and keys of the image processors in transformers; facts, checked against its classes."""

from typing import Any

from service.geometry import Interpolation

_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_BILINEAR, _BICUBIC = 2, 3

INTERPOLATIONS: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}

COMMON: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": False,
    "rescale_factor": 1 / 255,
    "resample": _BICUBIC,
    "image_mean": _HALF,
    "image_std": _HALF,
    "default_to_square": True,
    "size_divisor": 0,
    "crop_rounding": "huggingface",
}
_CROP_224 = {"do_center_crop": True, "crop_size": 224}
_IMAGENET = {"image_mean": _IMAGENET_MEAN, "image_std": _IMAGENET_STD}
_CLIP = {
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
    **_CROP_224,
}
_DETR = {
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "default_to_square": False,
    "resample": _BILINEAR,
    "do_pad": True,
    **_IMAGENET,
}
_MASKFORMER = {**_DETR, "size_divisor": 32}

# Defaults of the classes in transformers, where they differ from COMMON.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": _BILINEAR},
    "DeiT": {"size": 256, **_CROP_224},
    "Beit": {"size": 224, "crop_size": 224},
    "Siglip": {"size": {"height": 224, "width": 224}, "default_to_square": False},
    "Pvt": {"size": 224, **_IMAGENET},
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "ConvNext": {"size": {"shortest_edge": 384}, "default_to_square": False, "crop_pct": 224 / 256},
    "Levit": {
        "size": {"shortest_edge": 224},
        "default_to_square": False,
        **_CROP_224,
        **_IMAGENET,
    },
    "Segformer": {"size": 512, "resample": _BILINEAR, **_IMAGENET},
    "RTDetr": {
        "size": {"height": 640, "width": 640},
        "default_to_square": False,
        "resample": _BILINEAR,
        "do_normalize": False,
        **_IMAGENET,
    },
    "Detr": _DETR,
    "ConditionalDetr": _DETR,
    "DeformableDetr": _DETR,
    "MaskFormer": _MASKFORMER,
    "Mask2Former": _MASKFORMER,
}
MASKING = {"MaskFormer", "Mask2Former"}
PADDING = {"Detr", "ConditionalDetr", "DeformableDetr"} | MASKING

RENAMED = {
    "pad_and_return_pixel_mask": "do_pad",
    "reduce_labels": "do_reduce_labels",
    "size_divisibility": "size_divisor",
    "_max_size": "max_size",
}
UNDERSTOOD = set(COMMON) | {"size", "max_size", "crop_size", "crop_pct", "pad_size"}
# Of the file itself, of training targets, or of arrays as input and output.
HARMLESS = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "_valid_processor_keys",
    "_processor_class",
    "transformers_version",
    "model_input_names",
    "do_convert_rgb",
    "do_convert_annotations",
    "format",
    "do_reduce_labels",
    "ignore_index",
    "num_labels",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "use_fast",
}
