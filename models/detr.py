"""Detection transformer: a set of boxes from learned queries that look at the picture in parallel.

Carion et al. 2020, arXiv 2005.12872, section 3.2 and appendix A.3; its mask head is in
``models.detr_masks``.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.detr_masks import MaskHead
from models.layers import (
    MASKED,
    MultiHeadAttention,
    ReluMlp,
    SinePositions,
    valid_cells,
    valid_mask,
)
from models.resnet import ResNet, ResNetConfig


@dataclass(frozen=True)
class DetrConfig:
    """Dimensions of one network at one canvas; ``canvas`` is (height, width) in pixels.

    The encoder reads the last map that the backbone returns; the mask head needs the three before
    it. ``classes`` do not count the one that says "no object". With ``norm_between`` the decoder's
    last norm is also applied to what goes from layer to layer, as transformers does in networks
    trained with its auxiliary loss.
    """

    canvas: tuple[int, int]
    backbone: ResNetConfig
    dim: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    mlp_dim: int = 2048
    queries: int = 100
    classes: int = 91
    masks: bool = False
    norm_between: bool = False

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"width {self.dim} does not divide into {self.heads} heads")
        if self.masks and len(self.backbone.returned) != 4:
            raise ValueError(
                f"the mask head needs four maps; the backbone returns {self.backbone.returned}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Cells down and across that the encoder sees."""
        stride = self.backbone.strides[-1]
        return -(-self.canvas[0] // stride), -(-self.canvas[1] // stride)


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each followed by its norm. Positions are added to queries and keys
    alone (arXiv 2005.12872, figure 10).
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.attn = MultiHeadAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = ReluMlp((dim, mlp_dim, dim))
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, positions: Tensor, bias: Tensor | None = None
    ) -> Tensor:  # (B, N, D) -> (B, N, D)
        placed = x + positions
        x = self.norm1(x + self.attn(placed, placed, x, bias))
        return self.norm2(x + self.mlp(x))

    def row(self, x: Tensor, positions: Tensor, bias: Tensor, cell: Tensor) -> Tensor:
        """Attention (B, h, N) of one cell per picture, ``cell`` (B,) counting row by row."""
        placed = x + positions
        index = cell.view(-1, 1, 1).expand(-1, 1, x.shape[-1])
        query = placed.gather(1, index)
        return self.attn.forward_with_weights(query, placed, x, bias)[1][:, :, 0]


class DecoderLayer(nn.Module):
    """Attention among the queries, attention to the picture and MLP, each followed by its norm.

    ``places`` (B, Q, D) are the learned queries, added wherever the decoder's own states ask or are
    asked; ``keys`` are the picture's cells (B, N, D) with their positions, ``memory`` without.
    """

    def __init__(self, dim: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = MultiHeadAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = ReluMlp((dim, mlp_dim, dim))
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, places: Tensor, keys: Tensor, memory: Tensor, bias: Tensor | None = None
    ) -> Tensor:  # (B, Q, D) -> (B, Q, D)
        x = self._among_queries(x, places)
        x = self.norm2(x + self.cross_attn(x + places, keys, memory, bias))
        return self.norm3(x + self.mlp(x))

    def forward_with_weights(
        self, x: Tensor, places: Tensor, keys: Tensor, memory: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``forward``, with the attention (B, h, Q, N) to the picture beside the output."""
        x = self._among_queries(x, places)
        seen, weights = self.cross_attn.forward_with_weights(x + places, keys, memory, bias)
        x = self.norm2(x + seen)
        return self.norm3(x + self.mlp(x)), weights

    def _among_queries(self, x: Tensor, places: Tensor) -> Tensor:
        placed = x + places
        return self.norm1(x + self.self_attn(placed, placed, x))


@dataclass
class View:
    """What the decoder and the mask head see of the pictures.

    ``maps`` are the backbone's, ``features`` (B, D, h, w) the last of them at the transformer's
    width; ``positions`` and ``memory`` (B, N, D) are the encoder's input and output, and ``bias``
    (B, 1, 1, N) is ``MASKED`` where a cell lies beyond the picture.
    """

    maps: list[Tensor]
    features: Tensor
    positions: Tensor
    memory: Tensor
    bias: Tensor


class Detr(nn.Module):
    """Images (B, 3, H, W), normalised and padded with zeros at the right and bottom, and their
    ``sizes`` (B, 2) on the canvas, to named tensors.

    ``logits`` (B, Q, K+1), the last being "no object"; ``boxes`` (B, Q, 4), centre, width and
    height as shares of the valid area; with the mask head also ``masks`` (B, Q, H/4, W/4) logits.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.backbone = ResNet(config.backbone)
        self.project = nn.Conv2d(self.backbone.channels[-1], dim, 1)
        self.positions = SinePositions(dim)
        sizes = (dim, config.heads, config.mlp_dim)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.encoder_layers))
        self.queries = nn.Parameter(torch.randn(config.queries, dim))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, config.classes + 1)
        self.box = ReluMlp((dim, dim, dim, 4))
        self.mask_head = (
            MaskHead(dim, config.heads, self.backbone.channels[:3]) if config.masks else None
        )
        for parameter in (*self.encoder.parameters(), *self.decoder.parameters()):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def drop_masks(self) -> None:
        """Give up the mask head, for who asks for boxes alone; nothing else changes."""
        self.config = replace(self.config, masks=False)
        self.mask_head = None

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        view = self._look(images, sizes)
        return self._answer(self._decode(view)[-1], view)

    def predictions(self, images: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """Logits and boxes after every decoder layer, the last as ``forward`` gives it: one norm
        and one pair of heads serve them all (section 3.2, "Auxiliary decoding losses").
        """
        view = self._look(images, sizes)
        *earlier, last = self._decode(view)
        if not self.config.norm_between:
            earlier = [self.norm(x) for x in earlier]
        return [*map(self._detect, earlier), self._answer(last, view)]

    def explain(
        self, images: Tensor, sizes: Tensor, query: Tensor, place: Tensor
    ) -> dict[str, Tensor]:
        """Where one object query and one place look, in every layer.

        ``query`` (B,) int64 is an object query, or -1 for the one whose class, other than "no
        object", is the most probable. ``place`` (B, 2) is a point (y, x) in 0..1 of the canvas.
        Returns ``decoder.{i}`` (B, h, N), attention of the query to the encoder's cells, and
        ``encoder.{i}`` (B, h, N), of the place's cell to the others, with ``logits`` and ``boxes``,
        and ``chosen`` (B,), the row of these that the query is.
        """
        maps, features, positions, bias = self._embed(images, sizes)
        cell = self._cell(place)
        x, found = features.flatten(2).transpose(1, 2), {}
        for number, layer in enumerate(self.encoder):
            found[f"encoder.{number}"] = layer.row(x, positions, bias, cell)  # type: ignore[operator]
            x = layer(x, positions, bias)
        view = View(maps, features, positions, x, bias)
        x, places, keys = self._start(view)
        matrices = []
        for layer in self.decoder:
            x, weights = layer.forward_with_weights(x, places, keys, view.memory, bias)  # type: ignore[operator]
            x = self._between(x)
            matrices.append(weights)
        answer = self._detect(self.norm(x))
        chosen = chosen_query(answer["logits"], query)
        for number, weights in enumerate(matrices):
            index = chosen.view(-1, 1, 1, 1).expand(-1, weights.shape[1], 1, weights.shape[3])
            found[f"decoder.{number}"] = weights.gather(2, index)[:, :, 0]
        return found | answer | {"chosen": chosen}

    def _look(self, images: Tensor, sizes: Tensor) -> View:
        maps, features, positions, bias = self._embed(images, sizes)
        x = features.flatten(2).transpose(1, 2)  # (B, N, D)
        for layer in self.encoder:
            x = layer(x, positions, bias)
        return View(maps, features, positions, x, bias)

    def _embed(self, images: Tensor, sizes: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        maps = self.backbone(images)
        grid = self.config.grid
        valid = valid_cells(sizes, self.config.canvas, grid)
        bias = (~valid_mask(valid, grid)).to(images.dtype) * MASKED
        positions = self.positions(valid, grid).to(images.dtype)
        return maps, self.project(maps[-1]), positions, bias[:, None, None]

    def _start(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder's first states, the places of its queries and the keys that they look at."""
        places = self.queries.expand(view.memory.shape[0], -1, -1)
        return torch.zeros_like(places), places, view.memory + view.positions

    def _decode(self, view: View) -> list[Tensor]:
        """(B, Q, D) after every layer."""
        x, places, keys = self._start(view)
        states = []
        for layer in self.decoder:
            x = self._between(layer(x, places, keys, view.memory, view.bias))
            states.append(x)
        return states

    def _between(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.config.norm_between else x

    def _answer(self, x: Tensor, view: View) -> dict[str, Tensor]:
        x = self.norm(x)
        answer = self._detect(x)
        if self.mask_head is not None:
            answer["masks"] = self.mask_head(
                x, view.memory, view.bias, view.features, view.maps[:3]
            )
        return answer

    def _detect(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classify(x), "boxes": self.box(x).sigmoid()}

    def _cell(self, place: Tensor) -> Tensor:
        """The cell (B,) that contains a point of the canvas."""
        stride = self.config.backbone.strides[-1]
        cells = torch.tensor([side / stride for side in self.config.canvas], device=place.device)
        last = torch.tensor(self.config.grid, device=place.device) - 1
        down, across = (place * cells).long().clamp(min=0).minimum(last).unbind(dim=1)
        return down * self.config.grid[1] + across


def chosen_query(logits: Tensor, query: Tensor) -> Tensor:
    """``query`` (B,), and in place of -1 the query that is surest of its object."""
    best = logits.softmax(dim=-1)[..., :-1].amax(dim=-1).argmax(dim=-1)
    return torch.where(query < 0, best, query)
