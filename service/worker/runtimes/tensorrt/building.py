"""From a typed graph to a plan: parsed, checked for its types, built for a few ranges of batches.

Right on TensorRT 10.16 and 11: networks are strongly typed, so that every type is the graph's, and
nothing that 11 dropped is touched.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.engines import BatchRange
from service.errors import BadBundle
from service.worker.runtimes.tensorrt.library import Library, load, register_plugins

LEVEL = 3
"""How hard the builder looks for the fastest kernels, 0 to 5; 3 is its own default."""
WORKSPACE_BYTES = 8 * 2**30
FLAGS = ["strongly typed", "no tf32", f"level {LEVEL}"]

PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "ATTENTION_OUTPUT", "EINSUM")
"""Layers whose arithmetic takes the time, by the library's names."""
_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "FP8": "fp8", "INT8": "int8"}

Report = Callable[[str, float], None]
"""Hears the phase of the builder and the share of it that is done."""


@dataclass(frozen=True)
class Plan:
    """A built engine, and of its products (see ``PRODUCTS``) the share in each type."""

    content: bytes
    products: dict[str, float]


def build(
    graph: Path,
    ranges: Sequence[BatchRange],
    report: Report | None = None,
    timing: bytes = b"",
    keep_timing: Callable[[bytes], None] | None = None,
    library: Library | None = None,
) -> Plan:
    """Build an engine with a profile per range; ``timing`` is what ``keep_timing`` was given by an
    earlier build on the same machine.

    Raises:
        BadBundle: the library cannot read the graph, or has no kernels for it.
        StartError: there is no library.
    """
    library = library or load()
    trt, log = library.trt, Log(library)
    builder = trt.Builder(log.listener)
    network = parse(graph, library, builder, log)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _workspace(config, trt))
    config.builder_optimization_level = LEVEL
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is fp32
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    for batches in ranges:
        config.add_optimization_profile(_profile(builder, network, batches))
    if report is not None:
        config.progress_monitor = _monitor(trt, report)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # RTX has no timing cache any more
        cache = config.create_timing_cache(timing)
        config.set_timing_cache(cache, False)
        content = builder.build_serialized_network(network, config)
        if content is None:
            raise BadBundle(f"{library} cannot build {graph.name}: {log.said()}")
        if keep_timing is not None:
            keep_timing(bytes(config.get_timing_cache().serialize()))
    return Plan(bytes(content), product_shares(network))


def parse(graph: Path, library: Library, builder: Any = None, log: "Log | None" = None) -> Any:
    """The library's network of an ONNX file.

    Raises:
        BadBundle: it does not understand the file; the sentence names the operators.
    """
    trt, log = library.trt, log or Log(library)
    register_plugins(library)
    builder = builder or trt.Builder(log.listener)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # always so from 11
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log.listener)
    if not parser.parse_from_file(str(graph)):
        faults = [_describe(parser.get_error(i)) for i in range(parser.num_errors)]
        raise BadBundle(f"{library} cannot read {graph.name}: {'; '.join(faults) or log.said()}")
    return network


def product_shares(network: Any) -> dict[str, float]:
    """Of the network's products, the share in each type; of a quantised one the type that its
    inputs had before they were given back.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    found = Counter[str]()
    for layer in layers:
        if layer.type.name in PRODUCTS:
            found[_type_of(layer, makers)] += 1
    total = found.total()
    return {name: count / total for name, count in sorted(found.items())}


def wrong_types(products: dict[str, float], precision: str) -> str | None:
    """Why a network does not compute in the precision asked for, as a clause; None if it does.

    The last layers stay in fp32, so not all products have to be in half precision; the most do.
    """
    share = products.get(precision, 0.0)
    least = 1.0 if precision == "fp32" else LEAST_PRODUCTS
    if share >= least:
        return None
    others = ", ".join(f"{part:.0%} in {name}" for name, part in products.items())
    return (
        f"{share:.0%} of its products are in {precision} (least {least:.0%}); "
        f"it has {others or 'no products'}"
    )


LEAST_PRODUCTS = 0.6
"""Of the products of a reduced precision; the tiny networks of the tests, where the last layers are
many, have 0.7 and more."""


def _type_of(layer: Any, makers: dict[str, Any]) -> str:
    source = makers.get(layer.get_input(0).name)
    if source is not None and source.type.name == "DEQUANTIZE":
        return _name(source.get_input(0).dtype)
    return _name(layer.get_output(0).dtype)


def _name(dtype: Any) -> str:
    return _TYPES.get(dtype.name, dtype.name.lower())


def _profile(builder: Any, network: Any, batches: BatchRange) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sides = tuple(tensor.shape)[1:]
        shapes = [(size, *sides) for size in (batches.least, batches.best, batches.most)]
        profile.set_shape(tensor.name, *shapes)
    return profile


def _workspace(config: Any, trt: Any) -> int:
    """A bound of ours; the library's own is the whole device where it sees one."""
    own = int(config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE))
    return min(own, WORKSPACE_BYTES) if own else WORKSPACE_BYTES


def _describe(error: Any) -> str:
    """An error of the parser in one line, with the operator that it is about."""
    where = error.node_operator() if hasattr(error, "node_operator") else ""
    text = " ".join(str(error.desc()).split())
    return f"{where}: {text}" if where and where not in text else text


def _monitor(trt: Any, report: Report) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined, unused-ignore]
        """Phases nest; what is told is the one that lasts, the outermost with steps."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, count: int) -> None:
            self.steps[name] = max(count, 1)

        def step_complete(self, name: str, step: int) -> bool:
            if name == next(iter(self.steps), None):
                report(name, min(1.0, (step + 1) / self.steps[name]))
            return True

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor()


class Log:
    """What the library says, kept for the sentence of a failure and for the log."""

    def __init__(self, library: Library) -> None:
        trt = library.trt
        self.errors: list[str] = []
        errors = self.errors

        class Listener(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity.name in ("ERROR", "INTERNAL_ERROR"):
                    errors.append(re.sub(r"\s+", " ", text).strip())

        self.listener = Listener()

    def said(self) -> str:
        """The last error, which the library gives for the cause."""
        return self.errors[-1] if self.errors else "it gives no reason"
