"""int8 graphs: which layers, what a bundle says of them, what is refused, and who serves them."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from export import quantize
from export.demo.pool import scene
from export.quantize import add_int8, without_int8
from export.to_int8 import robust_layers
from service import parity
from service.bundle import MANIFEST, Bundle, load_bundle
from service.cli import app
from service.errors import BadBundle, BadSettings, StartError
from service.settings import DEMO_REPOSITORY, load_settings
from service.worker.models import Models
from service.worker.runtimes import choose
from service.worker.runtimes.choose import ON_REQUEST, Choice, candidates, supports
from service.worker.scheduler import Group

HERE = [choice for choice in ON_REQUEST if supports(choice) is None]
pytestmark = pytest.mark.skipif(not HERE, reason="this CPU cannot prove int8")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of the kind that the demo models know."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(40):
        (folder / f"{number:02}.jpg").write_bytes(scene("validation", number)[1])
    return folder


def copy_of_demo(folder: Path, name: str = "vit-scenes") -> Bundle:
    source = next((DEMO_REPOSITORY / name).iterdir())
    return load_bundle(shutil.copytree(source, folder / name / source.name))


@pytest.fixture(scope="module")
def quantized(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo classifier with its int8 graph."""
    return add_int8(copy_of_demo(tmp_path_factory.mktemp("repository")), scenes)


def test_the_manifest_states_how_int8_was_made_and_what_it_changes(quantized: Bundle) -> None:
    manifest = quantized.manifest
    quantized.verify()
    canvas = manifest.canvases[0]
    graph, fp32 = (manifest.graph("serve", canvas, kind) for kind in ("int8", "fp32"))
    assert graph is not None
    assert fp32 is not None
    assert (graph.file, graph.inputs, graph.outputs) == (
        "model-int8.onnx",
        fp32.inputs,
        fp32.outputs,
    )
    made = manifest.quantization
    assert made is not None
    assert (made.calibrated_on, made.pictures) == ("20 given pictures", "20 other given pictures")
    figures = [one for one in manifest.parity if one.precision == "int8"]
    assert [one.runtime for one in figures] == [choice.runtime for choice in HERE]
    for one in figures:
        assert one.images == 20
        assert one.top1_agreement is not None
        assert one.top1_agreement >= 0.99
        assert 1e-4 < one.max_error < 0.2
        assert made.same_class[one.runtime] >= 0.9
    assert without_int8(manifest) == load_bundle(_demo()).manifest


def _demo() -> Path:
    return next((DEMO_REPOSITORY / "vit-scenes").iterdir())


def test_weights_take_a_quarter_and_what_stays_fp32_is_shared(quantized: Bundle) -> None:
    files = quantized.manifest.files
    assert files["weights-int8.bin"].size_bytes < 0.3 * files["weights.bin"].size_bytes
    model = onnx.load(quantized.folder / "model-int8.onnx", load_external_data=False)
    places = {
        tensor.name: entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places["model.positions"] == "weights.bin"
    assert places["model.patch_embed.weight"] == "weights.bin"
    assert places["val_13_quantized"] == "weights-int8.bin"
    assert sorted(path.name for path in quantized.folder.iterdir()) == sorted([MANIFEST, *files])


def test_quantising_again_replaces_what_is_there(quantized: Bundle, scenes: Path) -> None:
    assert add_int8(quantized, scenes).manifest == quantized.manifest
    quantized.verify()


def test_int8_serves_where_it_is_asked_for_and_nowhere_else(quantized: Bundle) -> None:
    repository = quantized.folder.parents[1]
    assert all(choice.precision != "int8" for choice in candidates(quantized))
    assert candidates(quantized, precision="int8") == HERE
    for choice in HERE:
        wishes = {"repository": repository, "precision": "int8", "runtime": choice.runtime}
        models = Models(load_settings(wishes))
        models.load(lambda phase: None)
        assert models.describe()["vit-scenes"]["precision"] == "int8"
        canvas = quantized.manifest.canvases[0]
        pixels = np.zeros((canvas.height, canvas.width, 3), dtype=np.uint8)
        group = Group("vit-scenes", "serve", str(canvas))
        ran = models.run(group, [{"images": pixels}], [("scores",)])
        assert ran.precision == "int8"
        assert ran.outputs[0]["scores"].sum() == pytest.approx(1, abs=1e-4)


def test_a_bundle_without_int8_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="prove int8 graphs with: saccade models quantize"):
        candidates(copy_of_demo(tmp_path), precision="int8")


def test_what_does_not_pass_is_refused_with_its_figures_and_changes_nothing(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copy_of_demo(tmp_path)
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir()}
    monkeypatch.setattr(parity, "INT8_COSINE_LIMIT", 1.5)
    with pytest.raises(StartError) as caught:
        add_int8(bundle, scenes)
    said = str(caught.value)
    assert said.startswith("vit-scenes 1 gets no int8: ")
    assert "onnxruntime int8 on cpu: at 128x128 the smallest cosine is 0.99" in said
    assert "(limit 1.5); measured: max error " in said
    assert said.endswith("20 pictures. The bundle is as it was")
    assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before


def test_a_graph_that_one_runtime_cannot_compile_may_serve_in_the_other(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = choose.open_graph

    def broken(path: Path, choice: Choice) -> object:
        if choice == ON_REQUEST[0]:
            raise BadBundle("openvino cannot load it:\na long story")
        return whole(path, choice)

    monkeypatch.setattr(quantize, "open_graph", broken)
    bundle = add_int8(copy_of_demo(tmp_path), scenes)
    assert bundle.manifest.proven("onnxruntime", "int8")
    assert not bundle.manifest.proven("openvino", "int8")


def test_too_few_pictures_are_refused_from_the_command_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of_demo(tmp_path)
    scenes = str(DEMO_REPOSITORY.parent / "scenes")
    run = CliRunner().invoke(
        app, ["models", "quantize", str(tmp_path), "vit-scenes", "--images", scenes]
    )
    assert isinstance(run.exception, StartError)
    assert "holds 8 pictures; int8 needs at least 32" in str(run.exception)


def test_first_and_last_layers_and_coordinates_keep_their_precision() -> None:
    wide, square = np.zeros((3, 4), dtype=np.float32), np.zeros((4, 4), dtype=np.float32)
    weights = {"first": wide, "middle": square, "offsets": square, "query": square, "last": square}
    layers = [
        helper.make_node("MatMul", ["pixels", "first"], ["a"], "first layer"),
        helper.make_node("MatMul", ["a", "middle"], ["b"], "middle layer"),
        helper.make_node("MatMul", ["b", "offsets"], ["c"], "offset layer"),
        helper.make_node("Reshape", ["c", "shape"], ["grid"], "reshape"),
        helper.make_node("Reshape", ["b", "shape"], ["values"], "values"),
        helper.make_node("GridSample", ["values", "grid"], ["d"], "sample"),
        helper.make_node("MatMul", ["d", "query"], ["e"], "query layer"),
        helper.make_node("MatMul", ["e", "b"], ["f"], "product of two"),
        helper.make_node("MatMul", ["f", "last"], ["g"], "last layer"),
        helper.make_node("Softmax", ["g"], ["scores"], "softmax"),
    ]
    graph = helper.make_graph(
        layers,
        "small",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    assert robust_layers(helper.make_model(graph)) == ["middle layer", "query layer"]
