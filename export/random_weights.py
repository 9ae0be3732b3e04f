"""Published networks with random weights as bundles with an engine in bf16: what they cost is
true, and nothing else.

    python -m export.random_weights write NAME HEIGHTxWIDTH REPOSITORY
    python -m export.random_weights build REPOSITORY/NAME/1 1,64

For ``bench.gpu_check``. Their numbers are proven nowhere, since nobody is to use their answers.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from export.heads import Entry
from export.plan import (
    Wishes,
    defaults_of,
    labels_of,
    segmentation_of,
    serving_examples,
    serving_head,
    takes_sizes,
    tasks_of,
)
from export.preprocessor import read_preprocessor
from export.repository import describe_files, publish, unfinished_version
from export.to_onnx import save, signature, trace
from export.to_tensorrt import put_engines
from export.typed import Typed, samples
from models.checkpoints import Loaded
from models.macs import count_macs, count_parameters
from models.zoo import ZOO, build
from service.bundle import Bundle, Graph, Manifest, Provenance, Sampling, load_bundle
from service.engines import batch_ranges
from service.errors import BadBundle
from service.geometry import Size
from service.worker.runtimes.tensorrt.building import wrong_types
from service.worker.runtimes.tensorrt.plans import wrong_shares
from service.worker.runtimes.tensorrt.proving import (
    Proven,
    Workshop,
    fingerprint,
    judge,
    reference,
    scenes,
    sources,
    workshop,
)

PICTURES = 2
"""That an engine is compared with fp32 on the CPU on, which takes seconds for each."""
_PADDED = {"size": {"shortest_edge": 800, "longest_edge": 1333}}
_PROCESSORS = {
    "detr": {"image_processor_type": "DetrImageProcessor", **_PADDED},
    "mask2former": {"image_processor_type": "Mask2FormerImageProcessor", **_PADDED},
}
"""By family; the others squash pictures."""


def write_bundle(name: str, canvas: Size, repository: Path) -> Bundle:
    """The serving graph and the typed one in bf16 of a network of ``models.zoo``."""
    variant, sides = ZOO[name], (canvas.height, canvas.width)
    with torch.device("meta"):
        kind: Any = type(build(name))
    config = replace(variant.config, canvas=sides)
    torch.manual_seed(0)
    network = kind(config).eval()
    labels = {index: f"class {index}" for index in range(config.classes)}
    loaded = Loaded(network, variant.family, "random weights", labels, "softmax", [])
    squashed = {"image_processor_type": "ViTImageProcessor", "size": canvas.model_dump()}
    processor: dict[str, Any] = _PROCESSORS.get(variant.family, squashed)
    processing = read_preprocessor(processor, sides)
    wishes = Wishes(tasks=tasks_of(loaded)[:1])
    entry = Entry(processing.scale, processing.mean, processing.std)
    serve, typed = (serving_head(loaded, entry, canvas, wishes) for _ in range(2))
    sampling: Sampling | None = "gather" if samples(network) else None
    typed.model = Typed(network, "bf16", sampling)
    examples = serving_examples(serve, canvas, processing.geometry.placement == "pad")
    with unfinished_version(repository, name, "1") as folder:
        traced = {"model.onnx": trace(serve, examples), "engine-bf16.onnx": trace(typed, examples)}
        save(traced, folder)
        of_serving, of_engine = (signature(model) for model in traced.values())
        typed_as: dict[str, Any] = {"kind": "engine", "precision": "bf16", "sampling": sampling}
        graphs = [
            Graph(file="model.onnx", kind="serve", canvas=canvas, precision="fp32", **of_serving),
            Graph(file="engine-bf16.onnx", canvas=canvas, **typed_as, **of_engine),
        ]
        manifest = Manifest(
            name=name,
            version="1",
            family=variant.family,
            tasks=list(wishes.tasks or ()),
            geometry=processing.geometry,
            graphs=graphs,
            files=describe_files(folder),
            labels=labels_of(loaded, wishes),
            activation="softmax",
            defaults=defaults_of(loaded, wishes),
            segmentation=segmentation_of(loaded, wishes),
            provenance=Provenance(
                source="random weights", sha256="0" * 64, architecture="random", exporter={}
            ),
            parameters=count_parameters(network),
            macs=_macs(kind, config),
        )
        return publish(folder, repository, manifest)


def with_engine(bundle: Bundle, batches: Sequence[int], tools: Workshop) -> Bundle:
    """The bundle with an engine for these batches, if it is in the types asked for.

    Agreement of boxes and masks is measured and not judged: between queries of random weights
    nearly all is a tie. Whoever measures the engine compares what nothing was sorted for.

    Raises:
        BadBundle: it cannot be built, or its types are others.
    """
    canvas, ranges = bundle.manifest.canvases[0], batch_ranges(list(batches))
    (graph,) = sources(bundle.manifest, canvas, "bf16")
    plan = tools.build(bundle.path(graph), ranges, None)
    opened = tools.open(plan.content, ranges, "bf16")
    for fault in (wrong_types(plan.products, "bf16"), wrong_shares(opened.shares, "bf16")):
        if fault is not None:
            raise BadBundle(f"the engine of {bundle.manifest.name} is refused: {fault}")
    inputs, expected = reference(bundle, canvas, scenes()[:PICTURES])
    parity, _ = judge(graph, opened.runtime, ranges, inputs, expected)
    seconds = {str(one): opened.time(one.best) for one in ranges}
    found = fingerprint(bundle, graph, tools.machine, ranges)
    proven = Proven(graph, plan, opened, found, parity, seconds)
    return put_engines(bundle, "bf16", [(canvas, proven)])


def _macs(kind: Any, config: Any) -> int:
    with torch.device("meta"):
        network = kind(config).eval()
        sizes = [torch.zeros(1, 2, dtype=torch.int32)] if takes_sizes(network) else []
        return count_macs(network, torch.zeros(1, 3, *config.canvas), *sizes)


def main() -> None:
    """See the module."""
    what, *asked = sys.argv[1:]
    if what == "write":
        height, width = map(int, asked[1].split("x"))
        write_bundle(asked[0], Size(height=height, width=width), Path(asked[2]))
    else:
        batches = [int(one) for one in asked[1].split(",")]
        with_engine(load_bundle(Path(asked[0])), batches, workshop("cuda:0"))


if __name__ == "__main__":
    main()
