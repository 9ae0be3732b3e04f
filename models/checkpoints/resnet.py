"""ResNet backbones inside the checkpoints of detectors and segmenters, in timm's names and in
transformers' own.

A loader of such a model calls ``resnet_config`` for the dimensions, ``resnet_weights`` for the
state of ``models.resnet.ResNet``, and gives ``batch_counters`` to ``StrictReader.finish``; when the
state is loaded, ``models.resnet.fold_norms`` leaves plain convolutions.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.strict import StrictReader
from models.resnet import ResNet, ResNetConfig

BY_NAME = {
    "resnet18": ResNetConfig((2, 2, 2, 2), (64, 128, 256, 512), basic=True),
    "resnet34": ResNetConfig((3, 4, 6, 3), (64, 128, 256, 512), basic=True),
    "resnet50": ResNetConfig((3, 4, 6, 3)),
    "resnet101": ResNetConfig((3, 4, 23, 3)),
    "resnet152": ResNetConfig((3, 8, 36, 3)),
}


def resnet_config(config: dict[str, Any], returned: tuple[int, ...] = (1, 2, 3, 4)) -> ResNetConfig:
    """The backbone that the config.json of a whole model describes; ``returned`` as in our config.

    Raises CheckpointError for another backbone, or one with options that our definition lacks.
    """
    backbone = config.get("backbone_config")
    if backbone is None and config.get("use_timm_backbone", True):
        return _timm(config.get("backbone") or "resnet50", config, {}, returned)
    backbone = backbone or {}
    kind = backbone.get("model_type", "resnet")
    if kind == "timm_backbone":
        return _timm(backbone.get("backbone"), config, backbone, returned)
    if kind != "resnet":
        raise CheckpointError(f"the backbone is of type {kind!r}; supported here is 'resnet'")
    if config.get("dilation"):
        raise CheckpointError(
            "config.json asks for dilation with a ResNet of transformers, which has none; "
            "supported is dilation with a timm backbone"
        )
    return _transformers(backbone, returned)


def resnet_weights(reader: StrictReader, prefix: str, config: ResNetConfig) -> dict[str, Tensor]:
    """The state of our ResNet from the weights whose names begin with ``prefix``.

    What is missing or of another shape shows when the reader is finished.
    """
    with torch.device("meta"):
        expected = ResNet(config).state_dict()
    timm = f"{prefix}conv1.weight" in reader.names()
    name = _timm_name if timm else _transformers_name
    return {
        ours: reader.take(prefix + name(ours), tuple(meta.shape)) for ours, meta in expected.items()
    }


def batch_counters(reader: StrictReader) -> tuple[str, ...]:
    """Names of the counters that batch norms keep while training, to be ignored."""
    return tuple(name for name in reader.names() if name.endswith(".num_batches_tracked"))


def _timm(
    name: str | None, config: dict[str, Any], backbone: dict[str, Any], returned: tuple[int, ...]
) -> ResNetConfig:
    known = BY_NAME.get((name or "").split(".")[0])
    if known is None:
        raise CheckpointError(
            f"the timm backbone is {name!r}; supported are {', '.join(BY_NAME)}, with or without a "
            "tag after a dot"
        )
    options = (config.get("backbone_kwargs") or {}) | backbone
    stride = options.get("output_stride") or (16 if config.get("dilation") else 32)
    if stride not in (16, 32):
        raise CheckpointError(f"the backbone's output_stride is {stride}; supported are 16 and 32")
    try:
        return dataclasses.replace(known, dilated=stride == 16, returned=returned)
    except ValueError as error:
        raise CheckpointError(f"the backbone {name!r} cannot be built: {error}") from error


def _transformers(backbone: dict[str, Any], returned: tuple[int, ...]) -> ResNetConfig:
    fixed = {
        "hidden_act": "relu",
        "num_channels": 3,
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }
    for name, value in fixed.items():
        if backbone.get(name, value) != value:
            raise CheckpointError(
                f"the ResNet asks for {name} {backbone[name]!r}; supported is {value!r}"
            )
    kind = backbone.get("layer_type", "bottleneck")
    if kind not in ("basic", "bottleneck"):
        raise CheckpointError(
            f"the ResNet asks for layer_type {kind!r}; supported are basic and bottleneck"
        )
    try:
        return ResNetConfig(
            depths=tuple(backbone.get("depths", (3, 4, 6, 3))),
            widths=tuple(backbone.get("hidden_sizes", (256, 512, 1024, 2048))),
            stem_width=backbone.get("embedding_size", 64),
            basic=kind == "basic",
            returned=returned,
        )
    except ValueError as error:
        raise CheckpointError(f"the ResNet cannot be built: {error}") from error


def _timm_name(ours: str) -> str:
    """``stages.2.0.layers.1.norm.bias`` is ``layer3.0.bn2.bias``."""
    match ours.split("."):
        case ["stem", part, weight]:
            return f"{'conv1' if part == 'conv' else 'bn1'}.{weight}"
        case ["stages", stage, block, "shortcut", part, weight]:
            place = f"downsample.{0 if part == 'conv' else 1}"
        case ["stages", stage, block, "layers", layer, part, weight]:
            place = f"{'conv' if part == 'conv' else 'bn'}{int(layer) + 1}"
        case _:
            raise AssertionError(ours)
    return f"layer{int(stage) + 1}.{block}.{place}.{weight}"


def _transformers_name(ours: str) -> str:
    """``stages.2.0.layers.1.norm.bias`` is
    ``encoder.stages.2.layers.0.layer.1.normalization.bias``.
    """
    renamed = {"conv": "convolution", "norm": "normalization"}
    match ours.split("."):
        case ["stem", part, weight]:
            return f"embedder.embedder.{renamed[part]}.{weight}"
        case ["stages", stage, block, "shortcut", part, weight]:
            place = "shortcut"
        case ["stages", stage, block, "layers", layer, part, weight]:
            place = f"layer.{layer}"
        case _:
            raise AssertionError(ours)
    return f"encoder.stages.{stage}.layers.{block}.{place}.{renamed[part]}.{weight}"
