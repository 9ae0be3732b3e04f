"""The loop of all trainings: two optimizers, a rate that warms up and falls, resumable."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

# Losses by name of one batch; their sum is descended.
Losses = dict[str, Tensor]
# A figure on validation pictures by name.
Figures = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to learn; the rate falls until ``steps``, but the training may ``stop``
    earlier.
    """

    scenes: int = 24576
    validation_scenes: int = 256
    steps: int = 5000
    stop: int | None = None
    batch: int = 64
    muon_rate: float = 7e-3
    adam_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    check_every: int = 100
    seed: int = 0


def fit(
    lesson: nn.Module,
    matrices: Iterable[Tensor],
    draw: Callable[[int], Iterator[Any]],
    recipe: Recipe,
    validate: Callable[[], Figures],
    state: Path,
    console: Console,
) -> None:
    """Train ``lesson``, which turns a batch into Losses; ``matrices`` are those for Muon, and
    ``draw`` begins a stream of batches from a seed.

    Every ``check_every`` steps the figures of ``validate`` are printed and all is written to
    ``state``, from where a later call goes on.
    """
    torch.manual_seed(recipe.seed)
    optimizers = muon_and_adamw(lesson, list(matrices), recipe)
    done = _resume(lesson, optimizers, state)
    started_s, first, last = time.monotonic(), done, recipe.stop or recipe.steps
    for step, batch in enumerate(draw(recipe.seed + done), done + 1):
        if step > last:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate(step - 1, recipe)
        losses = lesson(batch)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        nn.utils.clip_grad_norm_(lesson.parameters(), recipe.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % recipe.check_every == 0 or step == last:
            lesson.eval()
            figures = validate()
            lesson.train()
            speed = (time.monotonic() - started_s) / (step - first)
            console.print(_line(step, speed, losses, figures), soft_wrap=True)
            _save(lesson, optimizers, step, state)


def muon_and_adamw(
    lesson: nn.Module, matrices: list[Tensor], recipe: Recipe
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the given matrices, AdamW for all else.

    It needs less than half of AdamW's steps for the same loss here.
    """
    within = {id(matrix) for matrix in matrices}
    others = [p for p in lesson.parameters() if id(p) not in within]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    ]
    if matrices:
        decay = recipe.weight_decay
        optimizers.append(torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine, as a share of the peak."""
    warm = (step + 1) / recipe.warmup_steps
    done = max(step - recipe.warmup_steps, 0) / (recipe.steps - recipe.warmup_steps)
    return min(warm, 0.5 * (1 + math.cos(math.pi * min(done, 1))))


def _line(step: int, speed_s: float, losses: Losses, figures: Figures) -> str:
    parts = [f"{name} {loss.item():.3f}" for name, loss in losses.items()]
    scores = [f"{name} {value:.4f}" for name, value in figures.items()]
    clock = time.strftime("%H:%M:%S")
    return f"{clock} step {step} ({speed_s:.2f} s): {' '.join(parts)} | {' '.join(scores)}"


def _save(
    lesson: nn.Module, optimizers: list[torch.optim.Optimizer], step: int, state: Path
) -> None:
    content: dict[str, Any] = {"step": step, "lesson": lesson.state_dict()}
    content["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    unfinished = state.with_suffix(".part")
    torch.save(content, unfinished)
    unfinished.replace(state)


def _resume(lesson: nn.Module, optimizers: list[torch.optim.Optimizer], state: Path) -> int:
    """Steps that ``state`` has seen; weights and moments are taken from it."""
    if not state.exists():
        return 0
    content = torch.load(state, weights_only=True)
    lesson.load_state_dict(content["lesson"])
    for optimizer, stored in zip(optimizers, content["optimizers"], strict=True):
        rates = [group["initial_lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(stored)
        for group, initial in zip(optimizer.param_groups, rates, strict=True):
            group["initial_lr"] = initial
    return int(content["step"])
