"""Deformable DETR (Zhu et al. 2020, arXiv 2010.04159): objects found by queries that look at a few
places of several maps; with one map, with iterative box refinement, or in two stages.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.deformable import DeformableAttention, Sampling, splat
from models.layers import MultiHeadAttention, ReluMlp, SinePositions, valid_cells, valid_mask
from models.resnet import ResNet, ResNetConfig

OUTSIDE = 1e4
"""Logit of a coordinate of a proposal that must not count: its sigmoid is 1."""


@dataclass(frozen=True)
class DeformableDetrConfig:
    """Dimensions of one network at one canvas; ``canvas`` is (height, width) in pixels.

    Levels beyond the maps of the backbone are made from its last by convolutions of stride 2.
    With ``refine`` each decoder layer moves the boxes of the one before; with ``two_stage`` the
    best ``queries`` cells of the encoder start them. ``groups`` is that of the group norms behind
    the input projections. ``sampling`` chooses how deformable attention reads its maps.
    """

    canvas: tuple[int, int]
    backbone: ResNetConfig
    classes: int
    queries: int = 300
    dim: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    mlp_dim: int = 1024
    levels: int = 4
    points: int = 4
    refine: bool = False
    two_stage: bool = False
    groups: int = 32
    sampling: Sampling = "grid_sample"

    def __post_init__(self) -> None:
        if self.two_stage and not self.refine:
            raise ValueError("two stages need iterative box refinement; set refine too")
        if self.dim % self.heads or self.dim % self.groups or self.dim % 4:
            raise ValueError(
                f"width {self.dim} must divide into {self.heads} heads, {self.groups} groups and "
                "4 parts of a position"
            )
        if self.levels < len(self.backbone.strides):
            raise ValueError(
                f"the backbone returns {len(self.backbone.strides)} maps for {self.levels} levels"
            )
        cells = sum(height * width for height, width in self.grids)
        if self.two_stage and self.queries > cells:
            raise ValueError(f"{self.queries} queries cannot start from {cells} cells")

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of every level's map, finest first."""
        grids = [tuple(-(-side // s) for side in self.canvas) for s in self.backbone.strides]
        while len(grids) < self.levels:
            grids.append(tuple(-(-side // 2) for side in grids[-1]))
        return tuple((height, width) for height, width in grids)


class Places(NamedTuple):
    """Where a layer looked: locations (B, Q, h, L, P, 2), x and y as shares of the canvas, and
    weights (B, Q, h, L, P).
    """

    locations: Tensor
    weights: Tensor


class Memory(NamedTuple):
    """Cells of all levels (B, S, D), and which of them show the picture (B, S); the middles of the
    cells, x and y as shares of the valid area (B, S, 2); and the shares of each level's width and
    height that are valid (B, L, 2).
    """

    cells: Tensor
    mask: Tensor
    middles: Tensor
    ratios: Tensor


class EncoderLayer(nn.Module):
    """Every cell looks at places around itself; post-norm (arXiv 2010.04159, section 4.1)."""

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__()
        self.attn = _deformable_attention(config)
        self.norm1 = nn.LayerNorm(config.dim)
        self.mlp = ReluMlp((config.dim, config.mlp_dim, config.dim))
        self.norm2 = nn.LayerNorm(config.dim)

    def forward(
        self, memory: Memory, positions: Tensor, reference: Tensor
    ) -> tuple[Memory, Places]:
        """``positions`` (B, S, D), ``reference`` (B, S, L, 2): the middles of the cells."""
        x = memory.cells
        attended, *places = self.attn.forward_with_places(x + positions, reference, x, memory.mask)
        x = self.norm1(x + attended)
        return memory._replace(cells=self.norm2(x + self.mlp(x))), Places(*places)


class DecoderLayer(nn.Module):
    """Queries look at each other, then at places of the memory; post-norm (arXiv 2010.04159,
    section 4.1).
    """

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(config.dim, config.heads)
        self.norm1 = nn.LayerNorm(config.dim)
        self.cross_attn = _deformable_attention(config)
        self.norm2 = nn.LayerNorm(config.dim)
        self.mlp = ReluMlp((config.dim, config.mlp_dim, config.dim))
        self.norm3 = nn.LayerNorm(config.dim)

    def forward(
        self, x: Tensor, positions: Tensor, reference: Tensor, memory: Memory
    ) -> tuple[Tensor, Places]:
        """``x`` and ``positions`` (B, Q, D), ``reference`` (B, Q, L, 2 or 4)."""
        x = self.norm1(x + self.self_attn(x + positions, x + positions, x))
        attended, *places = self.cross_attn.forward_with_places(
            x + positions, reference, memory.cells, memory.mask
        )
        x = self.norm2(x + attended)
        return self.norm3(x + self.mlp(x)), Places(*places)


class Proposals(nn.Module):
    """The first of two stages: every cell of the memory proposes a box, and the best become the
    queries of the decoder (arXiv 2010.04159, section 4.2 and appendix).
    """

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__()
        dim = config.dim
        self.count = config.queries
        self.cells = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.places = nn.Linear(2 * dim, 2 * dim)
        self.places_norm = nn.LayerNorm(2 * dim)
        self.wavelengths = SinePositions(dim).wavelengths
        sides = [torch.full((h * w, 2), 0.05 * 2**i) for i, (h, w) in enumerate(config.grids)]
        self.sides = nn.Buffer(torch.cat(sides), persistent=False)  # (S, 2)

    def forward(self, memory: Memory, classify: nn.Module, locate: nn.Module) -> dict[str, Tensor]:
        """``proposal_logits`` (B, S, K) and ``proposal_boxes`` (B, S, 4)."""
        sides = self.sides.expand(memory.middles.shape[0], -1, -1)
        boxes = torch.cat([memory.middles, sides], dim=-1)
        proposes = ((boxes > 0.01) & (boxes < 0.99)).all(dim=-1) & memory.mask
        proposes = proposes[..., None]
        x = self.norm(self.cells(memory.cells * proposes.to(memory.cells.dtype)))
        start = torch.where(proposes, _inverse_sigmoid(boxes), OUTSIDE)
        return {
            "proposal_logits": classify(x),
            "proposal_boxes": (start + locate(x)).sigmoid(),
        }

    def choose(self, proposed: dict[str, Tensor]) -> Tensor:
        """The cells (B, Q) whose first class has the highest logit, as in the authors' code."""
        return proposed["proposal_logits"][..., 0].topk(self.count, dim=1).indices

    def queries(self, proposed: dict[str, Tensor], best: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features and positions (B, Q, D) of the queries, and the boxes (B, Q, 4) they start from:
        those of the cells ``best``.
        """
        boxes = proposed["proposal_boxes"].detach().gather(1, best[..., None].expand(-1, -1, 4))
        angles = boxes[..., None] * (2 * math.pi) / self.wavelengths
        waves = torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(2)
        positions, x = self.places_norm(self.places(waves)).chunk(2, dim=-1)
        return x, positions, boxes


class DeformableDetr(nn.Module):
    """Images (B, 3, H, W), normalised, and ``sizes`` (B, 2), the height and width in pixels that a
    picture takes up at the top left of the canvas, to named tensors.

    ``logits`` (B, Q, K) for a sigmoid, without a class for "no object", and ``boxes`` (B, Q, 4),
    middle x, middle y, width and height as shares of the valid area. In two stages there are also
    ``cells`` (B, Q), which of the encoder's cells proposed a query, counted through all levels: a
    name that holds when roundings change the order of the queries.
    """

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.backbone = ResNet(config.backbone)
        self.projections = _projections(config, self.backbone.channels)
        self.level_embed = nn.Parameter(torch.randn(config.levels, dim))
        self.positions = SinePositions(dim, offset=-0.5)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        if config.two_stage:
            self.proposals = Proposals(config)
        else:
            self.queries = nn.Parameter(torch.randn(config.queries, dim))
            self.query_positions = nn.Parameter(torch.randn(config.queries, dim))
            self.reference = nn.Linear(dim, 2)
        heads = config.decoder_layers + config.two_stage if config.refine else 1
        self.classify = nn.ModuleList(nn.Linear(dim, config.classes) for _ in range(heads))
        self.locate = nn.ModuleList(ReluMlp((dim, dim, dim, 4)) for _ in range(heads))
        middles = [_middles(grid) for grid in config.grids]  # in cells, not shares
        self.middles = nn.Buffer(torch.cat(middles), persistent=False)  # (S, 2)
        self._initialise()

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        last = self.predictions(images, sizes)[-1]
        return _answer(last)

    def predictions(self, images: Tensor, sizes: Tensor) -> list[dict[str, Tensor]]:
        """``logits`` and ``boxes`` after each decoder layer, for training on all of them.

        With two stages the last also has what the encoder proposes at every cell: logits
        ``proposal_logits`` (B, S, K) and ``proposal_boxes`` (B, S, 4). Cells that may propose
        nothing have the box (1, 1, 1, 1). ``cells`` (B, Q) are those that became queries.
        """
        return self._detect(images, sizes)[0]

    def explain(
        self, images: Tensor, sizes: Tensor, query: Tensor, place: Tensor
    ) -> dict[str, Tensor]:
        """Where one query and one place looked, in every layer.

        ``query`` (B,) is an object query, in two stages by its cell (of a cell that proposed none
        it is the first query), and -1 the one of the highest logit. ``place`` (B, 2) is y
        and x as shares of the canvas; the cell of the finest level around it is the query of the
        encoder. Returns ``decoder.0``, ... and ``encoder.0``, ... (B, h, height * width): the
        attention weights of all levels spread bilinearly over the finest level's grid; what
        ``forward`` returns; and ``chosen`` (B,), the row of that which the query is.
        """
        predictions, encoder, decoder = self._detect(images, sizes)
        named = _answer(predictions[-1])
        named["chosen"] = _chosen_row(named, query)
        height, width = self.config.grids[0]
        down, across = (side / self.config.backbone.strides[0] for side in self.config.canvas)
        row = (place[:, 0] * down).long().clamp(0, height - 1)
        column = (place[:, 1] * across).long().clamp(0, width - 1)
        for index, places in enumerate(encoder):
            named[f"encoder.{index}"] = _look(places, row * width + column, (height, width))
        for index, places in enumerate(decoder):
            named[f"decoder.{index}"] = _look(places, named["chosen"], (height, width))
        return named

    def _detect(
        self, images: Tensor, sizes: Tensor
    ) -> tuple[list[dict[str, Tensor]], list[Places], list[Places]]:
        """Predictions by decoder layer, and where encoder and decoder layers looked."""
        memory, encoder_places = self._encode(images, sizes)
        proposed: dict[str, Tensor] = {}
        if self.config.two_stage:
            proposed = self.proposals(memory, self.classify[-1], self.locate[-1])
            proposed["cells"] = self.proposals.choose(proposed)
            x, positions, reference = self.proposals.queries(proposed, proposed["cells"])
        else:
            x = self.queries.expand(images.shape[0], -1, -1)
            positions = self.query_positions.expand(images.shape[0], -1, -1)
            reference = self.reference(positions).sigmoid()
        predictions, decoder_places = self._decode(memory, x, positions, reference)
        predictions[-1] |= proposed
        return predictions, encoder_places, decoder_places

    def _encode(self, images: Tensor, sizes: Tensor) -> tuple[Memory, list[Places]]:
        valid = [valid_cells(sizes, self.config.canvas, grid) for grid in self.config.grids]
        levels = zip(self._levels(images), valid, self.config.grids, self.level_embed, strict=True)
        cells, masks, positions, ratios = [], [], [], []
        for level, used, grid, embed in levels:
            cells.append(level.flatten(2).transpose(1, 2))
            masks.append(valid_mask(used, grid))
            positions.append(self.positions(used, grid) + embed)
            ratios.append(torch.stack([used[:, 1] / grid[1], used[:, 0] / grid[0]], dim=-1))
        middles = self.middles.split([height * width for height, width in self.config.grids])
        shares = [
            middle / used[:, None, [1, 0]] for middle, used in zip(middles, valid, strict=True)
        ]
        memory = Memory(
            torch.cat(cells, dim=1),
            torch.cat(masks, dim=1),
            torch.cat(shares, dim=1),
            torch.stack(ratios, dim=1),
        )
        reference = memory.middles[:, :, None] * memory.ratios[:, None]  # (B, S, L, 2)
        position = torch.cat(positions, dim=1)  # (B, S, D)
        places = []
        for layer in self.encoder:
            memory, looked = layer(memory, position, reference)
            places.append(looked)
        return memory, places

    def _levels(self, images: Tensor) -> list[Tensor]:
        """Maps (B, D, h, w) of every level, finest first."""
        maps = self.backbone(images)
        levels: list[Tensor] = []
        for index, project in enumerate(self.projections):
            source = maps[min(index, len(maps) - 1)] if index <= len(maps) else levels[-1]
            levels.append(project(source))
        return levels

    def _decode(
        self, memory: Memory, x: Tensor, positions: Tensor, reference: Tensor
    ) -> tuple[list[dict[str, Tensor]], list[Places]]:
        """``x`` and ``positions`` (B, Q, D) of the queries; ``reference`` (B, Q, 2 or 4), points or
        boxes as shares of the valid area.
        """
        predictions, places = [], []
        for index, layer in enumerate(self.decoder):
            ratios = memory.ratios.repeat(1, 1, reference.shape[-1] // 2)
            x, looked = layer(x, positions, reference[:, :, None] * ratios[:, None], memory)
            head = index if self.config.refine else 0
            moved = self.locate[head](x)
            start = _inverse_sigmoid(reference)
            if reference.shape[-1] == 2:
                moved = torch.cat([moved[..., :2] + start, moved[..., 2:]], dim=-1)
            else:
                moved = moved + start
            boxes = moved.sigmoid()
            predictions.append({"logits": self.classify[head](x), "boxes": boxes})
            places.append(looked)
            reference = boxes.detach() if self.config.refine else reference
        return predictions, places

    def _initialise(self) -> None:
        """As the authors' code starts training: classes at a probability of 0.01, boxes at their
        reference and, without two stages, small.
        """
        for module in [*self.encoder, *self.decoder]:
            for name, parameter in module.named_parameters():
                if parameter.dim() > 1 and not name.endswith(("offsets.weight", "weights.weight")):
                    nn.init.xavier_uniform_(parameter)
        for projection in self.projections:
            convolution: nn.Conv2d = projection[0]  # type: ignore[index]
            nn.init.xavier_uniform_(convolution.weight)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        for classify in self.classify:
            nn.init.constant_(classify.bias, -math.log(99))  # type: ignore[arg-type]
        for index, locate in enumerate(self.locate):
            last: nn.Linear = locate.layers[-1]  # type: ignore[assignment,index]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            if index == 0 and not self.config.two_stage:
                nn.init.constant_(last.bias[2:], -2.0)
        if not self.config.two_stage:
            nn.init.xavier_uniform_(self.reference.weight)
            nn.init.zeros_(self.reference.bias)


def _deformable_attention(config: DeformableDetrConfig) -> DeformableAttention:
    return DeformableAttention(
        config.dim, config.heads, config.levels, config.points, config.grids, config.sampling
    )


def _answer(prediction: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ``forward`` returns of the last prediction."""
    return {name: prediction[name] for name in ("logits", "boxes", "cells") if name in prediction}


def _chosen_row(answer: dict[str, Tensor], query: Tensor) -> Tensor:
    """The row (B,) of ``query`` in the answer of a network: of the highest logit for -1, else that
    number, or in two stages the row of that cell, the first where there is none.
    """
    cells = answer.get("cells")
    row = query if cells is None else (cells == query[:, None]).int().argmax(dim=1)
    return torch.where(query < 0, answer["logits"].amax(dim=-1).argmax(dim=-1), row)


def _projections(config: DeformableDetrConfig, channels: tuple[int, ...]) -> nn.ModuleList:
    """1x1 convolutions of the backbone's maps, then 3x3 of stride 2, the first on its last map,
    each with a group norm (arXiv 2010.04159, appendix).
    """
    convolutions = [nn.Conv2d(width, config.dim, 1) for width in channels]
    width = channels[-1]
    while len(convolutions) < config.levels:
        convolutions.append(nn.Conv2d(width, config.dim, 3, stride=2, padding=1))
        width = config.dim
    norms = (nn.GroupNorm(config.groups, config.dim) for _ in convolutions)
    return nn.ModuleList(map(nn.Sequential, convolutions, norms))


def _middles(grid: tuple[int, int]) -> Tensor:
    """x and y (h*w, 2) of the middles of cells, in cells, row by row."""
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in grid), indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def _inverse_sigmoid(shares: Tensor) -> Tensor:
    """Logits of shares from 0 to 1, cut off where a share or its complement is below 1e-5."""
    return (shares.clamp(min=1e-5) / (1 - shares).clamp(min=1e-5)).log()


def _look(places: Places, query: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the queries ``query`` (B,) weigh on the cells of ``grid``: (B, h, height * width)."""
    index = query[:, None, None, None, None]
    weights = places.weights.gather(1, index.expand(-1, -1, *places.weights.shape[2:]))
    index = index[..., None].expand(-1, -1, *places.locations.shape[2:])
    locations = places.locations.gather(1, index)
    return splat(locations[:, 0].flatten(2, 3), weights[:, 0].flatten(2), grid)
