"""TensorRT engines: built, judged, and run with CUDA graphs on pinned buffers."""

from service.errors import StartError
from service.worker.runtimes.tensorrt.library import fault, load

PRECISIONS = ("bf16", "fp16", "fp32", "fp8")


def supported_precisions(device: str) -> tuple[str, ...]:
    """Arithmetic that engines can have on a device here."""
    return PRECISIONS if fault(device) is None else ()


def backends() -> tuple[str, ...]:
    """Which of the two libraries is there."""
    try:
        return (str(load()),)
    except StartError:
        return ()
