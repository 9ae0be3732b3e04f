"""ONNX Runtime on an NVIDIA GPU: fp32 by its CUDA provider, half precision by that of TensorRT;
nothing falls back.
"""

import ctypes
import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from service.devices import gpus
from service.errors import BadBundle, BadSettings
from service.worker.runtimes.base import Arrays, Signature
from service.worker.runtimes.cache import Slot
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
    found = gpus()
    if found.fault is not None:
        return found.fault
    known = [gpu.device for gpu in found.found]
    return None if device in ("cuda", *known) else f"there is no {device}, only {', '.join(known)}"


def place_of(device: str, precision: str, captured: bool = True) -> Place:
    """The CUDA provider on ``cuda`` or ``cuda:1``.

    Memory is taken as it is asked for, and kept: after the largest batch it does not grow. fp32 is
    fp32, not TF32.
    """
    index = int(device.partition(":")[2] or 0)
    options = {
        "device_id": str(index),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0" if precision == "fp32" else "1",
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

    index = int(device.partition(":")[2] or 0)
    options = {
        "device_id": str(index),
        f"trt_{precision}_enable": "1",
        "trt_layer_norm_fp32_fallback": "1",
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(MOST_CAPTURED),
        "trt_profile_max_shapes": shapes(MOST_TOGETHER),
    }
    if cache is not None:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(cache),
        }
    return Place(TENSORRT, "cuda", index, options)


class OnnxCuda:
    """A graph in ONNX Runtime's CUDA provider, with inputs and outputs that stay where they are.

    One batch runs at a time; a second stream prepares the next one meanwhile. Small batches are
    replayed as CUDA graphs where every node of the graph is on the device. Engines of TensorRT are
    kept in a folder of the ``slot``'s cache.

    Raises:
        BadSettings: there is no such device, or the library did not take it.
        BadBundle: the library cannot load the file, or left part of it to the CPU.
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
    ) -> None:
        why_not = fault(device)
        if why_not is not None:
            raise BadSettings(f"onnxruntime cannot run on {device}: {why_not}")
        ort.preload_dlls()  # CUDA and cuDNN as pip installs them
        self.precision = precision
        self.device = device
        self.streams = streams
        self.threads = threads or 1
        place = place_of(device, precision)
        if precision == "fp32":
            self._session, self.captures = open_on_gpu(path, device, precision)
        else:
            place = self._tensorrt(path, slot)
            self._session, self.captures = open_session(path, place, strict=False), False
        self._buffers = Buffers(self._session, place, self.captures)
        self.inputs = signatures(self._session.get_inputs())
        self.outputs = signatures(self._session.get_outputs())
        self._free = threading.Lock()

    def _tensorrt(self, path: Path, slot: Slot | None) -> Place:
        why_not = tensorrt_fault()
        if why_not is not None:
            raise BadSettings(f"onnxruntime cannot compute in {self.precision}: {why_not}")
        load_tensorrt()
        rows = {name: shape for name, (_, shape) in _inputs_of(path).items()}
        return tensorrt_place(self.device, self.precision, rows, engine_folder(slot))

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        """See ``Runtime.run``."""
        with self._free:
            return self._buffers.run(inputs, wanted)


def open_on_gpu(path: Path, device: str, precision: str) -> tuple[ort.InferenceSession, bool]:
    """A session with every node on the device, and whether it may replay CUDA graphs; nodes that
    compute shapes may be on the CPU.

    Raises:
        BadSettings: the library did not take the device.
        BadBundle: it cannot load the file, or left more than shapes to the CPU.
    """
    refusals = []
    for captured, strict in ((True, True), (True, False), (False, False)):
        place = place_of(device, precision, captured)
        try:
            session = open_session(path, place, strict)
        except BadBundle as error:
            refusals.append(str(error))
            continue
        if not captured:
            _log.info("%s is run without CUDA graphs: %s", path, refusals[0])
        return session, captured
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
    session.disable_fallback()  # which would run what fails once more, on the CPU
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
    """Nothing but arithmetic on shapes may be on another device.

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


class Buffers:
    """Inputs and outputs of a session on its device, kept for each size of batch, those used last.

    Their addresses do not change, as CUDA graphs need it.
    """

    def __init__(self, session: ort.InferenceSession, place: Place, captures: bool) -> None:
        self._session = session
        self._place = place
        self._captures = captures
        self._inputs = signatures(session.get_inputs())
        self._outputs = list(signatures(session.get_outputs()))
        self._kept: dict[tuple[tuple[int, ...], ...], _Bound] = {}

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        """Copy in, run, copy out what is ``wanted``, by default all."""
        key = tuple(inputs[name].shape for name in self._inputs)
        bound = self._kept.pop(key, None) or self._bind(inputs)
        self._kept[key] = bound  # now the newest
        if len(self._kept) > MOST_KEPT:
            self._drop_oldest()
        for name, buffer in bound.inputs.items():
            buffer.update_inplace(np.ascontiguousarray(inputs[name]))
        self._session.run_with_iobinding(bound.binding, bound.options)
        return {
            name: value.numpy()
            for name, value in zip(self._outputs, bound.binding.get_outputs(), strict=True)
            if wanted is None or name in wanted
        }

    def _bind(self, inputs: Arrays) -> "_Bound":
        binding, place = self._session.io_binding(), self._place
        buffers = {}
        for name in self._inputs:
            array = np.ascontiguousarray(inputs[name])
            buffers[name] = ort.OrtValue.ortvalue_from_numpy(array, place.kind, place.index)
            binding.bind_ortvalue_input(name, buffers[name])
        batch = len(next(iter(inputs.values())))
        capture = self._captures and batch <= MOST_CAPTURED
        for name, value in self._made_by(buffers).items():
            binding.bind_ortvalue_output(name, value)
        options = ort.RunOptions()
        if self._captures:
            number = batch if capture else NO_CAPTURE
            options.add_run_config_entry("gpu_graph_id", str(number))
        return _Bound(binding, buffers, options, captured=capture)

    def _made_by(self, buffers: dict[str, Any]) -> dict[str, Any]:
        """Buffers of the outputs' shapes, which only a run can tell where they are not stated."""
        place = self._place
        binding, options = self._session.io_binding(), ort.RunOptions()
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
        for name in self._outputs:
            binding.bind_output(name, place.kind, place.index)
        if self._captures:
            options.add_run_config_entry("gpu_graph_id", str(NO_CAPTURE))
        self._session.run_with_iobinding(binding, options)
        return dict(zip(self._outputs, binding.get_outputs(), strict=True))

    def _drop_oldest(self) -> None:
        """A captured graph holds its addresses for good, so its buffers stay, too."""
        for key, bound in self._kept.items():
            if not bound.captured:
                del self._kept[key]
                return


@dataclass(frozen=True)
class _Bound:
    """One size of batch: what is bound to what."""

    binding: Any
    inputs: dict[str, Any]
    options: Any
    captured: bool


def engine_folder(slot: Slot | None) -> Path | None:
    """Where engines of one graph lie: beside other compiled models, in a folder that is ours."""
    if slot is None:
        return None
    digest = hashlib.sha256(slot.graph.encode()).hexdigest()[:32]
    folder = slot.cache.folder / f"tensorrt-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


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
    first = [(place.provider, place.options)]
    return first + [(CUDA, {"device_id": str(place.index)})] * (place.provider == TENSORRT)


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
