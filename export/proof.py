"""Which runtimes may serve an export: each is run on the pictures and judged by its figures."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import nn

from export.explain import proof_inputs
from export.parity import reference
from export.pictures import Pictures
from export.progress import Progress
from service.bundle import Graph, Parity, Precision
from service.errors import StartError
from service.geometry import Geometry, Size
from service.parity import (
    measure,
    measure_explain,
    objections,
    own_first,
    picture_inputs,
    summary,
)
from service.worker.runtimes.base import Arrays, Runtime
from service.worker.runtimes.choose import (
    FASTEST_FIRST,
    Choice,
    check_graph,
    open_graph,
    supports,
)

FEWEST_PICTURES = 4
PROOF_MACS = 500_000_000_000
"""What the pictures of one graph may cost each time that they are run."""


@dataclass(frozen=True)
class Subject:
    """A graph on disk and the module that it must equal."""

    graph: Graph
    head: nn.Module


@dataclass(frozen=True)
class _Case:
    subject: Subject
    inputs: Arrays
    expected: Arrays


def prove(
    folder: Path,
    subjects: list[Subject],
    geometry: Geometry,
    pictures: list[Image.Image],
    macs: int,
    wanted: list[Precision] | None,
    progress: Progress,
) -> list[Parity]:
    """The figures of every runtime and precision that passes, per canvas.

    fp32 is always tried and has to pass; ``wanted`` precisions have to pass; without ``wanted``,
    bf16 is tried and left out where it fails. Runtimes that are not installed are left out.
    ``macs`` of one picture bound how many are run: every one of a small network, and at least four
    at each canvas, those first that the server would put there.

    Raises:
        StartError: what has to pass does not, with the figures and the limits.
    """
    most = _most(macs, len(pictures))
    canvases = list(dict.fromkeys(subject.graph.canvas for subject in subjects))
    progress.step(f"running the reference in PyTorch on {min(most, len(pictures))} pictures")
    cases = [_case(subject, geometry, canvases, pictures, most) for subject in subjects]
    required = {"fp32", *(wanted or [])}
    proven: list[Parity] = []
    for choice in FASTEST_FIRST:
        if choice.precision not in {"fp32", *(wanted or ["bf16"])}:
            continue
        missing = supports(choice)
        if missing:
            if wanted and choice.precision in wanted and choice.precision != "fp32":
                raise StartError(
                    f"{choice.precision} was asked for and cannot be proven: {missing}"
                )
            progress.notice(f"{choice} is not in the bundle: {missing}")
            continue
        progress.step(f"measuring {choice}")
        figures, faults = _examine(folder, cases, choice)
        if not faults:
            proven += figures
        elif choice.precision in required:
            raise StartError(f"{choice} does not equal the checkpoint: {'; '.join(faults)}")
        else:
            measured = "; ".join(summary(parity) for parity in figures)
            progress.notice(
                f"{choice} is not in the bundle: {'; '.join(faults)}; measured: {measured}"
            )
    if not any(parity.precision == "fp32" for parity in proven):
        raise StartError(
            "neither openvino nor onnxruntime is installed, so that nothing can be proven; "
            "install them with: pip install 'saccade[export]'"
        )
    return proven


def pictures_run(
    pictures: Pictures, geometry: Geometry, canvases: list[Size], macs: int
) -> Pictures:
    """Those that ``prove`` runs at one canvas or another, of a network of so many ``macs``."""
    sizes = [Size(height=image.height, width=image.width) for image in pictures.images]
    most = _most(macs, len(sizes))
    run = {i for canvas in canvases for i in own_first(canvas, geometry, canvases, sizes)[:most]}
    return pictures.only(sorted(run))


def _most(macs: int, pictures: int) -> int:
    return max(FEWEST_PICTURES, min(pictures, PROOF_MACS // macs))


def _examine(folder: Path, cases: list[_Case], choice: Choice) -> tuple[list[Parity], list[str]]:
    """Figures per canvas, and every objection to them."""
    figures: dict[Size, Parity] = {}
    for case in cases:
        graph = case.subject.graph
        if graph.kind == "serve":
            runtime = _open(folder, graph, choice)
            figures[graph.canvas] = measure(graph, runtime, case.expected, case.inputs)
        elif choice.precision == "fp32":  # explain graphs run in no other
            runtime = _open(folder, graph, choice)
            error = measure_explain(runtime, case.expected, case.inputs)
            parity = figures[graph.canvas]
            figures[graph.canvas] = parity.model_copy(update={"explain_error": error})
    faults = [
        f"at {canvas} the {fault}"
        for canvas, parity in figures.items()
        for fault in objections(parity)
    ]
    return list(figures.values()), faults


def _open(folder: Path, graph: Graph, choice: Choice) -> Runtime:
    path = folder / graph.file
    runtime = open_graph(path, choice)
    check_graph(path, graph, runtime)
    return runtime


def _case(
    subject: Subject,
    geometry: Geometry,
    canvases: list[Size],
    pictures: list[Image.Image],
    most: int,
) -> _Case:
    inputs = picture_inputs(subject.graph, geometry, canvases, pictures, most)
    if subject.graph.kind == "explain":
        inputs |= proof_inputs(subject.graph, len(inputs["images"]))
    return _Case(subject, inputs, reference(subject.head, inputs))
