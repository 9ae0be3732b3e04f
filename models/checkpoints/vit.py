"""Checkpoints of ViT, DINO, MAE, DeiT and DINOv2 as transformers saves them."""

from dataclasses import dataclass
from typing import Any

from models.checkpoints.assembly import assemble
from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import Checkpoint, read_weights
from models.checkpoints.layouts import (
    DINOV2,
    DINOV2_TRANSFORMERS_5,
    VIT,
    VIT_TRANSFORMERS_5,
    Layout,
)
from models.checkpoints.loaded import Loaded, activation_of, labels_of
from models.checkpoints.preprocessing import sides
from models.checkpoints.strict import StrictReader
from models.vit import Pool, ViTConfig

TOKENS = {
    "vit": ("embeddings.cls_token",),
    "deit": ("embeddings.cls_token", "embeddings.distillation_token"),
    "dinov2": ("embeddings.cls_token",),
    "dinov2_with_registers": ("embeddings.cls_token", "embeddings.register_tokens"),
}
IGNORED = ("pooler.", "embeddings.mask_token")
DECODER = "decoder."


@dataclass(frozen=True)
class Architecture:
    """A model class of transformers: ``base`` is the attribute that holds its body."""

    family: str
    base: str
    pool: Pool = "class"
    heads: tuple[str, ...] = ()


ARCHITECTURES = {
    "ViTForImageClassification": Architecture("vit", "vit", heads=("classifier",)),
    "ViTModel": Architecture("vit", "vit"),
    "ViTMAEModel": Architecture("mae", "vit"),
    "ViTMAEForPreTraining": Architecture("mae", "vit"),
    "DeiTForImageClassification": Architecture("deit", "deit", heads=("classifier",)),
    "DeiTForImageClassificationWithTeacher": Architecture(
        "deit", "deit", "distilled", ("cls_classifier", "distillation_classifier")
    ),
    "DeiTModel": Architecture("deit", "deit"),
    "Dinov2Model": Architecture("dinov2", "dinov2"),
    "Dinov2ForImageClassification": Architecture(
        "dinov2", "dinov2", "class_and_mean", ("classifier",)
    ),
    "Dinov2WithRegistersModel": Architecture("dinov2", "dinov2_with_registers"),
    "Dinov2WithRegistersForImageClassification": Architecture(
        "dinov2", "dinov2_with_registers", "class_and_mean", ("classifier",)
    ),
}


def load_vit(checkpoint: Checkpoint, architecture: str, canvas: tuple[int, int]) -> Loaded:
    """A network of the ViT family from the weights that transformers saved."""
    kind = ARCHITECTURES[architecture]
    labels = labels_of(checkpoint.config) if kind.heads else {}
    native = _config(checkpoint.config, kind, len(labels))
    reader = StrictReader(read_weights(checkpoint), checkpoint.source)
    model, ignored = assemble(
        reader,
        _layout(kind, native, reader.names()),
        native,
        canvas,
        qkv_bias=checkpoint.config.get("qkv_bias", True),
        positioned=2 if kind.base == "deit" else 1,
    )
    return Loaded(
        model=model,
        family=kind.family,
        architecture=architecture,
        labels=labels,
        activation=activation_of(checkpoint.config) if labels else None,
        ignored=ignored,
    )


def _config(config: dict[str, Any], kind: Architecture, classes: int) -> ViTConfig:
    """Our config at the canvas of the position table."""
    dinov2 = kind.base.startswith("dinov2")
    _refuse_unsupported(config, dinov2)
    patch_size = sides(config["patch_size"])[0]
    height, width = sides(config["image_size"])
    dim, swiglu = config["hidden_size"], dinov2 and config.get("use_swiglu_ffn", False)
    mlp_dim = int(dim * config.get("mlp_ratio", 4)) if dinov2 else config["intermediate_size"]
    if swiglu:  # transformers' Dinov2SwiGLUFFN: two thirds, rounded up to a multiple of 8
        mlp_dim = (int(mlp_dim * 2 / 3) + 7) // 8 * 8
    try:
        return ViTConfig(
            canvas=(height // patch_size * patch_size, width // patch_size * patch_size),
            patch_size=patch_size,
            dim=dim,
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            mlp_dim=mlp_dim,
            classes=classes,
            pool=kind.pool,
            registers=_registers(config, kind),
            layer_scale=dinov2,
            swiglu=swiglu,
            norm_eps=config.get("layer_norm_eps", 1e-6 if dinov2 else 1e-12),
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _registers(config: dict[str, Any], kind: Architecture) -> int:
    if kind.base == "dinov2_with_registers":
        return config.get("num_register_tokens", 4)
    return 1 if kind.base == "deit" and kind.pool == "class" else 0


def _refuse_unsupported(config: dict[str, Any], dinov2: bool) -> None:
    required = ["hidden_size", "num_hidden_layers", "num_attention_heads", "image_size"]
    required += ["patch_size"] if dinov2 else ["patch_size", "intermediate_size"]
    absent = [name for name in required if name not in config]
    if absent:
        raise CheckpointError(f"config.json lacks {', '.join(absent)}")
    supported = {"hidden_act": "gelu", "num_channels": 3}
    for name, value in supported.items():
        if config.get(name, value) != value:
            raise CheckpointError(
                f"config.json asks for {name} {config[name]!r}; supported is {value!r}"
            )
    patch = sides(config["patch_size"])
    if patch[0] != patch[1]:
        raise CheckpointError(f"patch_size {list(patch)} is not square; supported are square ones")


def _layout(kind: Architecture, config: ViTConfig, names: list[str]) -> Layout:
    """The layout under the prefix, and in the generation of names, that the weights show."""
    prefix = f"{kind.base}." if any(name.startswith(f"{kind.base}.") for name in names) else ""
    renamed = any(".q_proj." in name for name in names)
    if kind.base.startswith("dinov2"):
        body = DINOV2_TRANSFORMERS_5 if renamed else DINOV2
    else:
        body = VIT_TRANSFORMERS_5 if renamed else VIT
    ours = {name: tuple(prefix + part for part in parts) for name, parts in body.items()}
    ours |= {f"heads.{index}": (name,) for index, name in enumerate(kind.heads)}
    ignored = tuple(prefix + name for name in IGNORED)
    return Layout(
        tokens=tuple(prefix + name for name in TOKENS[kind.base]),
        positions=f"{prefix}embeddings.position_embeddings",
        names=ours,
        ignored=(*ignored, DECODER) if kind.family == "mae" else ignored,
        antialias=kind.base == "dinov2_with_registers",
    )
