"""What checkpoints of MaskFormer and Mask2Former share: backbones, and names by a table."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.resnet import batch_counters, resnet_config, resnet_weights
from models.checkpoints.strict import StrictReader
from models.checkpoints.swin import swin_config, swin_weights
from models.resnet import ResNetConfig
from models.swin import SwinConfig

BACKBONE = "model.pixel_level_module.encoder."


def backbone_config(config: dict[str, Any], canvas: tuple[int, int]) -> SwinConfig | ResNetConfig:
    """The backbone that a config.json describes; CheckpointError for one that we do not have."""
    backbone = config.get("backbone_config") or {}
    if not backbone and not config.get("backbone"):
        raise CheckpointError("config.json names neither a backbone nor a backbone_config")
    kind = backbone.get("model_type", "resnet")
    if kind in ("swin", "maskformer-swin"):
        return swin_config(backbone, canvas, always_pad=True)
    if kind in ("resnet", "timm_backbone"):
        return resnet_config(config)
    raise CheckpointError(f"the backbone is of type {kind!r}; supported are 'swin' and 'resnet'")


def backbone_weights(
    reader: StrictReader, config: SwinConfig | ResNetConfig
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state of a network's ``backbone``, and the names to leave aside when the reader
    finishes.
    """
    if isinstance(config, SwinConfig):
        state, ignored = swin_weights(reader, BACKBONE, config)
    else:
        timm = f"{BACKBONE}_backbone.conv1.weight" in reader.names()
        state = resnet_weights(reader, f"{BACKBONE}_backbone." if timm else BACKBONE, config)
        ignored = batch_counters(reader)
    return {f"backbone.{name}": tensor for name, tensor in state.items()}, ignored


def take_named(
    reader: StrictReader, names: Mapping[str, str], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every weight of ``expected`` whose parameter or module is in the table of our names and
    theirs.
    """
    state = {}
    for ours, tensor in expected.items():
        module, _, leaf = ours.rpartition(".")
        if ours in names:
            state[ours] = reader.take(names[ours], tuple(tensor.shape))
        elif module in names:
            state[ours] = reader.take(f"{names[module]}.{leaf}", tuple(tensor.shape))
    return state


def below(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    """A table with both sides prefixed."""
    return {f"{ours}{name}": f"{theirs}{other}" for name, other in names.items()}


def refuse_unsupported(config: dict[str, Any], supported: Mapping[str, Any]) -> None:
    """CheckpointError where the config has another value than the supported one; a name that it
    lacks counts as supported.
    """
    for name, value in supported.items():
        found = config.get(name, value)
        if found != value:
            raise CheckpointError(f"config.json asks for {name} {found!r}; supported is {value!r}")
