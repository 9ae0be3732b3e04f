"""Which runtime serves a bundle, in which precision, on which device."""

import importlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from service.bundle import Bundle, Graph, GraphKind, Tensor
from service.cores import usable_cores
from service.devices import expand
from service.errors import BadBundle, BadSettings, StartError
from service.geometry import Size
from service.worker.runtimes.base import Runtime, Signature
from service.worker.runtimes.cache import CompiledCache, Slot
from service.worker.runtimes.numbers import check_numbers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A library, its arithmetic and its device (never "auto")."""

    runtime: str
    precision: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision} on {self.device}"

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device != "cpu"


FASTEST_FIRST = (
    Choice("openvino", "bf16"),
    Choice("openvino", "fp32"),
    Choice("onnxruntime", "fp32"),
)
"""As measured on ViT-B/16: bf16 is 2 times as fast as fp32 on AVX-512 (Zen), 4 times with AMX, and
OpenVINO's fp32 a few hundredths faster than ONNX Runtime's.
"""

ON_REQUEST = (Choice("openvino", "int8"), Choice("onnxruntime", "int8"))
"""What serves only where its precision is asked for by name, the fastest first."""

ON_GPUS = (
    Choice("tensorrt", "bf16", "cuda"),
    Choice("tensorrt", "fp16", "cuda"),
    Choice("tensorrt", "fp32", "cuda"),
    Choice("onnxruntime", "fp32", "cuda"),
)
"""What serves on a GPU, the fastest first; TensorRT where ``saccade build`` made engines."""

ON_GPUS_ON_REQUEST = (
    Choice("tensorrt", "fp8", "cuda"),
    Choice("onnxruntime", "bf16", "cuda"),
    Choice("onnxruntime", "fp16", "cuda"),
)
"""What serves on a GPU only where its precision is asked for: by ONNX Runtime's TensorRT provider,
which builds an engine at the first start.
"""

_REFERENCE = Choice("onnxruntime", "fp32")
_VECTOR_TASKS = {"embed", "attention"}
_CLASSES = {
    ("onnxruntime", False): ("onnx", "OnnxRuntime"),
    ("onnxruntime", True): ("onnx_cuda", "OnnxCuda"),
    ("openvino", False): ("openvino", "OpenVino"),
    ("tensorrt", True): ("tensorrt", ""),  # see open_engine
}
"""Module and class by library, and whether it is for GPUs."""


def candidates(
    bundle: Bundle,
    device: str = "auto",
    precision: str = "auto",
    runtime: str = "auto",
    engines: str = "refuse",
) -> list[Choice]:
    """What may serve the bundle here, the fastest first; never empty.

    A choice qualifies if it meets every wish that is not "auto", its library is installed, the
    machine can do it, and the bundle's exporter measured it and let it pass. Without a wish for a
    precision, fp32 comes first where vectors are all that the model answers with: no margin
    between classes swallows the rounding of bf16 there. int8 is never chosen without the wish.
    All are on one device: the first, where ``device`` names several. ``engines``
    "rebuild" is leave to build TensorRT engines that are not there when they are opened.

    Raises:
        BadSettings: wishes that nothing here can meet.
        StartError: without any wish, nothing here can serve the bundle.
    """
    always, on_request = offered(device, runtime)
    wishes = {"runtime": runtime, "precision": precision, "device": device}
    wishes = {name: wish for name, wish in wishes.items() if wish != "auto"}
    wanted = [
        choice
        for choice in always + (on_request if precision != "auto" else ())
        if runtime in ("auto", choice.runtime) and precision in ("auto", choice.precision)
    ]
    named = ", ".join(f"{name} {wish}" for name, wish in wishes.items())
    if not wanted:
        there = "; ".join(str(choice) for choice in always + on_request)
        raise BadSettings(f"nothing runs with {named}; choose among: {there}")
    obstacles = {choice: obstacle(bundle, choice, engines == "rebuild") for choice in wanted}
    found = [choice for choice, why in obstacles.items() if why is None]
    reasons = "; ".join(f"{choice}: {why}" for choice, why in obstacles.items() if why)
    if not found:
        problem = f"{bundle.manifest.name} {bundle.manifest.version} cannot be served"
        kind = BadSettings if wishes else StartError
        raise kind(f"{problem}{f' with {named}' if named else ''}: {reasons}")
    if reasons:
        _log.info("passed over for %s: %s", bundle.manifest.name, reasons)
    if precision == "auto" and set(bundle.manifest.tasks) <= _VECTOR_TASKS:
        found.sort(key=lambda choice: choice.precision != "fp32")
    return found


def offered(
    device: str = "auto", runtime: str = "auto"
) -> tuple[tuple[Choice, ...], tuple[Choice, ...]]:
    """What there is for a device, the fastest first, and what there is besides on request.

    Raises:
        BadSettings: a GPU is named that is not there.
    """
    single = device == "cpu" or (device.startswith("cuda:") and "," not in device)
    place = device if single else expand(device, runtime)[0]
    if place == "cpu":
        return FASTEST_FIRST, ON_REQUEST
    here, besides = (
        tuple(replace(choice, device=place) for choice in choices)
        for choices in (ON_GPUS, ON_GPUS_ON_REQUEST)
    )
    return here, besides


def open_runtime(
    bundle: Bundle,
    graph_kind: GraphKind,
    canvas: Size,
    choice: Choice,
    threads: int = 0,
    cache: CompiledCache | None = None,
    streams: int = 1,
    rebuild: bool = False,
    report: Callable[[str], None] = _log.info,
) -> Runtime:
    """Compile one graph of the bundle and check it against the manifest; on a GPU also what it
    computes, against the same on the CPU.

    Explain graphs are opened as ``explains`` says. Without ``threads`` the library takes every
    core that this process may use. ``rebuild`` as of ``candidates``; ``report`` hears how far that
    is.

    Raises:
        BadBundle: there is no such graph, or the file does not hold what the manifest says.
        BadSettings: the machine cannot do it, or does it wrongly.
        StartError: the library is not installed.
    """
    if choice.runtime == "tensorrt" and graph_kind == "serve":
        from service.worker.runtimes.tensorrt.opening import open_engine
        from service.worker.runtimes.tensorrt.proving import workshop

        tools = workshop(choice.device, cache)
        return open_engine(bundle, canvas, choice.precision, tools, rebuild, cache, report)
    if graph_kind == "explain":
        choice = explains(choice)
    graph = bundle.manifest.graph(graph_kind, canvas, choice.precision)  # type: ignore[arg-type]
    if graph is None:
        sizes = ", ".join(str(size) for size in bundle.manifest.canvases)
        raise BadBundle(
            f"{bundle.folder} has no {graph_kind} graph for {canvas}; its canvases are {sizes}"
        )
    path = bundle.path(graph)
    slot = None if cache is None else _slot(cache, bundle, graph)
    # Explain graphs are opened while others serve, for few: eight captures are not worth it.
    runtime = open_graph(path, choice, threads, slot, streams, captures=graph_kind == "serve")
    check_graph(path, graph, runtime)
    if choice.on_gpu:
        reference = bundle.manifest.graph(graph_kind, canvas, "fp32")
        assert reference is not None, canvas
        check_numbers(runtime, open_graph(bundle.path(reference), _REFERENCE), path)
    return runtime


def explains(choice: Choice) -> Choice:
    """What opens the explain graphs of a bundle that is served so: the same in fp32. No engines are
    made of them, so beside TensorRT it is ONNX Runtime, on the CPU where its build is for CPUs.
    """
    if choice.runtime != "tensorrt":
        return replace(choice, precision="fp32")
    beside = Choice("onnxruntime", "fp32", choice.device)
    return beside if supports(beside) is None else _REFERENCE


def open_graph(
    path: Path,
    choice: Choice,
    threads: int = 0,
    slot: Slot | None = None,
    streams: int = 1,
    captures: bool = True,
) -> Runtime:
    """Compile an ONNX file, which need not belong to a bundle yet. ``captures`` is of a GPU: have
    small batches replayed as CUDA graphs.
    """
    if (choice.runtime, choice.on_gpu) not in _CLASSES:
        raise BadSettings(f"{choice.runtime} does not run on {choice.device}")
    module = _library(choice.runtime, choice.on_gpu)
    if module is None:
        raise StartError(_missing(choice))
    create: Callable[..., Runtime] = getattr(module, _CLASSES[choice.runtime, choice.on_gpu][1])
    of_gpu = {"captures": captures} if choice.on_gpu else {}
    threads = threads or _core_limit()
    return create(path, choice.precision, threads, choice.device, streams, slot, **of_gpu)


def supports(choice: Choice) -> str | None:
    """None if this machine can do it, else what is missing, as a clause."""
    module = _library(choice.runtime, choice.on_gpu)
    if module is None:
        return _missing(choice)
    if choice.on_gpu and (fault := module.fault(choice.device)) is not None:
        return str(fault)
    there = module.supported_precisions(choice.device)
    if choice.precision not in there:
        return f"this machine's {choice.device} offers only {', '.join(there) or 'nothing'} there"
    return None


def obstacle(bundle: Bundle, choice: Choice, rebuild: bool = False) -> str | None:
    """Why a choice cannot serve a bundle here, as a clause; None if it can."""
    unsupported = supports(choice)
    if unsupported:
        return unsupported
    if choice.runtime == "tensorrt":
        from service.worker.runtimes.tensorrt.opening import no_engine

        return no_engine(bundle, choice.precision, choice.device, rebuild)
    if choice.on_gpu:  # proven when it is opened, on the device itself
        return None
    if not bundle.manifest.proven(choice.runtime, choice.precision):
        cure = "export it again"
        if choice.precision == "int8":
            cure = "make and prove int8 graphs with: saccade models quantize"
        return f"its manifest has no proof of accuracy on every canvas; {cure}"
    return None


def installed(runtime: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """What a library offers: precisions on the CPU, and devices (or providers) by its own names;
    None if it is not installed.
    """
    module = _library(runtime)
    return None if module is None else (module.supported_precisions("cpu"), module.backends())


def check_graph(path: Path, graph: Graph, runtime: Runtime) -> None:
    """Compare what was compiled with what the manifest says.

    Raises:
        BadBundle: naming the file, what was found and what was expected.
    """
    for side, found, tensors in (
        ("inputs", runtime.inputs, graph.inputs),
        ("outputs", runtime.outputs, graph.outputs),
    ):
        expected = {tensor.name: _signature(tensor) for tensor in tensors}
        if found != expected:
            raise BadBundle(
                f"{path} has {side} {_describe(found)}; "
                f"the manifest expects {_describe(expected)}. Export the model again."
            )


def _slot(cache: CompiledCache, bundle: Bundle, graph: Graph) -> Slot:
    """Other files of a bundle count: a graph's weights lie beside it."""
    digests = {name: file.sha256 for name, file in bundle.manifest.files.items()}
    return Slot(cache, json.dumps([graph.file, digests], sort_keys=True), bundle.verify)


def _core_limit() -> int:
    """Threads where this process may use fewer cores than the machine has; else 0, the library's
    own count, which knows of hyper-threads."""
    cores = usable_cores()
    return cores if cores < (os.cpu_count() or 1) else 0


def _library(runtime: str, on_gpu: bool = False) -> ModuleType | None:
    """The module that speaks to the library, or None if the library is not installed."""
    module, _ = _CLASSES[runtime, on_gpu]
    try:
        return importlib.import_module(f"service.worker.runtimes.{module}")
    except ModuleNotFoundError as error:
        if error.name != runtime:
            raise
        return None


def _missing(choice: Choice) -> str:
    extra = "gpu" if choice.on_gpu else "cpu"
    return f"{choice.runtime} is not installed; install it with: pip install 'saccade[{extra}]'"


def _signature(tensor: Tensor) -> Signature:
    return tensor.dtype, tuple(None if side == -1 else side for side in tensor.shape)


def _describe(signatures: dict[str, Signature]) -> str:
    return ", ".join(
        f"{name} {dtype}[{', '.join('N' if side is None else str(side) for side in shape)}]"
        for name, (dtype, shape) in signatures.items()
    )
