"""Checkpoints of Mask2Former as transformers saves them."""

from typing import Any

from torch import Tensor

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
from models.mask2former import Mask2Former, Mask2FormerConfig
from models.resnet import fold_norms

ARCHITECTURES = ("Mask2FormerForUniversalSegmentation",)

SUPPORTED = {
    "activation_function": "relu",
    "pre_norm": False,
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
}
IGNORED = ("criterion.",)

PIXEL_DECODER = "model.pixel_level_module.decoder."
DECODER = "model.transformer_module."
OUTSIDE_LAYERS = {
    "pixel_decoder.level_embed": f"{PIXEL_DECODER}level_embed",
    "pixel_decoder.steps.0.lateral": f"{PIXEL_DECODER}adapter_1.0",
    "pixel_decoder.steps.0.lateral_norm": f"{PIXEL_DECODER}adapter_1.1",
    "pixel_decoder.steps.0.smooth": f"{PIXEL_DECODER}layer_1.0",
    "pixel_decoder.steps.0.smooth_norm": f"{PIXEL_DECODER}layer_1.1",
    "pixel_decoder.mask_features": f"{PIXEL_DECODER}mask_projection",
    "queries": f"{DECODER}queries_features.weight",
    "query_positions": f"{DECODER}queries_embedder.weight",
    "level_embed": f"{DECODER}level_embed.weight",
    "norm": f"{DECODER}decoder.layernorm",
    "mask_embed.layers.0": f"{DECODER}decoder.mask_predictor.mask_embedder.0.0",
    "mask_embed.layers.1": f"{DECODER}decoder.mask_predictor.mask_embedder.1.0",
    "mask_embed.layers.2": f"{DECODER}decoder.mask_predictor.mask_embedder.2.0",
    "classify": "class_predictor",
}
MLP = {"mlp.layers.0": "fc1", "mlp.layers.1": "fc2"}
ENCODER_LAYER = MLP | {
    "attn.value": "self_attn.value_proj",
    "attn.offsets": "self_attn.sampling_offsets",
    "attn.weights": "self_attn.attention_weights",
    "attn.proj": "self_attn.output_proj",
    "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm",
}
DECODER_LAYER = MLP | {
    "cross_attn.proj": "cross_attn.out_proj",
    "norm1": "cross_attn_layer_norm",
    "self_attn.q": "self_attn.q_proj",
    "self_attn.k": "self_attn.k_proj",
    "self_attn.v": "self_attn.v_proj",
    "self_attn.proj": "self_attn.out_proj",
    "norm2": "self_attn_layer_norm",
    "norm3": "final_layer_norm",
}


def load_mask2former(checkpoint: Checkpoint, architecture: str, canvas: tuple[int, int]) -> Loaded:
    """A Mask2Former from the weights that transformers saved."""
    labels = labels_of(checkpoint.config)
    config = _config(checkpoint.config, canvas, len(labels))
    reader = StrictReader(read_weights(checkpoint), checkpoint.source)
    model = Mask2Former(config)
    state, aside = segmenter_weights(reader, config, model.state_dict())
    ignored = reader.finish((*IGNORED, *aside))
    model.load_state_dict(state, assign=True)
    fold_norms(model)
    return Loaded(
        model=model.eval(),
        family="mask2former",
        architecture=architecture,
        labels=labels,
        activation="softmax",
        ignored=ignored,
    )


def segmenter_weights(
    reader: StrictReader, config: Mask2FormerConfig, expected: dict[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The network's state, and the names to leave aside when the reader finishes; ``expected`` has
    our names and shapes.
    """
    backbone, aside = backbone_weights(reader, config.backbone)
    state = backbone | take_named(reader, _names(config), expected)
    for index in range(config.decoder_layers):
        state |= _cross_attention(reader, index, config.dim)
    return state, aside


def _config(config: dict[str, Any], canvas: tuple[int, int], classes: int) -> Mask2FormerConfig:
    """transformers counts the prediction before the first decoder layer as a layer."""
    refuse_unsupported(config, SUPPORTED)
    dims = {
        name: config.get(name, 256) for name in ("hidden_dim", "feature_size", "mask_feature_size")
    }
    if len(set(dims.values())) > 1:
        listed = ", ".join(f"{name} {dim}" for name, dim in dims.items())
        raise CheckpointError(f"config.json asks for {listed}; supported are equal ones")
    try:
        return Mask2FormerConfig(
            canvas=canvas,
            backbone=backbone_config(config, canvas),
            classes=classes,
            queries=config.get("num_queries", 100),
            dim=dims["hidden_dim"],
            heads=config.get("num_attention_heads", 8),
            encoder_layers=config.get("encoder_layers", 6),
            encoder_mlp_dim=config.get("encoder_feedforward_dim", 1024),
            decoder_layers=config.get("decoder_layers", 10) - 1,
            decoder_mlp_dim=config.get("dim_feedforward", 2048),
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _names(config: Mask2FormerConfig) -> dict[str, str]:
    names = dict(OUTSIDE_LAYERS)
    for level in range(3):
        for part in (0, 1):
            ours = f"pixel_decoder.projections.{level}.{part}"
            names[ours] = f"{PIXEL_DECODER}input_projections.{level}.{part}"
    for index in range(config.encoder_layers):
        ours, theirs = f"pixel_decoder.layers.{index}.", f"{PIXEL_DECODER}encoder.layers.{index}."
        names |= below(ours, theirs, ENCODER_LAYER)
    for index in range(config.decoder_layers):
        names |= below(f"layers.{index}.", f"{DECODER}decoder.layers.{index}.", DECODER_LAYER)
    return names


def _cross_attention(reader: StrictReader, index: int, dim: int) -> dict[str, Tensor]:
    """Queries, keys and values, which nn.MultiheadAttention keeps in one matrix."""
    theirs = f"{DECODER}decoder.layers.{index}.cross_attn.in_proj_"
    weights = reader.take(f"{theirs}weight", (3 * dim, dim)).chunk(3)
    biases = reader.take(f"{theirs}bias", (3 * dim,)).chunk(3)
    state = {}
    for part, weight, bias in zip("qkv", weights, biases, strict=True):
        state[f"layers.{index}.cross_attn.{part}.weight"] = weight.clone()
        state[f"layers.{index}.cross_attn.{part}.bias"] = bias.clone()
    return state
