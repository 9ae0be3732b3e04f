"""ONNX Runtime on GPUs: what is refused and how buffers are kept, with the CPU as the device; the
tests marked ``gpu`` run on the real one.
"""

import gc
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from service import devices
from service.devices import Gpus, gpus
from service.errors import BadBundle, BadSettings
from service.worker.runtimes import onnx_cuda
from service.worker.runtimes.cache import CompiledCache, Slot
from service.worker.runtimes.choose import FASTEST_FIRST, Choice, open_graph, open_runtime
from service.worker.runtimes.device_thread import DeviceThread
from service.worker.runtimes.onnx_cuda import (
    CUDA,
    MOST_CAPTURED,
    MOST_KEPT,
    NO_CAPTURE,
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
    graph_of,
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
    buffers = Buffers(open_session(path, HERE, strict=False), HERE)
    sizes = [*range(1, MOST_KEPT + 4), 3, 1, MOST_KEPT + 3]
    for size in sizes:
        images = np.roll(pictures(size), size)
        outputs = buffers.run({"images": images})
        np.testing.assert_allclose(outputs["scores"], expected_scores(images), atol=1e-5)
    assert len(buffers._kept) == MOST_KEPT


def numbers_of_graphs(session: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of the CUDA graph of every run from now on."""
    run, found = session.run_with_iobinding, list[int]()

    def spy(binding: Any, options: Any) -> None:
        found.append(int(options.get_run_config_entry("gpu_graph_id")))
        run(binding, options)

    monkeypatch.setattr(session, "run_with_iobinding", spy)
    return found


def test_graphs_are_captured_the_largest_first_and_replayed_and_no_run_captures_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(path, HERE, strict=False)
    numbers = numbers_of_graphs(session, monkeypatch)
    buffers = Buffers(session, HERE)
    buffers.capture([1, 2, 3])
    assert numbers == [NO_CAPTURE, 3, NO_CAPTURE, 2, NO_CAPTURE, 1], "each is warmed up before"
    for size in (*range(4, 2 * MOST_KEPT), 3, 2, 1):
        numbers.clear()
        images = np.roll(pictures(size), size)
        outputs = buffers.run({"images": images})
        np.testing.assert_allclose(outputs["scores"], expected_scores(images), atol=1e-5)
        assert numbers == ([size] if size <= 3 else [NO_CAPTURE] * 2)


class Devices:
    """Stands in for a GPU: the CPU, in a thread of its own; remembers what ran where."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken_graphs: bool = False) -> None:
        self.thread = DeviceThread("cuda:0")
        self.ran_in: set[str] = set()
        self.captured: list[list[int]] = []
        self.released_in: list[str] = []
        self.asked: list[bool] = []
        capture, run, release = Buffers.capture, Buffers.run, Buffers.release

        def place_of(device: str, captured: bool = True) -> Place:
            self.asked.append(captured)
            return HERE

        def captures(buffers: Buffers, batches: Iterable[int]) -> None:
            self.ran_in.add(threading.current_thread().name)
            self.captured.append(list(batches))
            if broken_graphs:
                raise RuntimeError("CUDA failure 900: operation not permitted when ...")
            capture(buffers, self.captured[-1])

        def runs(buffers: Buffers, *given: Any) -> Any:
            self.ran_in.add(threading.current_thread().name)
            return run(buffers, *given)

        def releases(buffers: Buffers) -> None:
            self.released_in.append(threading.current_thread().name)
            release(buffers)

        monkeypatch.setattr(onnx_cuda, "fault", lambda device: None)
        monkeypatch.setattr(onnx_cuda, "device_thread", lambda index: self.thread)
        monkeypatch.setattr(onnx_cuda, "place_of", place_of)
        monkeypatch.setattr(Buffers, "capture", captures)
        monkeypatch.setattr(Buffers, "run", runs)
        monkeypatch.setattr(Buffers, "release", releases)


def test_everything_of_a_graph_on_a_gpu_is_captured_run_and_given_back_in_one_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Devices(monkeypatch)
    with caplog.at_level(logging.INFO):
        runtime = OnnxCuda(path, device="cuda:0")
    assert runtime.captures
    assert "without CUDA graphs" not in caplog.text
    assert device.captured == [list(range(1, MOST_CAPTURED + 1))]
    images = pictures(3)
    found = runtime.run({"images": images}, ["scores"])
    np.testing.assert_allclose(found["scores"], expected_scores(images), atol=1e-5)
    assert list(found) == ["scores"]
    del runtime
    gc.collect()
    device.thread.do(lambda: None)
    assert (device.ran_in, device.released_in) == ({"cuda:0"}, ["cuda:0"])


def test_a_graph_that_cannot_be_captured_is_opened_again_without(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = Devices(monkeypatch, broken_graphs=True)
    with caplog.at_level(logging.INFO):
        runtime = OnnxCuda(path, device="cuda:0")
    assert not runtime.captures
    assert device.asked[-1] is False
    assert "without CUDA graphs" in caplog.text
    images = pictures(2)
    found = runtime.run({"images": images})["scores"]
    np.testing.assert_allclose(found, expected_scores(images), atol=1e-5)


def test_explain_graphs_are_opened_while_others_serve_and_not_captured(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Devices(monkeypatch)
    bundle = bundle_of(path.parent, FASTEST_FIRST, graph_of(), graph_of("explain"))
    choice = Choice("onnxruntime", "fp32", "cuda:0")
    open_runtime(bundle, "explain", CANVAS, choice)
    assert (device.asked, device.captured) == ([False], [])
    open_runtime(bundle, "serve", CANVAS, choice)
    assert len(device.captured) == 1


def test_what_keeps_a_session_from_opening_is_told_and_not_what_came_of_a_second_try(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries: list[Any] = []

    def create(self: Any, providers: Any, *_: Any) -> None:
        tries.append(providers)
        self._fallback_providers = ["CPUExecutionProvider"]
        raise RuntimeError("[ERROR] [TensorRT] The value for the key is no boolean")

    monkeypatch.setattr(ort.InferenceSession, "_create_inference_session", create)
    with pytest.raises(BadBundle, match="the key is no boolean"):
        open_session(path, HERE, strict=False)
    assert (len(tries), capsys.readouterr().out) == (1, "")


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


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (
            {TENSORRT: Counter(MatMul=8), CUDA: Counter(Conv=1, MatMul=2, Cast=1)},
            "1 Conv, 2 MatMul",
        ),
        ({CUDA: Counter(Softmax=1)}, "everything"),
        ({}, "everything"),
    ],
)
def test_products_that_tensorrt_leaves_to_cuda_are_not_called_half_precision(
    path: Path, found: dict[str, Counter[str]], named: str
) -> None:
    with pytest.raises(BadBundle, match=f"TensorRT left {named} to CUDA, in fp32"):
        check_assignment(found, path, Place(TENSORRT, "cuda"))


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
    monkeypatch.setattr(devices, "gpus", lambda: Gpus(fault="all GPUs are lost"))
    assert supported_precisions("cuda:0") == ()


def test_fp32_is_fp32_and_memory_grows_no_more_than_it_must() -> None:
    options = place_of("cuda:2").options
    assert (options["device_id"], options["use_tf32"]) == ("2", "0")
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert place_of("cuda:2", captured=False).options["enable_cuda_graph"] == "0"


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
    switches = {
        name: value for name, value in options.items() if not re.search("shapes|path", name)
    }
    assert switches == {  # "1" is no boolean there, and ends the start
        "device_id": "1",
        "trt_bf16_enable": "True",
        "trt_layer_norm_fp32_fallback": "True",
        "trt_engine_cache_enable": "True",
        "trt_timing_cache_enable": "True",
    }
    assert options["trt_engine_cache_path"] == str(tmp_path)
    name, beside = onnx_cuda._providers(place)[1]
    assert (name, beside["device_id"], beside["use_tf32"]) == (CUDA, "1", "0")
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

    def create(path: Path, *_: Any, captures: bool) -> Liar:
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


@pytest.mark.gpu
def test_a_real_gpu_serves_many_threads_while_other_graphs_are_opened_and_captured(
    path: Path,
) -> None:
    runtime, done = OnnxCuda(path, device="cuda:0"), threading.Event()

    def serve(size: int) -> int:
        runs, images = 0, np.roll(pictures(size), size)
        while not done.is_set() or not runs:
            found = runtime.run({"images": images})["scores"]
            np.testing.assert_allclose(found, expected_scores(images), atol=1e-4)
            runs += 1
        return runs

    with ThreadPoolExecutor(4) as pool:
        serving = [pool.submit(serve, size) for size in (1, 3, 8, 20)]
        try:
            opened = [OnnxCuda(path, device="cuda:0").captures for _ in range(3)]
        finally:
            done.set()
        assert all(runs.result() for runs in serving)
    assert opened == [True] * 3
