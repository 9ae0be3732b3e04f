"""Trains the demo models on generated scenes: ``python -m export.demo.train vit --work FOLDER``."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, track
from torch import Tensor, nn

from export.demo.pool import CELL_PX, Examples, Split, concatenated, draw_examples
from export.demo.scenes import CLASSES, THINGS
from models.vit import ViT, ViTConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to learn."""

    scenes: int = 16384
    validation_scenes: int = 1024
    steps: int = 5000
    batch: int = 64
    muon_rate: float = 1e-2
    adam_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    check_every: int = 400
    seed: int = 0


def vit_config() -> ViTConfig:
    """A network small enough to train on a laptop and to ship with the package (5 MB)."""
    return ViTConfig(
        canvas=(128, 128),
        patch_size=16,
        dim=128,
        depth=6,
        heads=4,
        mlp_dim=512,
        classes=len(THINGS),
    )


@app.callback()
def main() -> None:
    """Train a demo model on generated scenes."""


@app.command()
def vit(
    work: Annotated[Path, typer.Option(help="folder for scenes and weights")],
    steps: Annotated[int, typer.Option(help="optimizer steps")] = Recipe.steps,
    scenes: Annotated[int, typer.Option(help="training scenes to draw")] = Recipe.scenes,
    threads: Annotated[int, typer.Option(help="CPU threads, and processes that draw")] = 2,
) -> None:
    """Train the ViT classifier and leave its weights in WORK/vit.pt."""
    train_vit(work, Recipe(steps=steps, scenes=scenes), threads, Console())


def train_vit(work: Path, recipe: Recipe, threads: int, console: Console) -> ViT:
    """Draw the scenes unless ``work`` has them, train, and leave the weights in ``work/vit.pt``."""
    torch.set_num_threads(threads)
    config = vit_config()
    train_set = cached_examples(work, "train", recipe.scenes, config, threads)
    validation = cached_examples(work, "validation", recipe.validation_scenes, config, threads)
    started_s = time.monotonic()
    model = train_classifier(config, train_set, validation, recipe, work / "vit.pt", console)
    minutes = (time.monotonic() - started_s) / 60
    top1 = accuracy(model, validation)
    console.print(f"{minutes:.1f} min, validation top-1 {top1:.4f}, weights in {work / 'vit.pt'}")
    return model


def cached_examples(
    work: Path, split: Split, count: int, config: ViTConfig, workers: int
) -> Examples:
    """The first ``count`` examples of a split, kept in ``work`` for the next run."""
    height, width = config.canvas
    path = work / f"{split}-{count}-{height}x{width}.npz"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        chunks = draw_examples(split, count, config.canvas, workers)
        total = math.ceil(count / 256)
        drawn = concatenated(list(track(chunks, f"drawing {count} {split} scenes", total)))
        np.savez(path, images=drawn.images, labels=drawn.labels, cells=drawn.cells)
    stored = np.load(path)
    return Examples(stored["images"], stored["labels"], stored["cells"])


def train_classifier(
    config: ViTConfig,
    train_set: Examples,
    validation: Examples,
    recipe: Recipe,
    checkpoint: Path,
    console: Console,
) -> ViT:
    """Learn the label of every scene, and meanwhile from every patch token what its cells show.

    The second task has no part in the finished network; it teaches the tokens outlines and shapes
    in a training so short that labels alone would teach them nothing.
    """
    torch.manual_seed(recipe.seed)
    model = ViT(config)
    initialize(model)
    whiten(model, normalized(torch.from_numpy(train_set.images[:512])))
    cells_per_patch = (config.patch_size // CELL_PX) ** 2
    cell_head = nn.Linear(config.dim, cells_per_patch * (len(CLASSES) + 1))
    parameters = [*model.parameters(), *cell_head.parameters()]
    optimizers = muon_and_adamw(model, cell_head, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, recipe))
        for optimizer in optimizers
    ]
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=recipe.steps, note="")
        for step, (images, labels, cells) in enumerate(
            batches(train_set, config.patch_size, recipe), 1
        ):
            loss = losses(model, cell_head, images, labels, cells)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            progress.update(task, advance=1, note=f"loss {loss.item():.3f}")
            if step % recipe.check_every == 0 or step == recipe.steps:
                top1 = accuracy(model, validation)
                console.print(f"step {step}: loss {loss.item():.3f}, validation top-1 {top1:.4f}")
                torch.save(model.state_dict(), checkpoint)
    return model


def losses(
    model: ViT, cell_head: nn.Linear, images: Tensor, labels: Tensor, cells: Tensor
) -> Tensor:
    """Cross-entropy of the label, of every cell's classes, and of the dominant thing's share."""
    with torch.autocast("cpu", torch.bfloat16):
        named = model(images)
        seen = cell_head(named["tokens"][:, model.config.prefix_tokens :]).float()
    seen = seen.view(-1, cells.shape[-1])
    truth = cells.view(-1, cells.shape[-1])
    return (
        F.cross_entropy(named["logits"].float(), labels, label_smoothing=0.02)
        + F.cross_entropy(seen[:, :-1], truth[:, :-1])
        + F.binary_cross_entropy_with_logits(seen[:, -1], truth[:, -1])
    )


def batches(
    examples: Examples, patch_size: int, recipe: Recipe
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Augmented batches: images (B, 3, H, W) in -1..1, labels (B,), cells as ``grouped``."""
    rng = np.random.default_rng(recipe.seed)
    order = np.empty(0, dtype=np.int64)
    for _ in range(recipe.steps):
        if len(order) < recipe.batch:
            order = np.concatenate([order, rng.permutation(len(examples.labels))])
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        images = torch.from_numpy(examples.images[chosen])
        cells = torch.from_numpy(examples.cells[chosen])
        images, cells = turned(images, cells)
        labels = torch.from_numpy(examples.labels[chosen])
        yield recolored(normalized(images)), labels, grouped(cells, patch_size)


def grouped(cells: Tensor, patch_size: int) -> Tensor:
    """Shares in 255ths (B, rows, columns, K) to shares by patch (B, P, cells in a patch, K)."""
    side = patch_size // CELL_PX
    by_patch = cells.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
    return by_patch.flatten(3, 4).flatten(1, 2).float() / 255


def turned(images: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Every picture (H, W, ...) with its grid in one of the eight poses of a square."""
    images, cells = images.clone(), cells.clone()
    for dims in ((0, 1), (0,), (1,)):
        for pixels, grid in zip(images, cells, strict=True):
            if torch.rand(()) < 0.5:
                for array in (pixels, grid):
                    other = array.transpose(0, 1) if len(dims) == 2 else array.flip(dims)
                    array.copy_(other.clone())
    return images, cells


def normalized(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) in -1..1, by mean and deviation 0.5."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def recolored(images: Tensor) -> Tensor:
    """Change gain and offset of every channel a little, and swap channels in half the pictures."""
    swapped = torch.rand(len(images), 1, 1, 1) < 0.5
    images = torch.where(swapped, images[:, torch.randperm(3)], images)
    gain = 1 + 0.15 * torch.randn(len(images), 3, 1, 1)
    offset = 0.1 * torch.randn(len(images), 3, 1, 1)
    return (images * gain + offset).clamp(-1, 1)


def muon_and_adamw(model: ViT, cell_head: nn.Linear, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for all else.

    It needs less than half of AdamW's steps for the same loss here.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    within = {id(p) for p in matrices}
    others = [p for p in (*model.parameters(), *cell_head.parameters()) if id(p) not in within]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine, as a share of the peak."""
    warm = (step + 1) / recipe.warmup_steps
    done = max(step - recipe.warmup_steps, 0) / (recipe.steps - recipe.warmup_steps)
    return min(warm, 0.5 * (1 + math.cos(math.pi * min(done, 1))))


def initialize(model: ViT) -> None:
    """Random weights; positions start as sines and cosines of the patch's row and column."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.class_tokens, std=0.02)
    (rows, columns), quarter = model.config.grid, model.config.dim // 4
    frequencies = 2.0 ** torch.linspace(0, -4, quarter) * math.pi / 2
    down = torch.arange(rows)[:, None] * frequencies
    across = torch.arange(columns)[:, None] * frequencies
    grid = torch.cat(
        [
            torch.cat([down.sin(), down.cos()], dim=1)[:, None].expand(-1, columns, -1),
            torch.cat([across.sin(), across.cos()], dim=1)[None].expand(rows, -1, -1),
        ],
        dim=2,
    )
    with torch.no_grad():
        model.positions[0, model.config.class_tokens :] = 0.3 * grid.flatten(0, 1)


def whiten(model: ViT, images: Tensor) -> None:
    """Start the patch embedding with the principal components of patches, at equal variance.

    As in the whitening layer of Jordan 2024, arXiv 2404.00498, section 3.2: outlines, which vary
    far less than colours, then reach the first block as loud as they do. ``images`` (B, 3, H, W).
    """
    side, dim = model.config.patch_size, model.config.dim
    tiles = images.unfold(2, side, side).unfold(3, side, side)  # (B, 3, gh, gw, side, side)
    patches = tiles.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double()
    variances, components = torch.linalg.eigh(torch.cov(patches.T))  # ascending
    assert model.patch_embed.bias is not None
    filters = 0.5 * components[:, -dim:] / (variances[-dim:] + 1e-2).sqrt()
    with torch.no_grad():
        model.patch_embed.weight.copy_(filters.T.view_as(model.patch_embed.weight))
        model.patch_embed.bias.copy_(-patches.mean(dim=0) @ filters)


@torch.inference_mode()
def accuracy(model: ViT, examples: Examples, batch: int = 256) -> float:
    """Share of pictures whose highest logit is the label."""
    right = 0
    for start in range(0, len(examples.labels), batch):
        images = torch.from_numpy(examples.images[start : start + batch])
        found = model(normalized(images))["logits"].argmax(dim=1).numpy()
        right += int((found == examples.labels[start : start + batch]).sum())
    return right / len(examples.labels)


if __name__ == "__main__":
    app()
