"""Checkpoints of ViT, DeiT, MAE, DINO and DINOv2 in the layout of timm on the hub."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from models.checkpoints.assembly import assemble
from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import Checkpoint, read_weights
from models.checkpoints.layouts import TIMM, Layout
from models.checkpoints.loaded import Loaded, named_classes
from models.checkpoints.preprocessing import sides
from models.checkpoints.strict import StrictReader
from models.vit import Pool, ViTConfig

ARCHITECTURE = re.compile(
    r"(?P<family>vit|deit3|deit)_(?P<size>tiny|small|medium|base|large|huge|giant)"
    r"(?P<distilled>_distilled)?_patch(?P<patch>\d+)(_reg(?P<registers>\d+))?"
    r"_(?P<variant>\d+|dinov2)"
)
SUPPORTED = (
    "names like vit_base_patch16_224, deit_small_distilled_patch16_224, "
    "deit3_large_patch16_384, vit_base_patch14_dinov2 and vit_giant_patch14_reg4_dinov2"
)
GLOBAL_POOL: dict[str, Pool] = {"token": "class", "avg": "mean"}


@dataclass(frozen=True)
class Size:
    """Width, depth, heads and MLP width of the body."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int


SIZES = {
    "tiny": Size(192, 12, 3, 768),
    "small": Size(384, 12, 6, 1536),
    "medium": Size(512, 12, 8, 2048),
    "base": Size(768, 12, 12, 3072),
    "large": Size(1024, 24, 16, 4096),
    "huge": Size(1280, 32, 16, 5120),
    "giant": Size(1536, 40, 24, 4096),  # DINOv2's, with SwiGLU; timm has no other under this form
}


def load_timm_vit(checkpoint: Checkpoint, canvas: tuple[int, int]) -> Loaded:
    """A network of the ViT family from the weights that timm pushed to the hub."""
    config = checkpoint.config
    named = _parse(config["architecture"])
    native = _config(config, named)
    tokens = ["cls_token"]
    tokens += ["dist_token"] if named["distilled"] else []
    tokens += ["reg_token"] if native.registers else []
    norm: tuple[str, ...] = ("fc_norm" if native.pool == "mean" else "norm",)
    layout = Layout(
        tokens=tuple(tokens),
        positions="pos_embed",
        names=TIMM | {"norm": norm},
        antialias=True,
    )
    reader = StrictReader(read_weights(checkpoint), checkpoint.source)
    model, ignored = assemble(
        reader, layout, native, canvas, positioned=_positioned_tokens(named, native)
    )
    return Loaded(
        model=model,
        family=_family(config, named),
        architecture=config["architecture"],
        labels=_labels(config, native.classes),
        activation="softmax" if native.classes else None,
        ignored=ignored,
    )


def _parse(architecture: str) -> dict[str, str]:
    match = ARCHITECTURE.fullmatch(architecture)
    only_dinov2 = match is not None and (match["size"] == "giant" or match["registers"])
    if match is None or (only_dinov2 and match["variant"] != "dinov2"):
        raise CheckpointError(
            f"timm architecture {architecture!r} is not supported; supported are {SUPPORTED}"
        )
    return match.groupdict()


def _family(config: dict[str, Any], named: dict[str, str]) -> str:
    """The training recipe, by the architecture's name or else the tag of its weights."""
    recipe = (config["pretrained_cfg"].get("tag") or "").split("_")[0]
    if named["variant"] == "dinov2":
        return "dinov2"
    return recipe if recipe in ("dino", "mae") else named["family"]


def _config(config: dict[str, Any], named: dict[str, str]) -> ViTConfig:
    """Our config at the canvas of the position table."""
    pretrained = config["pretrained_cfg"]
    arguments = dict(config.get("model_args") or {})
    for stated_above in ("global_pool", "num_classes"):
        arguments.pop(stated_above, None)
    height, width = sides(arguments.pop("img_size", pretrained["input_size"][1:]))
    renamed = {"embed_dim": "dim", "depth": "depth", "num_heads": "heads"}
    size = SIZES[named["size"]]
    ratio = size.mlp_dim / size.dim
    changed = {renamed[key]: arguments.pop(key) for key in set(arguments) & set(renamed)}
    size = dataclasses.replace(size, **changed)
    if arguments.pop("in_chans", 3) != 3 or arguments:
        raise CheckpointError(
            f"model_args {config['model_args']} are not supported; supported are img_size, "
            f"{', '.join(renamed)}, global_pool, num_classes and in_chans 3"
        )
    dinov2 = named["variant"] == "dinov2"
    try:
        return ViTConfig(
            canvas=(height, width),
            patch_size=int(named["patch"]),
            dim=size.dim,
            depth=size.depth,
            heads=size.heads,
            mlp_dim=int(size.dim * ratio),
            classes=config.get("num_classes", pretrained.get("num_classes", 0)),
            pool=_pool(config, named),
            registers=int(named["registers"] or 0),
            layer_scale=dinov2 or named["family"] == "deit3",
            swiglu=named["size"] == "giant",
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _pool(config: dict[str, Any], named: dict[str, str]) -> Pool:
    pool = config.get("global_pool", "token")
    if pool not in GLOBAL_POOL or (named["distilled"] and pool != "token"):
        raise CheckpointError(
            f"global_pool {pool!r} is not supported for {config['architecture']}; supported are "
            "token, and avg for networks without a distillation token"
        )
    return "distilled" if named["distilled"] else GLOBAL_POOL[pool]


def _positioned_tokens(named: dict[str, str], config: ViTConfig) -> int:
    """Leading tokens with a position: all, or none where timm builds with no_embed_class."""
    no_embed_class = named["family"] == "deit3" or config.registers > 0
    return 0 if no_embed_class else config.prefix_tokens


def _labels(config: dict[str, Any], classes: int) -> dict[int, str]:
    stated = config["pretrained_cfg"] | config
    names = stated.get("label_names") or [f"LABEL_{index}" for index in range(classes)]
    if isinstance(names, dict):
        names = list(named_classes(names, "label_names").values())
    if len(names) != classes:
        raise CheckpointError(f"label_names lists {len(names)} names for {classes} classes")
    descriptions = stated.get("label_descriptions") or {}
    return {index: descriptions.get(name, name) for index, name in enumerate(names)}
