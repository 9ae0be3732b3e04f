"""A checkpoint of random weights, to measure speed without a network: no accuracy, true cost.

``python -m export.demo.random_checkpoint vit-b16-224 FOLDER`` writes it, ``saccade export
FOLDER`` makes a bundle of it.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from models.checkpoints import save_checkpoint
from models.vit import ViT
from models.zoo import build


def main(
    variant: Annotated[str, typer.Argument(help="name of a network in models.zoo")],
    folder: Annotated[Path, typer.Argument(help="where to write the checkpoint")],
    seed: Annotated[int, typer.Option(help="of the weights")] = 0,
) -> None:
    """Write a checkpoint of a published network's shape with random weights."""
    torch.manual_seed(seed)
    model = build(variant)
    if not isinstance(model, ViT):
        raise typer.BadParameter(f"{variant} is no ViT, the one family written here")
    nn.init.normal_(model.positions, std=0.02)
    height, width = model.config.canvas
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": height, "width": width},
        "resample": 2,
    }
    labels = {i: f"class {i}" for i in range(model.config.classes)}
    save_checkpoint(model, folder, labels, preprocessor)


if __name__ == "__main__":
    typer.run(main)
