"""The Swin definitions against formulas computed apart from them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.to_onnx import save, trace
from models.swin import Swin, SwinClassifier, SwinConfig, grids
from models.swinv2 import ContinuousBias, SwinV2Classifier, SwinV2Config
from models.windows import SHIFT_MASK, RelativeBias, WindowAttention, Windows

DIMENSIONS: dict[str, Any] = {"dim": 8, "depths": (2, 2, 2, 1), "heads": (1, 2, 2, 4), "classes": 5}
CONFIG = SwinConfig((56, 84), window=4, **DIMENSIONS)
CONFIG_V2 = SwinV2Config((64, 88), window=4, trained_windows=(4, 4, 3, 2), **DIMENSIONS)
KINDS = ("first", "second")

LAYOUTS = [  # grid, side, shift
    ((8, 12), 4, 0),
    ((8, 12), 4, 2),
    ((7, 10), 4, 2),
    ((14, 3), 7, 3),
    ((5, 5), 5, 0),
    ((3, 9), 3, 1),
]


def lively(model: nn.Module) -> Any:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = offset + 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def classifier(kind: str) -> Any:
    return lively(SwinClassifier(CONFIG) if kind == "first" else SwinV2Classifier(CONFIG_V2))


def pictures(batch: int, canvas: tuple[int, int] = CONFIG.canvas) -> Tensor:
    return torch.randn(batch, 3, *canvas, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("grid", "side", "shift"), LAYOUTS)
def test_unpartition_undoes_partition(grid: tuple[int, int], side: int, shift: int) -> None:
    windows = Windows(grid, side, shift)
    x = torch.randn(3, grid[0] * grid[1], 2, generator=torch.Generator().manual_seed(0))
    cut = windows.partition(x)
    assert cut.shape == (3, windows.count, side**2, 2)
    assert torch.equal(windows.unpartition(cut), x)


@pytest.mark.parametrize(("grid", "side", "shift"), LAYOUTS)
def test_partition_pads_rolls_and_cuts(grid: tuple[int, int], side: int, shift: int) -> None:
    windows = Windows(grid, side, shift)
    x = np.random.default_rng(0).normal(size=(2, *grid, 3)).astype(np.float32)
    padded = np.pad(x, [(0, 0), *((0, -length % side) for length in grid), (0, 0)])
    rolled = np.roll(padded, (-shift, -shift), axis=(1, 2))
    expected = [
        rolled[:, top : top + side, left : left + side].reshape(2, side * side, 3)
        for top in range(0, padded.shape[1], side)
        for left in range(0, padded.shape[2], side)
    ]
    found = windows.partition(torch.from_numpy(x).flatten(1, 2))
    np.testing.assert_array_equal(found.numpy(), np.stack(expected, axis=1))


@pytest.mark.parametrize(("grid", "side", "shift"), LAYOUTS)
def test_mask_parts_what_the_roll_brought_together(
    grid: tuple[int, int], side: int, shift: int
) -> None:
    mask = Windows(grid, side, shift).mask
    if not shift:
        assert mask is None
        return
    height, width = (-(-length // side) * side for length in grid)
    apart = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            rolled_over = [
                np.arange(start, start + side) + shift >= length
                for start, length in ((top, height), (left, width))
            ]
            over = np.stack(np.meshgrid(*rolled_over, indexing="ij"), -1).reshape(-1, 2)
            apart.append((over[:, None] != over[None]).any(axis=-1))
    assert mask is not None
    np.testing.assert_array_equal(mask.numpy(), np.where(np.stack(apart), SHIFT_MASK, 0))


def test_windows_of_small_maps_shrink_or_are_padded_as_the_config_says() -> None:
    assert [CONFIG.windows_of(stage) for stage in range(4)] == [(4, 2), (4, 2), (4, 0), (2, 0)]
    padding = dataclasses.replace(CONFIG, always_pad=True)
    assert [padding.windows_of(stage) for stage in range(4)] == [(4, 2)] * 4
    assert grids(CONFIG) == [(14, 21), (7, 11), (4, 6), (2, 3)]


def test_second_version_keeps_the_windows_that_it_was_fitted_with() -> None:
    config = SwinV2Config((256, 320), window=16)
    assert [config.windows_of(stage) for stage in range(4)] == [(16, 8), (16, 8), (16, 0), (8, 0)]
    larger = dataclasses.replace(config, canvas=(512, 512), fitted=(256, 256))
    assert [larger.windows_of(stage) for stage in range(4)] == [(16, 8), (16, 8), (16, 0), (8, 0)]


def test_relative_bias_depends_on_the_offset_alone() -> None:
    bias = RelativeBias(heads=2, side=3, table_side=4)
    bias.table.data = torch.arange(49 * 2, dtype=torch.float32).view(49, 2)
    found = bias().detach().numpy()
    for query in range(9):
        for key in range(9):
            down, across = query // 3 - key // 3, query % 3 - key % 3
            row = (down + 3) * 7 + across + 3
            np.testing.assert_array_equal(found[:, query, key], [2 * row, 2 * row + 1])


def test_continuous_bias_is_the_network_of_the_logarithm_of_the_offset() -> None:
    bias = lively(ContinuousBias(heads=2, side=3, trained_side=5))
    found = bias().detach().numpy()
    weights = {name: value.detach().double().numpy() for name, value in bias.named_parameters()}
    for query in range(9):
        for key in range(9):
            offset = np.array([query // 3 - key // 3, query % 3 - key % 3]) * 8 / 4
            log = np.sign(offset) * np.log2(1 + np.abs(offset)) / np.log2(8)
            hidden = np.maximum(weights["fc1.weight"] @ log + weights["fc1.bias"], 0)
            expected = 16 / (1 + np.exp(-weights["fc2.weight"] @ hidden))
            np.testing.assert_allclose(found[:, query, key], expected, rtol=1e-5)


def test_cosine_scale_is_at_most_one_hundred() -> None:
    model = classifier("second")
    attention = model.trunk.stages[0][1].attn
    attention.log_scale.data.fill_(9.0)
    q = torch.randn(2, attention.groups, 16, 8)
    scores = attention.similarity(q, q * 3)
    torch.testing.assert_close(scores.diagonal(dim1=-2, dim2=-1), torch.full((2, 24, 16), 100.0))
    assert scores.max() <= 100.001


@pytest.mark.parametrize("kind", KINDS)
def test_merged_bias_and_mask_are_added_as_the_two_apart(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = classifier(kind)
    monkeypatch.setattr("models.windows.MERGED_WINDOWS", 0)
    apart = classifier(kind)
    attentions = [
        [m.merged for m in model.modules() if isinstance(m, WindowAttention)]
        for model in (together, apart)
    ]
    assert attentions[0][:4] == [False, True, False, True]
    assert not any(attentions[1])
    images = pictures(2, together.config.canvas)
    with torch.no_grad():
        merged, added = together(images)["logits"], apart(images)["logits"]
    torch.testing.assert_close(merged, added, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_answer_does_not_depend_on_the_rest_of_the_batch(kind: str) -> None:
    model = classifier(kind)
    images = pictures(3, model.config.canvas)
    with torch.no_grad():
        together = model(images)
        for index in range(3):
            for name, tensor in model(images[index : index + 1]).items():
                torch.testing.assert_close(
                    tensor[0], together[name][index], rtol=1e-4, atol=1e-4, msg=name
                )


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_can_be_learned(kind: str) -> None:
    model = classifier(kind).train()
    model(pictures(2, model.config.canvas))["logits"].square().sum().backward()
    still = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum()
    ]
    assert still == []


def test_classifier_outputs_have_the_stated_shapes_and_backbones_one_map_per_stage() -> None:
    with torch.no_grad():
        named = classifier("first")(pictures(2))
        maps = lively(Swin(dataclasses.replace(CONFIG, classes=0)))(pictures(2))
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    assert shapes == {"features": (2, 64, 2, 3), "embedding": (2, 64), "logits": (2, 5)}
    torch.testing.assert_close(named["features"].mean(dim=(2, 3)), named["embedding"])
    assert [tuple(map.shape) for map in maps] == [
        (2, 8, 14, 21),
        (2, 16, 7, 11),
        (2, 32, 4, 6),
        (2, 64, 2, 3),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_class_activation_map_has_the_logit_as_its_mean(kind: str) -> None:
    model = classifier(kind)
    images = pictures(3, model.config.canvas)
    query, place = torch.tensor([2, -1, 0]), torch.full((3, 2), 0.5)
    with torch.no_grad():
        named, cam = model(images), model.explain(images, query, place)["cam"]
    logits = named["logits"]
    expected = torch.stack([logits[0, 2], logits[1].max(), logits[2, 0]])
    torch.testing.assert_close(cam.mean(dim=(1, 2)), expected, rtol=1e-4, atol=1e-4)
    by_place = torch.einsum("bdhw,d->bhw", named["features"], model.head.weight[2])
    torch.testing.assert_close(cam[0], by_place[0] + model.head.bias[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_explained_rows_are_the_windows_of_the_place_stitched_to_the_map(kind: str) -> None:
    model = classifier(kind)
    images = pictures(3, model.config.canvas)
    place = torch.tensor([[0.0, 0.0], [0.6, 0.7], [1.0, 1.0]])
    kept: list[tuple[Tensor, Any]] = []
    handles = [
        module.register_forward_hook(
            lambda module, inputs, _: kept.append(
                (module.forward_with_weights(inputs[0])[1], module.windows)
            )
        )
        for module in model.modules()
        if isinstance(module, WindowAttention)
    ]
    with torch.no_grad():
        model(images)
        for handle in handles:
            handle.remove()
        found = model.explain(images, torch.zeros(3, dtype=torch.int64), place)
    assert len(kept) == 7
    for index, (weights, windows) in enumerate(kept):
        height, width = windows.grid
        stride = 4 * 2 ** (0, 0, 1, 1, 2, 2, 3)[index]
        expected = np.zeros((3, weights.shape[2], height, width), np.float32)
        for picture, share in enumerate(place.tolist()):
            row = min(int(share[0] * model.config.canvas[0] / stride), height - 1)
            column = min(int(share[1] * model.config.canvas[1] / stride), width - 1)
            scatter(expected[picture], weights[picture].numpy(), windows, row, column)
        np.testing.assert_allclose(
            found[f"attention.{index}"].unflatten(2, windows.grid).numpy(), expected, atol=1e-6
        )
        everyone = np.zeros((weights.shape[2], height, width), np.float32)
        for row, column in np.ndindex(height, width):
            one = np.zeros_like(everyone)
            scatter(one, weights[0].numpy(), windows, row, column)
            everyone += one / (height * width)
        np.testing.assert_allclose(
            found[f"pooled.{index}"][0].unflatten(1, windows.grid).numpy(), everyone, atol=1e-6
        )


def scatter(into: np.ndarray, weights: np.ndarray, windows: Windows, row: int, column: int) -> None:
    """Write the attention of the token at (row, column) to where its window's tokens lie."""
    side, shift = windows.side, windows.shift
    down, across = (-(-length // side) for length in windows.grid)
    y, x = (row - shift) % (down * side), (column - shift) % (across * side)
    window = y // side * across + x // side
    seen = weights[window, :, y % side * side + x % side]
    for key in range(side * side):
        key_y = (y // side * side + key // side + shift) % (down * side)
        key_x = (x // side * side + key % side + shift) % (across * side)
        if key_y < windows.grid[0] and key_x < windows.grid[1]:
            into[:, key_y, key_x] = seen[:, key]


class Explain(nn.Module):
    """``explain`` as the exporter wants it, the forward pass of a module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, query: Tensor, place: Tensor) -> dict[str, Tensor]:
        named: dict[str, Tensor] = self.model.explain(images, query, place)
        return named


@pytest.mark.parametrize("graph", ["serve", "explain"])
@pytest.mark.parametrize("kind", KINDS)
def test_exported_graph_gives_the_same_numbers_for_any_batch(
    kind: str, graph: str, tmp_path: Path
) -> None:
    model = classifier(kind)
    head = Explain(model) if graph == "explain" else model

    def inputs(batch: int) -> dict[str, Tensor]:
        chosen = {
            "query": torch.arange(batch) - 1,
            "place": torch.rand(batch, 2, generator=torch.Generator().manual_seed(batch)),
        }
        images = pictures(batch, model.config.canvas)
        return {"images": images} | (chosen if graph == "explain" else {})

    save({"model.onnx": trace(head, inputs(2))}, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 3):
        with torch.no_grad():
            expected = head(**inputs(batch))
        given = {name: tensor.numpy() for name, tensor in inputs(batch).items()}
        found = session.run(list(expected), given)
        for name, tensor in zip(expected, found, strict=True):
            scale = expected[name].abs().max().item()
            np.testing.assert_allclose(tensor, expected[name].numpy(), atol=1e-4 * scale)
