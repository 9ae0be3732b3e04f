"""Checkpoints of Swin and SwinV2 as transformers saves them: classifiers, bodies, and backbones
within other networks.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import Checkpoint, read_weights
from models.checkpoints.loaded import Loaded, activation_of, labels_of
from models.checkpoints.preprocessing import sides
from models.checkpoints.strict import StrictReader
from models.swin import Swin, SwinClassifier, SwinConfig
from models.swinv2 import SwinV2Classifier, SwinV2Config

ARCHITECTURES = {  # of transformers: the attribute that holds the body, and whether there is a head
    "SwinForImageClassification": ("swin", True),
    "SwinModel": ("swin", False),
    "Swinv2ForImageClassification": ("swinv2", True),
    "Swinv2Model": ("swinv2", False),
}

# Our names and theirs; several of theirs are concatenated, and "" stands for zeros.
_OUTSIDE_BLOCKS = {
    "trunk.patch_embed": ("embeddings.patch_embeddings.projection",),
    "trunk.norm": ("embeddings.norm",),
    "trunk.merges.{}.norm": ("encoder.layers.{}.downsample.norm",),
    "trunk.merges.{}.reduction": ("encoder.layers.{}.downsample.reduction",),
    "norm": ("layernorm",),
}
_PATCHES = "embeddings.patch_embeddings.projection.weight"
_BLOCK = "encoder.layers.{}.blocks.{}."
_BLOCKS = {  # what transformers 4 writes, and 5 too by default
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attn.proj": ("attention.output.dense",),
    "attn.relative.table": ("attention.self.relative_position_bias_table",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
_BLOCKS_TRANSFORMERS_5 = _BLOCKS | {
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "attn.relative.table": ("attention.relative_position_bias.relative_position_bias_table",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_BLOCKS_V2 = _BLOCKS | {
    "attn.qkv.bias": ("attention.self.query.bias", "", "attention.self.value.bias"),
    "attn.log_scale": ("attention.self.logit_scale",),
    "attn.relative.fc1": ("attention.self.continuous_position_bias_mlp.0",),
    "attn.relative.fc2": ("attention.self.continuous_position_bias_mlp.2",),
}
_DERIVED = (  # tables that follow from the config, which transformers 4 stored all the same
    "attention.self.relative_position_index",
    "attention.self.relative_coords_table",
    "attention.relative_position_bias.relative_position_index",
)


def load_swin(checkpoint: Checkpoint, architecture: str, canvas: tuple[int, int]) -> Loaded:
    """A Swin or SwinV2 network from the weights that transformers saved."""
    family, headed = ARCHITECTURES[architecture]
    labels = labels_of(checkpoint.config) if headed else {}
    reader = StrictReader(read_weights(checkpoint), checkpoint.source)
    prefix = f"{family}." if f"{family}.{_PATCHES}" in reader.names() else ""
    model: SwinClassifier
    if family == "swin":
        model = SwinClassifier(swin_config(checkpoint.config, canvas, classes=len(labels)))
    else:
        model = SwinV2Classifier(_swinv2_config(checkpoint.config, canvas, len(labels)))
    model.load_state_dict(classifier_weights(reader, prefix, model), assign=True)
    return Loaded(
        model=model.eval(),
        family=family,
        architecture=architecture,
        labels=labels,
        activation=activation_of(checkpoint.config) if labels else None,
        ignored=reader.finish(_aside(prefix, model.config.depths)),
    )


def classifier_weights(
    reader: StrictReader, prefix: str, model: SwinClassifier
) -> dict[str, Tensor]:
    """The state of ``model``, the names of whose body begin with ``prefix``."""
    return _take(reader, {"head": ("classifier",)} | _names(reader, prefix), model)


def swin_config(
    config: dict[str, Any], canvas: tuple[int, int], classes: int = 0, always_pad: bool = False
) -> SwinConfig:
    """Our config for transformers' SwinConfig or MaskFormerSwinConfig, as a dictionary.

    ``always_pad`` is for backbones. Raises CheckpointError for what we do not implement.
    """
    _refuse_unsupported(config)
    try:
        return SwinConfig(
            canvas=canvas,
            window=config.get("window_size", 7),
            classes=classes,
            always_pad=always_pad,
            **_dimensions(config),
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def swin_weights(
    reader: StrictReader, prefix: str, config: SwinConfig
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state of a ``Swin`` backbone, and the names to leave aside when the reader finishes.

    ``prefix`` is that of the backbone, such as "model.pixel_level_module.encoder."; below it,
    transformers' SwinBackbone and MaskFormerSwinBackbone are told apart by their names.
    """
    names = reader.names()
    bodies = (f"{prefix}{body}" for body in ("swin.", "model.", ""))
    body = next((body for body in bodies if body + _PATCHES in names), prefix)
    numbered = f"{prefix}hidden_states_norms.0.weight" in names
    stages = range(len(config.depths))
    norms = [f"{index}" if numbered else f"stage{index + 1}" for index in stages]
    theirs = _names(reader, body) | {
        f"norms.{index}": (f"{prefix}hidden_states_norms.{norms[index]}",) for index in stages
    }
    with torch.device("meta"):
        model = Swin(config)
    unused = tuple(f"{prefix}{name}layernorm." for name in ("swin.", "model.", ""))
    return _take(reader, theirs, model), (*_aside(body, config.depths), *unused)


def _take(
    reader: StrictReader, names: dict[str, tuple[str, ...]], model: nn.Module
) -> dict[str, Tensor]:
    """Every weight of the model."""
    state = {}
    for ours, tensor in model.state_dict().items():
        theirs = _their_names(names, ours)
        shape = (tensor.shape[0] // len(theirs), *tensor.shape[1:])
        parts = [reader.take(name, shape) if name else torch.zeros(shape) for name in theirs]
        state[ours] = torch.cat(parts)
    return state


def _their_names(names: dict[str, tuple[str, ...]], ours: str) -> tuple[str, ...]:
    """The weights that make up our ``trunk.stages.2.5.attn.qkv.weight``, by their names."""
    numbers = re.findall(r"\.(\d+)", ours)
    general = re.sub(r"\.\d+", ".{}", ours)
    for key in (ours, general):
        if key in names:
            return tuple(name and name.format(*numbers) for name in names[key])
    leaf = ours.rsplit(".", 1)[1]
    module = next(key for key in (ours, general) if key.rsplit(".", 1)[0] in names)
    return tuple(f"{name.format(*numbers)}.{leaf}" for name in names[module.rsplit(".", 1)[0]])


def _names(reader: StrictReader, prefix: str) -> dict[str, tuple[str, ...]]:
    """Our names and theirs below the prefix, in the generation of names that the weights show."""
    shown = [name for name in reader.names() if name.startswith(prefix)]
    if any(name.endswith(".logit_scale") for name in shown):
        blocks = _BLOCKS_V2
    elif any(".q_proj." in name for name in shown):
        blocks = _BLOCKS_TRANSFORMERS_5
    else:
        blocks = _BLOCKS
    names = _OUTSIDE_BLOCKS | {
        f"trunk.stages.{{}}.{{}}.{ours}": tuple(part and _BLOCK + part for part in theirs)
        for ours, theirs in blocks.items()
    }
    return {ours: tuple(part and prefix + part for part in parts) for ours, parts in names.items()}


def _aside(prefix: str, depths: tuple[int, ...]) -> tuple[str, ...]:
    derived = (
        prefix + _BLOCK.format(stage, block) + name
        for stage, depth in enumerate(depths)
        for block in range(depth)
        for name in _DERIVED
    )
    return (f"{prefix}embeddings.mask_token", *derived)


def _swinv2_config(config: dict[str, Any], canvas: tuple[int, int], classes: int) -> SwinV2Config:
    _refuse_unsupported(config)
    dimensions = _dimensions(config)
    try:
        return SwinV2Config(
            canvas=canvas,
            window=config.get("window_size", 7),
            classes=classes,
            fitted=sides(config.get("image_size", 224)),
            trained_windows=tuple(
                config.get("pretrained_window_sizes") or [0] * len(dimensions["depths"])
            ),
            **dimensions,
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _dimensions(config: dict[str, Any]) -> dict[str, Any]:
    """What both versions have in common."""
    return {
        "dim": config["embed_dim"],
        "depths": tuple(config["depths"]),
        "heads": tuple(config["num_heads"]),
        "patch_size": sides(config.get("patch_size", 4))[0],
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "qkv_bias": config.get("qkv_bias", True),
        "norm_eps": config.get("layer_norm_eps", 1e-5),
    }


def _refuse_unsupported(config: dict[str, Any]) -> None:
    absent = [name for name in ("embed_dim", "depths", "num_heads") if name not in config]
    if absent:
        raise CheckpointError(f"config.json lacks {', '.join(absent)}")
    supported = {"hidden_act": "gelu", "num_channels": 3, "use_absolute_embeddings": False}
    for name, value in supported.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"config.json asks for {name} {config[name]!r}; supported is {value!r}"
            )
    patch = sides(config.get("patch_size", 4))
    if patch[0] != patch[1]:
        raise CheckpointError(f"patch_size {list(patch)} is not square; supported are square ones")
