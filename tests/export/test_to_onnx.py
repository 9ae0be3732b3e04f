"""The graphs of a bundle: equal to transformers, clean, sharing weights, blind to the batch."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from PIL import Image

from export.heads import Entry, Explain
from export.pictures import generate
from export.to_onnx import WEIGHTS, save, signature, trace
from models.vit import ViT, ViTConfig
from service.bundle import Bundle, GraphKind
from service.geometry import Size, place, to_canvas
from service.worker.runtimes.base import Arrays, Runtime
from service.worker.runtimes.choose import FASTEST_FIRST, Choice, open_runtime, supports

FP32 = [choice for choice in FASTEST_FIRST if choice.precision == "fp32"]
HERE = [choice for choice in FASTEST_FIRST if supports(choice) is None]


@pytest.fixture(scope="session")
def photo(request: pytest.FixtureRequest) -> Image.Image:
    folder: Path = request.getfixturevalue("shared_data")
    with Image.open(folder / "coco_photos" / "000000000071.jpg") as image:
        return image.convert("RGB")


def run(bundle: Bundle, choice: Choice, image: Image.Image, query: int | None = None) -> Arrays:
    geometry = bundle.manifest.geometry
    size = Size(height=image.height, width=image.width)
    canvas = bundle.manifest.canvases[0]
    inputs: Arrays = {"images": to_canvas(image, place(geometry, size, canvas))[None]}
    if query is not None:
        inputs["query"] = np.array([query])
    kind: GraphKind = "serve" if query is None else "explain"
    return open_runtime(bundle, kind, canvas, choice).run(inputs)


@pytest.mark.parametrize("choice", FP32, ids=str)
@pytest.mark.parametrize("name", ["vit", "deit"])
def test_a_photograph_gets_the_logits_of_transformers(
    bundles: dict[str, Bundle],
    references: dict[str, Any],
    photo: Image.Image,
    name: str,
    choice: Choice,
) -> None:
    expected = references[name].run(photo)["logits"]
    found = run(bundles[name], choice, photo)
    assert np.std(expected) > 0.1  # lively enough that the comparison says something
    np.testing.assert_allclose(found["logits"], expected, atol=1e-4)
    scores = torch.from_numpy(expected).softmax(-1).numpy()
    np.testing.assert_allclose(found["scores"], scores, atol=1e-5)


@pytest.mark.parametrize("choice", FP32, ids=str)
def test_a_photograph_gets_the_embedding_of_transformers(
    bundles: dict[str, Bundle], references: dict[str, Any], photo: Image.Image, choice: Choice
) -> None:
    expected = references["dinov2"].run(photo)["embedding"]
    found = run(bundles["dinov2"], choice, photo)
    assert set(found) == {"embedding", "attention"}
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-4)


@pytest.mark.parametrize("choice", FP32, ids=str)
@pytest.mark.parametrize(("name", "prefix"), [("vit", 1), ("deit", 2)])
def test_attention_maps_are_the_rows_of_transformers(
    bundles: dict[str, Bundle],
    references: dict[str, Any],
    photo: Image.Image,
    name: str,
    prefix: int,
    choice: Choice,
) -> None:
    expected = references[name].run(photo)["attention"]  # (1, L, h, N, N)
    token = prefix + 3
    found = run(bundles[name], choice, photo, query=token)
    served = run(bundles[name], choice, photo)["attention"]
    np.testing.assert_allclose(found["attention"], expected[:, :, :, token, prefix:], atol=1e-5)
    np.testing.assert_allclose(served, expected[:, -1, :, 0, prefix:], atol=1e-5)
    rollout = np.eye(expected.shape[-1])
    for layer in expected[0]:
        rollout = (layer.mean(axis=0) + np.eye(len(rollout))) / 2 @ rollout
    np.testing.assert_allclose(found["rollout"][0], rollout[token, prefix:], atol=1e-5)


@pytest.mark.parametrize("choice", HERE, ids=str)
@pytest.mark.parametrize("kind", ["serve", "explain"])
def test_a_picture_gets_the_same_answer_in_every_batch(
    bundles: dict[str, Bundle], kind: GraphKind, choice: Choice
) -> None:
    bundle = bundles["vit"]
    canvas = bundle.manifest.canvases[1]
    assert (canvas.height, canvas.width) == (64, 96)
    runtime = open_runtime(bundle, kind, canvas, choice)
    pictures = generate(((90, 120),) * 8)
    inputs: Arrays = {
        "images": np.stack([np.array(picture.resize((96, 64))) for picture in pictures])
    }
    if kind == "explain":
        inputs["query"] = np.arange(8)
    alone = _rows(runtime, inputs, 1)
    for batch in (3, 8):
        together = _rows(runtime, inputs, batch)
        for name, rows in alone.items():
            np.testing.assert_allclose(together[name], rows, atol=1e-6, rtol=1e-5)


def _rows(runtime: Runtime, inputs: Arrays, batch: int) -> Arrays:
    runs = [
        runtime.run({name: array[start : start + batch] for name, array in inputs.items()})
        for start in range(0, 8, batch)
    ]
    return {name: np.concatenate([one[name] for one in runs]) for name in runs[0]}


def test_all_graphs_share_one_copy_of_the_weights(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["vit"]
    sizes = {name: file.size_bytes for name, file in bundle.manifest.files.items()}
    assert set(sizes) == {
        "model.onnx",
        "explain.onnx",
        "model-64x96.onnx",
        "explain-64x96.onnx",
        WEIGHTS,
    }
    # Beside the parameters: the second canvas's positions, and the last block's q and k once more.
    parameters = bundle.manifest.parameters * 4
    assert sizes[WEIGHTS] < 1.15 * parameters
    assert sum(sizes.values()) - sizes[WEIGHTS] < 120_000


def test_graphs_are_clean(bundles: dict[str, Bundle]) -> None:
    for graph in bundles["vit"].manifest.graphs:
        path = bundles["vit"].path(graph)
        model = onnx.load(path, load_external_data=False)
        operators = Counter(node.op_type for node in model.graph.node)
        assert not {"IsNaN", "Where", "Identity", "If", "Loop"} & operators.keys()
        assert operators["LayerNormalization"] == 5 - (graph.kind == "explain") * 2
        assert operators["Erf"] == 2 - (graph.kind == "explain")  # Gelu, by its definition
        for tensor in [*model.graph.input, *model.graph.output]:
            assert tensor.type.tensor_type.shape.dim[0].dim_param == "batch"
        assert b".py" not in path.read_bytes()
        assert str(Path.cwd()).encode() not in path.read_bytes()


def test_tracing_twice_gives_the_same_bytes_and_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config = ViTConfig((32, 32), patch_size=16, dim=32, depth=1, heads=2, mlp_dim=64, classes=3)
    head = Explain(Entry(1 / 255, (0.5,) * 3, (0.5,) * 3), ViT(config).eval())
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    digests = []
    for _ in range(2):
        traced = trace(head, {"images": images, "query": torch.zeros(2, dtype=torch.int64)})
        assert [tensor.shape for tensor in signature(traced)["outputs"]] == [[-1, 1, 2, 4], [-1, 4]]
        save({"explain.onnx": traced}, tmp_path)
        names = ("explain.onnx", WEIGHTS)
        digests.append([hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in names])
    assert digests[0] == digests[1]
    assert capfd.readouterr() == ("", "")


def test_weights_are_shared_with_the_file_that_stays_and_with_no_other(tmp_path: Path) -> None:
    class Product(torch.nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(weight)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": x @ self.weight}

    def traced(weight: torch.Tensor) -> ir.Model:
        return trace(Product(weight), {"x": torch.zeros(2, 16)})

    def places(file: str) -> set[str]:
        made = onnx.load(tmp_path / file, load_external_data=False)
        return {
            entry.value
            for tensor in made.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }

    weight, other = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    save({"model.onnx": traced(weight)}, tmp_path)
    save({"fp8.onnx": traced(weight), "fp8-2.onnx": traced(other)}, tmp_path, "weights-fp8.bin")
    for order in (
        ("model.onnx", "fp8.onnx", "fp8-2.onnx"),
        ("fp8-2.onnx", "fp8.onnx", "model.onnx"),
    ):
        beside = [ir.load(tmp_path / file) for file in order]
        made = {"int8.onnx": traced(weight), "int8-2.onnx": traced(other)}
        save(made, tmp_path, "weights-int8.bin", beside)
        assert places("int8.onnx") == {WEIGHTS}
        assert places("int8-2.onnx") == {"weights-int8.bin"}
