"""The weights of a checkpoint put together as a ViT, its positions resampled to the canvas."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.layouts import Layout, their_names
from models.checkpoints.strict import StrictReader
from models.vit import ViT, ViTConfig


def assemble(
    reader: StrictReader,
    layout: Layout,
    native: ViTConfig,
    canvas: tuple[int, int],
    qkv_bias: bool = True,
    positioned: int = 1,
) -> tuple[ViT, list[str]]:
    """The network at ``canvas`` and the names of the weights left aside.

    ``native`` is the canvas of the position table, of which the first ``positioned`` rows belong
    to leading tokens. Raises CheckpointError unless the reader holds exactly what is needed.
    """
    with torch.device("meta"):
        expected = ViT(native).state_dict()
    state = _embeddings(reader, layout, native, positioned)
    for ours, meta in expected.items():
        if ours in state:
            continue
        if ours.endswith("qkv.bias") and not qkv_bias:
            state[ours] = torch.zeros(meta.shape)
            continue
        theirs = their_names(layout.names, ours)
        shape = (meta.shape[0] // len(theirs), *meta.shape[1:])
        state[ours] = torch.cat([reader.take(name, shape) for name in theirs])
    aside = reader.finish(layout.ignored)

    target = at_canvas(native, canvas)
    table = state["positions"].split([native.class_tokens, native.grid[0] * native.grid[1]], dim=1)
    resampled = resample_positions(table[1], native.grid, target.grid, layout.antialias)
    state["positions"] = torch.cat([table[0], resampled], dim=1)
    with torch.device("meta"):
        model = ViT(target)
    model.load_state_dict(state, assign=True)
    return model.eval(), aside


def at_canvas(config: ViTConfig, canvas: tuple[int, int]) -> ViTConfig:
    """The same network at another canvas; CheckpointError where the patches do not tile it."""
    try:
        return dataclasses.replace(config, canvas=canvas)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def resample_positions(
    table: Tensor, grid: tuple[int, int], target: tuple[int, int], antialias: bool
) -> Tensor:  # (1, gh*gw, D) -> (1, th*tw, D)
    """The position table of another grid, bicubic between cell centres; unchanged on its own."""
    if grid == target:
        return table
    picture = table.unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, gh, gw)
    picture = F.interpolate(
        picture, size=target, mode="bicubic", align_corners=False, antialias=antialias
    )
    return picture.flatten(2).transpose(1, 2).contiguous()


def _embeddings(
    reader: StrictReader, layout: Layout, config: ViTConfig, positioned: int
) -> dict[str, Tensor]:
    """Class tokens, positions and registers.

    Our registers carry no position: a token that has one there and is no class token here (the
    distillation token of a DeiT whose head reads only the class token) gets it added for good.
    """
    dim, patches = config.dim, config.grid[0] * config.grid[1]
    counts = _token_counts(layout, config)
    tokens = torch.cat(
        [
            reader.take(name, (1, count, dim))
            for name, count in zip(layout.tokens, counts, strict=True)
        ],
        dim=1,
    )
    table = reader.take(layout.positions, (1, positioned + patches, dim))
    leading = torch.zeros_like(tokens)
    leading[:, :positioned] = table[:, :positioned]
    first = config.class_tokens
    state = {
        "class_tokens": tokens[:, :first],
        "positions": torch.cat([leading[:, :first], table[:, positioned:]], dim=1),
    }
    if config.registers:
        state["registers"] = tokens[:, first:] + leading[:, first:]
    return state


def _token_counts(layout: Layout, config: ViTConfig) -> list[int]:
    """How many tokens each of ``layout.tokens`` holds: one each, registers together in the last."""
    return [1] * (len(layout.tokens) - 1) + [config.prefix_tokens - len(layout.tokens) + 1]
