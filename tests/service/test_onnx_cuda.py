"""ONNX Runtime on GPUs: what is refused and how buffers are kept, with the CPU as the device; the
tests marked ``gpu`` run on the real one.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from service.devices import Gpus, gpus
from service.errors import BadBundle, BadSettings
from service.worker.runtimes import onnx_cuda
from service.worker.runtimes.cache import CompiledCache, Slot
from service.worker.runtimes.choose import FASTEST_FIRST, Choice, open_graph, open_runtime
from service.worker.runtimes.onnx_cuda import (
    CUDA,
    MOST_KEPT,
    TENSORRT,
    Buffers,
    OnnxCuda,
    Place,
    check_assignment,
    check_providers,
    engine_folder,
    open_session,
    place_of,
    supported_precisions,
    tensorrt_fault,
    tensorrt_place,
)
from tests.service.test_runtimes import (
    CANVAS,
    bundle_of,
    expected_scores,
    pictures,
    write_graph,
)

HERE = Place("CPUExecutionProvider", "cpu")
"""A place that every machine has; only captures are missing there."""
ON_GPU = Place(CUDA, "cuda", 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_graph(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_bound_buffers_give_the_answers_of_every_batch_size(path: Path) -> None:
    buffers = Buffers(open_session(path, HERE, strict=False), HERE, captures=False)
    sizes = [*range(1, MOST_KEPT + 4), 3, 1, MOST_KEPT + 3]
    for size in sizes:
        images = np.roll(pictures(size), size)
        outputs = buffers.run({"images": images})
        np.testing.assert_allclose(outputs["scores"], expected_scores(images), atol=1e-5)
    assert len(buffers._kept) == MOST_KEPT


def test_a_session_with_another_provider_than_was_asked_for_is_refused(path: Path) -> None:
    """The library itself warns, and computes on the CPU."""
    if CUDA in ort.get_available_providers():
        pytest.skip("this onnxruntime is the one for GPUs")
    with pytest.warns(UserWarning, match="not in available provider names"):
        session = ort.InferenceSession(path, providers=[CUDA])
    with pytest.raises(
        BadSettings, match=r"asked for CUDAExecutionProvider on cuda:1 and took CPU"
    ):
        check_providers(session.get_providers(), ON_GPU)
    check_providers([CUDA, "CPUExecutionProvider"], ON_GPU)


def test_only_arithmetic_on_shapes_may_be_left_to_the_cpu(path: Path) -> None:
    cpu = "CPUExecutionProvider"
    check_assignment({CUDA: Counter(MatMul=9), cpu: Counter(Shape=1, Gather=2)}, path, ON_GPU)
    both = {TENSORRT: Counter(MatMul=9), CUDA: Counter(Softmax=1)}
    check_assignment(both, path, Place(TENSORRT, "cuda"))
    with pytest.raises(BadBundle, match=r"partly on the CPU: .* kernels for 2 GridSample, 1 TopK"):
        check_assignment({CUDA: Counter(), cpu: Counter(GridSample=2, TopK=1)}, path, ON_GPU)


def test_what_runs_where_is_read_from_the_session(path: Path) -> None:
    session = open_session(path, HERE, strict=False)
    found = onnx_cuda.assigned(session)
    assert found.keys() == {"CPUExecutionProvider"}
    assert found["CPUExecutionProvider"]["MatMul"] == 1


@pytest.mark.skipif(gpus().fault is None, reason="there is a GPU")
def test_without_a_driver_a_gpu_is_refused_with_a_sentence(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        BadSettings, match=r"cannot run on cuda:0: the installed onnxruntime .*CPUs"
    ):
        OnnxCuda(path, device="cuda:0")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA])
    with pytest.raises(BadSettings, match=r"on cuda:0: there is no NVIDIA driver here"):
        OnnxCuda(path, device="cuda:0")
    monkeypatch.setattr(onnx_cuda, "gpus", lambda: Gpus(fault="all GPUs are lost"))
    assert supported_precisions("cuda:0") == ()


def test_fp32_is_fp32_and_memory_grows_no_more_than_it_must() -> None:
    options = place_of("cuda:2", "fp32").options
    assert (options["device_id"], options["use_tf32"]) == ("2", "0")
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert place_of("cuda:2", "fp32", captured=False).options["enable_cuda_graph"] == "0"


@pytest.mark.parametrize(
    ("installed", "fault"),
    [
        ({}, "half precision needs TensorRT 10, which is not installed"),
        ({"tensorrt_cu13_libs": "10.16.1.2"}, None),
        ({"tensorrt_cu13_libs": "11.4.1"}, "needs TensorRT 10, .* installed is 11.4.1"),
        ({"tensorrt_cu12_libs": "10.13", "tensorrt_cu13_libs": "11.4"}, "is 11.4, 10.13"),
    ],
)
def test_the_tensorrt_provider_runs_with_the_major_that_it_is_linked_with(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], fault: str | None
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA])
    found = tensorrt_fault(installed.get)
    if fault is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(fault, found), found


def test_a_library_without_the_tensorrt_provider_says_so() -> None:
    if TENSORRT in ort.get_available_providers():
        pytest.skip("this onnxruntime is the one for GPUs")
    assert "was built without TensorRT" in str(tensorrt_fault())


def test_an_engine_of_the_provider_takes_every_batch_without_being_built_anew(
    tmp_path: Path,
) -> None:
    rows: dict[str, tuple[int | None, ...]] = {"images": (None, 8, 6, 3), "sizes": (None, 2)}
    place = tensorrt_place("cuda:1", "bf16", rows, tmp_path)
    options = place.options
    assert options["trt_profile_min_shapes"] == "images:1x8x6x3,sizes:1x2"
    assert options["trt_profile_max_shapes"] == "images:64x8x6x3,sizes:64x2"
    assert options["trt_bf16_enable"] == "1"
    assert "trt_fp16_enable" not in options
    assert options["trt_engine_cache_path"] == str(tmp_path)
    assert onnx_cuda._providers(place)[1] == (CUDA, {"device_id": "1"})
    assert "trt_engine_cache_enable" not in tensorrt_place("cuda:1", "fp16", rows, None).options


def test_engines_lie_in_a_folder_of_their_graph_that_nobody_else_may_enter(tmp_path: Path) -> None:
    def slot(graph: str) -> Slot:
        return Slot(CompiledCache(tmp_path), graph, lambda: None)

    one, again, other = (engine_folder(slot(graph)) for graph in ("a", "a", "b"))
    assert one == again != other
    assert one is not None
    assert one.stat().st_mode & 0o777 == 0o700
    assert engine_folder(None) is None


class Liar:
    """A GPU that computes ``factor`` times what it should; otherwise the CPU."""

    def __init__(self, path: Path, factor: float) -> None:
        self._honest, self._factor = open_graph(path, Choice("onnxruntime", "fp32")), factor
        self.name, self.precision, self.device = "onnxruntime", "fp32", "cuda:0"
        self.inputs, self.outputs = self._honest.inputs, self._honest.outputs
        self.streams = self.threads = 1

    def run(self, inputs: Any, wanted: Any = None) -> Any:
        return {name: array * self._factor for name, array in self._honest.run(inputs).items()}


@pytest.mark.parametrize(("factor", "right"), [(1.0001, True), (1.05, False), (np.nan, False)])
def test_what_a_gpu_computes_is_compared_with_the_cpu_before_it_serves(
    path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, right: bool
) -> None:
    bundle = bundle_of(path.parent, FASTEST_FIRST)
    choice = Choice("onnxruntime", "fp32", "cuda:0")

    def create(path: Path, *_: Any) -> Liar:
        return Liar(path, factor)

    monkeypatch.setattr(onnx_cuda, "OnnxCuda", create)
    if right:
        assert open_runtime(bundle, "serve", CANVAS, choice).device == "cuda:0"
        return
    with pytest.raises(BadSettings, match=r"on cuda:0 computes .* wrongly: .*--device cpu serves"):
        open_runtime(bundle, "serve", CANVAS, choice)


@pytest.mark.gpu
def test_a_real_gpu_gives_the_answers_of_the_cpu_for_every_batch_size(path: Path) -> None:
    runtime = OnnxCuda(path, device="cuda:0")
    assert runtime.captures, "every node is on the device"
    for size in (1, 3, 8, 40, 3, 1, 8):
        images = np.roll(pictures(size), size)
        found = runtime.run({"images": images})["scores"]
        np.testing.assert_allclose(found, expected_scores(images), atol=1e-4)


@pytest.mark.gpu
def test_a_real_gpu_is_opened_for_a_bundle_and_proven(path: Path) -> None:
    bundle = bundle_of(path.parent, FASTEST_FIRST)
    runtime = open_runtime(bundle, "serve", CANVAS, Choice("onnxruntime", "fp32", "cuda:0"))
    assert (runtime.name, runtime.precision, runtime.device) == ("onnxruntime", "fp32", "cuda:0")


@pytest.mark.gpu
def test_results_of_a_real_gpu_stay_as_they_were_when_its_buffers_are_used_again(
    path: Path,
) -> None:
    runtime = OnnxCuda(path, device="cuda:0")
    first = runtime.run({"images": pictures(2)})["scores"]
    before = first.copy()
    runtime.run({"images": 255 - pictures(2)})
    assert np.array_equal(first, before)
