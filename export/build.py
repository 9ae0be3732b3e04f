"""From a checkpoint to a bundle: load, trace, prove, write."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from export import decoding
from export.canvases import padded_canvases
from export.explain import explain_examples, explain_section
from export.heads import Entry, Explain
from export.label_sets import are_placeholders, read_labels
from export.pictures import Pictures, collect
from export.plan import (
    Wishes,
    defaults_of,
    labels_of,
    narrowed,
    segmentation_of,
    serving_examples,
    serving_head,
    takes_sizes,
    tasks_of,
)
from export.preprocessor import Preprocessing, PreprocessorError, read_preprocessor
from export.progress import Progress, Silent
from export.proof import Subject, pictures_run, prove
from export.repository import (
    check_name,
    describe_files,
    next_version,
    publish,
    unfinished_version,
)
from export.to_onnx import save, signature, trace
from export.typed import Typed, samples
from models.checkpoints import (
    Checkpoint,
    Loaded,
    default_canvas,
    load_model,
    open_checkpoint,
)
from models.checkpoints.preprocessing import sides
from models.macs import count_macs, count_parameters
from service import bundle
from service.errors import StartError
from service.geometry import Size

Canvas = tuple[int, int]

SAMPLINGS: tuple[bundle.Sampling, ...] = ("gather", "grid_sample", "plugin")

# The processor that transformers takes for a model type whose file names none.
_PROCESSORS = {
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "detr": "DetrImageProcessor",
    "deformable_detr": "DeformableDetrImageProcessor",
    "maskformer": "MaskFormerImageProcessor",
    "mask2former": "Mask2FormerImageProcessor",
}

# Model types that refuse pictures of another size unless told to resample their positions.
_FIXED_SIZE = {"vit", "deit", "vit_mae"}

# Model types that are not told where the picture ends, so that padding changes what they see.
_SEES_PADDING = {"maskformer", "mask2former"}


@dataclass(frozen=True)
class _Head:
    """A graph to be: its kind, its module, and inputs to trace it with."""

    kind: bundle.GraphKind
    module: nn.Module
    examples: dict[str, torch.Tensor]
    precision: bundle.Precision = "fp32"
    sampling: bundle.Sampling | None = None


@dataclass(frozen=True)
class _View:
    """The network at one canvas, and the graphs to be made of it by file name."""

    canvas: Size
    loaded: Loaded
    heads: dict[str, _Head]


def export_bundle(
    source: str | Path,
    out: Path,
    *,
    name: str | None = None,
    version: str | None = None,
    canvases: Sequence[Canvas] | None = None,
    precisions: Sequence[bundle.Precision] | None = None,
    engines: Sequence[bundle.Precision] = (),
    wishes: Wishes | None = None,
    accuracy: Sequence[bundle.Accuracy] = (),
    note: str | None = None,
    images: Path | None = None,
    revision: str | None = None,
    preprocessor: Path | None = None,
    labels: Path | None = None,
    fast_pixels: bool = False,
    jpeg_scale: float | None = decoding.JPEG_SCALE,
    progress: Progress | None = None,
) -> bundle.Bundle:
    """Write ``<out>/<name>/<version>`` from a checkpoint folder or hub id, proven on pictures.

    ``canvases`` are (height, width), the default first; without them the checkpoint's own, or where
    its pictures are padded those of ``padded_canvases``. ``precisions`` named have to pass; without
    them bf16 is kept where it passes. ``engines`` are those of graphs that TensorRT engines can be
    built from (see ``export.to_tensorrt``), which have their own proof. ``wishes`` narrow what the
    model could do, and say how its answers are made. ``images`` is a folder of pictures to prove on
    before the sample scenes. ``preprocessor`` stands in for the checkpoint's
    preprocessor_config.json, and ``labels`` for the names of its classes, see ``read_labels``.
    ``fast_pixels`` allows that pictures are resized in less time and, unless ``jpeg_scale`` is
    None, that large JPEGs are decoded at a fraction, see ``bundle.Decoding``; that has to pass,
    too.

    Raises:
        CheckpointError: the checkpoint cannot be read or is not supported.
        StartError: anything else that the caller can mend, or a graph that fails its proof. Nothing
        is left in ``out`` then.
    """
    progress, wishes = progress or Silent(), wishes or Wishes()
    progress.step(f"opening {source}")
    checkpoint = open_checkpoint(str(source), revision)
    name = check_name("name", name or _default_name(checkpoint))
    version = check_name("version", version or next_version(out, name))
    with unfinished_version(out, name, version) as folder:
        shown = collect(images)
        config = _preprocessor_config(checkpoint, preprocessor)
        sizes = list(dict.fromkeys(canvases or own_canvases(checkpoint, config)))
        processing = _read(config, sizes[0])
        views: list[_View] = []
        for size in sizes:
            progress.step(f"loading the weights for {size[0]}x{size[1]}")
            loaded = _named(narrowed(load_model(checkpoint, size), wishes), labels)
            views.append(_view(loaded, size, processing, wishes, engines, first=not views))
        loaded = views[0].loaded
        if are_placeholders(loaded.labels):
            progress.notice(
                f"{checkpoint.source} does not name its classes, so answers say "
                f"{loaded.labels[0]} and the like; name them with --labels FILE"
            )
        macs = count_macs(loaded.model, *_network_inputs(loaded.model, sizes[0]))
        shown = pictures_run(shown, processing.geometry, [view.canvas for view in views], macs)
        graphs, subjects = _write_graphs(folder, views, progress)
        parity = prove(
            folder,
            subjects,
            processing.geometry,
            shown.images,
            macs,
            list(precisions) if precisions else None,
            progress,
        )
        progress.step("writing the manifest")
        offered = tasks_of(loaded, wishes.tasks)
        manifest = bundle.Manifest(
            name=name,
            version=version,
            family=loaded.family,
            tasks=offered,
            geometry=processing.geometry,
            graphs=graphs,
            files=describe_files(folder),
            labels=labels_of(loaded, wishes),
            activation=loaded.activation,
            profile=wishes.profile,
            defaults=defaults_of(loaded, wishes),
            segmentation=segmentation_of(loaded, wishes),
            explain=explain_section(loaded) if "attention" in offered else None,
            parity=parity,
            accuracy=list(accuracy),
            provenance=_provenance(checkpoint, loaded, shown, note),
            parameters=count_parameters(loaded.model),
            macs=macs,
        )
        if fast_pixels:
            found = decoding.measured(folder, manifest, jpeg_scale, images, progress)
            manifest = manifest.model_copy(update={"decoding": found})
        return publish(folder, out, manifest)


def _view(
    loaded: Loaded,
    size: Canvas,
    processing: Preprocessing,
    wishes: Wishes,
    engines: Sequence[bundle.Precision],
    first: bool,
) -> _View:
    entry = Entry(processing.scale, processing.mean, processing.std)
    canvas = Size(height=size[0], width=size[1])
    suffix = "" if first else f"-{canvas}"
    padded = processing.geometry.placement == "pad"
    serve = serving_head(loaded, entry, canvas, wishes)
    heads = {f"model{suffix}.onnx": _Head("serve", serve, serving_examples(serve, canvas, padded))}
    if "attention" in tasks_of(loaded, wishes.tasks):
        explain = Explain(entry, loaded.model)
        examples = explain_examples(loaded, canvas, padded)
        heads[f"explain{suffix}.onnx"] = _Head("explain", explain, examples)
    for precision, form in _typed_variants(loaded.model, engines):
        head = serving_head(loaded, entry, canvas, wishes)
        head.model = Typed(loaded.model, precision, form)
        named = "-".join(["engine", precision, *([form] if form else [])])
        examples = serving_examples(head, canvas, padded)
        heads[f"{named}{suffix}.onnx"] = _Head("engine", head, examples, precision, form)
    return _View(canvas, loaded, heads)


def _typed_variants(
    model: nn.Module, engines: Sequence[bundle.Precision]
) -> Iterator[tuple[bundle.Precision, bundle.Sampling | None]]:
    """Precisions, and for networks with deformable attention every form of it: which is right and
    fast is found out on the device.
    """
    for precision in dict.fromkeys(engines):
        for form in SAMPLINGS if samples(model) else (None,):
            yield precision, form


def _write_graphs(
    folder: Path, views: list[_View], progress: Progress
) -> tuple[list[bundle.Graph], list[Subject]]:
    """Trace every head of every canvas; all share one file of weights. The second are those that
    have to be proven, with their modules.
    """
    traced: dict[str, ir.Model] = {}
    graphs, subjects = [], []
    for view in views:
        for file, head in view.heads.items():
            progress.step(f"tracing {file}")
            model = trace(head.module, head.examples)
            traced[file] = model
            graph = bundle.Graph(
                file=file,
                kind=head.kind,
                canvas=view.canvas,
                precision=head.precision,
                sampling=head.sampling,
                **signature(model),
            )
            graphs.append(graph)
            if head.kind != "engine":
                subjects.append(Subject(graph, head.module))
    progress.step("writing the graphs")
    save(traced, folder)
    return graphs, subjects


def _network_inputs(model: nn.Module, canvas: Canvas) -> tuple[torch.Tensor, ...]:
    """One picture that fills the canvas."""
    images = torch.zeros(1, 3, *canvas)
    return (images, torch.tensor([canvas])) if takes_sizes(model) else (images,)


def _preprocessor_config(checkpoint: Checkpoint, given: Path | None) -> dict[str, Any]:
    """The file's content, with the processor's type where the file leaves it to the model's."""
    config = checkpoint.preprocessor
    if given is not None:
        try:
            config = json.loads(given.read_bytes())
        except (OSError, ValueError) as error:
            raise StartError(f"--preprocessor {given} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise StartError(
            f"{checkpoint.source} has no preprocessor_config.json, so that sizes, mean and "
            "deviation are not known; name one with --preprocessor FILE"
        )
    if not {"image_processor_type", "feature_extractor_type"} & config.keys():
        model_type = checkpoint.config.get("model_type", "vit")
        return {"image_processor_type": _PROCESSORS.get(model_type, "ViTImageProcessor"), **config}
    return config


def _named(loaded: Loaded, labels: Path | None) -> Loaded:
    """With the class names of a file, if one is given."""
    if labels is None:
        return loaded
    if not loaded.labels:
        raise StartError(f"--labels {labels}: {loaded.architecture} has no classes to be named")
    return replace(loaded, labels=read_labels(labels, len(loaded.labels)))


def own_canvases(checkpoint: Checkpoint, config: dict[str, Any]) -> list[Canvas]:
    """Where the preprocessor ends, if it fixes that; else what the checkpoint says of itself.

    Raises:
        StartError: the two differ for a network that transformers runs at its own size alone, so
        that one of them is wrong.
    """
    try:
        geometry = read_preprocessor(config).geometry
    except PreprocessorError:
        return [default_canvas(checkpoint, config)]
    nominal, kind = geometry.nominal, checkpoint.config.get("model_type")
    if geometry.placement == "pad" and config.get("pad_size") is None:
        canvases = padded_canvases(geometry, sees_padding=kind in _SEES_PADDING)
        return [(canvas.height, canvas.width) for canvas in canvases]
    own = checkpoint.config.get("image_size")
    fixed = kind in _FIXED_SIZE and own is not None
    if fixed and sides(own) != (nominal.height, nominal.width):
        height, width = sides(own)
        raise StartError(
            f"the preprocessor of {checkpoint.source} ends at {nominal}, but its config says that "
            f"the network takes {height}x{width}; choose one with --canvas"
        )
    return [(nominal.height, nominal.width)]


def _read(config: dict[str, Any], canvas: Canvas) -> Preprocessing:
    try:
        return read_preprocessor(config, canvas)
    except PreprocessorError as error:
        raise StartError(f"the preprocessor cannot be reproduced: {error}") from error


def _default_name(checkpoint: Checkpoint) -> str:
    if checkpoint.revision is None:
        return checkpoint.folder.resolve().name
    return checkpoint.source.rsplit("/", 1)[-1]


def _provenance(
    checkpoint: Checkpoint, loaded: Loaded, shown: Pictures, note: str | None
) -> bundle.Provenance:
    packages = ("saccade", "torch", "onnx", "onnxscript", "onnxruntime", "openvino")
    return bundle.Provenance(
        source=checkpoint.source if checkpoint.revision else checkpoint.folder.resolve().name,
        revision=checkpoint.revision,
        sha256=checkpoint.sha256,
        license=checkpoint.license,
        architecture=loaded.architecture,
        exporter={package: number for package in packages if (number := _installed(package))},
        pictures=shown.description,
        ignored_weights=loaded.ignored,
        note=note,
    )


def _installed(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None
