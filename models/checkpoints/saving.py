"""Our ViT written as transformers would save its ViTForImageClassification."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.layouts import VIT, their_names
from models.vit import ViT, ViTConfig


def save_checkpoint(
    model: ViT, folder: str | Path, labels: dict[int, str], preprocessor: dict[str, Any]
) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json into ``folder``.

    Raises CheckpointError where ViTForImageClassification cannot hold the network, or the labels
    are not one per class.
    """
    _refuse_unsupported(model.config, labels)
    weights: dict[str, Tensor] = {}
    for ours, tensor in model.state_dict().items():
        theirs = _their_names(ours)
        for name, part in zip(theirs, tensor.detach().cpu().chunk(len(theirs)), strict=True):
            weights[name] = part.contiguous().clone()
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    _write_json(out / "config.json", _config(model.config, labels))
    _write_json(out / "preprocessor_config.json", preprocessor)


def _refuse_unsupported(config: ViTConfig, labels: dict[int, str]) -> None:
    if sorted(labels) != list(range(config.classes)) or not labels:
        raise CheckpointError(
            f"labels have the ids {sorted(labels)}; the head has {config.classes} classes"
        )
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


def _config(config: ViTConfig, labels: dict[int, str]) -> dict[str, Any]:
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
        "id2label": {str(index): name for index, name in sorted(labels.items())},
        "label2id": {name: index for index, name in sorted(labels.items())},
        "dtype": "float32",
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
