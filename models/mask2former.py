"""Mask2Former: queries that look only where their last mask was (Cheng et al. 2021, arXiv
2112.01527).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.deformable import Sampling
from models.detr import chosen_query
from models.layers import MASKED, MultiHeadAttention, ReluMlp
from models.pixel_decoders import (
    DeformablePixelDecoder,
    MaskProduct,
    build_backbone,
    cell_counts,
    grids_of,
    rows_of,
    xavier,
)
from models.resnet import ResNetConfig
from models.swin import SwinConfig


@dataclass(frozen=True)
class Mask2FormerConfig:
    """Dimensions of one network at one canvas; ``canvas`` is (height, width) in pixels, and stands
    above that of the backbone.

    ``classes`` are those of the labels; the head has one more, "no object". ``groups`` is that of
    the pixel decoder's group norms. ``sampling`` chooses how deformable attention reads its maps.
    """

    canvas: tuple[int, int]
    backbone: SwinConfig | ResNetConfig
    classes: int
    queries: int = 100
    dim: int = 256
    heads: int = 8
    encoder_layers: int = 6
    encoder_mlp_dim: int = 1024
    decoder_layers: int = 9
    decoder_mlp_dim: int = 2048
    groups: int = 32
    sampling: Sampling = "grid_sample"

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % self.groups:
            raise ValueError(
                f"width {self.dim} does not divide into {self.heads} heads and {self.groups} groups"
            )


class MaskedDecoderLayer(nn.Module):
    """Cross-attention within the mask, then self-attention, then a feed-forward block, each with
    its norm after it (arXiv 2112.01527, section 3.2).
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.cross_attn = MultiHeadAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = MultiHeadAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = ReluMlp((dim, mlp_dim, dim))
        self.norm3 = nn.LayerNorm(dim)
        xavier(self)

    def forward(
        self, x: Tensor, places: Tensor, keys: Tensor, values: Tensor, bias: Tensor
    ) -> Tensor:
        """``x`` and ``places`` (B, Q, D) are the queries' features and positions; ``keys`` and
        ``values`` (B, N, D) one level; ``bias`` (B, 1, Q, N) is ``MASKED`` outside the masks.
        """
        return self._digest(x, places, self.cross_attn(x + places, keys, values, bias))

    def forward_with_weights(
        self, x: Tensor, places: Tensor, keys: Tensor, values: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the cross-attention (B, h, Q, N) beside the output."""
        attended, weights = self.cross_attn.forward_with_weights(x + places, keys, values, bias)
        return self._digest(x, places, attended), weights

    def _digest(self, x: Tensor, places: Tensor, attended: Tensor) -> Tensor:
        x = self.norm1(x + attended)
        x = self.norm2(x + self.self_attn(x + places, x + places, x))
        return self.norm3(x + self.mlp(x))


class Stage(NamedTuple):
    """What stands before the first decoder layer or after one: the queries (B, Q, D), normalised,
    their mask logits (B, Q, h, w), and, where asked for, the layer's cross-attention.
    """

    queries: Tensor
    masks: Tensor
    attention: Tensor | None


class Mask2Former(nn.Module):
    """Images (B, 3, H, W), normalised, to ``logits`` (B, Q, K + 1), the last class being "no
    object", and ``masks`` (B, Q, h, w), mask logits on the backbone's finest grid.

    Whatever surrounds a smaller picture on the canvas is seen as if it were picture.
    """

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.backbone = build_backbone(config.backbone, config.canvas)
        self.pixel_decoder = DeformablePixelDecoder(
            self.backbone.channels,
            grids_of(config.canvas, self.backbone.strides),
            dim,
            config.heads,
            config.encoder_layers,
            config.encoder_mlp_dim,
            config.groups,
            config.sampling,
        )
        self.queries = nn.Parameter(torch.randn(config.queries, dim))
        self.query_positions = nn.Parameter(torch.randn(config.queries, dim))
        self.level_embed = nn.Parameter(torch.randn(DeformablePixelDecoder.levels, dim))
        self.layers = nn.ModuleList(
            MaskedDecoderLayer(dim, config.heads, config.decoder_mlp_dim)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, config.classes + 1)
        self.mask_embed = ReluMlp((dim, dim, dim, dim))
        self.mask_product = MaskProduct()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        *_, last = self._stages(images)
        return {"logits": self.classify(last.queries), "masks": last.masks}

    def predictions(self, images: Tensor) -> list[dict[str, Tensor]]:
        """``logits`` and ``masks`` before the first decoder layer and after each, for training on
        all of them; the last are those of ``forward``.
        """
        return [
            {"logits": self.classify(stage.queries), "masks": stage.masks}
            for stage in self._stages(images)
        ]

    def explain(self, images: Tensor, query: Tensor) -> dict[str, Tensor]:
        """Where one query per picture looks in every layer, and its mask at every stage.

        ``query`` (B,) int64; -1 stands for the query with the highest probability of a class other
        than "no object". Beside what ``forward`` returns there are ``decoder.{i}`` (B, heads, N_i),
        the masked cross-attention of layer i over the cells of ``layer_grids[i]``, row by row, and
        ``mask.{i}`` (B, h*w), its mask in 0..1 before layer i, and last the final one; ``chosen``
        (B,) is which query it is.
        """
        stages = list(self._stages(images, explained=True))
        logits, masks = self.classify(stages[-1].queries), stages[-1].masks
        chosen = chosen_query(logits, query)
        named = {"logits": logits, "masks": masks, "chosen": chosen}
        for index, stage in enumerate(stages[1:]):
            assert stage.attention is not None
            named[f"decoder.{index}"] = rows_of(chosen, stage.attention)
        for index, stage in enumerate(stages):
            rows = rows_of(chosen, stage.masks.flatten(2)[:, None])
            named[f"mask.{index}"] = rows[:, 0].sigmoid()
        return named

    @property
    def layer_grids(self) -> list[tuple[int, int]]:
        """Rows and columns of the level that each decoder layer looks at."""
        grids = self.pixel_decoder.grids
        return [grids[index % len(grids)] for index in range(len(self.layers))]

    def _stages(self, images: Tensor, explained: bool = False) -> Iterator[Stage]:
        tokens, pixels = self.pixel_decoder(self.backbone(images))
        grids = self.pixel_decoder.grids
        values = [level + embed for level, embed in zip(tokens, self.level_embed, strict=True)]
        positions = self.pixel_decoder.positions.split(cell_counts(grids), dim=1)
        keys = [level + place for level, place in zip(values, positions, strict=True)]
        x = self.queries.expand(images.shape[0], -1, -1)
        places = self.query_positions.expand(images.shape[0], -1, -1)
        stage = self._stage(x, pixels, None)
        yield stage
        for index, (layer, grid) in enumerate(zip(self.layers, self.layer_grids, strict=True)):
            level = index % len(grids)
            inputs = (x, places, keys[level], values[level], _bias(stage.masks, grid))
            if explained:
                x, attention = layer.forward_with_weights(*inputs)  # type: ignore[operator]
            else:
                x, attention = layer(*inputs), None
            stage = self._stage(x, pixels, attention)
            yield stage

    def _stage(self, x: Tensor, pixels: Tensor, attention: Tensor | None) -> Stage:
        queries = self.norm(x)
        return Stage(queries, self.mask_product(self.mask_embed(queries), pixels), attention)


def _bias(masks: Tensor, grid: tuple[int, int]) -> Tensor:  # (B, Q, h, w) -> (B, 1, Q, N)
    """What masked attention adds to its scores: 0 where a query's mask is, and everywhere for a
    query whose mask is empty; ``MASKED`` elsewhere (arXiv 2112.01527, eq. 2-3).
    """
    resized = F.interpolate(masks, size=grid, mode="bilinear").flatten(2)
    outside = (resized < 0) & (resized.amax(dim=-1, keepdim=True) >= 0)
    return (outside.to(masks.dtype) * MASKED)[:, None]
