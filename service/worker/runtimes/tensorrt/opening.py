"""The engine that serves a canvas: the one whose fingerprint fits, or one built at the start."""

import logging
from collections.abc import Callable

from service.bundle import Bundle, Engine
from service.engines import BatchRange, Fingerprint, Machine, batch_ranges, mismatches
from service.errors import BadBundle, BadSettings
from service.geometry import Size
from service.worker.runtimes.base import Runtime
from service.worker.runtimes.cache import CompiledCache
from service.worker.runtimes.choose import check_graph
from service.worker.runtimes.tensorrt.library import machine
from service.worker.runtimes.tensorrt.proving import (
    Workshop,
    build_proven,
    fingerprint,
    scenes,
    sources,
)

DEFAULT_BATCHES = [1, 8, 32]

_log = logging.getLogger(__name__)


def open_engine(
    bundle: Bundle,
    canvas: Size,
    precision: str,
    tools: Workshop,
    rebuild: bool,
    cache: CompiledCache | None,
    report: Callable[[str], None],
) -> Runtime:
    """Run the bundle's engine, if it was built of this very graph for this very machine.

    With ``rebuild`` one is built and judged now where none fits, which takes minutes and is told to
    ``report``; it is kept in the cache for later starts, which judge it no more.

    Raises:
        BadSettings: no engine fits, and none may be built.
        BadBundle: the engine built is not right, or a plan is not what the manifest says.
    """
    name, reasons = bundle.manifest.name, []
    known = engines_of(bundle, canvas, precision)
    for engine in known:
        faults = misfits(bundle, engine, tools.machine)
        if not faults:
            report(f"reading the engine {engine.file} of {name}")
            plan = (bundle.folder / engine.file).read_bytes()
            return _started(bundle, engine.graph, plan, engine.fingerprint, precision, tools)
        reasons.append(f"{engine.file} is not for here: {', '.join(faults)}")
    if not rebuild:
        why = "; ".join(reasons) or f"it has none in {precision} at {canvas}"
        raise BadSettings(
            f"no engine of {name} fits: {why}. Build one here with: saccade build {name} "
            f"--precision {precision}; or let it be built at each start that needs it, "
            "with --engines rebuild"
        )
    if reasons:
        _log.warning("an engine of %s is built anew: %s", name, "; ".join(reasons))
    ranges = known[0].fingerprint.profiles if known else batch_ranges(DEFAULT_BATCHES)
    return _rebuilt(bundle, canvas, precision, ranges, tools, cache, report)


def no_engine(bundle: Bundle, precision: str, device: str, rebuild: bool) -> str | None:
    """Why a bundle cannot be served by engines here, as a clause; None if it can."""
    here = machine(device)
    for canvas in bundle.manifest.canvases:
        known = engines_of(bundle, canvas, precision)
        reasons = [misfits(bundle, engine, here) for engine in known]
        if not all(reasons) and known:
            continue
        if rebuild and sources(bundle.manifest, canvas, precision):
            continue
        why = "; ".join(", ".join(faults) for faults in reasons)
        what = (
            f"its engine for {canvas} is not for here ({why})"
            if why
            else (f"it has no {precision} engine for {canvas}")
        )
        return f"{what}; build one with: saccade build {bundle.manifest.name}"
    return None


def engines_of(bundle: Bundle, canvas: Size, precision: str) -> list[Engine]:
    """Those that the bundle has, whatever machine they are for."""
    return [
        one for one in bundle.manifest.engines if (one.canvas, one.precision) == (canvas, precision)
    ]


def misfits(bundle: Bundle, engine: Engine, here: Machine) -> list[str]:
    """Why an engine may not run here, a clause each."""
    graph = next((one for one in bundle.manifest.graphs if one.file == engine.graph), None)
    if graph is None:
        return [f"its graph {engine.graph} is not in the bundle any more"]
    expected = fingerprint(bundle, graph, here, engine.fingerprint.profiles)
    return mismatches(engine.fingerprint, expected)


def _rebuilt(
    bundle: Bundle,
    canvas: Size,
    precision: str,
    ranges: list[BatchRange],
    tools: Workshop,
    cache: CompiledCache | None,
    report: Callable[[str], None],
) -> Runtime:
    """From the cache, where a plan only gets once it is proven, or anew."""
    for graph in sources(bundle.manifest, canvas, precision) if cache is not None else []:
        expected = fingerprint(bundle, graph, tools.machine, ranges)
        kept = cache.read(_key(expected)) if cache is not None else None
        if kept is not None:
            report(f"reading the engine of {bundle.manifest.name} {canvas} built before")
            try:
                return _started(bundle, graph.file, kept, expected, precision, tools)
            except BadBundle as error:
                _log.warning("the engine built before cannot be used: %s", error)
    proven = build_proven(bundle, canvas, precision, ranges, tools, scenes(), report)
    if cache is not None:
        bundle.verify()  # what was built is of the files as they were, if they still are
        cache.write(_key(proven.fingerprint), proven.plan.content)
    return proven.opened.runtime


def _started(
    bundle: Bundle,
    file: str,
    plan: bytes,
    found: Fingerprint,
    precision: str,
    tools: Workshop,
) -> Runtime:
    graph = next(one for one in bundle.manifest.graphs if one.file == file)
    runtime = tools.open(plan, found.profiles, precision).runtime
    check_graph(bundle.path(graph), graph, runtime)
    return runtime


def _key(found: Fingerprint) -> str:
    return f"engine {found.model_dump_json()}"
