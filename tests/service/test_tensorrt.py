"""Engines on a GPU that is not there: what is asked of CUDA and of the library, in which order,
what is refused, and what is built at a start.
"""

import ctypes
import functools
import gc
import json
import re
import weakref
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.bundle import Bundle, Engine, File, load_bundle
from service.engines import BatchRange, Machine, batch_ranges
from service.errors import BadBundle, BadSettings, StartError
from service.parity import objections
from service.settings import Settings
from service.tuning import Machine as Cpu
from service.tuning import plan_for
from service.worker import models
from service.worker.memory import ran_out_of_memory
from service.worker.runtimes.base import Arrays, Runtime, Signature
from service.worker.runtimes.buckets import LANES, Bucket
from service.worker.runtimes.cache import CompiledCache
from service.worker.runtimes.choose import Choice, candidates, open_graph, supports
from service.worker.runtimes.tensorrt import opening, proving
from service.worker.runtimes.tensorrt.building import FLAGS, Plan, wrong_types
from service.worker.runtimes.tensorrt.cuda import Context, CudaError, Driver
from service.worker.runtimes.tensorrt.library import Library, register_plugins
from service.worker.runtimes.tensorrt.opening import no_engine, open_engine
from service.worker.runtimes.tensorrt.plans import Enqueue, PlanEngine, shares_of, wrong_shares
from service.worker.runtimes.tensorrt.proving import Opened, Workshop, scenes
from service.worker.runtimes.tensorrt.running import TensorRt
from service.worker.sticky import lost_the_device

H200 = Machine(
    library="tensorrt",
    version="11.4.0",
    gpu="NVIDIA H200",
    compute_capability="9.0",
    driver_major=580,
)
DEMO = Path("service/demo/repository/vit-scenes/1")


class FakeCuda:
    """A device whose memory is the host's, and whose streams do everything at once."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[str] = []
        self.blocks: list[Any] = []
        self.copied_out: list[int] = []
        self.fails = fails

    def call(self, function: str, *arguments: Any) -> None:
        self.calls.append(function)
        if function == self.fails:
            raise CudaError(f"{function}: CUDA_ERROR_OUT_OF_MEMORY")
        if function in ("cuMemAlloc_v2", "cuMemHostAlloc"):
            self.blocks.append(ctypes.create_string_buffer(arguments[1].value))
            arguments[0]._obj.value = ctypes.addressof(self.blocks[-1])
        elif function.startswith("cuMemcpy"):
            ctypes.memmove(arguments[0].value, arguments[1].value, arguments[2].value)
            if function == "cuMemcpyDtoHAsync_v2":
                self.copied_out.append(arguments[2].value)
        elif function == "cuEventElapsedTime":
            arguments[0]._obj.value = 1.5
        elif function == "cuGraphInstantiateWithFlags":
            arguments[0]._obj.value = len(self.calls)


class FakeEngine:
    """Doubles what it reads at the addresses that it is given; remembers the batches prepared."""

    scratch_bytes = 100

    def __init__(self, profiles: int) -> None:
        self.inputs: dict[str, Signature] = {
            "images": ("uint8", (None, 2)),
            "sizes": ("int32", (None,)),
        }
        self.outputs: dict[str, Signature] = {
            "doubled": ("float32", (None, 2)),
            "sizes2": ("int32", (None,)),
        }
        self.profiles = profiles
        self.prepared: list[Bucket] = []

    def prepare(
        self, bucket: Bucket, addresses: dict[str, int], scratch: int, stream: ctypes.c_void_p
    ) -> Enqueue:
        self.prepared.append(bucket)
        assert all(address % 4 == 0 for address in addresses.values())

        def at(name: str, kind: Any, count: int) -> Any:
            return np.ctypeslib.as_array((kind * count).from_address(addresses[name]))

        def enqueue(stream: ctypes.c_void_p) -> None:
            pixels = at("images", ctypes.c_uint8, 2 * bucket.batch)
            at("doubled", ctypes.c_float, 2 * bucket.batch)[:] = 2.0 * pixels
            at("sizes2", ctypes.c_int32, bucket.batch)[:] = 2 * at(
                "sizes", ctypes.c_int32, bucket.batch
            )

        return enqueue


class Counted(FakeEngine):
    """Knows which of the contexts that it gave still exist."""

    def __init__(self, profiles: int) -> None:
        super().__init__(profiles)
        self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()

    def prepare(self, *given: Any) -> Enqueue:
        enqueue = super().prepare(*given)
        self.contexts.add(enqueue)
        return enqueue


def running(batches: list[int], cuda: FakeCuda, lanes: int = 2) -> tuple[TensorRt, FakeEngine]:
    """A runtime whose batches are not CUDA graphs: fakes cannot replay."""
    cuda.fails = cuda.fails or "cuStreamBeginCapture_v2"
    engine = FakeEngine(len(batches))
    ranges = batch_ranges(batches)
    return TensorRt(engine, Context(cuda, 0), ranges, "bf16", "cuda:0", lanes), engine


def pictures(count: int) -> Arrays:
    images = np.arange(2 * count, dtype=np.uint8).reshape(count, 2)
    return {"images": images, "sizes": np.arange(count, dtype=np.int32)}


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 21])
def test_every_picture_gets_its_own_answer_whatever_fills_the_batch(count: int) -> None:
    runtime, _ = running([1, 8], FakeCuda())
    for _ in range(3):  # lanes take turns; rows of earlier batches are still in their buffers
        found = runtime.run(pictures(count))
        np.testing.assert_array_equal(found["doubled"], 2.0 * pictures(count)["images"])
        np.testing.assert_array_equal(found["sizes2"], 2 * np.arange(count))


def test_answers_do_not_change_when_their_lane_runs_the_next_batch() -> None:
    runtime, _ = running([4], FakeCuda(), lanes=1)
    first = runtime.run(pictures(2))["doubled"]
    runtime.run({"images": np.full((4, 2), 9, np.uint8), "sizes": np.zeros(4, np.int32)})
    np.testing.assert_array_equal(first, 2.0 * pictures(2)["images"])


def test_every_batch_is_prepared_before_the_first_request() -> None:
    cuda = FakeCuda()
    runtime, engine = running([1, 8], cuda)
    expected = [Bucket(0, 1), Bucket(1, 2), Bucket(1, 4), Bucket(1, 8)]
    assert engine.prepared == expected * 2  # in each lane
    before = [cuda.calls.count(name) for name in ("cuMemAlloc_v2", "cuMemHostAlloc")]
    for count in (1, 2, 3, 5, 8, 13):
        runtime.run(pictures(count))
    assert engine.prepared == expected * 2
    assert [cuda.calls.count(name) for name in ("cuMemAlloc_v2", "cuMemHostAlloc")] == before


def test_copies_and_runs_of_a_batch_are_in_three_streams_that_wait_for_each_other() -> None:
    cuda = FakeCuda()
    runtime, _ = running([1], cuda)
    cuda.calls.clear()
    runtime.run(pictures(1))
    assert cuda.calls == [
        "cuCtxSetCurrent",
        "cuThreadExchangeStreamCaptureMode",
        "cuMemcpyHtoDAsync_v2",
        "cuEventRecord",
        "cuStreamWaitEvent",
        "cuEventRecord",
        "cuStreamWaitEvent",
        *["cuMemcpyDtoHAsync_v2"] * 2,  # one for each output
        "cuEventRecord",
        "cuEventSynchronize",
    ]


@pytest.mark.parametrize("count", [3, 11])
def test_only_outputs_that_are_wanted_are_copied_and_only_rows_of_pictures(count: int) -> None:
    cuda = FakeCuda()
    runtime, _ = running([8], cuda)
    cuda.copied_out.clear()
    found = runtime.run(pictures(count), {"sizes2"})
    assert found.keys() == {"sizes2"}
    np.testing.assert_array_equal(found["sizes2"], 2 * np.arange(count))
    assert sum(cuda.copied_out) == 4 * count
    assert runtime.run(pictures(1), ()) == {}


def test_batches_are_captured_once_and_replayed_with_one_call() -> None:
    cuda = FakeCuda(fails="nothing")
    runtime = TensorRt(FakeEngine(1), Context(cuda, 0), batch_ranges([4]), "bf16", "cuda:0", 1)
    assert runtime.captured == 3  # 1, 2 and 4
    assert cuda.calls.count("cuGraphInstantiateWithFlags") == 3
    runtime.run(pictures(3))
    assert cuda.calls.count("cuGraphLaunch") == 1
    assert cuda.calls.count("cuStreamBeginCapture_v2") == 3


def test_a_batch_is_timed_by_the_device_without_copies_and_without_waiting_in_between() -> None:
    cuda = FakeCuda(fails="nothing")
    runtime = TensorRt(FakeEngine(1), Context(cuda, 0), batch_ranges([4]), "bf16", "cuda:0", 1)
    cuda.calls.clear()
    assert runtime.times_s(3, 2) == [0.0015, 0.0015]
    calls = [name for name in cuda.calls if "Context" not in name and "Ctx" not in name]
    assert [name for name in calls if "Thread" not in name] == [
        *["cuEventCreate"] * 3,
        "cuEventRecord",
        *["cuGraphLaunch", "cuEventRecord"] * 2,
        "cuEventSynchronize",
        *["cuEventElapsedTime"] * 2,
        *["cuEventDestroy_v2"] * 3,
    ]
    runtime.run(pictures(3))  # its lane is free again


def test_a_capture_that_fails_is_ended_and_the_batch_is_run_without() -> None:
    cuda = FakeCuda(fails="cuStreamEndCapture")
    runtime = TensorRt(FakeEngine(1), Context(cuda, 0), batch_ranges([1]), "bf16", "cuda:0", 1)
    assert runtime.captured == 0
    np.testing.assert_array_equal(runtime.run(pictures(1))["doubled"], [[0, 2]])


def test_a_full_device_is_known_by_what_cuda_calls_it() -> None:
    with pytest.raises(CudaError) as raised:
        running([1], FakeCuda(fails="cuMemAlloc_v2"))
    assert ran_out_of_memory(raised.value)
    assert lost_the_device(CudaError("cuEventSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS"))


def test_a_runtime_that_nobody_holds_gives_everything_back() -> None:
    # As in a worker, where the collector is told to leave alone what was there at the start.
    cuda = FakeCuda(fails="nothing")
    engine = Counted(2)
    contexts = engine.contexts
    gc.disable()
    try:
        runtime = TensorRt(engine, Context(cuda, 0), batch_ranges([1, 8]), "bf16", "cuda", 2)
        assert len(contexts) == runtime.captured == 8
        del runtime, engine
        assert not contexts
    finally:
        gc.enable()
    for made, undone in (
        ("cuMemAlloc_v2", "cuMemFree_v2"),
        ("cuMemHostAlloc", "cuMemFreeHost"),
        ("cuStreamCreate", "cuStreamDestroy_v2"),
        ("cuEventCreate", "cuEventDestroy_v2"),
        ("cuGraphInstantiateWithFlags", "cuGraphExecDestroy"),
    ):
        assert cuda.calls.count(made) == cuda.calls.count(undone) > 0


def test_a_captured_batch_keeps_the_context_that_it_was_captured_in() -> None:
    engine = Counted(1)
    cuda = FakeCuda(fails="nothing")
    runtime = TensorRt(engine, Context(cuda, 0), batch_ranges([2]), "bf16", "cuda:0", 1)
    gc.collect()
    assert len(engine.contexts) == runtime.captured == 2


def test_a_plan_with_other_profiles_than_the_manifest_says_is_refused() -> None:
    with pytest.raises(BadBundle, match="has 3 profiles; the manifest names 1"):
        TensorRt(FakeEngine(3), Context(FakeCuda(), 0), batch_ranges([1]), "bf16", "cuda:0", 1)


def test_without_a_driver_a_sentence_says_so() -> None:
    def load(name: str) -> Any:
        raise OSError(name)

    with pytest.raises(BadSettings, match=r"no NVIDIA driver here.*serve with --device cpu"):
        Driver(load)


def test_a_driver_that_sees_no_device_is_said_with_cudas_own_name() -> None:
    class Blind:
        def cuInit(self, flags: int) -> int:  # noqa: N802
            return 100

        def cuGetErrorName(self, error: int, name: Any) -> int:  # noqa: N802
            name._obj.value = b"CUDA_ERROR_NO_DEVICE"
            return 0

    with pytest.raises(BadSettings, match="cuInit: CUDA_ERROR_NO_DEVICE"):
        Driver(lambda name: Blind())


def layer(*types: str, key: str = "Format/Datatype") -> dict[str, Any]:
    return {"Name": "x", "Outputs": [{"Name": "o", key: text} for text in types]}


def test_types_of_a_plan_are_read_as_both_releases_write_them() -> None:
    ten = [layer("Row major linear BFloat16"), layer("Channel major FP16 format"), layer("Int32")]
    assert shares_of(json.dumps({"Layers": ten, "Bindings": []})) == {"bf16": 0.5, "fp16": 0.5}
    eleven = [layer("BF16", "Float", key="Datatype"), layer("FP8", "Half", key="Datatype")]
    assert shares_of(json.dumps({"Layers": eleven})) == dict.fromkeys(
        ("bf16", "fp16", "fp32", "fp8"), 0.25
    )
    assert shares_of(json.dumps({"Layers": ["only a name"]})) == {}


class FakeLibrary:
    """As much of the module as a plan needs to be read and inspected; types are named only to a
    context with a profile and shapes, as in the real one.
    """

    class Logger:
        ERROR = 1

        def __init__(self, least: int) -> None:
            self.least = least

    class ILogger:
        pass

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)
    LayerInformationFormat = SimpleNamespace(JSON=1)

    def __init__(self) -> None:
        self.registered: list[str] = []

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        assert isinstance(logger, self.Logger)
        self.registered.append(namespace)
        return True

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        assert self.registered == [""]
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: FakePlan())


class FakePlan:
    """Of three tensors and the profiles 1 and 2-8, the second of which is in bf16."""

    num_io_tensors, num_optimization_profiles = 3, 2
    tensors: tuple[tuple[str, str, str, tuple[int, ...]], ...] = (
        ("images", "INPUT", "UINT8", (-1, 2)),
        ("sizes", "INPUT", "INT32", (-1,)),
        ("scores", "OUTPUT", "FLOAT", (-1, 4)),
    )

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index][0]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name={one[0]: one[1] for one in self.tensors}[name])

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={one[0]: one[2] for one in self.tensors}[name])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {one[0]: one[3] for one in self.tensors}[name]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 10 * profile

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [
            (batch, *self.get_tensor_shape(name)[1:]) for batch in ((1, 1, 1), (2, 8, 8))[profile]
        ]

    def create_execution_context(self, strategy: int) -> Any:
        context = SimpleNamespace(profile=0, shapes={})

        def choose(profile: int, stream: int) -> bool:
            context.profile = profile
            return True

        def take(name: str, shape: tuple[int, ...]) -> bool:
            context.shapes[name] = shape
            return shape in self.get_tensor_profile_shape(name, context.profile)

        context.set_optimization_profile_async, context.set_input_shape = choose, take
        return context

    def create_engine_inspector(self) -> Any:
        inspector = SimpleNamespace(execution_context=None)

        def told(kind: int) -> str:
            context = inspector.execution_context
            known = context is not None and context.shapes.keys() == {"images", "sizes"}
            types = ("Float", "BFloat16")[context.profile] if known else "N/A due to dynamic shapes"
            return json.dumps({"Layers": [layer(types)]})

        inspector.get_engine_information = told
        return inspector


def test_a_plan_with_a_dynamic_batch_is_inspected_in_every_profile() -> None:
    plan = PlanEngine(b"a plan", Library(FakeLibrary(), "tensorrt", "11.4.0"))
    assert plan.shares() == {"bf16": 0.5, "fp32": 0.5}
    assert plan.inputs == {"images": ("uint8", (None, 2)), "sizes": ("int32", (None,))}
    assert plan.scratch_bytes == 10


def test_plugins_are_registered_once_where_the_library_has_any() -> None:
    module = FakeLibrary()
    for _ in range(2):
        PlanEngine(b"a plan", Library(module, "tensorrt", "11.4.0"))
    assert module.registered == [""]
    assert register_plugins(Library(module, "tensorrt_rtx", "1.7")) is None
    assert module.registered == [""]


def test_types_that_are_not_named_are_unknown() -> None:
    assert shares_of(json.dumps({"Layers": [layer("N/A due to dynamic shapes")]})) == {}


@pytest.mark.parametrize(
    ("shares", "precision", "fault"),
    [
        ({"bf16": 0.6, "fp32": 0.4}, "bf16", None),
        ({"fp32": 1.0}, "bf16", r"0% of its layers' outputs are in bf16 \(least 10%\)"),
        ({"bf16": 0.6, "fp32": 0.4}, "fp16", "it has 60% in bf16, 40% in fp32"),
        ({"fp32": 1.0}, "fp32", None),
        ({"fp32": 0.9, "fp16": 0.1}, "fp32", "10% of its layers' outputs are below fp32"),
        ({}, "bf16", None),  # unknown: the network's types are the proof
    ],
)
def test_a_plan_in_another_precision_is_refused(
    shares: dict[str, float], precision: str, fault: str | None
) -> None:
    found = wrong_shares(shares, precision)
    if fault is None:
        assert found is None
    else:
        assert re.search(fault, str(found))


def test_a_network_in_another_precision_is_refused() -> None:
    assert wrong_types({"bf16": 0.9, "fp32": 0.1}, "bf16") is None
    assert wrong_types({"fp32": 1.0}, "bf16") == (
        "0% of its products are in bf16 (least 60%); it has 100% in fp32"
    )
    assert "it has no products" in str(wrong_types({}, "fp16"))
    assert wrong_types({"fp32": 0.9, "bf16": 0.1}, "fp32") is not None


class Shifted:
    """A runtime that does what another does, and adds to its logits."""

    def __init__(self, runtime: Runtime, precision: str, shift: float, at: int = 1) -> None:
        self._runtime, self._shift, self._at = runtime, shift, at
        self.inputs, self.outputs = runtime.inputs, runtime.outputs
        self.name, self.precision, self.device = "tensorrt", precision, "cuda:0"
        self.streams = self.threads = 1

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        found = self._runtime.run(inputs)
        if len(inputs["images"]) >= self._at:
            logits = found["logits"] + self._shift * np.arange(found["logits"].shape[1])
            raised = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
            found = found | {"logits": logits.astype(np.float32), "scores": scores}
        return found


@pytest.fixture(scope="module")
def engine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo classifier, its serving graph standing in for one that is typed."""
    folder = tmp_path_factory.mktemp("repository") / "vit-scenes" / "1"
    folder.mkdir(parents=True)
    for path in DEMO.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = load_bundle(folder).manifest
    graph = manifest.graphs[0].model_copy(update={"kind": "engine", "precision": "bf16"})
    changed = manifest.model_copy(update={"graphs": [*manifest.graphs, graph]})
    (folder / "manifest.json").write_text(changed.model_dump_json(exclude_none=True))
    return load_bundle(folder)


def tools_of(
    shift: float = 0.0, at: int = 1, shares: dict[str, float] | None = None, here: Machine = H200
) -> tuple[Workshop, list[str]]:
    """Tools that build nothing and run the graph on the CPU."""
    built: list[str] = []

    def build(graph: Path, ranges: Sequence[BatchRange], report: Any) -> Plan:
        built.append(graph.name)
        report("Building engine", 0.5)
        return Plan(b"a plan", {"bf16": 0.9, "fp32": 0.1})

    def opened(plan: bytes, ranges: Sequence[BatchRange], precision: str) -> Opened:
        assert plan == b"a plan"
        runtime = open_graph(DEMO / "model.onnx", Choice("onnxruntime", "fp32"))
        types = {"bf16": 0.5, "fp32": 0.5} if shares is None else shares
        return Opened(Shifted(runtime, precision, shift, at), types, lambda batch: batch / 1e3)

    return Workshop(here, build, opened), built


def build(bundle: Bundle, tools: Workshop, said: list[str] | None = None) -> proving.Proven:
    canvas = bundle.manifest.canvases[0]
    report = (said if said is not None else []).append
    return proving.build_proven(
        bundle, canvas, "bf16", batch_ranges([1, 4]), tools, scenes()[:4], report
    )


def test_a_right_engine_has_figures_for_every_profile(engine_bundle: Bundle) -> None:
    tools, _ = tools_of()
    said: list[str] = []
    proven = build(engine_bundle, tools, said)
    assert [parity.images for parity in proven.parity] == [4, 4]
    assert all(parity.runtime == "tensorrt" for parity in proven.parity)
    assert proven.seconds == {"1": 0.001, "2-4": 0.004}
    assert proven.fingerprint.flags == FLAGS
    assert any(text.endswith("Building engine 50%") for text in said)


@pytest.mark.parametrize(
    ("tools", "sentence"),
    [
        (tools_of(shift=3.0), "it is not right: in batches of 1 the "),
        (tools_of(shift=3.0, at=4), r"it is not right: in batches of 2-4 the [^;]*"),
        (tools_of(shares={"fp32": 1.0}), "0% of its layers' outputs are in bf16"),
    ],
    ids=["wrong everywhere", "wrong in one profile", "wrong precision"],
)
def test_a_wrong_engine_is_refused_with_what_was_found(
    engine_bundle: Bundle, tools: tuple[Workshop, list[str]], sentence: str
) -> None:
    with pytest.raises(BadBundle, match=f"the engine vit-scenes .* bf16 is refused: {sentence}"):
        build(engine_bundle, tools[0])


def test_profiles_below_fp32_are_held_to_the_reference_and_not_to_each_other(
    engine_bundle: Bundle,
) -> None:
    """Each is tuned apart, so that they round apart."""
    proven = build(engine_bundle, tools_of(shift=0.02, at=4, shares={})[0])
    alone, beside = (parity.batch_error for parity in proven.parity)
    assert alone == 0
    assert beside is not None
    assert 1e-3 < beside < 0.1
    fp32 = proven.parity[1].model_copy(update={"precision": "fp32"})
    assert any("alone and batched" in why for why in objections(fp32))
    other = proven.parity[1].model_copy(update={"runtime": "openvino"})
    assert "alone and batched" in objections(other)[0]


@functools.cache
def proven_of(folder: Path) -> proving.Proven:
    return build(load_bundle(folder), tools_of()[0])


def with_engine(bundle: Bundle, machine: Machine = H200) -> Bundle:
    """The bundle with an engine that was built on a machine."""
    proven = proven_of(bundle.folder)
    (bundle.folder / "bf16.plan").write_bytes(proven.plan.content)
    engine = Engine(
        file="bf16.plan",
        graph=proven.graph.file,
        canvas=bundle.manifest.canvases[0],
        precision="bf16",
        fingerprint=proven.fingerprint.model_copy(update={"machine": machine}),
        parity=proven.parity,
        shares=proven.opened.shares,
        seconds=proven.seconds,
    )
    return bundle.model_copy(
        update={"manifest": bundle.manifest.model_copy(update={"engines": [engine]})}
    )


def opened(bundle: Bundle, tools: Workshop, rebuild: bool, **more: Any) -> Runtime:
    canvas = bundle.manifest.canvases[0]
    cache, report = more.get("cache"), more.get("report", lambda text: None)
    return open_engine(bundle, canvas, "bf16", tools, rebuild, cache, report)


def test_an_engine_of_this_machine_and_graph_is_read_and_not_built(engine_bundle: Bundle) -> None:
    tools, built = tools_of()
    bundle = with_engine(engine_bundle)
    said: list[str] = []
    runtime = opened(bundle, tools, rebuild=True, report=said.append)
    assert (runtime.name, runtime.precision, built) == ("tensorrt", "bf16", [])
    assert said == ["reading the engine bf16.plan of vit-scenes"]


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (
            {"gpu": "NVIDIA L4", "compute_capability": "8.9"},
            "its GPU is NVIDIA L4, here it is NVID",
        ),
        ({"version": "10.16.1"}, "its library is tensorrt 10.16.1, here it is tensorrt 11.4.0"),
        ({"driver_major": 570}, "its driver is 570, here it is 580"),
    ],
)
def test_an_engine_of_another_machine_is_refused_with_the_cure(
    engine_bundle: Bundle, change: dict[str, Any], clause: str
) -> None:
    bundle = with_engine(engine_bundle, H200.model_copy(update=change))
    tools, built = tools_of()
    with pytest.raises(BadSettings, match=f"{clause}.*saccade build vit-scenes --precision bf16"):
        opened(bundle, tools, rebuild=False)
    assert built == []


def test_an_engine_of_another_graph_is_refused(engine_bundle: Bundle) -> None:
    bundle = with_engine(engine_bundle)
    files = bundle.manifest.files | {"weights.bin": File(sha256="0" * 64, size_bytes=1)}
    changed = bundle.manifest.model_copy(update={"files": files})
    bundle = bundle.model_copy(update={"manifest": changed})
    with pytest.raises(BadSettings, match=r"its graph is [0-9a-f]{12}, here it is [0-9a-f]{12}"):
        opened(bundle, tools_of()[0], rebuild=False)


def test_a_rebuilt_engine_is_proven_told_of_and_kept(engine_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_engine(engine_bundle, H200.model_copy(update={"gpu": "NVIDIA L4"}))
    tmp_path.chmod(0o700)
    tools, built = tools_of()
    cache, said = CompiledCache(tmp_path), list[str]()
    opened(bundle, tools, rebuild=True, cache=cache, report=said.append)
    assert built == ["model.onnx"]
    assert any(text.startswith("building vit-scenes") for text in said)
    opened(bundle, tools, rebuild=True, cache=cache, report=said.append)
    assert built == ["model.onnx"]  # the second start reads it
    assert said[-1].startswith("reading the engine of vit-scenes")


def test_a_rebuilt_engine_that_is_wrong_serves_nobody(
    engine_bundle: Bundle, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    cache = CompiledCache(tmp_path)
    with pytest.raises(BadBundle, match="is refused: it is not right"):
        opened(engine_bundle, tools_of(shift=3.0)[0], rebuild=True, cache=cache)
    assert list(tmp_path.iterdir()) == []


def test_the_fastest_right_form_of_deformable_attention_is_taken(engine_bundle: Bundle) -> None:
    manifest = engine_bundle.manifest
    typed = next(graph for graph in manifest.graphs if graph.kind == "engine")
    forms = ("gather", "grid_sample", "plugin")
    graphs = [typed.model_copy(update={"sampling": form}) for form in forms]
    bundle = engine_bundle.model_copy(
        update={"manifest": manifest.model_copy(update={"graphs": [manifest.graphs[0], *graphs]})}
    )
    tools, built = tools_of()
    right = tools.open
    order: list[int] = []

    def opening_(plan: bytes, ranges: Sequence[BatchRange], precision: str) -> Opened:
        order.append(0)
        if len(order) == 2:  # GridSample is wrong here
            return tools_of(shift=3.0)[0].open(plan, ranges, precision)
        return right(plan, ranges, precision)

    proven = build(bundle, replace(tools, open=opening_))
    assert len(built) == 3
    assert proven.graph.sampling in ("gather", "plugin")
    assert len(proven.refused) == 2
    assert any(why.startswith("grid_sample: ") and "not right" in why for why in proven.refused)
    assert any("slower" in why for why in proven.refused)


def test_a_choice_of_engines_says_what_is_missing(
    engine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "machine", lambda device: H200)
    assert no_engine(with_engine(engine_bundle), "bf16", "cuda:0", rebuild=False) is None
    said = no_engine(engine_bundle, "bf16", "cuda:0", rebuild=False)
    assert said == ("it has no bf16 engine for 128x128; build one with: saccade build vit-scenes")
    assert no_engine(engine_bundle, "bf16", "cuda:0", rebuild=True) is None
    assert "has no fp16 engine" in str(no_engine(engine_bundle, "fp16", "cuda:0", rebuild=True))
    other = with_engine(engine_bundle, H200.model_copy(update={"driver_major": 570}))
    assert "driver is 570" in str(no_engine(other, "bf16", "cuda:0", rebuild=False))


def test_a_server_asked_for_engines_without_a_driver_says_so_and_ends(
    engine_bundle: Bundle,
) -> None:
    if supports(Choice("tensorrt", "bf16", "cuda:0")) is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(StartError, match=r"tensorrt bf16 on cuda:0: .*(driver|not installed)"):
        candidates(engine_bundle, device="cuda:0", runtime="tensorrt")


def test_many_batches_of_an_engine_are_under_way(
    engine_bundle: Bundle,
) -> None:
    cpu = Cpu(cpu="any", cores=2, libraries={})
    plan = plan_for(with_engine(engine_bundle), Choice("tensorrt", "bf16", "cuda:0"), None, cpu)
    assert (plan.streams, plan.batches) == (LANES, {}), "the engine says how large, once open"


def test_a_build_at_the_start_is_told_as_a_phase_of_it(
    engine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*given: Any) -> Runtime:
        *_, rebuild, report = given
        assert rebuild
        report("building the engine 10%")
        return open_graph(DEMO / "model.onnx", Choice("onnxruntime", "fp32"))

    asked: list[Any] = []

    def chosen(*given: Any) -> list[Choice]:
        asked.append(given)
        return [Choice("onnxruntime", "fp32")]

    monkeypatch.setattr(models, "open_runtime", opened)
    monkeypatch.setattr(models, "candidates", chosen)
    repository = engine_bundle.folder.parents[1]
    settings = Settings(repository=repository, engines="rebuild", cache="off")
    said: list[str] = []
    models.Models(settings, verified=True).load(said.append)
    assert "building the engine 10%" in said
    assert asked[0][-1] == "rebuild"


def test_an_engine_that_is_refused_at_the_start_is_passed_over_for_what_else_may_serve(
    engine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, other = Choice("tensorrt", "bf16", "cuda:0"), Choice("onnxruntime", "fp32")

    def opened(bundle: Bundle, kind: Any, canvas: Any, choice: Choice, *_: Any) -> Runtime:
        if choice == engine:
            raise BadBundle("the engine is refused: it is not right")
        return open_graph(DEMO / "model.onnx", choice)

    monkeypatch.setattr(models, "open_runtime", opened)
    settings = Settings(repository=engine_bundle.folder.parents[1], engines="rebuild", cache="off")
    monkeypatch.setattr(models, "candidates", lambda *_: [engine, other])
    served = models.Models(settings, verified=True)
    served.load(lambda phase: None)
    assert served.describe()["vit-scenes"]["runtime"] == "onnxruntime"
    assert f"{engine} is passed over for the next: the engine is refused" in caplog.text
    monkeypatch.setattr(models, "candidates", lambda *_: [engine])
    with pytest.raises(BadBundle, match="it is not right"):
        models.Models(settings, verified=True).load(lambda phase: None)


def test_engines_are_refused_unless_a_setting_says_rebuild() -> None:
    assert Settings().engines == "refuse"
    assert Settings(engines="rebuild").engines == "rebuild"
