"""Our networks written as transformers would save its own."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from models.checkpoints.errors import CheckpointError
from models.checkpoints.saving.deformable_detr import deformable_detr_checkpoint
from models.checkpoints.saving.mask2former import mask2former_checkpoint
from models.checkpoints.saving.swin import swin_checkpoint
from models.checkpoints.saving.vit import vit_checkpoint
from models.deformable_detr import DeformableDetr
from models.mask2former import Mask2Former
from models.swin import SwinClassifier
from models.vit import ViT


def save_checkpoint(
    model: nn.Module, folder: str | Path, labels: dict[int, str], preprocessor: dict[str, Any]
) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json into ``folder``.

    Raises CheckpointError where transformers' network of the family cannot hold ours, or the labels
    are not one per class.
    """
    config, weights = _checkpoint(model)
    _check_labels(model.config.classes, labels)  # type: ignore[union-attr, arg-type]
    config["id2label"] = {str(index): name for index, name in sorted(labels.items())}
    config["label2id"] = {name: index for index, name in sorted(labels.items())}
    config["dtype"] = "float32"
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    save_file(contiguous, out / "model.safetensors", metadata={"format": "pt"})
    _write_json(out / "config.json", config)
    _write_json(out / "preprocessor_config.json", preprocessor)


def _checkpoint(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    match model:
        case ViT():
            return vit_checkpoint(model)
        case SwinClassifier():
            return swin_checkpoint(model)
        case DeformableDetr():
            return deformable_detr_checkpoint(model)
        case Mask2Former():
            return mask2former_checkpoint(model)
    raise CheckpointError(
        f"a {type(model).__name__} cannot be saved here; those that can are ViT, SwinClassifier, "
        "DeformableDetr and Mask2Former"
    )


def _check_labels(classes: int, labels: dict[int, str]) -> None:
    if sorted(labels) != list(range(classes)) or not labels:
        raise CheckpointError(
            f"labels have the ids {sorted(labels)}; the head has {classes} classes"
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
