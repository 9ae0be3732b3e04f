"""Published and our own checkpoints: opened, loaded into our definitions, and saved.

Weight names of other formats are known here and nowhere else; loading is strict, and positions are
resampled once, to the canvas asked for.
"""

from collections.abc import Callable
from typing import Any

from models.checkpoints import deformable_detr, detr, mask2former, maskformer, swin, vit
from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import Checkpoint, open_checkpoint
from models.checkpoints.loaded import Loaded
from models.checkpoints.preprocessing import canvas_of, sides
from models.checkpoints.saving import save_checkpoint
from models.checkpoints.timm_vit import load_timm_vit

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Loaded",
    "default_canvas",
    "load_model",
    "open_checkpoint",
    "save_checkpoint",
]

Loader = Callable[[Checkpoint, str, tuple[int, int]], Loaded]

LOADERS: dict[str, Loader] = {  # by transformers' name of the architecture
    **dict.fromkeys(vit.ARCHITECTURES, vit.load_vit),
    **dict.fromkeys(swin.ARCHITECTURES, swin.load_swin),
    **dict.fromkeys(detr.ARCHITECTURES, detr.load_detr),
    **dict.fromkeys(deformable_detr.ARCHITECTURES, deformable_detr.load_deformable_detr),
    **dict.fromkeys(maskformer.ARCHITECTURES, maskformer.load_maskformer),
    **dict.fromkeys(mask2former.ARCHITECTURES, mask2former.load_mask2former),
}


def load_model(checkpoint: Checkpoint, canvas: tuple[int, int] | None = None) -> Loaded:
    """The network of a checkpoint at ``canvas`` (height, width), or at its own.

    Raises CheckpointError for an architecture, option or weight that our definitions do not have.
    """
    canvas = canvas or default_canvas(checkpoint)
    architectures = checkpoint.config.get("architectures") or ["none"]
    if architectures[0] in LOADERS:
        return LOADERS[architectures[0]](checkpoint, architectures[0], canvas)
    if "architecture" in checkpoint.config and "pretrained_cfg" in checkpoint.config:
        return load_timm_vit(checkpoint, canvas)
    raise CheckpointError(
        f"{checkpoint.source} is of architecture {architectures[0]!r}; supported are "
        f"{', '.join(LOADERS)}, and timm's ViT, DeiT and DINOv2 as timm saves them"
    )


def default_canvas(
    checkpoint: Checkpoint, preprocessor: dict[str, Any] | None = None
) -> tuple[int, int]:
    """Height and width in pixels that the preprocessor ends at, else those of the config;
    ``preprocessor`` stands in for the checkpoint's.
    """
    canvas = canvas_of(checkpoint.preprocessor if preprocessor is None else preprocessor)
    if canvas is None and "image_size" in checkpoint.config:
        canvas = sides(checkpoint.config["image_size"])
    if canvas is None:
        raise CheckpointError(
            f"neither the preprocessor of {checkpoint.source} nor its config states an image size; "
            "name a canvas"
        )
    return canvas
