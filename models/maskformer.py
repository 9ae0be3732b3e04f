"""MaskFormer: segmentation as a set of masks, each with one class (Cheng et al. 2021, arXiv
2107.06278).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.detr import DecoderLayer, EncoderLayer, chosen_query
from models.layers import ReluMlp
from models.pixel_decoders import (
    FpnPixelDecoder,
    MaskProduct,
    build_backbone,
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

    ``classes`` are those of the labels; the head has one more, "no object". With
    ``encoder_layers``, the coarsest map goes through a transformer encoder first (appendix B, "6
    Enc."). ``groups`` is that of the pixel decoder's group norms.
    """

    canvas: tuple[int, int]
    backbone: SwinConfig | ResNetConfig
    classes: int
    queries: int = 100
    dim: int = 256
    heads: int = 8
    encoder_layers: int = 0
    decoder_layers: int = 6
    mlp_dim: int = 2048
    groups: int = 32

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % self.groups:
            raise ValueError(
                f"width {self.dim} does not divide into {self.heads} heads and {self.groups} groups"
            )


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
        self.project = nn.Conv2d(self.backbone.channels[-1], dim, 1)
        self.positions = nn.Buffer(sine_positions(dim, [self.grid]), persistent=False)
        sizes = (dim, config.heads, config.mlp_dim)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.encoder_layers))
        *finer, coarsest = self.backbone.channels
        channels = (*finer, dim if self.encoder else coarsest)
        self.pixel_decoder = FpnPixelDecoder(channels, dim, config.groups)
        self.queries = nn.Parameter(torch.randn(config.queries, dim))
        self.layers = nn.ModuleList(DecoderLayer(*sizes) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, config.classes + 1)
        self.mask_embed = ReluMlp((dim, dim, dim, dim))
        self.mask_product = MaskProduct()
        for layers in (self.encoder, self.layers):
            xavier(layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        values, pixels = self._look(images)
        x, places, keys = self._start(values)
        for layer in self.layers:
            x = layer(x, places, keys, values)
        return self._predict(x, pixels)

    def predictions(self, images: Tensor) -> list[dict[str, Tensor]]:
        """``logits`` and ``masks`` after each decoder layer, for training on all of them; the last
        are those of ``forward`` (arXiv 2107.06278, section 3.3 and appendix A).
        """
        values, pixels = self._look(images)
        x, places, keys = self._start(values)
        predictions = []
        for layer in self.layers:
            x = layer(x, places, keys, values)
            predictions.append(self._predict(x, pixels))
        return predictions

    def explain(self, images: Tensor, query: Tensor) -> dict[str, Tensor]:
        """Where one query per picture looks in every layer, and its mask after each.

        ``query`` (B,) int64; -1 stands for the query with the highest probability of a class other
        than "no object". Beside what ``forward`` returns there is ``decoder.{i}`` (B, heads, N),
        the cross-attention of layer i over the cells of ``grid``, row by row, ``mask.{i}`` (B,
        h*w), the mask in 0..1 that its queries give, and ``chosen`` (B,), which query it is.
        """
        values, pixels = self._look(images)
        x, places, keys = self._start(values)
        matrices, predictions = [], []
        for layer in self.layers:
            x, weights = layer.forward_with_weights(x, places, keys, values)  # type: ignore[operator]
            matrices.append(weights)
            predictions.append(self._predict(x, pixels))
        named = predictions[-1]
        chosen = chosen_query(named["logits"], query)
        rows = {f"decoder.{index}": rows_of(chosen, each) for index, each in enumerate(matrices)}
        for index, prediction in enumerate(predictions):
            mask = rows_of(chosen, prediction["masks"].flatten(2)[:, None])
            rows[f"mask.{index}"] = mask[:, 0].sigmoid()
        return named | rows | {"chosen": chosen}

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the queries see of the pictures (B, N, D), and pixel embeddings (B, D, h, w)."""
        *finer, coarsest = self.backbone(images)
        values = self.project(coarsest).flatten(2).transpose(1, 2)
        for layer in self.encoder:
            values = layer(values, self.positions)
        if self.encoder:
            coarsest = values.transpose(1, 2).unflatten(-1, self.grid)
        return values, self.pixel_decoder([*finer, coarsest])

    def _start(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries' first states, their positions, and the keys that they look at."""
        places = self.queries.expand(values.shape[0], -1, -1)
        return torch.zeros_like(places), places, values + self.positions

    def _predict(self, x: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        x = self.norm(x)
        masks = self.mask_product(self.mask_embed(x), pixels)
        return {"logits": self.classify(x), "masks": masks}
