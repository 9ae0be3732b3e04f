"""Engines that are right: built from each form of a typed graph and judged on pictures; of those
that pass the fastest is kept.
"""

import hashlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from service.bundle import Bundle, Graph, Manifest, Parity
from service.devices import index_of
from service.engines import BatchRange, Fingerprint, Machine
from service.errors import BadBundle
from service.geometry import Size
from service.images import ImageLimits, decode
from service.parity import compare, objections, picture_inputs, run_alone, run_in_batches, summary
from service.worker.runtimes.base import Arrays, Runtime
from service.worker.runtimes.cache import CompiledCache
from service.worker.runtimes.choose import Choice, check_graph, open_graph
from service.worker.runtimes.tensorrt.building import FLAGS, Plan, Report, build, wrong_types
from service.worker.runtimes.tensorrt.cuda import Context, Driver
from service.worker.runtimes.tensorrt.library import machine
from service.worker.runtimes.tensorrt.plans import PlanEngine, wrong_shares
from service.worker.runtimes.tensorrt.running import TensorRt

SCENES = Path(__file__).parents[3] / "demo" / "scenes"
MOST_PICTURES = 64
REFERENCE_MACS = 20_000_000_000_000
"""What the reference on the CPU may cost in all."""
TIMED = 20


@dataclass(frozen=True)
class Opened:
    """A plan that can run, its own account of its types, and what a batch of so many pictures takes
    on the device alone, in seconds.
    """

    runtime: Runtime
    shares: dict[str, float]
    time: Callable[[int], float]


@dataclass(frozen=True)
class Workshop:
    """What engines are made and tried with."""

    machine: Machine
    build: Callable[[Path, Sequence[BatchRange], Report | None], Plan]
    open: Callable[[bytes, Sequence[BatchRange], str], Opened]


@dataclass(frozen=True)
class Proven:
    """An engine that passed, and all that is known of it."""

    graph: Graph
    plan: Plan
    opened: Opened
    fingerprint: Fingerprint
    parity: list[Parity]
    seconds: dict[str, float]
    refused: list[str] = field(default_factory=list)
    """Why other forms of the same graph are not it."""


def workshop(device: str, cache: CompiledCache | None = None) -> Workshop:
    """The real one; the cache remembers how fast each kernel was.

    Raises:
        StartError: there is no library.
        BadSettings: there is no such device.
    """
    here = machine(device)
    context = Context(Driver(), index_of(device))
    key = f"timing {here.model_dump_json()}"

    def built(graph: Path, ranges: Sequence[BatchRange], report: Report | None) -> Plan:
        context.enter()  # the builder takes the device of the calling thread
        before = None if cache is None else cache.read(key)
        keep = None if cache is None else lambda timing: cache.write(key, timing)
        return build(graph, ranges, report, before or b"", keep)

    def opened(plan: bytes, ranges: Sequence[BatchRange], precision: str) -> Opened:
        context.enter()
        engine = PlanEngine(plan)
        shares = engine.shares()
        runtime = TensorRt(engine, context, ranges, precision, device)

        def time_s(batch: int) -> float:
            return statistics.median(runtime.times_s(batch, TIMED))

        return Opened(runtime, shares, time_s)

    return Workshop(here, built, opened)


def sources(manifest: Manifest, canvas: Size, precision: str) -> list[Graph]:
    """The graphs that an engine can be built from; the serving graph is one for fp32."""
    found = manifest.engine_graphs(canvas, precision)  # type: ignore[arg-type]
    serve = manifest.graph("serve", canvas, "fp32")
    return found or ([serve] if precision == "fp32" and serve is not None else [])


def fingerprint(
    bundle: Bundle, graph: Graph, here: Machine, ranges: Sequence[BatchRange]
) -> Fingerprint:
    """What an engine of a graph has to have on this machine.

    The digest is of the graph's file and of those that its text names, which hold its weights; all
    by what the manifest says of them.
    """
    text = bundle.path(graph).read_bytes()
    files = bundle.manifest.files
    named = sorted(name for name in files if name != graph.file and name.encode() in text)
    digests = [files[name].sha256 for name in (graph.file, *named)]
    return Fingerprint(
        graph_sha256=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        machine=here,
        flags=FLAGS,
        profiles=list(ranges),
    )


def build_proven(
    bundle: Bundle,
    canvas: Size,
    precision: str,
    ranges: Sequence[BatchRange],
    tools: Workshop,
    pictures: Sequence[Image.Image],
    report: Callable[[str], None],
) -> Proven:
    """Build an engine of every form of the graph, try all, and keep the fastest that is right.

    Raises:
        BadBundle: none is, or there is no graph to build from; the sentence says what was found.
    """
    graphs = sources(bundle.manifest, canvas, precision)
    name = bundle.manifest.name
    if not graphs:
        raise BadBundle(
            f"{bundle.folder} has no {precision} graph for engines at {canvas}; "
            f"export it again with --engine {precision}"
        )
    report(f"running {name} {canvas} in ONNX Runtime on the CPU, the reference")
    inputs, expected = reference(bundle, canvas, pictures)
    passed: list[Proven] = []
    refused: list[str] = []
    for graph in graphs:
        what = f"{name} {canvas} {precision}" + (f" ({graph.sampling})" if graph.sampling else "")
        try:
            passed.append(
                _tried(bundle, graph, precision, ranges, tools, inputs, expected, report, what)
            )
        except BadBundle as error:
            if graph.sampling is None:
                raise
            refused.append(f"{graph.sampling}: {error}")
    if not passed:
        raise BadBundle(f"no form of {name} {canvas} {precision} is right: {'; '.join(refused)}")
    best = min(passed, key=lambda one: sum(one.seconds.values()))
    slower = [
        f"{one.graph.sampling}: slower, {_times(one.seconds)} against {_times(best.seconds)}"
        for one in passed
        if one is not best
    ]
    return Proven(**vars(best) | {"refused": [*refused, *slower]})


def reference(
    bundle: Bundle, canvas: Size, pictures: Sequence[Image.Image]
) -> tuple[Arrays, Arrays]:
    """Inputs of the serving graph from pictures, and what ONNX Runtime makes of them in fp32 on the
    CPU, one at a time.
    """
    manifest = bundle.manifest
    graph = manifest.graph("serve", canvas, "fp32")
    if graph is None:
        raise BadBundle(f"{bundle.folder} has no fp32 graph for {canvas} to compare engines with")
    most = max(4, min(MOST_PICTURES, REFERENCE_MACS // manifest.macs))
    inputs = picture_inputs(graph, manifest.geometry, manifest.canvases, list(pictures), most)
    runtime = open_graph(bundle.path(graph), Choice("onnxruntime", "fp32"))
    return inputs, run_alone(runtime, inputs)


def judge(
    graph: Graph,
    runtime: Runtime,
    ranges: Sequence[BatchRange],
    inputs: Arrays,
    expected: Arrays,
) -> tuple[list[Parity], list[str]]:
    """The figures of each profile, from batches that fill it, and all objections to them.

    A picture's answer alone, in the smallest batch, is held to the same, and compared with the one
    that it has in a full batch.
    """
    alone = run_alone(runtime, inputs)
    figures, faults = [], []
    for batches in ranges:
        found = run_in_batches(runtime, inputs, batches.most)
        parity = compare(graph, runtime, expected, found, alone, inputs.get("sizes"))
        figures.append(parity)
        faults += [f"in batches of {batches} the {fault}" for fault in objections(parity)]
    return figures, faults


def scenes() -> list[Image.Image]:
    """The sample pictures, for engines that are built where there are no others."""
    return [decode(path.read_bytes(), ImageLimits()) for path in sorted(SCENES.glob("*.jpg"))]


def _tried(
    bundle: Bundle,
    graph: Graph,
    precision: str,
    ranges: Sequence[BatchRange],
    tools: Workshop,
    inputs: Arrays,
    expected: Arrays,
    report: Callable[[str], None],
    what: str,
) -> Proven:
    """Build one form, and judge its types, its numbers and its speed."""
    report(f"building {what} for batches of {', '.join(map(str, ranges))}")
    print_ = fingerprint(bundle, graph, tools.machine, ranges)
    plan = tools.build(bundle.path(graph), ranges, _in_tenths(what, report))
    _refuse(what, wrong_types(plan.products, precision))
    opened = tools.open(plan.content, ranges, precision)
    check_graph(bundle.path(graph), graph, opened.runtime)
    _refuse(what, wrong_shares(opened.shares, precision))
    report(f"comparing {what} with the reference")
    parity, faults = judge(graph, opened.runtime, ranges, inputs, expected)
    if faults:
        measured = "; ".join(summary(one) for one in parity)
        _refuse(what, f"it is not right: {'; '.join(faults)}; measured: {measured}")
    report(f"timing {what}")
    seconds = {str(batches): opened.time(batches.best) for batches in ranges}
    return Proven(graph, plan, opened, print_, parity, seconds)


def _refuse(what: str, fault: str | None) -> None:
    if fault is not None:
        raise BadBundle(f"the engine {what} is refused: {fault}")


def _in_tenths(what: str, report: Callable[[str], None]) -> Report:
    """A builder takes thousands of steps."""
    told: set[tuple[str, int]] = set()

    def hear(phase: str, share: float) -> None:
        tenths = int(10 * share)
        if (phase, tenths) not in told:
            told.add((phase, tenths))
            report(f"building {what}: {phase} {tenths * 10}%")

    return hear


def _times(seconds: dict[str, float]) -> str:
    return ", ".join(f"{s * 1e3:.2f} ms ({batches})" for batches, s in seconds.items())
