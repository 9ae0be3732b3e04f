"""Checkpoints of MaskFormer as transformers saves them."""

from typing import Any

from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import Checkpoint, read_weights
from models.checkpoints.loaded import Loaded, labels_of
from models.checkpoints.mask_networks import (
    backbone_config,
    backbone_weights,
    below,
    refuse_unsupported,
    take_named,
)
from models.checkpoints.strict import StrictReader
from models.maskformer import MaskFormer, MaskFormerConfig
from models.resnet import fold_norms

ARCHITECTURES = ("MaskFormerForInstanceSegmentation",)

# transformers normalises between the layers of a decoder with auxiliary_loss, as nobody else does.
SUPPORTED_DECODER = {"model_type": "detr", "activation_function": "relu", "auxiliary_loss": False}
IGNORED = ("criterion.",)

PIXEL_DECODER = "model.pixel_level_module.decoder."
DECODER = "model.transformer_module."
OUTSIDE_LAYERS = {
    "pixel_decoder.stem": f"{PIXEL_DECODER}fpn.stem.0",
    "pixel_decoder.stem_norm": f"{PIXEL_DECODER}fpn.stem.1",
    "pixel_decoder.mask_features": f"{PIXEL_DECODER}mask_projection",
    "project": f"{DECODER}input_projection",
    "queries": f"{DECODER}queries_embedder.weight",
    "norm": f"{DECODER}decoder.layernorm",
    "mask_embed.layers.0": "mask_embedder.0.0",
    "mask_embed.layers.1": "mask_embedder.1.0",
    "mask_embed.layers.2": "mask_embedder.2.0",
    "classify": "class_predictor",
}
FPN_STEP = {
    "lateral": "proj.0",
    "lateral_norm": "proj.1",
    "smooth": "block.0",
    "smooth_norm": "block.1",
}
LAYER = {  # what transformers 4 writes, and 5 too by default
    "self_attn.q": "self_attn.q_proj",
    "self_attn.k": "self_attn.k_proj",
    "self_attn.v": "self_attn.v_proj",
    "self_attn.proj": "self_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    "cross_attn.q": "encoder_attn.q_proj",
    "cross_attn.k": "encoder_attn.k_proj",
    "cross_attn.v": "encoder_attn.v_proj",
    "cross_attn.proj": "encoder_attn.out_proj",
    "norm2": "encoder_attn_layer_norm",
    "mlp.layers.0": "fc1",
    "mlp.layers.1": "fc2",
    "norm3": "final_layer_norm",
}
LAYER_TRANSFORMERS_5 = LAYER | {
    "self_attn.proj": "self_attn.o_proj",
    "cross_attn.proj": "encoder_attn.o_proj",
    "mlp.layers.0": "mlp.fc1",
    "mlp.layers.1": "mlp.fc2",
}


def load_maskformer(checkpoint: Checkpoint, architecture: str, canvas: tuple[int, int]) -> Loaded:
    """A MaskFormer from the weights that transformers saved."""
    labels = labels_of(checkpoint.config)
    config = _config(checkpoint.config, canvas, len(labels))
    reader = StrictReader(read_weights(checkpoint), checkpoint.source)
    model = MaskFormer(config)
    backbone, aside = backbone_weights(reader, config.backbone)
    renamed = any(".o_proj." in name for name in reader.names() if name.startswith(DECODER))
    names = _names(config, LAYER_TRANSFORMERS_5 if renamed else LAYER)
    state = backbone | take_named(reader, names, model.state_dict())
    ignored = reader.finish((*IGNORED, *aside))
    model.load_state_dict(state, assign=True)
    fold_norms(model)
    return Loaded(
        model=model.eval(),
        family="maskformer",
        architecture=architecture,
        labels=labels,
        activation="softmax",
        ignored=ignored,
    )


def _config(config: dict[str, Any], canvas: tuple[int, int], classes: int) -> MaskFormerConfig:
    decoder = config.get("decoder_config") or {}
    refuse_unsupported(decoder, SUPPORTED_DECODER)
    dims = {
        "d_model": decoder.get("d_model", 256),
        "fpn_feature_size": config.get("fpn_feature_size", 256),
        "mask_feature_size": config.get("mask_feature_size", 256),
    }
    if len(set(dims.values())) > 1:
        listed = ", ".join(f"{name} {dim}" for name, dim in dims.items())
        raise CheckpointError(f"config.json asks for {listed}; supported are equal ones")
    try:
        return MaskFormerConfig(
            canvas=canvas,
            backbone=backbone_config(config, canvas),
            classes=classes,
            queries=decoder.get("num_queries", 100),
            dim=dims["d_model"],
            heads=decoder.get("decoder_attention_heads", 8),
            decoder_layers=decoder.get("decoder_layers", 6),
            mlp_dim=decoder.get("decoder_ffn_dim", 2048),
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _names(config: MaskFormerConfig, layer: dict[str, str]) -> dict[str, str]:
    names = dict(OUTSIDE_LAYERS)
    for index in range(3):
        ours, theirs = f"pixel_decoder.steps.{index}.", f"{PIXEL_DECODER}fpn.layers.{index}."
        names |= below(ours, theirs, FPN_STEP)
    for index in range(config.decoder_layers):
        names |= below(f"layers.{index}.", f"{DECODER}decoder.layers.{index}.", layer)
    return names
