"""Checkpoints of Deformable DETR in all its published forms, as transformers saves them."""

from typing import Any

import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import Checkpoint, read_weights
from models.checkpoints.loaded import Loaded, labels_of
from models.checkpoints.resnet import batch_counters, resnet_config, resnet_weights
from models.checkpoints.strict import StrictReader
from models.deformable_detr import DeformableDetr, DeformableDetrConfig
from models.resnet import fold_norms

ARCHITECTURES = ("DeformableDetrForObjectDetection",)

_FIXED = {"activation_function": "relu", "position_embedding_type": "sine", "num_channels": 3}
_PAIRED = ("{}_attention_heads", "{}_ffn_dim", "{}_n_points")

_BODY = {  # ours to theirs, below "model."
    "projections": "input_proj",
    "level_embed": "level_embed",
    "reference": "reference_points",
    "proposals.cells": "enc_output",
    "proposals.norm": "enc_output_norm",
    "proposals.places": "pos_trans",
    "proposals.places_norm": "pos_trans_norm",
}
_DEFORMABLE = {
    "offsets": "sampling_offsets",
    "weights": "attention_weights",
    "value": "value_proj",
    "proj": "output_proj",
}
_ENCODER = {
    **{f"attn.{ours}": f"self_attn.{theirs}" for ours, theirs in _DEFORMABLE.items()},
    "norm1": "self_attn_layer_norm",
    "mlp.layers.0": "fc1",
    "mlp.layers.1": "fc2",
    "norm2": "final_layer_norm",
}
_DECODER = {
    **{f"self_attn.{part}": f"self_attn.{part}_proj" for part in "qkv"},
    "self_attn.proj": "self_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    **{f"cross_attn.{ours}": f"encoder_attn.{theirs}" for ours, theirs in _DEFORMABLE.items()},
    "norm2": "encoder_attn_layer_norm",
    "mlp.layers.0": "fc1",
    "mlp.layers.1": "fc2",
    "norm3": "final_layer_norm",
}
_RENAMED = {"fc1": "mlp.fc1", "fc2": "mlp.fc2", "self_attn.out_proj": "self_attn.o_proj"}
_HEADS = {"classify": "class_embed", "locate": "bbox_embed"}


def load_deformable_detr(
    checkpoint: Checkpoint, architecture: str, canvas: tuple[int, int]
) -> Loaded:
    """Deformable DETR at ``canvas`` from the weights that transformers saved."""
    labels = labels_of(checkpoint.config)
    config = _config(checkpoint.config, canvas, len(labels))
    reader = StrictReader(read_weights(checkpoint), checkpoint.source)
    model = DeformableDetr(config)
    model.load_state_dict(detector_weights(reader, config, model.state_dict()), assign=True)
    ignored = reader.finish(batch_counters(reader))
    fold_norms(model)
    return Loaded(
        model=model.eval(),
        family="deformable_detr",
        architecture=architecture,
        labels=labels,
        activation="sigmoid",
        ignored=ignored,
    )


def _config(config: dict[str, Any], canvas: tuple[int, int], classes: int) -> DeformableDetrConfig:
    """Our config; what transformers leaves out of config.json is at its default there."""
    _refuse_unsupported(config)
    two_stage = config.get("two_stage", False)
    count = "two_stage_num_proposals" if two_stage else "num_queries"
    try:
        return DeformableDetrConfig(
            canvas=canvas,
            backbone=resnet_config(config, _returned(config)),
            classes=classes,
            queries=config.get(count, 300),
            dim=config.get("d_model", 256),
            heads=config.get("encoder_attention_heads", 8),
            encoder_layers=config.get("encoder_layers", 6),
            decoder_layers=config.get("decoder_layers", 6),
            mlp_dim=config.get("encoder_ffn_dim", 1024),
            levels=config.get("num_feature_levels", 4),
            points=config.get("encoder_n_points", 4),
            refine=config.get("with_box_refine", False),
            two_stage=two_stage,
        )
    except ValueError as error:
        raise CheckpointError(f"the network cannot be built: {error}") from error


def _returned(config: dict[str, Any]) -> tuple[int, ...]:
    """The stages of the backbone that the network reads."""
    backbone = (config.get("backbone_config") or {}) | (config.get("backbone_kwargs") or {})
    if backbone.get("model_type") == "resnet":
        names = backbone.get("out_features") or ["stage4"]
    elif "out_indices" in backbone:
        names = ["stem" if index == 0 else f"stage{index}" for index in backbone["out_indices"]]
    else:
        single = config.get("num_feature_levels", 4) == 1
        names = ["stage4"] if single else ["stage2", "stage3", "stage4"]
    if "stem" in names:
        raise CheckpointError(
            f"the network reads {', '.join(names)} of its backbone; supported are stages 1 to 4"
        )
    return tuple(int(name.removeprefix("stage")) for name in names)


def _refuse_unsupported(config: dict[str, Any]) -> None:
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"config.json asks for {name} {config[name]!r}; supported is {value!r}"
            )
    for pair in _PAIRED:
        names = [pair.format(part) for part in ("encoder", "decoder")]
        values = [config.get(name) for name in names]
        if values[0] != values[1]:
            raise CheckpointError(
                f"config.json has {names[0]} {values[0]} and {names[1]} {values[1]}; supported is "
                "one value for both"
            )


def detector_weights(
    reader: StrictReader, config: DeformableDetrConfig, expected: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The network's state; ``expected`` has its names and shapes, batch norms not yet folded."""
    names = set(reader.names())
    renamed = any(".o_proj." in name for name in names)
    prefix = "model.backbone.model." if renamed else "model.backbone.conv_encoder.model."
    backbone = resnet_weights(reader, prefix, config.backbone)
    state = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    if not config.two_stage:
        table = reader.take(
            "model.query_position_embeddings.weight", (config.queries, 2 * config.dim)
        )
        positions, queries = table.chunk(2, dim=1)
        state |= {"query_positions": positions.contiguous(), "queries": queries.contiguous()}
    for ours, tensor in expected.items():
        if ours in state:
            continue
        shape = tuple(tensor.shape)
        if ours.split(".")[0] in _HEADS:
            state[ours] = _take_tied(reader, _head_names(ours, config, names), shape)
        else:
            state[ours] = reader.take(_their_name(ours, renamed), shape)
    return state


def _their_name(ours: str, renamed: bool) -> str:
    """``encoder.3.attn.value.weight`` is ``model.encoder.layers.3.self_attn.value_proj.weight``."""
    part, *rest = ours.split(".")
    if part not in ("encoder", "decoder"):
        module = next(m for m in sorted(_BODY, key=len, reverse=True) if ours.startswith(m))
        return f"model.{_BODY[module]}{ours.removeprefix(module)}"
    theirs = (_ENCODER if part == "encoder" else _DECODER)[".".join(rest[1:-1])]
    theirs = _RENAMED.get(theirs, theirs) if renamed else theirs
    return f"model.{part}.layers.{rest[0]}.{theirs}.{rest[-1]}"


def _head_names(ours: str, config: DeformableDetrConfig, names: set[str]) -> list[str]:
    """Everywhere that a weight of a head is stored.

    Heads that refine are stored once or twice, beside the body and within its decoder; those that
    all layers share, once or for each layer. transformers 5 stores class heads it was told to tie
    once, even where they refine.
    """
    part, index, leaf = ours.split(".", 2)

    def stored(number: int) -> list[str]:
        name = f"{_HEADS[part]}.{number}.{leaf}"
        return [place for place in (name, f"model.decoder.{name}") if place in names]

    if not config.refine:
        found = [name for number in range(config.decoder_layers) for name in stored(number)]
    elif part == "classify" and not stored(1):
        found = stored(0)
    else:
        found = stored(int(index))
    return found or [f"{_HEADS[part]}.{index}.{leaf}"]


def _take_tied(reader: StrictReader, names: list[str], shape: tuple[int, ...]) -> Tensor:
    first, *others = (reader.take(name, shape) for name in names)
    for name, other in zip(names[1:], others, strict=True):
        if not torch.equal(first, other):
            raise CheckpointError(
                f"{names[0]} and {name} differ; supported are networks in which they are the same"
            )
    return first
