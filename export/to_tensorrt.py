"""TensorRT engines for a bundle: built on this machine's GPU, proven on pictures, put beside the
graphs that they are made of.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from export.pictures import MOST, SCENES, Files, collect, files, split
from export.progress import Progress, Silent
from export.repository import describe_files, enough_room, replace_manifest
from export.to_fp8 import modelopt, quantize_to_fp8
from export.to_onnx import save, signature
from service.bundle import Bundle, Engine, File, Graph, Manifest, Precision, digest_of
from service.engines import batch_ranges
from service.errors import BadBundle, StartError
from service.geometry import Size
from service.parity import picture_inputs
from service.worker.runtimes.cache import CompiledCache
from service.worker.runtimes.tensorrt.proving import Proven, Workshop, build_proven, workshop

FP8_WEIGHTS = "weights-fp8.bin"


def build_engines(
    bundle: Bundle,
    precision: Precision,
    batches: Sequence[int],
    *,
    device: str = "cuda",
    images: Path | None = None,
    cache: CompiledCache | None = None,
    progress: Progress | None = None,
    detail: Callable[[str], None] | None = None,
    tools: Workshop | None = None,
) -> Bundle:
    """Build an engine for every canvas, and put into the bundle those that pass, all or none.

    Each has a profile for every one of ``batches`` (see ``batch_ranges``). Engines of other
    machines stay; one of this machine in the same precision is replaced. ``images`` is a folder of
    pictures to prove on, before the sample scenes; fp8 needs one, of which every second picture
    finds the scales and the others prove. ``detail`` hears how far a step is.

    Raises:
        StartError: there is no library or device, the bundle has no graph for this, fp8 has too few
        pictures, or an engine is not right or not in that precision; the bundle is as it was then,
        but for fp8 graphs, which stay for another try.
    """
    progress = progress or Silent()
    if precision == "int8":
        raise StartError("engines are built in bf16, fp16, fp32 and fp8; int8 runs on CPUs here")
    calibration: list[Path] = []
    if precision == "fp8":
        modelopt()
        if images is None:
            raise StartError(
                "fp8 finds its scales on pictures of the kind that the model will see; name a "
                "folder of them with --images"
            )
        calibration, proof = split(images, "fp8")
        pictures: Sequence[Image.Image] = Files([*proof[:MOST], *files(SCENES)])
    else:
        pictures = collect(images).images
    tools = tools or workshop(device, cache)
    ranges = batch_ranges(list(batches))

    def told(text: str) -> None:
        if detail is not None and text.endswith("%"):
            detail(text)
        else:
            progress.step(text)

    with enough_room(bundle.folder):
        if precision == "fp8":
            bundle = add_fp8_graphs(bundle, calibration, progress)
        found = []
        for canvas in bundle.manifest.canvases:
            proven = build_proven(bundle, canvas, precision, ranges, tools, pictures, told)
            for why in proven.refused:
                progress.notice(f"{canvas}: {proven.graph.sampling} is taken; not {why}")
            found.append((canvas, proven))
        return put_engines(bundle, precision, found)


def add_fp8_graphs(
    bundle: Bundle, calibration: Sequence[Path], progress: Progress | None = None
) -> Bundle:
    """Give a bundle graphs for fp8 engines, made of those in fp32 with scales from these pictures;
    earlier ones are replaced.

    Raises:
        StartError: ModelOpt is not installed, or a graph cannot be made.
    """
    progress, manifest = progress or Silent(), bundle.manifest
    models, graphs = {}, []
    pictures = Files(calibration)
    with TemporaryDirectory(dir=bundle.folder, prefix=".fp8-") as name:
        folder = Path(name)
        for number, canvas in enumerate(manifest.canvases):
            source = _fp32_source(manifest, canvas)
            progress.step(f"making the fp8 graph for {canvas} with ModelOpt")
            inputs = picture_inputs(
                source,
                manifest.geometry,
                manifest.canvases,
                pictures,
                len(pictures),
                pictures.sizes,
            )
            model = quantize_to_fp8(bundle.path(source), inputs, folder)
            file = "engine-fp8" + (f"-{canvas}" if number else "") + ".onnx"
            models[file] = model
            graphs.append(
                Graph(
                    file=file,
                    kind="engine",
                    canvas=canvas,
                    precision="fp8",
                    sampling=source.sampling,
                    calibrated_on=f"{len(calibration)} given pictures",
                    **signature(model),
                )
            )
        written = folder / "written"
        written.mkdir()
        save(models, written, FP8_WEIGHTS)
        files = describe_files(written)
        for path in sorted(written.iterdir()):
            path.replace(bundle.folder / path.name)
    kept = [one for one in manifest.graphs if (one.kind, one.precision) != ("engine", "fp8")]
    update = {"graphs": [*kept, *graphs], "files": manifest.files | files}
    return replace_manifest(bundle, manifest.model_copy(update=update))


def engine_file(proven: Proven, canvas: Size, precision: str) -> str:
    """A name for the plan: what it is, and by its fingerprint for what."""
    found = proven.fingerprint.model_dump_json()
    return f"{precision}-{canvas}-{hashlib.sha256(found.encode()).hexdigest()[:12]}.plan"


def _fp32_source(manifest: Manifest, canvas: Size) -> Graph:
    typed = [one for one in manifest.engine_graphs(canvas, "fp32") if one.sampling == "gather"]
    serve = manifest.graph("serve", canvas, "fp32")
    if not typed and serve is None:
        raise BadBundle(f"{manifest.name} has no fp32 graph for {canvas} to make an fp8 one of")
    return typed[0] if typed else serve  # type: ignore[return-value]


def put_engines(bundle: Bundle, precision: Precision, found: list[tuple[Size, Proven]]) -> Bundle:
    """Put engines that were proven into their bundle. Plans are readable by this user alone: they
    are machine code.
    """
    manifest = bundle.manifest
    engines, files = [], {}
    for canvas, proven in found:
        file = engine_file(proven, canvas, precision)
        path = bundle.folder / file
        aside = path.with_name(f".{file}")
        try:
            aside.touch(mode=0o600)
            aside.write_bytes(proven.plan.content)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        files[file] = File(sha256=digest_of(path), size_bytes=path.stat().st_size)
        engines.append(
            Engine(
                file=file,
                graph=proven.graph.file,
                canvas=canvas,
                precision=precision,
                sampling=proven.graph.sampling,
                fingerprint=proven.fingerprint,
                parity=proven.parity,
                shares=proven.opened.shares,
                seconds=proven.seconds,
            )
        )
    here = engines[0].fingerprint.machine
    kept = [
        one
        for one in manifest.engines
        if one.precision != precision or one.fingerprint.machine != here
    ]
    gone = {one.file for one in manifest.engines} - {one.file for one in [*kept, *engines]}
    listed = {name: one for name, one in manifest.files.items() if name not in gone}
    update = {"engines": [*kept, *engines], "files": listed | files}
    replaced = replace_manifest(bundle, manifest.model_copy(update=update))
    for file in gone:
        (bundle.folder / file).unlink(missing_ok=True)
    return replaced
