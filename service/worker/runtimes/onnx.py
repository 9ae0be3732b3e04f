"""ONNX Runtime on the CPU."""

import threading
from pathlib import Path

import onnxruntime as ort

from service.errors import BadBundle, BadSettings
from service.worker.runtimes.base import Arrays, Signature

_DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float)": "float32",
}


def supported_precisions(device: str) -> tuple[str, ...]:
    """Arithmetic that this library does on ``device``, on this machine."""
    return ("fp32",) if device == "cpu" else ()


class OnnxRuntime:
    """A graph in ONNX Runtime's CPU provider; runs one batch at a time.

    Raises:
        BadSettings: the device or the precision is not one that this library offers here.
        BadBundle: the library cannot load the file.
    """

    name = "onnxruntime"

    def __init__(
        self, path: Path, precision: str = "fp32", threads: int = 0, device: str = "cpu"
    ) -> None:
        if precision not in supported_precisions(device):
            raise BadSettings(
                f"onnxruntime does not compute in {precision} on {device}; it offers fp32 on cpu"
            )
        self.precision = precision
        self.device = device
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(
                path, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's exceptions share no base below Exception
            raise BadBundle(f"onnxruntime {ort.__version__} cannot load {path}: {error}") from error
        self.inputs = _signatures(self._session.get_inputs())
        self.outputs = _signatures(self._session.get_outputs())
        self._names = list(self.outputs)
        self._lock = threading.Lock()

    def run(self, inputs: Arrays) -> Arrays:
        """See ``Runtime.run``."""
        with self._lock:
            return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))


def _signatures(nodes: list[ort.NodeArg]) -> dict[str, Signature]:
    return {
        node.name: (
            _DTYPES.get(node.type, node.type),
            tuple(side if isinstance(side, int) else None for side in node.shape),
        )
        for node in nodes
    }
