"""Deformable attention against loops over its definition, and as runtimes compute it."""

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn

from export.to_onnx import trace
from models.deformable import DeformableAttention, Sampling, sample, splat

GRIDS = ((5, 7), (3, 4), (1, 2))
CELLS = 5 * 7 + 3 * 4 + 1 * 2
FORMS: tuple[Sampling, ...] = ("grid_sample", "gather")
HEADS, POINTS, QUERIES, DIM = 3, 4, 6, 12


def drawn(*shape: int, seed: int = 0) -> Tensor:
    torch.set_num_threads(1)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def places(batch: int) -> Tensor:
    """Within the maps, beyond every edge, on edges and corners, and in the middles of cells."""
    shape = (batch, QUERIES, HEADS, len(GRIDS), POINTS, 2)
    locations = 0.5 + 0.6 * drawn(*shape, seed=1)
    for query, (x, y) in enumerate([(0.0, 0.0), (1.0, 1.0), (0.5, 0.0), (3.5 / 7, 2.5 / 5)]):
        locations[:, query, :, :, 0] = torch.tensor([x, y])
    locations[:, :, :, :, 1] *= 1000
    assert ((locations[:, :, :, :, 2:] > 0) & (locations[:, :, :, :, 2:] < 1)).any()
    return locations


def inputs(batch: int) -> dict[str, Tensor]:
    weights = drawn(batch, QUERIES, HEADS, len(GRIDS), POINTS, seed=2).abs()
    values = drawn(batch, CELLS, HEADS, DIM // HEADS, seed=3)
    return {"values": values, "locations": places(batch), "weights": weights}


def naive_read(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """``picture`` (h, w, d) between the middles of cells; zero where a neighbour is beyond it."""
    height, width = picture.shape[:2]
    column, row = x * width - 0.5, y * height - 0.5
    read = np.zeros(picture.shape[2])
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                read += (1 - abs(row - i)) * (1 - abs(column - j)) * picture[i, j]
    return read


def naive_sample(values: Tensor, locations: Tensor, weights: Tensor) -> np.ndarray:
    sums = np.zeros((*locations.shape[:3], values.shape[3]))
    for picture, query, head, level, point in np.ndindex(*locations.shape[:5]):
        first = sum(h * w for h, w in GRIDS[:level])
        height, width = GRIDS[level]
        cells = values[picture, first : first + height * width, head].double().numpy()
        x, y = locations[picture, query, head, level, point].double().tolist()
        read = naive_read(cells.reshape(height, width, -1), x, y)
        sums[picture, query, head] += weights[picture, query, head, level, point].item() * read
    return sums.reshape(*locations.shape[:2], -1)


class Sampler(nn.Module):
    """The sampling alone, as a graph."""

    def __init__(self, form: Sampling) -> None:
        super().__init__()
        self.form = form

    def forward(self, values: Tensor, locations: Tensor, weights: Tensor) -> dict[str, Tensor]:
        return {"sums": sample(values, locations, weights, GRIDS, self.form)}


def lively(levels: int = 3, sampling: Sampling = "grid_sample") -> DeformableAttention:
    torch.set_num_threads(1)
    module = DeformableAttention(DIM, HEADS, levels, POINTS, GRIDS[:levels], sampling)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=seed)
    return module.eval()


@pytest.mark.parametrize("form", FORMS)
def test_sums_are_those_of_a_loop_over_the_definition(form: Sampling) -> None:
    named = inputs(2)
    found = sample(**named, grids=GRIDS, form=form).numpy()
    np.testing.assert_allclose(found, naive_sample(**named), rtol=1e-5, atol=2e-5)


def test_both_forms_have_the_same_gradients() -> None:
    gradients = []
    for form in FORMS:
        named = {name: tensor.clone().requires_grad_() for name, tensor in inputs(2).items()}
        with torch.no_grad():  # far from cell middles and edges, where the slope has a step
            named["locations"].copy_(0.031 + 0.9 * drawn(2, 6, 3, 3, 4, 2, seed=7).sigmoid())
        sample(**named, grids=GRIDS, form=form).square().sum().backward()
        gradients.append([tensor.grad for tensor in named.values()])
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_values_leave_the_places_alone(form: Sampling) -> None:
    ramp = torch.arange(168.0).view(1, 168, 1, 1)
    locations = torch.full((1, 1, 1, 1, 1, 2), 0.5)
    locations[..., 0] = (150.28 + 0.5) / 168
    values, weights = ramp.bfloat16(), torch.ones(1, 1, 1, 1, 1).bfloat16()
    read = sample(values, locations, weights, [(1, 168)], form)
    assert read.dtype == torch.bfloat16
    assert read.item() == pytest.approx(150.28, abs=1.0)  # bf16 counts by ones there
    # With coordinates in bf16 the place would be 150 or 151, or a whole cell off.
    sharp = torch.zeros(1, 168, 1, 1).bfloat16()
    sharp[:, 150] = 1
    assert sample(sharp, locations, weights, [(1, 168)], form).item() == pytest.approx(
        0.72, abs=0.004
    )


@pytest.mark.parametrize("form", FORMS)
def test_module_is_equation_3_with_points(form: Sampling) -> None:
    module, query, cells = lively(sampling=form), drawn(2, QUERIES, DIM), drawn(2, CELLS, DIM)
    reference = drawn(2, QUERIES, 3, 2, seed=5).sigmoid()
    with torch.no_grad():
        found, locations, weights = module.forward_with_places(query, reference, cells)
        values = module.value(cells).unflatten(-1, (HEADS, -1))
        offsets = module.offsets(query).view(2, QUERIES, HEADS, 3, POINTS, 2)
        scores = module.weights(query).view(2, QUERIES, HEADS, 3 * POINTS)
    for level, (height, width) in enumerate(GRIDS):
        moved = offsets[:, :, :, level] / torch.tensor([width, height])
        expected = reference[:, :, None, level, None] + moved
        torch.testing.assert_close(locations[:, :, :, level], expected)
    torch.testing.assert_close(weights.flatten(3), scores.softmax(-1))
    sums = torch.from_numpy(naive_sample(values, locations, weights)).float()
    with torch.no_grad():
        torch.testing.assert_close(found, module.proj(sums), rtol=1e-4, atol=1e-4)
        assert torch.equal(module(query, reference, cells), found)


def test_offsets_from_a_box_count_half_its_sides_by_the_number_of_points() -> None:
    module, query, cells = lively(), drawn(1, QUERIES, DIM), drawn(1, CELLS, DIM)
    boxes = drawn(1, QUERIES, 3, 4, seed=5).sigmoid()
    with torch.no_grad():
        _, locations, _ = module.forward_with_places(query, boxes, cells)
        offsets = module.offsets(query).view(1, QUERIES, HEADS, 3, POINTS, 2)
    moved = offsets / POINTS * boxes[:, :, None, :, None, 2:] / 2
    torch.testing.assert_close(locations, boxes[:, :, None, :, None, :2] + moved)


def test_masked_cells_count_as_zero() -> None:
    module, query, cells = lively(), drawn(1, QUERIES, DIM), drawn(1, CELLS, DIM)
    reference, mask = drawn(1, QUERIES, 3, 2).sigmoid(), torch.rand(1, CELLS) < 0.5
    garbage = torch.where(mask[..., None], cells, 100.0)
    with torch.no_grad():
        found = module(query, reference, garbage, mask)
        torch.testing.assert_close(found, module(query, reference, cells, mask))
        assert not torch.allclose(found, module(query, reference, cells))


def test_training_starts_from_eight_directions_and_equal_weights() -> None:
    module = DeformableAttention(16, 8, 2, 3, GRIDS[:2])
    query, cells = drawn(1, 2, 16), drawn(1, 47, 16)
    reference = torch.full((1, 2, 2, 2), 0.5)
    with torch.no_grad():
        _, locations, weights = module.forward_with_places(query, reference, cells)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 6))
    offsets = (locations - 0.5) * module.sides
    eight = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(eight):
        for point in range(3):
            expected = torch.tensor(direction) * (point + 1.0)
            for found in offsets[0, :, head, :, point].flatten(0, 1):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_grids_must_be_as_many_as_levels() -> None:
    with pytest.raises(ValueError, match="2 grids were given for 3 levels"):
        DeformableAttention(DIM, HEADS, 3, POINTS, GRIDS[:2])


def test_splat_spreads_each_weight_over_the_four_cells_around_its_place() -> None:
    grid = (4, 6)
    locations = 0.5 + 0.5 * drawn(2, 3, 9, 2, seed=4)
    weights = drawn(2, 3, 9, seed=5).abs()
    expected = np.zeros((2, 3, *grid))
    for i, j, n in np.ndindex(2, 3, 9):
        column, row = (locations[i, j, n].double() * torch.tensor([6, 4]) - 0.5).tolist()
        for y, x in np.ndindex(*grid):
            near = max(0, 1 - abs(row - y)) * max(0, 1 - abs(column - x))
            expected[i, j, y, x] += weights[i, j, n].item() * near
    found = splat(locations, weights, grid).unflatten(-1, grid).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert 0 < found.sum() < weights.sum().item()  # some places are beyond the grid


def test_splat_weighs_cells_as_sampling_reads_them() -> None:
    locations, weights = places(1)[:, :, :, :1], drawn(1, QUERIES, HEADS, 1, POINTS).abs()
    values = drawn(1, 35, HEADS, 1, seed=9)
    read = sample(values, locations, weights, GRIDS[:1], "gather")  # (1, Q, h)
    spread = splat(locations.flatten(3, 4), weights.flatten(3), GRIDS[0])  # (1, Q, h, 35)
    expected = torch.einsum("bqhs,bsh->bqh", spread, values[..., 0])
    torch.testing.assert_close(read, expected, rtol=1e-4, atol=1e-5)


def exported(form: Sampling, folder: Path) -> tuple[ir.Model, Path]:
    model = trace(Sampler(form), inputs(2))
    ir.save(model, folder / "sampler.onnx")
    return model, folder / "sampler.onnx"


def test_exported_grid_sample_is_bilinear_in_the_words_of_opset_18(tmp_path: Path) -> None:
    model, _ = exported("grid_sample", tmp_path)
    assert model.opset_imports[""] == 18
    nodes = [node for node in model.graph if node.op_type == "GridSample"]
    assert len(nodes) == len(GRIDS)
    for node in nodes:
        assert node.attributes["mode"].as_string() == "bilinear"
        assert node.attributes["padding_mode"].as_string() == "zeros"
        assert node.attributes["align_corners"].as_int() == 0


def test_exported_gather_form_has_no_grid_sample_and_plain_gathers(tmp_path: Path) -> None:
    model, _ = exported("gather", tmp_path)
    types = [node.op_type for node in model.graph]
    assert "GridSample" not in types
    assert "NonZero" not in types
    wide = [node.inputs for node in model.graph if node.op_type == "Gather"]
    indices = [value for _, value in wide if value is not None and not value.is_initializer()]
    assert [value.dtype for value in indices] == [ir.DataType.INT64] * 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_sample_as_torch_does(form: Sampling, runtime: str, tmp_path: Path) -> None:
    _, path = exported(form, tmp_path)
    for batch in (1, 3):
        named = inputs(batch)
        expected = sample(**named, grids=GRIDS, form=form).numpy()
        arrays = {name: tensor.numpy() for name, tensor in named.items()}
        if runtime == "onnxruntime":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            found = session.run(["sums"], arrays)[0]
        else:
            hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
            compiled = openvino.Core().compile_model(path, "CPU", hints)
            found = compiled(arrays)["sums"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
