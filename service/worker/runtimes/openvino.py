"""OpenVINO on the CPU: in fp32, in bf16 where the CPU has it, and with layers in int8."""

import functools
import logging
import queue
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from service.errors import BadBundle, BadSettings
from service.worker.runtimes.base import Array, Arrays, Signature
from service.worker.runtimes.cache import Slot
from service.worker.runtimes.instructions import sums_int8_exactly

# The converter of other frameworks' graphs reports to its makers over the network as soon as it is
# imported, and takes most of the time; without it the library imports all the same.
sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino import properties  # noqa: E402

_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}
_LAYERS = {"FullyConnected", "MatMul", "Convolution"}
_TYPES = {"fp32": ov.Type.f32, "bf16": ov.Type.bf16}

_log = logging.getLogger(__name__)


@functools.cache
def supported_precisions(device: str) -> tuple[str, ...]:
    """Arithmetic that this library does on ``device``, on this machine, without emulation."""
    if device != "cpu":
        return ()
    found = ov.Core().get_property("CPU", properties.device.capabilities)
    names = tuple(name for name, capability in _CAPABILITIES.items() if capability in found)
    return names if sums_int8_exactly() else tuple(name for name in names if name != "int8")


def backends() -> tuple[str, ...]:
    """The library's devices on this machine."""
    return tuple(ov.Core().available_devices)


class OpenVino:
    """A graph compiled for the CPU.

    A single stream gives its batch all threads; several run a batch each on their share. ``slot``
    is where the compiled graph may lie from an earlier start, and is kept for a later one unless
    others are being served.

    Raises:
        BadSettings: the CPU cannot do the precision, or the library chose another one.
        BadBundle: the library cannot load the file.
    """

    name = "openvino"

    def __init__(
        self,
        path: Path,
        precision: str = "fp32",
        threads: int = 0,
        device: str = "cpu",
        streams: int = 1,
        slot: Slot | None = None,
    ) -> None:
        offered = supported_precisions(device)
        if precision not in offered:
            raise BadSettings(
                f"openvino does not compute in {precision} on {device} here; "
                f"it offers {', '.join(offered) or 'nothing'}"
            )
        self.device = device
        config = {
            properties.hint.inference_precision: _TYPES[_besides(precision, offered)],
            properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
            properties.num_streams: streams,
            # A pinned thread waits for its core while another is idle; other processes decode here.
            properties.hint.enable_cpu_pinning: False,
        }
        if threads:
            config[properties.inference_num_threads] = threads
        try:
            compiled = _compile(path, config, slot)
        except RuntimeError as error:
            raise BadBundle(f"openvino {ov.__version__} cannot load {path}: {error}") from error
        self.precision = _precision(compiled, precision)
        if self.precision != precision:
            raise BadSettings(
                f"openvino was asked for {precision} and compiled {path} for {self.precision}"
            )
        self.inputs = _signatures(compiled.inputs)
        self.outputs = _signatures(compiled.outputs)
        self.streams = streams
        self.threads = int(compiled.get_property(properties.inference_num_threads))
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        """See ``Runtime.run``."""
        request = self._idle.get()
        try:
            found: Iterable[Array]
            if self.streams == 1:
                results = request.infer(inputs, share_inputs=True, share_outputs=True)
                found = results.values()
            else:
                # In the threads of the streams: the caller's would be one more, and wake up others.
                request.start_async(inputs, share_inputs=True)
                request.wait()
                found = (request.get_output_tensor(i).data for i in range(len(self.outputs)))
            return {  # copies: the request will write its next outputs to the same places
                name: array.copy()
                for name, array in zip(self.outputs, found, strict=True)
                if wanted is None or name in wanted
            }
        finally:
            self._idle.put(request)


def _compile(path: Path, config: dict[Any, Any], slot: Slot | None) -> ov.CompiledModel:
    """Through the slot rather than the library's own ``cache_dir``: that one's key knows nothing of
    the precision, and it reads a blob without looking whether it is whole.
    """
    core = ov.Core()
    # A mapped file would go on changing the weights; what is read here is what was verified.
    core.set_property({"ENABLE_MMAP": False})
    if slot is None:
        return core.compile_model(path, "CPU", config)
    made_by = {
        "openvino": ov.__version__,
        "device": core.get_property("CPU", properties.device.full_name),
    } | {str(name): value for name, value in config.items()}
    blob = slot.read(made_by)
    if blob is not None:
        try:
            return core.import_model(blob, "CPU", config)
        except RuntimeError as error:
            _log.warning("openvino refuses what it compiled from %s before: %s", path, error)
    compiled = core.compile_model(path, "CPU", config)
    if not slot.cache.serving:  # the library keeps the interpreter: 2 ms for each MB of weights
        slot.write(made_by, compiled.export_model().getvalue())
    return compiled


def _besides(precision: str, offered: tuple[str, ...]) -> str:
    """The arithmetic of what a graph does not say itself: of int8, all that is no layer."""
    if precision != "int8":
        return precision
    return "bf16" if "bf16" in offered else "fp32"


def _precision(compiled: ov.CompiledModel, asked: str) -> str:
    """What runs. Of int8 the library only says what runs besides; so the layers are looked at."""
    if asked == "int8" and _has_int8_layers(compiled):
        return "int8"
    found = compiled.get_property(properties.hint.inference_precision)
    return {kind: name for name, kind in _TYPES.items()}.get(found, str(found))


def _has_int8_layers(compiled: ov.CompiledModel) -> bool:
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return any(
        fact["layerType"].value in _LAYERS and fact["runtimePrecision"].value in ("i8", "u8")
        for fact in facts
        if "layerType" in fact
    )


def _signatures(ports: list[ov.ConstOutput]) -> dict[str, Signature]:
    return {
        # A tensor can go by several names; the node of an input or output is called as in the file.
        port.get_node().get_friendly_name().removesuffix("/sink_port_0"): (
            str(port.get_element_type().to_dtype()),
            tuple(
                None if side.is_dynamic else side.get_length() for side in port.get_partial_shape()
            ),
        )
        for port in ports
    }
