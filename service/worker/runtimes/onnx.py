"""ONNX Runtime on the CPU; what it does on GPUs is in ``onnx_cuda``."""

import logging
import tempfile
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from service.cores import physical_cores
from service.errors import BadBundle, BadSettings
from service.worker.runtimes.base import Arrays, Signature
from service.worker.runtimes.cache import Slot
from service.worker.runtimes.instructions import sums_int8_exactly

_DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float)": "float32",
}
_PROVIDERS = ["CPUExecutionProvider"]

_log = logging.getLogger(__name__)


def supported_precisions(device: str) -> tuple[str, ...]:
    """Arithmetic that this library does on ``device``, on this machine."""
    if device != "cpu":
        return ()
    return ("fp32", "int8") if sums_int8_exactly() else ("fp32",)


def backends() -> tuple[str, ...]:
    """The library's providers, whether or not a device of theirs is there."""
    return tuple(ort.get_available_providers())


class OnnxRuntime:
    """A graph in ONNX Runtime's CPU provider.

    Several ``streams`` share one session: each calling thread works, helped by those of the
    session's pool. ``slot`` is where the optimised graph may lie from an earlier start, and is kept
    for a later one.

    Raises:
        BadSettings: the device or the precision is not one that this library offers here.
        BadBundle: the library cannot load the file.
    """

    name = "onnxruntime"

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
                f"onnxruntime does not compute in {precision} on {device} here; "
                f"it offers {', '.join(offered) or 'nothing'}"
            )
        self.precision = precision
        self.device = device
        self.streams = streams
        self.threads = threads or physical_cores()  # the library's own count
        pool = threads if streams == 1 else max(self.threads - streams, 0) + 1
        try:
            self._session = _session(path, pool, slot)
        except Exception as error:  # the library's exceptions share no base below Exception
            raise BadBundle(f"onnxruntime {ort.__version__} cannot load {path}: {error}") from error
        self.inputs = signatures(self._session.get_inputs())
        self.outputs = signatures(self._session.get_outputs())
        self._names = list(self.outputs)
        self._free = threading.BoundedSemaphore(streams)

    def run(self, inputs: Arrays, wanted: Collection[str] | None = None) -> Arrays:
        """See ``Runtime.run``."""
        names = [name for name in self._names if wanted is None or name in wanted] or self._names
        with self._free:
            return dict(zip(names, self._session.run(names, inputs), strict=True))


def _session(path: Path, threads: int, slot: Slot | None) -> ort.InferenceSession:
    if slot is None:
        return read_session(path, _options(threads))
    made_by = {"onnxruntime": ort.__version__}
    blob = slot.read(made_by)
    if blob is not None:
        options = _options(threads)
        options.add_session_config_entry("session.load_model_format", "ORT")
        try:
            return ort.InferenceSession(blob, options, providers=_PROVIDERS)
        except Exception as error:  # as above
            _log.warning("onnxruntime refuses what it made of %s before: %s", path, error)
    try:
        session, blob = _optimised(path, threads)
    except Exception as error:  # a graph beyond the 2 GB of the format, a full disk
        _log.warning("onnxruntime cannot write what it makes of %s: %s", path, error)
        return read_session(path, _options(threads))
    slot.write(made_by, blob)
    return session


def _optimised(path: Path, threads: int) -> tuple[ort.InferenceSession, bytes]:
    """A session, and its graph in ONNX Runtime's own format: that one holds the weights too."""
    options = _options(threads)
    options.add_session_config_entry("session.save_model_format", "ORT")
    with tempfile.TemporaryDirectory(prefix="saccade-") as folder:
        written = Path(folder) / "model.ort"
        options.optimized_model_filepath = str(written)
        return read_session(path, options), written.read_bytes()


def read_session(
    path: Path, options: ort.SessionOptions, providers: Sequence[Any] = _PROVIDERS
) -> ort.InferenceSession:
    """A session of what lies in a file and in those beside it.

    The library would map files that the graph names, and compute with whatever is written there
    later; so they are read.
    """
    graph = path.read_bytes()
    named = [
        other
        for other in path.parent.iterdir()
        if other != path and other.is_file() and other.name.encode() in graph
    ]
    contents = [other.read_bytes() for other in named]
    options.add_external_initializers_from_files_in_memory(
        [other.name for other in named], contents, [len(content) for content in contents]
    )
    # Else the library prints what went wrong, tries again with other providers, and raises what
    # went wrong with those.
    return ort.InferenceSession(path, options, providers=providers, enable_fallback=0)


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options


def signatures(nodes: list[ort.NodeArg]) -> dict[str, Signature]:
    """What a session states of its inputs or outputs."""
    return {
        node.name: (
            _DTYPES.get(node.type, node.type),
            tuple(side if isinstance(side, int) else None for side in node.shape),
        )
        for node in nodes
    }
