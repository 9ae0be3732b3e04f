"""From a checkpoint to a bundle: load, trace, prove, write."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from export.heads import Entry, Explain, Serve
from export.pictures import Pictures, collect
from export.preprocessor import Preprocessing, PreprocessorError, read_preprocessor
from export.progress import Progress, Silent
from export.proof import Subject, prove
from export.repository import (
    check_name,
    describe_files,
    next_version,
    publish,
    unfinished_version,
)
from export.to_onnx import save, signature, trace
from models.checkpoints import (
    Checkpoint,
    Loaded,
    default_canvas,
    load_model,
    open_checkpoint,
)
from models.checkpoints.preprocessing import sides
from models.macs import count_macs, count_parameters
from models.vit import ViT
from service import bundle
from service.errors import StartError
from service.geometry import Size

Canvas = tuple[int, int]

# The processor that transformers takes for a model type whose file names none.
_PROCESSORS = {
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
}

# Model types that refuse pictures of another size unless told to resample their positions.
_FIXED_SIZE = {"vit", "deit", "vit_mae"}


@dataclass(frozen=True)
class _View:
    """The network at one canvas, and the graphs to be made of it by file name."""

    canvas: Size
    loaded: Loaded
    heads: dict[str, Serve | Explain]


def export_bundle(
    source: str | Path,
    out: Path,
    *,
    name: str | None = None,
    version: str | None = None,
    canvases: Sequence[Canvas] | None = None,
    precisions: Sequence[bundle.Precision] | None = None,
    tasks: Sequence[bundle.Task] | None = None,
    accuracy: Sequence[bundle.Accuracy] = (),
    images: Path | None = None,
    revision: str | None = None,
    preprocessor: Path | None = None,
    progress: Progress | None = None,
) -> bundle.Bundle:
    """Write ``<out>/<name>/<version>`` from a checkpoint folder or hub id, proven on pictures.

    ``canvases`` are (height, width), the default first; without them the checkpoint's own.
    ``precisions`` named have to pass; without them bf16 is kept where it passes. ``tasks`` narrows
    what the model could do. ``images`` is a folder of pictures to prove on besides the sample
    scenes. ``preprocessor`` stands in for the checkpoint's preprocessor_config.json.

    Raises:
        CheckpointError: the checkpoint cannot be read or is not supported.
        StartError: anything else that the caller can mend, or a graph that fails its proof. Nothing
        is left in ``out`` then.
    """
    progress = progress or Silent()
    progress.step(f"opening {source}")
    checkpoint = open_checkpoint(str(source), revision)
    name = check_name("name", name or _default_name(checkpoint))
    version = check_name("version", version or next_version(out, name))
    with unfinished_version(out, name, version) as folder:
        shown = collect(images)
        config = _preprocessor_config(checkpoint, preprocessor)
        sizes = list(dict.fromkeys(canvases or [_own_canvas(checkpoint, config)]))
        processing = _read(config, sizes[0])
        views: list[_View] = []
        for size in sizes:
            progress.step(f"loading the weights for {size[0]}x{size[1]}")
            loaded = load_model(checkpoint, size)
            views.append(_view(loaded, size, processing, tasks, first=not views))
        offered = _tasks(views[0].loaded, tasks)
        subjects = _write_graphs(folder, views, progress)
        parity = prove(
            folder,
            subjects,
            processing.geometry,
            shown.images,
            list(precisions) if precisions else None,
            progress,
        )
        progress.step("writing the manifest")
        loaded = views[0].loaded
        manifest = bundle.Manifest(
            name=name,
            version=version,
            family=loaded.family,
            tasks=offered,
            geometry=processing.geometry,
            graphs=[subject.graph for subject in subjects],
            files=describe_files(folder),
            labels=[bundle.Label(id=i, name=label) for i, label in loaded.labels.items()],
            activation=loaded.activation,
            explain=_explain(loaded) if "attention" in offered else None,
            parity=parity,
            accuracy=list(accuracy),
            provenance=_provenance(checkpoint, loaded, shown),
            parameters=count_parameters(loaded.model),
            macs=count_macs(loaded.model, torch.zeros(1, 3, *sizes[0])),
        )
        return publish(folder, out, manifest)


def _view(
    loaded: Loaded,
    size: Canvas,
    processing: Preprocessing,
    tasks: Sequence[bundle.Task] | None,
    first: bool,
) -> _View:
    entry = Entry(
        processing.scale, processing.mean, processing.std, flip_channels=processing.flip_channels
    )
    canvas = Size(height=size[0], width=size[1])
    suffix = "" if first else f"-{canvas}"
    serve = Serve(entry, loaded.model, loaded.activation or "softmax")
    heads: dict[str, Serve | Explain] = {f"model{suffix}.onnx": serve}
    if "attention" in _tasks(loaded, tasks):
        heads[f"explain{suffix}.onnx"] = Explain(entry, loaded.model)
    return _View(canvas, loaded, heads)


def _write_graphs(folder: Path, views: list[_View], progress: Progress) -> list[Subject]:
    """Trace every head of every canvas; all share one file of weights."""
    traced: dict[str, ir.Model] = {}
    subjects = []
    for view in views:
        for file, head in view.heads.items():
            progress.step(f"tracing {file}")
            kind: bundle.GraphKind = "serve" if isinstance(head, Serve) else "explain"
            model = trace(head, _examples(kind, view.canvas))
            traced[file] = model
            graph = bundle.Graph(
                file=file, kind=kind, canvas=view.canvas, precision="fp32", **signature(model)
            )
            subjects.append(Subject(graph, head))
    progress.step("writing the graphs")
    save(traced, folder)
    return subjects


def _examples(kind: bundle.GraphKind, canvas: Size) -> dict[str, torch.Tensor]:
    images = torch.zeros(2, canvas.height, canvas.width, 3, dtype=torch.uint8)
    if kind == "serve":
        return {"images": images}
    return {"images": images, "query": torch.zeros(2, dtype=torch.int64)}


def _tasks(loaded: Loaded, wanted: Sequence[bundle.Task] | None) -> list[bundle.Task]:
    possible: list[bundle.Task] = ["classify"] if loaded.labels else []
    if isinstance(loaded.model, ViT):
        possible += ["attention"]
    possible += ["embed"]
    impossible = [task for task in wanted or [] if task not in possible]
    if impossible:
        raise StartError(
            f"{loaded.architecture} cannot do {', '.join(impossible)}; "
            f"it can do {', '.join(possible)}"
        )
    return [task for task in possible if not wanted or task in wanted]


def _explain(loaded: Loaded) -> bundle.Explain:
    assert isinstance(loaded.model, ViT)
    config = loaded.model.config
    # A distilled DeiT whose head reads only the class token holds its second token as a register.
    distilled = config.class_tokens == 2 or loaded.family == "deit"
    others = ["distillation"] * distilled + ["register"] * config.registers
    return bundle.Explain.model_validate(
        {
            "layers": config.depth,
            "heads": config.heads,
            "patch_size": config.patch_size,
            "prefix_tokens": ["class", *others][: config.prefix_tokens],
        }
    )


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


def _own_canvas(checkpoint: Checkpoint, config: dict[str, Any]) -> Canvas:
    """Where the preprocessor ends, if it fixes that; else what the checkpoint says of itself.

    Raises:
        StartError: the two differ for a network that transformers runs at its own size alone, so
        that one of them is wrong.
    """
    try:
        nominal = read_preprocessor(config).geometry.nominal
    except PreprocessorError:
        return default_canvas(checkpoint)
    own = checkpoint.config.get("image_size")
    fixed = checkpoint.config.get("model_type") in _FIXED_SIZE and own is not None
    if fixed and sides(own) != (nominal.height, nominal.width):
        height, width = sides(own)
        raise StartError(
            f"the preprocessor of {checkpoint.source} ends at {nominal}, but its config says that "
            f"the network takes {height}x{width}; choose one with --canvas"
        )
    return nominal.height, nominal.width


def _read(config: dict[str, Any], canvas: Canvas) -> Preprocessing:
    try:
        return read_preprocessor(config, canvas)
    except PreprocessorError as error:
        raise StartError(f"the preprocessor cannot be reproduced: {error}") from error


def _default_name(checkpoint: Checkpoint) -> str:
    if checkpoint.revision is None:
        return checkpoint.folder.resolve().name
    return checkpoint.source.rsplit("/", 1)[-1]


def _provenance(checkpoint: Checkpoint, loaded: Loaded, shown: Pictures) -> bundle.Provenance:
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
    )


def _installed(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None
