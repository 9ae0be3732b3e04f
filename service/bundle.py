"""The bundle on disk, where offline and online meet: ``<repository>/<name>/<version>/`` with a
manifest and graphs.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from service.engines import Fingerprint
from service.errors import BadBundle, UnknownModel
from service.explain import Explain
from service.geometry import Geometry, Size
from service.resize import Resizer

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,255}$")]
Task = Literal["classify", "detect", "segment", "attention", "embed"]
Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8"]
GraphKind = Literal["serve", "explain", "engine"]
Sampling = Literal["grid_sample", "gather", "plugin"]
Profile = Literal["reference", "hf"]
Mode = Literal["panoptic", "instance", "semantic"]
Rule = Literal["detr", "maskformer", "mask2former"]
Detail = Literal["fast", "exact"]


class Strict(BaseModel):
    """Immutable, and a field that nobody declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class File(Strict):
    """What a file of the bundle must be, to the byte."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: int = Field(ge=0)


class Tensor(Strict):
    """One input or output of a graph; -1 in ``shape`` is the batch axis."""

    name: str
    role: str
    dtype: Literal["uint8", "int32", "int64", "float32"]
    shape: list[int]


class Graph(Strict):
    """One ONNX file: what it computes, for which canvas, in which stored precision.

    Of kind "engine" are serving graphs that state every type themselves; TensorRT engines are built
    from them, and no runtime reads them.
    """

    file: FileName
    kind: GraphKind
    canvas: Size
    precision: Precision
    sampling: Sampling | None = Field(
        default=None, description="of an engine graph with deformable attention, how it reads maps"
    )
    calibrated_on: str | None = Field(
        default=None, description="of an fp8 graph, the pictures that its scales were found on"
    )
    inputs: list[Tensor]
    outputs: list[Tensor]


class Label(Strict):
    """One class; ``isthing`` and ``color`` (RGB) belong to segmentation."""

    id: int = Field(ge=0)
    name: str
    isthing: bool | None = None
    color: tuple[int, int, int] | None = None


class Parity(Strict):
    """What one runtime in one precision was measured to do, against the checkpoint in PyTorch fp32
    (int8 against the fp32 graph), on ``images`` pictures: the worse of alone and in a batch, but
    for ``max_error`` and ``rms_error``, beside which ``batch_error`` stands.
    """

    runtime: Literal["onnxruntime", "openvino", "tensorrt"]
    precision: Precision
    canvas: Size
    images: int = Field(ge=1)
    max_error: float = Field(
        description="largest error of a probability, or without a head embedding_error"
    )
    rms_error: float = Field(description="root mean square of the same")
    cosine: float = Field(
        description="smallest cosine of centred logits (or of embeddings) over the pictures"
    )
    box_error: float | None = Field(
        default=None,
        description="largest error of a box edge, as a share of the picture's side, over the "
        "queries that found something in the reference",
    )
    box_agreement: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of what the reference detects that is found with the same class and "
        "an overlap (IoU) of at least 0.9",
    )
    mask_agreement: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="the smaller of: the smallest share, over the pictures, of the valid part's "
        "pixels with the reference's class and segment; the share of its instances that are found "
        "with the same class and a mask's overlap (IoU) of at least 0.9",
    )
    top1_agreement: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of pictures with the same best class, ties within the error aside",
    )
    batch_error: float | None = Field(
        default=None, description="as max_error, between a picture alone and in a batch"
    )
    embedding_error: float | None = Field(
        default=None, description="largest error of an embedding, relative to its largest component"
    )
    attention_error: float | None = Field(
        default=None, description="largest absolute error of the class token's attention"
    )
    explain_error: float | None = Field(
        default=None, description="largest absolute error of a map of the explain graph"
    )


class Engine(Strict):
    """A TensorRT plan that passed its gate, made of an engine graph on one kind of device.

    ``parity`` is against ONNX Runtime in fp32 on the CPU, an entry for each of the fingerprint's
    profiles; ``shares`` are the parts of the layers' outputs in each type, by the library's own
    inspector.
    """

    file: FileName
    graph: FileName
    canvas: Size
    precision: Precision
    sampling: Sampling | None = None
    fingerprint: Fingerprint
    parity: list[Parity] = Field(min_length=1)
    shares: dict[str, float]
    seconds: dict[str, float] = Field(
        default={},
        description="median time of a batch at the best size of each profile, without copies",
    )


class Accuracy(Strict):
    """A score on held-out data, as measured through the exported graph."""

    dataset: str
    metric: str
    value: float
    images: int = Field(ge=1)
    runtime: str
    precision: Precision


class Decoding(Strict):
    """Leave to decode large JPEGs at 1/2, 1/4 or 1/8 of their size, or to resize in less time, and
    what that was measured to change.
    """

    resizer: Resizer = Field(
        default="pillow",
        description="simd: with vector instructions, where the server has the library for them",
    )
    jpeg_scale: float | None = Field(
        default=None,
        ge=1,
        le=8,
        description="pixels a side that a fraction must leave for each that resizing keeps; "
        "without it every JPEG is decoded in full",
    )
    pictures: str = Field(description="what it was measured on")
    psnr_db: float = Field(
        description="least peak signal-to-noise ratio of a canvas, over the pictures"
    )
    effect: list[Parity] = Field(
        min_length=1, description="as parity, but against exact pixels in the same runtime"
    )

    @model_validator(mode="after")
    def _allows_something(self) -> Self:
        if self.resizer == "pillow" and self.jpeg_scale is None:
            raise ValueError("allows nothing: name the resizer 'simd', a jpeg_scale, or both")
        return self


class Quantization(Strict):
    """How the int8 graphs were made, and on which pictures. Their figures are in ``parity``."""

    method: str
    calibrated_on: str
    pictures: str = Field(description="what their parity was measured on")
    same_class: dict[str, float] = Field(
        default={},
        description="by runtime, the share of those pictures with the same best class as fp32, "
        "ties included",
    )


class Provenance(Strict):
    """Where the weights came from and what turned them into graphs."""

    source: str
    revision: str | None = None
    sha256: str
    license: str | None = None
    architecture: str
    exporter: dict[str, str] = Field(description="versions of what made and proved the graphs")
    pictures: str | None = Field(default=None, description="what parity was measured on")
    ignored_weights: list[str] = []
    note: str | None = Field(default=None, description="what a user should know of the network")


class Defaults(Strict):
    """Parameters of a request for classes or boxes that names none."""

    top_k: int = Field(default=5, ge=1)
    threshold: float = Field(default=0.0, ge=0, le=1)


class Segmentation(Strict):
    """How queries and masks become segments: whose rule, which modes (the default first), and the
    parameters of a request that names none.

    ``detail`` "fast" merges in the graph at the resolution of the masks, "exact" merges at the
    resolution of the picture.
    """

    rule: Rule
    modes: list[Mode] = Field(min_length=1)
    threshold: float = Field(default=0.8, ge=0, le=1)
    instance_threshold: float = Field(
        default=0.5, ge=0, le=1, description="the same in mode instance, whose scores are lower"
    )
    overlap_threshold: float = Field(default=0.8, ge=0, le=1)
    detail: Detail = "exact"


class Manifest(Strict):
    """All that the server knows of a model, besides the arithmetic in its graphs."""

    schema_version: Literal[1] = 1
    name: Name
    version: Name
    family: Name
    tasks: list[Task] = Field(min_length=1)
    geometry: Geometry
    graphs: list[Graph] = Field(min_length=1)
    files: dict[FileName, File]
    labels: list[Label] = []
    activation: Literal["softmax", "sigmoid"] | None = None
    profile: Profile = Field(
        default="reference",
        description="post-processing as the papers' authors define it, or as transformers does it",
    )
    defaults: Defaults = Defaults()
    segmentation: Segmentation | None = None
    explain: Explain | None = None
    decoding: Decoding | None = Field(default=None, description="without it all pixels are exact")
    parity: list[Parity] = []
    engines: list[Engine] = []
    quantization: Quantization | None = None
    accuracy: list[Accuracy] = []
    provenance: Provenance
    parameters: int = Field(ge=1)
    macs: int = Field(ge=1, description="multiply-accumulates of one picture at the first canvas")

    @property
    def canvases(self) -> list[Size]:
        """Canvases in the exporter's order, the default first."""
        return list(dict.fromkeys(graph.canvas for graph in self.graphs if graph.kind == "serve"))

    def graph(self, kind: GraphKind, canvas: Size, precision: Precision) -> Graph | None:
        """The graph to run; reduced precisions that a runtime makes by itself start from the fp32
        file. int8 has its own, or there is none.
        """
        found = {
            graph.precision: graph
            for graph in self.graphs
            if graph.kind == kind and graph.canvas == canvas
        }
        if precision == "int8":
            return found.get("int8")
        return found.get(precision) or found.get("fp32")

    def engine_graphs(self, canvas: Size, precision: Precision) -> list[Graph]:
        """What engines can be built from; several where deformable attention has several forms."""
        wanted = ("engine", canvas, precision)
        return [one for one in self.graphs if (one.kind, one.canvas, one.precision) == wanted]

    def proven(self, runtime: str, precision: str) -> bool:
        """Whether the exporter measured this pair on every canvas, and let it pass. Engines have
        proofs of their own.
        """
        measured = {
            p.canvas for p in self.parity if (p.runtime, p.precision) == (runtime, precision)
        }
        return measured >= set(self.canvases)


class Bundle(BaseModel):
    """A manifest and the folder that it describes."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    manifest: Manifest

    def path(self, graph: Graph) -> Path:
        """Where a graph's file lies."""
        return self.folder / graph.file

    def verify(self) -> None:
        """Check size and digest of every file; all sizes first, for they cost nothing.

        Raises:
            BadBundle: naming the file, what was found and what was expected.
        """
        for name, expected in self.manifest.files.items():
            path = self.folder / name
            if not path.is_file():
                raise BadBundle(
                    f"{path} is missing; {MANIFEST} lists it with {expected.size_bytes} bytes. "
                    "Copy the bundle again or export it anew."
                )
            size = path.stat().st_size
            if size != expected.size_bytes:
                raise BadBundle(
                    f"{path} has {size} bytes; {MANIFEST} expects {expected.size_bytes}. "
                    "Copy the bundle again or export it anew."
                )
        for name, expected in self.manifest.files.items():
            path = self.folder / name
            try:
                digest = digest_of(path)
            except OSError as error:
                raise BadBundle(f"{path} cannot be read: {error.strerror}.") from None
            if digest != expected.sha256:
                raise BadBundle(
                    f"{path} has sha256 {digest}; {MANIFEST} expects {expected.sha256}. "
                    "The file was changed after export; copy the bundle again or export it anew."
                )


def digest_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_bundle(folder: Path) -> Bundle:
    """Read the manifest of one version folder; the graphs are not opened (see ``Bundle.verify``).

    Raises:
        BadBundle: the manifest is missing, is no JSON, has another schema version, or contradicts
        itself.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadBundle(
            f"{path} is missing: a version folder without it is no bundle. "
            "Finish the export or remove the folder."
        ) from None
    except OSError as error:
        raise BadBundle(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise BadBundle(
            f"{path} is not JSON ({error}). Copy the bundle again or export it anew."
        ) from None
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if found != SCHEMA_VERSION:
        raise BadBundle(
            f"{path} has schema_version {found!r}; this server reads version {SCHEMA_VERSION}. "
            "Export the model again with this release, or run the release that wrote it."
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadBundle(
            f"{path}: {where}: {first['msg']} (found {first['input']!r:.80}). "
            f"{error.error_count()} field(s) are wrong in all; export the model again."
        ) from None
    _check_consistent(path, manifest)
    return Bundle(folder=folder, manifest=manifest)


def load_repository(repository: Path) -> list[Bundle]:
    """The newest version of every model below ``repository``, by name.

    Versions are compared number by number ("10" is newer than "9", "1.0" than "1.0-rc1"). Folders
    without a manifest are unfinished and do not exist for the server.

    Raises:
        BadBundle: there is no such folder, no model in it, or a manifest is wrong.
    """
    if not repository.is_dir():
        raise BadBundle(
            f"{repository} is no folder; name a model repository, "
            f"<repository>/<model>/<version>/{MANIFEST}."
        )
    versions = _versions(repository)
    if not versions:
        raise BadBundle(
            f"{repository} holds no model: no file matches <model>/<version>/{MANIFEST}. "
            f"Write one with: saccade export SOURCE --out {repository}"
        )
    return [load_bundle(max(versions[name], key=version_key)) for name in sorted(versions)]


def find_bundle(repository: Path, name: str, version: str | None = None) -> Bundle:
    """One version of one model, the newest without a ``version``.

    Both are compared with what lies there and never become part of a path.

    Raises:
        UnknownModel: there is no such model or version.
        BadBundle: its manifest is wrong.
    """
    models = _versions(repository)
    if name not in models:
        there = ", ".join(sorted(models)) or "none"
        raise UnknownModel(
            f"the repository has no model {name!r}; it has {there}", allowed=sorted(models)
        )
    folders = {folder.name: folder for folder in sorted(models[name], key=version_key)}
    if version is not None and version not in folders:
        raise UnknownModel(
            f"the repository has no version {version!r} of {name!r}; it has {', '.join(folders)}",
            allowed=list(folders),
        )
    return load_bundle(folders[version or list(folders)[-1]])


def _versions(repository: Path) -> dict[str, list[Path]]:
    """Version folders with a manifest, by model."""
    found: dict[str, list[Path]] = {}
    for manifest in repository.glob(f"*/*/{MANIFEST}"):
        found.setdefault(manifest.parent.parent.name, []).append(manifest.parent)
    return found


def version_key(folder: Path) -> list[tuple[int, str]]:
    parts = [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"[._-]", folder.name)
    ]
    return [*parts, (0, "")]  # so that what a word follows is older than what ends there


def _check_consistent(path: Path, manifest: Manifest) -> None:
    if (manifest.name, manifest.version) != (path.parent.parent.name, path.parent.name):
        raise BadBundle(
            f"{path} says it is {manifest.name!r} version {manifest.version!r}, but lies in "
            f"{path.parent.parent.name}/{path.parent.name}. Rename the folders to match."
        )
    named = {graph.file for graph in manifest.graphs} | {one.file for one in manifest.engines}
    unlisted = named - manifest.files.keys()
    if unlisted:
        raise BadBundle(
            f"{path} names files without a digest in 'files': {', '.join(sorted(unlisted))}."
        )
    for task in ("classify", "segment", "detect"):
        if task in manifest.tasks and not manifest.labels:
            raise BadBundle(f"{path} offers the task {task!r} and lists no labels.")
    if "segment" in manifest.tasks and manifest.segmentation is None:
        raise BadBundle(f"{path} offers the task 'segment' and has no 'segmentation' section.")
    if "attention" in manifest.tasks and manifest.explain is None:
        raise BadBundle(f"{path} offers the task 'attention' and has no 'explain' section.")
    _check_graphs(path, manifest)
    ids = [label.id for label in manifest.labels]
    if len(set(ids)) != len(ids):
        raise BadBundle(f"{path} lists a label id twice.")


def _check_graphs(path: Path, manifest: Manifest) -> None:
    if not manifest.canvases:
        raise BadBundle(f"{path} lists no serving graph.")
    for graph in manifest.graphs:
        if graph.kind == "serve":
            _check_outputs(path, manifest, graph)
    if "attention" in manifest.tasks:
        _check_explain(path, manifest)


def _check_explain(path: Path, manifest: Manifest) -> None:
    for canvas in manifest.canvases:
        graph = manifest.graph("explain", canvas, "fp32")
        if graph is None:
            raise BadBundle(
                f"{path} offers the task 'attention' without an explain graph {canvas}."
            )
        inputs, outputs = (
            {tensor.name: tensor.shape for tensor in side} for side in (graph.inputs, graph.outputs)
        )
        fault = manifest.explain and manifest.explain.fault(inputs, outputs, canvas)
        if fault:
            raise BadBundle(f"{path} does not match {graph.file}: {fault}.")


def _check_outputs(path: Path, manifest: Manifest, graph: Graph) -> None:
    shapes = {tensor.name: tensor.shape for tensor in graph.outputs}
    for task, outputs in _required_outputs(manifest).items():
        absent = [name for name in outputs if name not in shapes]
        if task in manifest.tasks and absent:
            raise BadBundle(
                f"{path} offers the task {task!r}, but {graph.file} has no output "
                f"{', '.join(map(repr, absent))}; it has {', '.join(shapes)}."
            )
    if "classify" in manifest.tasks and shapes["scores"] != [-1, len(manifest.labels)]:
        raise BadBundle(
            f"{path} lists {len(manifest.labels)} labels, but in {graph.file} the shape of "
            f"'scores' is {shapes['scores']}."
        )
    padded = manifest.geometry.placement == "pad"
    if padded != any(tensor.name == "sizes" for tensor in graph.inputs):
        raise BadBundle(
            f"{path} {'pads pictures' if padded else 'fills the canvas'}, but {graph.file} "
            f"{'has no' if padded else 'has an'} input 'sizes'."
        )


def _required_outputs(manifest: Manifest) -> dict[Task, tuple[str, ...]]:
    """What a serving graph must give, by task."""
    merged: dict[Mode, tuple[str, ...]] = {
        "panoptic": ("panoptic_map", "panoptic_classes", "panoptic_scores"),
        "instance": (
            "instance_masks",
            "instance_classes",
            "instance_scores",
            "instance_queries",
        ),
        "semantic": ("semantic_map",),
    }
    modes = manifest.segmentation.modes if manifest.segmentation else []
    return {
        "classify": ("scores",),
        "embed": ("embedding",),
        "attention": manifest.explain.served_outputs if manifest.explain else (),
        "detect": ("scores", "classes", "boxes", "queries"),
        "segment": ("logits", "masks", *(name for mode in modes for name in merged[mode])),
    }
