"""Our Deformable DETR written as transformers would save its DeformableDetrForObjectDetection."""

from typing import Any

from torch import Tensor

from models.checkpoints.deformable_detr import detector_weights
from models.checkpoints.errors import CheckpointError
from models.checkpoints.saving.inverse import Numbers
from models.deformable_detr import DeformableDetr, DeformableDetrConfig
from models.resnet import ResNetConfig

# Fixed in transformers, where no config says it.
GROUPS = 32


def deformable_detr_checkpoint(model: DeformableDetr) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the weights by transformers' names; batch norms must not be folded yet."""
    config, state = model.config, model.state_dict()
    if config.groups != GROUPS or config.backbone.dilated:
        raise CheckpointError(
            f"DeformableDetrForObjectDetection has group norms of {GROUPS} groups and no dilation "
            "in a ResNet of transformers; the network has others"
        )
    numbers = Numbers()
    return _config(config), numbers.weights(detector_weights(numbers, config, state), state)


def _config(config: DeformableDetrConfig) -> dict[str, Any]:
    layers = {
        f"{part}_{name}": value
        for part, depth in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers))
        for name, value in {
            "layers": depth,
            "attention_heads": config.heads,
            "ffn_dim": config.mlp_dim,
            "n_points": config.points,
        }.items()
    }
    return {
        "architectures": ["DeformableDetrForObjectDetection"],
        "model_type": "deformable_detr",
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": _backbone(config.backbone),
        "num_channels": 3,
        "num_queries": config.queries,
        "two_stage_num_proposals": config.queries,
        "d_model": config.dim,
        **layers,
        "num_feature_levels": config.levels,
        "with_box_refine": config.refine,
        "two_stage": config.two_stage,
        "activation_function": "relu",
        "position_embedding_type": "sine",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
    }


def _backbone(config: ResNetConfig) -> dict[str, Any]:
    return {
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": config.stem_width,
        "hidden_sizes": list(config.widths),
        "depths": list(config.depths),
        "layer_type": "basic" if config.basic else "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "out_features": [f"stage{stage}" for stage in config.returned],
        "out_indices": list(config.returned),
        "stage_names": ["stem", *(f"stage{i}" for i in range(1, len(config.depths) + 1))],
    }
