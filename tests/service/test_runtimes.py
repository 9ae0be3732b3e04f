"""The runtime libraries on a small graph, and the choice between them."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.bundle import Bundle, Graph, Manifest, Parity, Tensor
from service.errors import BadBundle, BadSettings, StartError
from service.geometry import Geometry, Resize, Size
from service.worker.runtimes import choose, openvino
from service.worker.runtimes import onnx as onnx_runtime
from service.worker.runtimes.base import Arrays, Runtime, example_inputs
from service.worker.runtimes.choose import (
    FASTEST_FIRST,
    ON_REQUEST,
    Choice,
    candidates,
    check_graph,
    open_graph,
    open_runtime,
    supports,
)

CANVAS = Size(height=2, width=2)
HERE = [choice for choice in FASTEST_FIRST if supports(choice) is None]
OPENVINO, ONNXRUNTIME = Choice("openvino", "fp32"), Choice("onnxruntime", "fp32")
BF16 = Choice("openvino", "bf16")
IMAGES = Tensor(name="images", role="images", dtype="uint8", shape=[-1, 2, 2, 3])
SCORES = Tensor(name="scores", role="scores", dtype="float32", shape=[-1, 4])
SUM = Tensor(name="sum", role="sum", dtype="float32", shape=[-1, 1])
WEIGHTS = np.linspace(-1, 1, 48, dtype=np.float32).reshape(12, 4)


def write_graph(path: Path) -> None:
    """``scores`` (N, 4) = images (N, 12) times WEIGHTS / 255; ``sum`` (N, 1) of the scores."""
    constants = {
        "weights": WEIGHTS / np.float32(255),
        "row": np.array([-1, 12]),
        "last": np.array([-1]),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "row"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weights"], ["scores"]),
        helper.make_node("ReduceSum", ["scores", "last"], ["sum"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 2, 2, 3])],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 1]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4]),
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, path)


def expected_scores(images: Any) -> Any:
    return images.reshape(len(images), 12).astype(np.float32) @ WEIGHTS / 255


def pictures(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)


def graph_of(kind: Any = "serve", **changes: Any) -> Graph:
    fields = {"file": "model.onnx", "kind": kind, "canvas": CANVAS, "precision": "fp32"}
    tensors = {"inputs": [IMAGES], "outputs": [SCORES, SUM]}
    return Graph.model_validate(fields | tensors | changes)


def bundle_of(folder: Path, proven: tuple[Choice, ...], *graphs: Graph) -> Bundle:
    parity = [
        Parity.model_validate(
            {
                "runtime": choice.runtime,
                "precision": choice.precision,
                "canvas": CANVAS,
                "images": 1,
                "max_error": 0,
                "rms_error": 0,
                "cosine": 1,
            }
        )
        for choice in proven
    ]
    manifest = Manifest.model_validate(
        {
            "name": "small",
            "version": "1",
            "family": "vit",
            "tasks": ["embed"],
            "geometry": Geometry(
                nominal=CANVAS,
                resize=Resize(mode="squash", height=2, width=2),
                placement="stretch",
            ),
            "graphs": list(graphs) or [graph_of()],
            "files": {},
            "parity": parity,
            "provenance": {"source": "", "sha256": "", "architecture": "", "exporter": {}},
            "parameters": 1,
            "macs": 1,
        }
    )
    return Bundle(folder=folder, manifest=manifest)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_graph(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("choice", HERE, ids=str)
def test_outputs_come_by_name_for_every_batch_size(path: Path, choice: Choice) -> None:
    runtime = open_graph(path, choice)
    tolerance = 1e-5 if choice.precision == "fp32" else 0.05
    for batch in (1, 3, 8, 1):
        images = pictures(batch)
        outputs = runtime.run({"images": images})
        assert set(outputs) == {"scores", "sum"}
        scores = expected_scores(images)
        np.testing.assert_allclose(outputs["scores"], scores, atol=tolerance)
        np.testing.assert_allclose(outputs["sum"], scores.sum(1, keepdims=True), atol=tolerance)
        assert outputs["scores"].dtype == np.float32


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("choice", HERE, ids=str)
def test_outputs_that_are_not_wanted_are_left_out(path: Path, choice: Choice, streams: int) -> None:
    runtime = open_graph(path, choice, streams=streams)
    whole = runtime.run({"images": pictures(3)})
    found = runtime.run({"images": pictures(3)}, {"sum"})
    assert found.keys() == {"sum"}
    np.testing.assert_array_equal(found["sum"], whole["sum"])
    runtime.run({"images": pictures(3)}, ())  # some runtimes have to give something


@pytest.mark.parametrize("choice", HERE, ids=str)
def test_a_runtime_states_what_it_is_and_what_it_takes(path: Path, choice: Choice) -> None:
    runtime = open_graph(path, choice)
    assert Choice(runtime.name, runtime.precision, runtime.device) == choice
    assert runtime.inputs == {"images": ("uint8", (None, 2, 2, 3))}
    assert runtime.outputs["scores"] == ("float32", (None, 4))
    assert runtime.run(example_inputs(runtime, 5))["scores"].tolist() == [[0.0] * 4] * 5


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("choice", HERE, ids=str)
def test_results_stay_as_they_were_when_the_next_batches_run(
    path: Path, choice: Choice, streams: int
) -> None:
    runtime = open_graph(path, choice, threads=2, streams=streams)
    first = runtime.run({"images": pictures(2)})["scores"]
    before = first.copy()
    for _ in range(2 * streams):
        runtime.run({"images": 255 - pictures(2)})
    assert np.array_equal(first, before)


@pytest.mark.parametrize("choice", HERE, ids=str)
def test_threads_that_share_a_runtime_get_their_own_answers(path: Path, choice: Choice) -> None:
    runtime = open_graph(path, choice, threads=1)
    images = [pictures(batch) for batch in (1, 2, 3, 4)] * 10
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda batch: runtime.run({"images": batch})["scores"], images))
    for batch, scores in zip(images, results, strict=True):
        np.testing.assert_allclose(scores, expected_scores(batch), atol=0.05)


@pytest.mark.parametrize("choice", HERE, ids=str)
def test_a_file_that_is_no_graph_is_named(tmp_path: Path, choice: Choice) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(BadBundle, match=rf"{choice.runtime} .* cannot load {path}"):
        open_graph(path, choice)


@pytest.mark.parametrize("choice", [c for c in HERE if c.precision == "fp32"], ids=str)
def test_streams_run_batches_of_different_sizes_at_once(path: Path, choice: Choice) -> None:
    runtime = open_graph(path, choice, threads=2, streams=2)
    assert (runtime.streams, runtime.threads) == (2, 2)
    images = [pictures(batch) for batch in (1, 5, 2)] * 20
    with ThreadPoolExecutor(3) as pool:  # one more than there are streams
        results = list(pool.map(lambda batch: runtime.run({"images": batch})["scores"], images))
    for batch, scores in zip(images, results, strict=True):
        np.testing.assert_allclose(scores, expected_scores(batch), atol=1e-5)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("choice", HERE, ids=str)
def test_a_runtime_is_usable_after_a_batch_that_failed(
    path: Path, choice: Choice, streams: int
) -> None:
    runtime = open_graph(path, choice, threads=2, streams=streams)
    for _ in range(2 * streams):
        with pytest.raises(Exception, match=r"images|shape"):
            runtime.run({"images": np.zeros((1, 3, 3, 3), np.uint8)})
    assert runtime.run({"images": pictures(2)})["scores"].shape == (2, 4)


@pytest.mark.parametrize("choice", HERE, ids=str)
def test_without_a_wish_one_stream_has_the_threads(path: Path, choice: Choice) -> None:
    runtime = open_graph(path, choice)
    assert runtime.streams == 1
    assert runtime.threads >= 1
    assert open_graph(path, choice, threads=1).threads == 1


def test_openvino_refuses_bf16_where_the_cpu_lacks_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "supported_precisions", lambda device: ("fp32",))
    with pytest.raises(BadSettings, match="does not compute in bf16 on cpu here; it offers fp32"):
        open_graph(path, BF16)


def test_openvino_refuses_a_precision_that_the_library_did_not_take(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_precision", lambda compiled, asked: "bf16")
    with pytest.raises(BadSettings, match=r"was asked for fp32 and compiled .* for bf16"):
        open_graph(path, OPENVINO)


@pytest.mark.parametrize("choice", [ONNXRUNTIME, OPENVINO], ids=str)
def test_a_device_that_a_library_does_not_serve_is_refused(path: Path, choice: Choice) -> None:
    with pytest.raises(BadSettings, match="on cuda"):
        open_graph(path, Choice(choice.runtime, "fp32", "cuda"))


def test_the_fastest_that_is_proven_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "supports", lambda choice: None)
    vectors = bundle_of(tmp_path, FASTEST_FIRST)
    assert candidates(vectors) == [OPENVINO, ONNXRUNTIME, BF16], "vectors are not to be rounded"
    assert candidates(vectors, precision="bf16") == [BF16]
    detector = vectors.manifest.model_copy(update={"tasks": ["detect", "embed"]})
    everything = Bundle(folder=vectors.folder, manifest=detector)
    assert candidates(everything) == [BF16, OPENVINO, ONNXRUNTIME]
    assert candidates(everything, device="cpu", precision="fp32") == [OPENVINO, ONNXRUNTIME]
    assert candidates(everything, runtime="onnxruntime") == [ONNXRUNTIME]
    assert candidates(bundle_of(tmp_path, (ONNXRUNTIME,))) == [ONNXRUNTIME]


def test_int8_serves_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "supports", lambda choice: None)
    both = bundle_of(tmp_path, (*ON_REQUEST, ONNXRUNTIME), graph_of(), graph_of(precision="int8"))
    assert candidates(both) == [ONNXRUNTIME]
    assert candidates(both, precision="int8") == list(ON_REQUEST)
    assert candidates(both, precision="int8", runtime="onnxruntime") == [ON_REQUEST[1]]
    assert candidates(both, runtime="onnxruntime") == [ONNXRUNTIME]
    with pytest.raises(BadSettings, match=r"precision int8: .* with: saccade models quantize"):
        candidates(bundle_of(tmp_path, FASTEST_FIRST), precision="int8")


def test_int8_never_runs_the_fp32_graph_in_its_name(path: Path) -> None:
    bundle = bundle_of(path.parent, ON_REQUEST)
    with pytest.raises(BadBundle, match="has no serve graph for 2x2"):
        open_runtime(bundle, "serve", CANVAS, ON_REQUEST[1])


@pytest.mark.skipif(supports(Choice("openvino", "int8")) is not None, reason="no int8 here")
def test_openvino_refuses_to_call_a_graph_without_int8_layers_so(path: Path) -> None:
    with pytest.raises(BadSettings, match=r"was asked for int8 and compiled .* for (bf16|fp32)"):
        open_graph(path, Choice("openvino", "int8"))


def test_int8_is_refused_where_sums_would_saturate(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime, "sums_int8_exactly", lambda: False)
    with pytest.raises(BadSettings, match="compute in int8 on cpu here; it offers fp32"):
        open_graph(path, Choice("onnxruntime", "int8"))


def test_bf16_is_passed_over_aloud_where_the_machine_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino, "supported_precisions", lambda device: ("fp32",))
    bundle = bundle_of(tmp_path, FASTEST_FIRST)
    with caplog.at_level("INFO"):
        assert candidates(bundle) == [OPENVINO, ONNXRUNTIME]
    assert "openvino bf16 on cpu: this machine's cpu offers only fp32" in caplog.text
    with pytest.raises(BadSettings, match=r"small 1 cannot be served with precision bf16: "):
        candidates(bundle, precision="bf16")


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        (
            {"device": "cuda:0", "precision": "int8"},
            "nothing runs with precision int8, device cuda:0",
        ),
        ({"device": "cuda:0"}, "onnxruntime fp32 on cuda:0: the installed onnxruntime .* for CPUs"),
        ({"device": "cuda"}, "--device cuda: there is no NVIDIA driver here"),
        ({"precision": "fp8"}, "nothing runs with precision fp8"),
        ({"runtime": "tensorrt"}, "nothing runs with runtime tensorrt"),
        (
            {"runtime": "onnxruntime", "precision": "bf16"},
            "nothing runs with runtime onnxruntime, precision bf16; choose among: openvino bf16",
        ),
    ],
)
def test_a_wish_that_nothing_meets_is_refused(
    tmp_path: Path, wishes: dict[str, str], named: str
) -> None:
    with pytest.raises(BadSettings, match=named):
        candidates(bundle_of(tmp_path, FASTEST_FIRST), **wishes)


def test_what_was_not_proven_does_not_serve(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, (OPENVINO,))
    with pytest.raises(BadSettings, match=r"onnxruntime fp32 on cpu: .*no proof of accuracy"):
        candidates(bundle, runtime="onnxruntime")
    with pytest.raises(StartError, match=r"small 1 cannot be served: .*no proof"):
        candidates(bundle_of(tmp_path, ()))


def test_a_library_that_is_missing_is_named_with_its_cure(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "service.worker.runtimes.openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    bundle = bundle_of(path.parent, FASTEST_FIRST)
    assert candidates(bundle) == [ONNXRUNTIME]
    cure = r"openvino is not installed; install it with: pip install 'saccade\[cpu\]'"
    with pytest.raises(BadSettings, match=cure):
        candidates(bundle, runtime="openvino")
    with pytest.raises(StartError, match=cure):
        open_graph(path, OPENVINO)


@pytest.mark.parametrize("choice", HERE, ids=str)
def test_explain_graphs_compute_in_fp32_with_the_same_library(path: Path, choice: Choice) -> None:
    bundle = bundle_of(path.parent, FASTEST_FIRST, graph_of(), graph_of("explain"))
    assert _identity(open_runtime(bundle, "serve", CANVAS, choice)) == (
        choice.runtime,
        choice.precision,
    )
    explain = open_runtime(bundle, "explain", CANVAS, choice)
    assert _identity(explain) == (choice.runtime, "fp32")


def _identity(runtime: Runtime) -> tuple[str, str]:
    return runtime.name, runtime.precision


def test_a_canvas_without_graph_is_named(path: Path) -> None:
    bundle = bundle_of(path.parent, FASTEST_FIRST)
    with pytest.raises(BadBundle, match="has no serve graph for 4x4; its canvases are 2x2"):
        open_runtime(bundle, "serve", Size(height=4, width=4), OPENVINO)


@pytest.mark.parametrize("choice", HERE, ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": [IMAGES.model_copy(update={"shape": [-1, 2, 3, 3]})]},
        {"inputs": [IMAGES.model_copy(update={"dtype": "float32"})]},
        {"outputs": [SCORES]},
        {"outputs": [SCORES, SUM.model_copy(update={"name": "total"})]},
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(
    path: Path, choice: Choice, changes: dict[str, Any]
) -> None:
    bundle = bundle_of(path.parent, FASTEST_FIRST, graph_of(**changes))
    with pytest.raises(BadBundle, match=r"has (in|out)puts .*; the manifest expects "):
        open_runtime(bundle, "serve", CANVAS, choice)


def test_the_refusal_shows_both_sides(path: Path) -> None:
    runtime = open_graph(path, ONNXRUNTIME)
    wrong = graph_of(inputs=[IMAGES.model_copy(update={"shape": [-1, 4, 4, 3]})])
    with pytest.raises(BadBundle) as caught:
        check_graph(path, wrong, runtime)
    assert str(caught.value) == (
        f"{path} has inputs images uint8[N, 2, 2, 3]; the manifest expects "
        "images uint8[N, 4, 4, 3]. Export the model again."
    )


def test_only_arrays_that_were_asked_for_are_made(path: Path) -> None:
    inputs: Arrays = example_inputs(open_graph(path, ONNXRUNTIME), 2)
    assert {name: (array.shape, array.dtype.name) for name, array in inputs.items()} == {
        "images": ((2, 2, 2, 3), "uint8")
    }
