"""MaskFormer: segmentation as a set of masks, each with one class (Cheng et al. 2021, arXiv
2107.06278).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import MultiHeadAttention, ReluMlp
from models.pixel_decoders import (
    FpnPixelDecoder,
    MaskProduct,
    build_backbone,
    chosen_query,
    grids_of,
    rows_of,
    sine_positions,
    xavier,
)
from models.resnet import ResNetConfig
from models.swin import SwinConfig


@dataclass(frozen=True)
class MaskFormerConfig:
    """Dimensions of one network at one canvas; ``canvas`` is (height, width) in pixels, and stands
    above that of the backbone.

    ``classes`` are those of the labels; the head has one more, "no object". ``groups`` is that of
    the pixel decoder's group norms.
    """

    canvas: tuple[int, int]
    backbone: SwinConfig | ResNetConfig
    classes: int
    queries: int = 100
    dim: int = 256
    heads: int = 8
    decoder_layers: int = 6
    mlp_dim: int = 2048
    groups: int = 32

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % self.groups:
            raise ValueError(
                f"width {self.dim} does not divide into {self.heads} heads and {self.groups} groups"
            )


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and a feed-forward block, each with its norm after it (Carion
    et al. 2020, arXiv 2005.12872, appendix A.3).
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = MultiHeadAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = ReluMlp((dim, mlp_dim, dim))
        self.norm3 = nn.LayerNorm(dim)
        xavier(self)

    def forward(self, x: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``x`` and ``places`` (B, Q, D) are the queries' features and positions; ``keys`` and
        ``values`` (B, N, D) the picture, with and without positions.
        """
        x = self._among_queries(x, places)
        x = self.norm2(x + self.cross_attn(x + places, keys, values))
        return self.norm3(x + self.mlp(x))

    def forward_with_weights(
        self, x: Tensor, places: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the cross-attention (B, h, Q, N) beside the output."""
        x = self._among_queries(x, places)
        attended, weights = self.cross_attn.forward_with_weights(x + places, keys, values)
        x = self.norm2(x + attended)
        return self.norm3(x + self.mlp(x)), weights

    def _among_queries(self, x: Tensor, places: Tensor) -> Tensor:
        return self.norm1(x + self.self_attn(x + places, x + places, x))


class MaskFormer(nn.Module):
    """Images (B, 3, H, W), normalised, to ``logits`` (B, Q, K + 1), the last class being "no
    object", and ``masks`` (B, Q, h, w), mask logits on the backbone's finest grid.

    Whatever surrounds a smaller picture on the canvas is seen as if it were picture.
    """

    def __init__(self, config: MaskFormerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.backbone = build_backbone(config.backbone, config.canvas)
        self.grid = grids_of(config.canvas, self.backbone.strides)[-1]
        self.pixel_decoder = FpnPixelDecoder(self.backbone.channels, dim, config.groups)
        self.project = nn.Conv2d(self.backbone.channels[-1], dim, 1)
        self.positions = nn.Buffer(sine_positions(dim, [self.grid]), persistent=False)
        self.queries = nn.Parameter(torch.randn(config.queries, dim))
        self.layers = nn.ModuleList(
            DecoderLayer(dim, config.heads, config.mlp_dim) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, config.classes + 1)
        self.mask_embed = ReluMlp((dim, dim, dim, dim))
        self.mask_product = MaskProduct()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(images)
        x, places, keys, values = self._start(maps[-1])
        for layer in self.layers:
            x = layer(x, places, keys, values)
        return self._predict(x, self.pixel_decoder(maps))

    def predictions(self, images: Tensor) -> list[dict[str, Tensor]]:
        """``logits`` and ``masks`` after each decoder layer, for training on all of them; the last
        are those of ``forward`` (arXiv 2107.06278, section 3.3 and appendix A).
        """
        maps = self.backbone(images)
        pixels = self.pixel_decoder(maps)
        x, places, keys, values = self._start(maps[-1])
        predictions = []
        for layer in self.layers:
            x = layer(x, places, keys, values)
            predictions.append(self._predict(x, pixels))
        return predictions

    def explain(self, images: Tensor, query: Tensor) -> dict[str, Tensor]:
        """Where one query per picture looks in every layer.

        ``query`` (B,) int64; -1 stands for the query with the highest probability of a class other
        than "no object". Beside what ``forward`` returns there is ``decoder.{i}`` (B, heads, N),
        the cross-attention of layer i over the cells of ``grid``, row by row.
        """
        maps = self.backbone(images)
        x, places, keys, values = self._start(maps[-1])
        matrices = []
        for layer in self.layers:
            x, weights = layer.forward_with_weights(x, places, keys, values)  # type: ignore[operator]
            matrices.append(weights)
        named = self._predict(x, self.pixel_decoder(maps))
        chosen = chosen_query(named["logits"], query)
        rows = {f"decoder.{index}": rows_of(chosen, each) for index, each in enumerate(matrices)}
        return named | rows

    def _start(self, coarsest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, their positions, and the coarsest map as keys and values."""
        values = self.project(coarsest).flatten(2).transpose(1, 2)  # (B, N, D)
        places = self.queries.expand(values.shape[0], -1, -1)
        return torch.zeros_like(places), places, values + self.positions, values

    def _predict(self, x: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        x = self.norm(x)
        masks = self.mask_product(self.mask_embed(x), pixels)
        return {"logits": self.classify(x), "masks": masks}
