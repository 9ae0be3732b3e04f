"""Writes the bytecode of what a server imports into this Python's packages.

Nobody can write it at run time, and each of the server's processes would compile the same sources
again. What a server does not import is left without, for it would be four times as large.
"""

import contextlib
import importlib
import sys

STARTED = (
    "service.commands.serve",
    "service.supervisor",
    "service.decoding.process",
    "service.api.process",
    "service.worker.process",
)
RUNTIMES = ("service.worker.runtimes.onnx", "service.worker.runtimes.openvino")
"""As far as this image has their libraries."""
TRACES = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


def main() -> None:
    """Import it all."""
    sys.dont_write_bytecode = False
    for name in (*STARTED, TRACES):
        importlib.import_module(name)
    for name in RUNTIMES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


if __name__ == "__main__":
    main()
