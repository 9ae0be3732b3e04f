"""ONNX Runtime on an NVIDIA GPU: fp32 by its CUDA provider, half precision by that of TensorRT;
nothing falls back.
"""

import ctypes
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from service.devices import device_fault, index_of
from service.errors import BadBundle, BadSettings
from service.worker.runtimes.base import Arrays, Signature
from service.worker.runtimes.cache import Slot
from service.worker.runtimes.device_thread import DeviceThread, device_thread
from service.worker.runtimes.onnx import read_session, signatures

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
MOST_CAPTURED = 8
"""Batches up to this size are captured as CUDA graphs: launching kernels costs more than running
them there."""
MOST_TOGETHER = 64
"""The largest batch that a TensorRT engine takes here."""
TENSORRT_MAJOR = 10
"""What the library is linked with. Two majors in one process would break both."""
TENSORRT_PACKAGES = ("tensorrt_cu13_libs", "tensorrt_cu12_libs", "tensorrt_libs")
NO_CAPTURE = -1
MOST_KEPT = 16
"""Sizes of batches whose buffers are kept on the device."""

# What a graph may leave to the CPU: arithmetic on shapes, a few numbers that no picture is in.
SHAPE_OPERATORS = frozenset(
    {"Add", "Cast", "Concat", "ConstantOfShape", "Constant", "Div", "Equal", "Expand", "Gather"}
    | {"Identity", "Max", "Min", "Mod", "Mul", "Range", "ReduceProd", "Reshape", "Shape", "Size"}
    | {"Slice", "Squeeze", "Sub", "Unsqueeze", "Where"}
)
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
"""Where nearly all of the arithmetic is: what these compute in is a graph's precision."""

Shapes = tuple[tuple[int, ...], ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a session computes: a provider with its options, and the device of its buffers."""

    provider: str
    kind: str
    index: int = 0
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.provider} on {self.kind}:{self.index}"


def supported_precisions(device: str) -> tuple[str, ...]:
    """fp32 with CUDA alone; the others where TensorRT 10 is installed, too."""
    if fault(device) is not None:
        return ()
    return ("fp32",) if tensorrt_fault() else ("fp32", "bf16", "fp16")


def backends() -> tuple[str, ...]:
    """Providers that the library was built with, by its own names."""
    return tuple(ort.get_available_providers())


def fault(device: str) -> str | None:
    """Why nothing can run on ``device`` here, as a clause; None if it can."""
    if CUDA not in ort.get_available_providers():
        return (
            f"the installed onnxruntime {ort.__version__} is the one for CPUs; "
            "install the other in its place: pip install 'saccade[gpu]'"
        )
    return device_fault(device)


def place_of(device: str, captured: bool = True) -> Place:
    """The CUDA provider on ``cuda`` or ``cuda:1``; fp32 there is fp32, not TF32.

    Memory is taken as it is asked for, and kept: after the largest batch, which the warm-up runs,
    it does not grow. There is no limit below that of the device: it would have to be known before
    the first batch has run, and one too low fails batches for which there is room.
    """
    index = index_of(device)
    options = {
        "device_id": str(index),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
        "enable_cuda_graph": "1" if captured else "0",
    }
    return Place(CUDA, "cuda", index, options)


def tensorrt_fault(installed: Callable[[str], str | None] | None = None) -> str | None:
    """Why the TensorRT provider cannot run here, as a clause; None if it can."""
    if TENSORRT not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} was built without TensorRT"
    found = {name: (installed or _version_of)(name) for name in TENSORRT_PACKAGES}
    versions = [number for number in found.values() if number is not None]
    if not versions:
        return f"half precision needs TensorRT {TENSORRT_MAJOR}, which is not installed"
    if any(number.partition(".")[0] != str(TENSORRT_MAJOR) for number in versions):
        return (
            f"half precision needs TensorRT {TENSORRT_MAJOR}, with which onnxruntime is linked; "
            f"installed is {', '.join(versions)}, which serves with --runtime tensorrt"
        )
    return None


def tensorrt_place(
    device: str, precision: str, rows: dict[str, tuple[int | None, ...]], cache: Path | None
) -> Place:
    """The TensorRT provider, with one profile for all batches up to MOST_TOGETHER: with none it
    builds anew, for minutes, at each batch of another size. ``rows`` are the inputs' shapes.
    """

    def shapes(batch: int) -> str:
        return ",".join(
            f"{name}:{'x'.join(str(batch if side is None else side) for side in shape)}"
            for name, shape in rows.items()
        )

    index = index_of(device)
    options = {  # the CUDA provider takes "1" for true, this one does not
        "device_id": str(index),
        f"trt_{precision}_enable": "True",
        "trt_layer_norm_fp32_fallback": "True",
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(MOST_CAPTURED),
        "trt_profile_max_shapes": shapes(MOST_TOGETHER),
    }
    if cache is not None:
        options |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache),
        }
    return Place(TENSORRT, "cuda", index, options)


class OnnxCuda:
    """A graph in ONNX Runtime's CUDA provider, with inputs and outputs that stay where they are.

    One batch runs at a time, in the thread of the device; further ``streams`` only have the next
    one at hand when it ends. With ``captures`` small batches are replayed as CUDA graphs where
    every node of the graph is on the device. Engines of TensorRT are kept in a folder of the
    ``slot``'s cache.

    Raises:
        BadSettings: there is no such device, or the library did not take it.
        BadBundle: the library cannot load the file, or left part of it to the CPU, or of half
            precision a product to CUDA.
    """

    name = "onnxruntime"

    def __init__(
        self,
        path: Path,
        precision: str = "fp32",
        threads: int = 0,
        device: str = "cuda",
        streams: int = 1,
        slot: Slot | None = None,
        captures: bool = True,
    ) -> None:
        why_not = fault(device)
        if why_not is not None:
            raise BadSettings(f"onnxruntime cannot run on {device}: {why_not}")
        ort.preload_dlls()  # CUDA and cuDNN as pip installs them
        self.precision = precision
        self.device = device
        self.streams = streams
        self.threads = threads or 1
        self._thread = device_thread(index_of(device))
        if precision == "fp32":
            self._buffers, self.captures = open_on_gpu(path, device, self._thread, captures)
        else:
            self._buffers, self.captures = self._open_tensorrt(path, slot), False
        self.inputs, self.outputs = self._buffers.inputs, self._buffers.outputs
        # What was made there must go there, whoever lets go of this last.
        weakref.finalize(self, self._thread.do_later, self._buffers.release).atexit = False

    def _open_tensorrt(self, path: Path, slot: Slot | None) -> "Buffers":
        """In the calling thread: an engine takes minutes to build, in which others serve. Nothing
        is captured here, and whatever captures is opened before or after.
        """
        why_not = tensorrt_fault()
        if why_not is not None:
            raise BadSettings(f"onnxruntime cannot compute in {self.precision}: {why_not}")
        load_tensorrt()
        rows = {name: shape for name, (_, shape) in _inputs_of(path).items()}
        place = tensorrt_place(self.device, self.precision, rows, engine_folder(slot))
        return Buffers(open_session(path, place, strict=False), place)

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        """See ``Runtime.run``."""
        return self._thread.do(partial(self._buffers.run, inputs, wanted))


def open_on_gpu(
    path: Path, device: str, thread: DeviceThread, captures: bool = True
) -> tuple["Buffers", bool]:
    """A session with every node on the device, and whether it replays CUDA graphs: those are all
    captured now, so that none is while others serve. Nodes that compute shapes may be on the CPU.

    Raises:
        BadSettings: the library did not take the device.
        BadBundle: it cannot load the file, or left more than shapes to the CPU.
    """
    refusals = []
    ways = [(True, True), (True, False)] * captures + [(False, False)]
    for captured, strict in ways:
        place = place_of(device, captured)
        try:
            with thread.opening:  # taking memory breaks a capture in any other thread
                buffers = Buffers(open_session(path, place, strict), place)
                if captured:
                    thread.do(partial(buffers.capture, range(1, MOST_CAPTURED + 1)))
        except BadSettings:
            raise
        except Exception as error:  # the library's exceptions share no base below Exception
            refusals.append(str(error))
            continue
        if captures and not captured:
            _log.info("%s is run without CUDA graphs: %s", path, refusals[-1])
        return buffers, captured
    raise BadBundle(refusals[-1])


def open_session(path: Path, place: Place, strict: bool) -> ort.InferenceSession:
    """A session at a place; ``strict`` leaves not even shapes to the CPU.

    Raises:
        BadSettings: the library did not take the provider.
        BadBundle: it cannot load the file, or left to the CPU what it may not.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if strict:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = read_session(path, options, _providers(place))
    except Exception as error:  # the library's exceptions share no base below Exception
        raise BadBundle(
            f"onnxruntime {ort.__version__} cannot run {path} by {place}: {error}"
        ) from error
    check_providers(session.get_providers(), place)
    check_assignment(assigned(session), path, place)
    return session


def check_providers(found: list[str], place: Place) -> None:
    """The library says nothing when it leaves out a provider whose libraries are missing.

    Raises:
        BadSettings: the provider is not the first that the session has.
    """
    if not found or found[0] != place.provider:
        raise BadSettings(
            f"onnxruntime {ort.__version__} was asked for {place} and took "
            f"{', '.join(found) or 'nothing'} instead: CUDA or cuDNN cannot be loaded, or are "
            "not of the version that it needs; its log above names the file. "
            "Install them with: pip install 'saccade[gpu]', or serve with --device cpu"
        )


def assigned(session: ort.InferenceSession) -> dict[str, Counter[str]]:
    """Operators by the provider that runs them; empty where the library cannot tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        operators = found.setdefault(part.ep_name, Counter())
        operators.update(node.op_type for node in part.get_nodes())
    return found


def check_assignment(found: dict[str, Counter[str]], path: Path, place: Place) -> None:
    """Nothing but arithmetic on shapes may be on another device, and no product beside TensorRT:
    what that leaves to CUDA is in fp32.

    Raises:
        BadBundle: naming the operators that are.
    """
    elsewhere = Counter[str]()
    for provider, operators in found.items():
        if provider not in (place.provider, CUDA):
            elsewhere.update(operators)
    left = {name: count for name, count in elsewhere.items() if name not in SHAPE_OPERATORS}
    if left:
        named = ", ".join(f"{count} {name}" for name, count in sorted(left.items()))
        raise BadBundle(
            f"{path} would run partly on the CPU: {place} has no kernels for {named}. "
            "Export the model again, or serve it with another runtime"
        )
    if place.provider != TENSORRT:
        return
    in_fp32 = {name: n for name, n in found.get(CUDA, Counter()).items() if name in PRODUCTS}
    if in_fp32 or not found.get(TENSORRT):
        named = ", ".join(f"{n} {name}" for name, n in sorted(in_fp32.items())) or "everything"
        raise BadBundle(
            f"{path} would not run in the precision asked for: TensorRT left {named} to CUDA, in "
            "fp32. Serve it with --precision fp32, or as an engine of saccade build"
        )


class Buffers:
    """Inputs and outputs of a session on its device, kept for each size of batch, those used last.

    Their addresses do not change, as CUDA graphs need it. To be used in one thread.
    """

    def __init__(self, session: ort.InferenceSession, place: Place) -> None:
        self._session = session
        self._place = place
        self.inputs = signatures(session.get_inputs())
        self.outputs = signatures(session.get_outputs())
        self._captured: dict[Shapes, _Bound] = {}  # a graph holds its addresses for good
        self._kept: dict[Shapes, _Bound] = {}

    def capture(self, batches: Iterable[int]) -> None:
        """Have batches of these sizes replayed as CUDA graphs from now on.

        Raises:
            Exception: the library could not; then the session is given back.
        """
        for batch in sorted(batches, reverse=True):  # the first takes memory for all
            inputs = {
                name: np.zeros((batch, *(side or 1 for side in shape[1:])), dtype)
                for name, (dtype, shape) in self.inputs.items()
            }
            try:
                bound = self._bind(inputs, number=batch)
                self._session.run_with_iobinding(bound.binding, bound.options)
            except Exception:
                self.release()
                raise
            self._captured[self._shapes(inputs)] = bound

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        """Copy in, run, copy out what is ``wanted``, by default all."""
        bound = self._bound(inputs)
        for name, buffer in bound.inputs.items():
            buffer.update_inplace(np.ascontiguousarray(inputs[name]))
        self._session.run_with_iobinding(bound.binding, bound.options)
        return {
            name: value.numpy()
            for name, value in zip(self.outputs, bound.binding.get_outputs(), strict=True)
            if wanted is None or name in wanted
        }

    def release(self) -> None:
        """Give back the session and all that it took of the device."""
        self._captured.clear()
        self._kept.clear()
        del self._session

    def _bound(self, inputs: Arrays) -> "_Bound":
        shapes = self._shapes(inputs)
        if shapes in self._captured:
            return self._captured[shapes]
        bound = self._kept.pop(shapes, None) or self._bind(inputs)
        self._kept[shapes] = bound  # now the newest
        if len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        return bound

    def _shapes(self, inputs: Arrays) -> Shapes:
        return tuple(inputs[name].shape for name in self.inputs)

    def _bind(self, inputs: Arrays, number: int = NO_CAPTURE) -> "_Bound":
        """``number`` is that of the CUDA graph that the first run captures."""
        binding, place = self._session.io_binding(), self._place
        buffers = {}
        for name in self.inputs:
            array = np.ascontiguousarray(inputs[name])
            buffers[name] = ort.OrtValue.ortvalue_from_numpy(array, place.kind, place.index)
            binding.bind_ortvalue_input(name, buffers[name])
        for name, value in self._made_by(buffers).items():
            binding.bind_ortvalue_output(name, value)
        return _Bound(binding, buffers, _run_options(number))

    def _made_by(self, buffers: dict[str, Any]) -> dict[str, Any]:
        """Buffers of the outputs' shapes, which only a run can tell where they are not stated."""
        binding = self._session.io_binding()
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
        for name in self.outputs:
            binding.bind_output(name, self._place.kind, self._place.index)
        self._session.run_with_iobinding(binding, _run_options(NO_CAPTURE))
        return dict(zip(self.outputs, binding.get_outputs(), strict=True))


@dataclass(frozen=True)
class _Bound:
    """One size of batch: what is bound to what."""

    binding: Any
    inputs: dict[str, Any]
    options: Any


def _run_options(number: int) -> Any:
    """Of a run that captures or replays the CUDA graph of a number."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def engine_folder(slot: Slot | None) -> Path | None:
    """Where engines of one graph lie: beside other compiled models, in a folder that is ours."""
    return None if slot is None else slot.cache.subfolder(slot.graph)


def load_tensorrt() -> None:
    """Load the libraries that pip installed, where the provider's own will then find them."""
    for package in TENSORRT_PACKAGES:
        try:
            files = distribution(package).files or []
        except PackageNotFoundError:
            continue
        names = (f"libnvinfer.so.{TENSORRT_MAJOR}", f"libnvonnxparser.so.{TENSORRT_MAJOR}")
        found = {file.name: file.locate() for file in files}
        for name in names:
            if name in found:
                ctypes.CDLL(str(found[name]), mode=ctypes.RTLD_GLOBAL)


def _providers(place: Place) -> list[tuple[str, dict[str, str]]]:
    """What TensorRT cannot take is left to CUDA, on the same device."""
    places = [place]
    if place.provider == TENSORRT:
        places.append(place_of(f"cuda:{place.index}", captured=False))
    return [(one.provider, one.options) for one in places]


def _inputs_of(path: Path) -> dict[str, Signature]:
    """What a graph takes, as a session on the CPU that optimises nothing tells it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return signatures(read_session(path, options).get_inputs())


def _version_of(package: str) -> str | None:
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None
