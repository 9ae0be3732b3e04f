"""int8 graphs for a bundle that has fp32 ones: made, proven on other pictures, put beside them."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from export.pictures import Files, split
from export.progress import Progress, Silent
from export.proof import FEWEST_PICTURES
from export.repository import describe_files, enough_room, replace_manifest
from export.to_int8 import METHOD, quantize
from export.to_onnx import save
from service.bundle import Bundle, Graph, Manifest, Parity, Quantization
from service.errors import BadBundle, StartError
from service.parity import measure, objections, picture_inputs, run_alone, summary
from service.worker.runtimes.base import Arrays
from service.worker.runtimes.choose import (
    FASTEST_FIRST,
    ON_REQUEST,
    Choice,
    check_graph,
    open_graph,
    supports,
)

WEIGHTS = "weights-int8.bin"
PROOF_MACS = 4_000_000_000_000
"""What the pictures of one graph may cost each time that they are run: 8 bits ask for more pictures
than a rounding of the arithmetic does."""


_Case = tuple[Graph, Arrays, Arrays]
"""An int8 graph, inputs, and what the fp32 graph makes of them."""


def add_int8(bundle: Bundle, images: Path, progress: Progress | None = None) -> Bundle:
    """Quantise every serving graph, and put into the bundle what passes; earlier int8 graphs are
    replaced.

    Every second picture of the folder, up to 64, calibrates; up to 512 of the others prove, fewer
    of a large network. The reference is the bundle's fp32 graph.

    Raises:
        StartError: there are too few pictures, or no runtime passes; the bundle is as it was then.
        ClientError: a picture cannot be decoded.
    """
    progress = progress or Silent()
    calibration, proof = split(images, "int8")
    manifest = without_int8(bundle.manifest)
    with enough_room(bundle.folder), TemporaryDirectory(dir=bundle.folder, prefix=".int8-") as name:
        folder = Path(name)
        graphs = _write_graphs(bundle, manifest, folder, Files(calibration), progress)
        written = {graph.file for graph in graphs} | {WEIGHTS}
        files = {file: one for file, one in describe_files(folder).items() if file in written}
        for file in manifest.files.keys() - written:
            _link(bundle.folder / file, folder / file)
        parity, same_class = _prove(bundle, graphs, folder, Files(proof), progress)
        for file in files:
            (folder / file).replace(bundle.folder / file)
    return replace_manifest(
        bundle,
        manifest.model_copy(
            update={
                "graphs": [*manifest.graphs, *graphs],
                "files": manifest.files | files,
                "parity": [*manifest.parity, *parity],
                "quantization": Quantization(
                    method=METHOD,
                    calibrated_on=f"{len(calibration)} given pictures",
                    pictures=f"{max(p.images for p in parity)} other given pictures",
                    same_class=same_class,
                ),
            }
        ),
    )


def without_int8(manifest: Manifest) -> Manifest:
    """The manifest of the bundle as it was exported."""
    graphs = [graph for graph in manifest.graphs if graph.precision != "int8"]
    gone = {graph.file for graph in manifest.graphs if graph.precision == "int8"} | {WEIGHTS}
    return manifest.model_copy(
        update={
            "graphs": graphs,
            "files": {name: file for name, file in manifest.files.items() if name not in gone},
            "parity": [parity for parity in manifest.parity if parity.precision != "int8"],
            "quantization": None,
        }
    )


def _write_graphs(
    bundle: Bundle, manifest: Manifest, folder: Path, pictures: Files, progress: Progress
) -> list[Graph]:
    """One int8 graph per serving graph, and their weights as far as the bundle lacks them."""
    exported = [ir.load(bundle.folder / g.file) for g in manifest.graphs if g.precision != "fp8"]
    made: dict[str, ir.Model] = {}
    graphs = []
    for graph in manifest.graphs:
        if graph.kind != "serve" or graph.precision != "fp32":
            continue
        progress.step(f"quantising {graph.file} with {len(pictures)} pictures")
        file = f"{Path(graph.file).stem}-int8.onnx"
        made[file] = quantize(bundle.path(graph), _inputs(manifest, graph, pictures, len(pictures)))
        graphs.append(graph.model_copy(update={"file": file, "precision": "int8"}))
    save(made, folder, WEIGHTS, exported)
    return graphs


def _prove(
    bundle: Bundle, graphs: list[Graph], folder: Path, pictures: Files, progress: Progress
) -> tuple[list[Parity], dict[str, float]]:
    """Figures of every runtime that passes, and shares of pictures with the same best class."""
    manifest = bundle.manifest
    most = min(len(pictures), max(FEWEST_PICTURES, PROOF_MACS // manifest.macs))
    progress.step(f"running the fp32 graph on {most} pictures")
    reference = _reference()
    cases: list[_Case] = []
    for graph in graphs:
        fp32 = manifest.graph("serve", graph.canvas, "fp32")
        assert fp32 is not None
        inputs = _inputs(manifest, graph, pictures, most)
        expected = run_alone(open_graph(bundle.path(fp32), reference), inputs)
        cases.append((graph, inputs, expected))
    proven: list[Parity] = []
    same: dict[str, float] = {}
    refusals = []
    for choice in ON_REQUEST:
        missing = supports(choice)
        if missing:
            refusals.append(f"{choice} cannot be proven here: {missing}")
            continue
        progress.step(f"measuring {choice}")
        try:
            figures, shares = _examine(folder, cases, choice)
        except BadBundle as error:
            refusals.append(f"{choice} cannot compile it ({str(error).splitlines()[0]})")
            continue
        faults = [f"at {p.canvas} the {fault}" for p in figures for fault in objections(p)]
        if faults:
            measured = "; ".join(summary(parity) for parity in figures)
            refusals.append(f"{choice}: {'; '.join(faults)}; measured: {measured}")
            continue
        proven += figures
        if shares:
            same[choice.runtime] = min(shares)
    if not proven:
        raise StartError(
            f"{manifest.name} {manifest.version} gets no int8: {'. '.join(refusals)}. "
            "The bundle is as it was"
        )
    for refusal in refusals:
        progress.notice(f"not in the bundle: {refusal}")
    return proven, same


def _examine(folder: Path, cases: list[_Case], choice: Choice) -> tuple[list[Parity], list[float]]:
    """Per canvas, figures and (of a classifier) the share of pictures with the same best class."""
    figures, shares = [], []
    for graph, inputs, expected in cases:
        runtime = open_graph(folder / graph.file, choice)
        check_graph(folder / graph.file, graph, runtime)
        figures.append(measure(graph, runtime, expected, inputs))
        if "boxes" not in expected and "masks" not in expected and "scores" in expected:
            best = run_alone(runtime, inputs)["scores"].argmax(axis=1)
            shares.append(float((best == expected["scores"].argmax(axis=1)).mean()))
    return figures, shares


def _reference() -> Choice:
    """fp32 in the plainest library that is here."""
    for choice in reversed(FASTEST_FIRST):
        if choice.precision == "fp32" and supports(choice) is None:
            return choice
    raise StartError("onnxruntime is not installed; install it with: pip install 'saccade[export]'")


def _inputs(manifest: Manifest, graph: Graph, pictures: Files, most: int) -> Arrays:
    """Pictures as the server prepares them, with the thresholds of a request that names none."""
    inputs = picture_inputs(
        graph, manifest.geometry, manifest.canvases, pictures, most, pictures.sizes
    )
    if manifest.segmentation is not None:
        for name in ("threshold", "overlap_threshold"):
            least = getattr(manifest.segmentation, name)
            inputs[name] = np.full(len(inputs["images"]), least, dtype=np.float32)
    return inputs


def _link(file: Path, place: Path) -> None:
    """The same file at another place: a runtime looks for weights beside the graph."""
    with suppress(OSError):
        os.link(file, place)
    if not place.exists():
        shutil.copyfile(file, place)
