"""Our Swin classifier written as transformers would save its SwinForImageClassification."""

from typing import Any

from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.saving.inverse import Numbers
from models.checkpoints.swin import classifier_weights
from models.swin import SwinClassifier, SwinConfig


def swin_checkpoint(model: SwinClassifier) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the weights by transformers' names."""
    if type(model.config) is not SwinConfig:
        raise CheckpointError(f"a {type(model).__name__} cannot be saved here; a Swin can")
    numbers = Numbers()
    weights = numbers.weights(classifier_weights(numbers, "swin.", model), model.state_dict())
    architecture = {"architectures": ["SwinForImageClassification"]}
    return architecture | swin_dimensions(model.config), weights


def swin_dimensions(config: SwinConfig) -> dict[str, Any]:
    """transformers' SwinConfig as a dictionary."""
    height, width = config.canvas
    return {
        "model_type": "swin",
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": 3,
        "embed_dim": config.dim,
        "depths": list(config.depths),
        "num_heads": list(config.heads),
        "window_size": config.window,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "use_absolute_embeddings": False,
        "layer_norm_eps": config.norm_eps,
        "hidden_size": config.dim * 2 ** (len(config.depths) - 1),
    }
