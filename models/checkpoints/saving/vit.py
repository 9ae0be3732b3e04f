"""Our ViT written as transformers would save its ViTForImageClassification."""

from typing import Any

from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.layouts import VIT, their_names
from models.vit import ViT, ViTConfig


def vit_checkpoint(model: ViT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the weights by transformers' names.

    Raises CheckpointError where ViTForImageClassification cannot hold the network.
    """
    _refuse_unsupported(model.config)
    weights: dict[str, Tensor] = {}
    for ours, tensor in model.state_dict().items():
        theirs = _their_names(ours)
        weights |= zip(theirs, tensor.detach().cpu().chunk(len(theirs)), strict=True)
    return _config(model.config), weights


def _refuse_unsupported(config: ViTConfig) -> None:
    extras = {
        f"pool {config.pool!r}": config.pool != "class",
        "registers": config.registers > 0,
        "LayerScale": config.layer_scale,
        "SwiGLU": config.swiglu,
    }
    present = [name for name, is_present in extras.items() if is_present]
    if present:
        raise CheckpointError(f"ViTForImageClassification cannot hold {', '.join(present)}")


def _their_names(ours: str) -> tuple[str, ...]:
    special = {
        "class_tokens": "vit.embeddings.cls_token",
        "positions": "vit.embeddings.position_embeddings",
        "heads.0.weight": "classifier.weight",
        "heads.0.bias": "classifier.bias",
    }
    return (special[ours],) if ours in special else their_names(VIT, ours, prefix="vit.")


def _config(config: ViTConfig) -> dict[str, Any]:
    height, width = config.canvas
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
    }
