"""Our Mask2Former written as transformers would save its Mask2FormerForUniversalSegmentation."""

from typing import Any

import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.mask2former import segmenter_weights
from models.checkpoints.mask_networks import BACKBONE
from models.checkpoints.saving.inverse import Numbers
from models.checkpoints.saving.swin import swin_dimensions
from models.mask2former import Mask2Former, Mask2FormerConfig
from models.swin import SwinConfig

# Fixed in transformers, where no config says it.
GROUPS = 32


def mask2former_checkpoint(model: Mask2Former) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the weights by transformers' names."""
    config, state = model.config, model.state_dict()
    backbone = config.backbone
    if not isinstance(backbone, SwinConfig) or not backbone.always_pad or config.groups != GROUPS:
        raise CheckpointError(
            "a Mask2Former can be saved here if its backbone is a Swin that always pads, and its "
            f"norms have {GROUPS} groups; the network is another"
        )
    numbers = Numbers()
    weights = numbers.weights(segmenter_weights(numbers, config, state)[0], state)
    width = model.backbone.channels[-1]
    # Of no use within a segmenter, but transformers warns where it is missing.
    weights[f"{BACKBONE}swin.layernorm.weight"] = torch.ones(width)
    weights[f"{BACKBONE}swin.layernorm.bias"] = torch.zeros(width)
    return _config(config, backbone), weights


def _config(config: Mask2FormerConfig, backbone: SwinConfig) -> dict[str, Any]:
    stages = [f"stage{stage}" for stage in range(1, len(backbone.depths) + 1)]
    outputs = {"out_features": stages, "out_indices": list(range(1, len(stages) + 1))}
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": swin_dimensions(backbone) | outputs | {"stage_names": ["stem", *stages]},
        "use_pretrained_backbone": False,
        "num_queries": config.queries,
        "hidden_dim": config.dim,
        "feature_size": config.dim,
        "mask_feature_size": config.dim,
        "num_attention_heads": config.heads,
        "encoder_layers": config.encoder_layers,
        "encoder_feedforward_dim": config.encoder_mlp_dim,
        # transformers counts the prediction before the first layer.
        "decoder_layers": config.decoder_layers + 1,
        "dim_feedforward": config.decoder_mlp_dim,
        "activation_function": "relu",
        "pre_norm": False,
        "enforce_input_projection": False,
        "common_stride": 4,
        "feature_strides": [4, 8, 16, 32],
        "dropout": 0.0,
    }
