"""Multi-scale deformable attention (Zhu et al. 2020, arXiv 2010.04159, section 4.1, eq. 3)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sampling = Literal["grid_sample", "gather", "plugin"]
Grids = Sequence[tuple[int, int]]


def sample(
    values: Tensor, locations: Tensor, weights: Tensor, grids: Grids, form: Sampling
) -> Tensor:
    """Weighted sums of values read between the cells of several maps: (B, Q, h*d).

    ``values`` (B, S, h, d) are the cells of the L maps of ``grids`` (height, width), row by row,
    one map after another. ``locations`` (B, Q, h, L, P, 2) are x and y as shares of the map, 0 its
    left or upper edge; values are interpolated bilinearly between the middles of cells, and are
    zero beyond the map. ``weights`` (B, Q, h, L, P) multiply what was read.

    The forms give the same numbers. "grid_sample" is one GridSample per map; "gather" reads the
    four cells around each place by index, for runtimes whose GridSample is slow or wrong; "plugin"
    is one operator, ``fused_sample``, which an exporter may turn into that of an inference library.
    Coordinates are fp32 in both, whatever the values are: half precision would move them by a tenth
    of a cell.
    """
    locations, weights = locations.float(), weights.to(values.dtype)
    if form == "gather":
        return _sample_by_gather(values, locations, weights, grids)
    if form == "plugin":
        return _sample_by_plugin(values, locations, weights, grids)
    return _sample_by_grid_sample(values, locations, weights, grids)


@torch.library.custom_op("saccade::fused_sample", mutates_args=())
def fused_sample(
    values: Tensor, grids: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """``sample`` as one operator, with its inputs in the order that TensorRT's plugin takes them.

    ``grids`` (L, 2) int32 are height and width of the maps, ``starts`` (L,) int32 their first
    cells; returns (B, Q, h, d).
    """
    sides = [(int(height), int(width)) for height, width in grids.tolist()]
    read = _sample_by_grid_sample(values, locations, weights, sides)
    return read.unflatten(-1, values.shape[2:]).contiguous()


@fused_sample.register_fake
def _(values: Tensor, grids: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return values.new_empty(values.shape[0], locations.shape[1], *values.shape[2:])


class DeformableAttention(nn.Module):
    """Attention of each query to a few places per head and level, which the query itself names.

    ``grids`` are the (height, width) of the ``levels`` maps; ``points`` is the number of places on
    each.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        levels: int,
        points: int,
        grids: Grids,
        sampling: Sampling = "grid_sample",
    ) -> None:
        super().__init__()
        if len(grids) != levels:
            raise ValueError(f"{len(grids)} grids were given for {levels} levels")
        self.heads = heads
        self.points = points
        self.grids = tuple(grids)
        self.sampling: Sampling = sampling
        self.value = nn.Linear(dim, dim)
        self.offsets = nn.Linear(dim, heads * levels * points * 2)
        self.weights = nn.Linear(dim, heads * levels * points)
        self.proj = nn.Linear(dim, dim)
        sides = torch.tensor([[width, height] for height, width in grids], dtype=torch.float32)
        self.sides = nn.Buffer(sides[:, None], persistent=False)  # (L, 1, 2)
        self._initialise(heads, levels)

    def forward(
        self, query: Tensor, reference: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:  # (B, Q, D), (B, Q, L, 2 or 4), (B, S, D) -> (B, Q, D)
        """``reference`` are points (x, y) or boxes (x, y of the middle, width, height), as shares
        of each level's map. ``mask`` (B, S) is True where a cell shows the picture; the others
        count as zero.
        """
        return self.forward_with_places(query, reference, value, mask)[0]

    def forward_with_places(
        self, query: Tensor, reference: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``forward``, with the locations (B, Q, h, L, P, 2) and the weights (B, Q, h, L, P)
        beside the output.
        """
        shape = (self.heads, len(self.grids), self.points)
        locations = self._locations(self.offsets(query).unflatten(-1, (*shape, 2)), reference)
        weights = self.weights(query).unflatten(-1, (self.heads, -1)).softmax(dim=-1)
        weights = weights.unflatten(-1, shape[1:])
        values = self.value(value)
        if mask is not None:
            values = values * mask[..., None].to(values.dtype)
        values = values.unflatten(-1, (self.heads, -1))
        attended = sample(values, locations, weights, self.grids, self.sampling)
        return self.proj(attended), locations, weights

    def _locations(self, offsets: Tensor, reference: Tensor) -> Tensor:
        """Offsets count cells from a reference point, or half widths and heights of a reference
        box, the latter divided by the number of points (arXiv 2010.04159, appendix).
        """
        reference = reference.float()[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
        if reference.shape[-1] == 2:
            return reference + offsets.float() / self.sides
        return reference[..., :2] + offsets.float() * reference[..., 2:] * (0.5 / self.points)

    def _initialise(self, heads: int, levels: int) -> None:
        """Point p of a head starts p cells off in the head's own direction (appendix); all
        places weigh the same.
        """
        angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = directions[:, None, None] * steps[:, None]  # (h, 1, P, 2)
        with torch.no_grad():
            self.offsets.bias.copy_(bias.expand(-1, levels, -1, -1).flatten())
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.weights.bias)
        for layer in (self.value, self.proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


def splat(locations: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Weights spread bilinearly over the four cells around their places: (..., height * width).

    ``locations`` (..., N, 2) are x and y as shares of the grid, ``weights`` (..., N). What lies
    beyond the grid is lost, as it is when values are read there.
    """
    across = _hats(locations[..., 0], grid[1])  # (..., N, width)
    down = _hats(locations[..., 1], grid[0]) * weights.float()[..., None]
    return (down.transpose(-2, -1) @ across).flatten(-2)


def _hats(shares: Tensor, cells: int) -> Tensor:  # (..., N) -> (..., N, cells)
    """Linear interpolation weights of every cell along one axis."""
    middles = torch.arange(cells, dtype=torch.float32, device=shares.device) + 0.5
    return (1 - (shares.float()[..., None] * cells - middles).abs()).relu()


def _sample_by_grid_sample(
    values: Tensor, locations: Tensor, weights: Tensor, grids: Grids
) -> Tensor:
    queries = 2 * locations.permute(3, 0, 2, 1, 4, 5).flatten(1, 2) - 1  # (L, B*h, Q, P, 2)
    shares = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)[:, :, None]  # (L, B*h, 1, Q, P)
    levels = values.split([height * width for height, width in grids], dim=1)
    sums = []
    for level, grid in enumerate(grids):
        picture = levels[level].permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, grid)
        read = F.grid_sample(  # (B*h, d, Q, P)
            picture.float(), queries[level], mode="bilinear", align_corners=False
        )
        sums.append((read.to(values.dtype) * shares[level]).sum(dim=-1))
    total = torch.stack(sums).sum(dim=0)  # (B*h, d, Q)
    return total.unflatten(0, (-1, values.shape[2])).permute(0, 3, 1, 2).flatten(2)


def _sample_by_gather(values: Tensor, locations: Tensor, weights: Tensor, grids: Grids) -> Tensor:
    """Every cell of every picture, head and level is a row of one table, so that a plain Gather
    reads them.
    """
    batch, cells, heads, _ = values.shape
    table = values.transpose(1, 2).flatten(0, 2)  # (B*h*S, d)
    whole, device = torch.int32, values.device  # int64 would be slower on a GPU
    sides = torch.tensor([[w, h] for h, w in grids], dtype=torch.float32, device=device)
    sides = sides[:, None]
    first = torch.tensor(_starts(grids), dtype=whole, device=device)[:, None]  # (L, 1)
    pictures = torch.arange(batch, dtype=whole, device=device)[:, None, None, None, None]
    head = torch.arange(heads, dtype=whole, device=device)[:, None, None]
    first = first + (pictures * heads + head) * cells  # (B, 1, h, L, 1)

    places = locations * sides - 0.5
    corner = places.floor()
    beyond = places - corner
    total: Tensor | None = None
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):  # down, across
        x, y = corner[..., 0] + step[1], corner[..., 1] + step[0]
        last = sides - 1
        inside = (x >= 0) & (x <= last[..., 0]) & (y >= 0) & (y <= last[..., 1])
        share = (beyond[..., 0] if step[1] else 1 - beyond[..., 0]) * (
            beyond[..., 1] if step[0] else 1 - beyond[..., 1]
        )
        share = (share * inside).to(values.dtype) * weights
        column = x.clamp(min=0).minimum(last[..., 0]).int()
        row = y.clamp(min=0).minimum(last[..., 1]).int()
        index = first + row * sides[..., 0].int() + column  # (B, Q, h, L, P)
        read = table.index_select(0, index.flatten()).unflatten(0, (-1, *index.shape[1:]))
        term = (read * share[..., None]).flatten(3, 4).sum(dim=3)  # (B, Q, h, d)
        total = term if total is None else total + term
    assert total is not None
    return total.flatten(2)


def _sample_by_plugin(values: Tensor, locations: Tensor, weights: Tensor, grids: Grids) -> Tensor:
    """In fp32 throughout: the plugin's half precision would round the coordinates, too."""
    sides = torch.tensor(grids, dtype=torch.int32, device=values.device)
    starts = torch.tensor(_starts(grids), dtype=torch.int32, device=values.device)
    read: Tensor = fused_sample(values.float(), sides, starts, locations, weights.float())
    return read.flatten(2).to(values.dtype)


def _starts(grids: Grids) -> list[int]:
    """The first cell of each map."""
    return [sum(h * w for h, w in grids[:level]) for level in range(len(grids))]
