"""``saccade export``: a checkpoint in, a proven bundle out."""

import re
import resource
import time
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self, cast

import typer
from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Column, Table

from export.build import export_bundle
from export.decoding import JPEG_SCALE, allow_fast, keep_exact
from export.label_sets import lines_of
from export.plan import Wishes
from export.quantize import add_int8
from export.to_tensorrt import build_engines
from models.checkpoints import CheckpointError
from service.bundle import Bundle, Decoding, Mode, Parity, Precision, Task
from service.errors import ServiceError
from service.geometry import Size
from service.worker.runtimes.cache import CompiledCache

_SCALE = "--jpeg-scale"


class PrecisionWish(StrEnum):
    """What ``--precision`` takes."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class EngineWish(StrEnum):
    """What ``--engine`` takes."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class TaskWish(StrEnum):
    """What ``--task`` takes."""

    CLASSIFY = "classify"
    DETECT = "detect"
    SEGMENT = "segment"
    ATTENTION = "attention"
    EMBED = "embed"


class ModeWish(StrEnum):
    """What ``--mode`` takes."""

    PANOPTIC = "panoptic"
    INSTANCE = "instance"
    SEMANTIC = "semantic"


class Pixels(StrEnum):
    """What ``--pixels`` takes."""

    EXACT = "exact"
    FAST = "fast"


class ProfileWish(StrEnum):
    """What ``--profile`` takes."""

    REFERENCE = "reference"
    HF = "hf"


def _canvas(text: str) -> Size:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not HEIGHTxWIDTH in pixels, for example 224x224")
    return Size(height=int(match[1]), width=int(match[2]))


def export(
    source: Annotated[
        str, typer.Argument(help="Folder of a checkpoint, or its id on the Hugging Face hub")
    ],
    out: Annotated[Path, typer.Option(help="Model repository to write into")],
    name: Annotated[str | None, typer.Option(help="Name to serve it by; else the source's")] = None,
    version: Annotated[str | None, typer.Option(help="Version; else the next number")] = None,
    canvas: Annotated[
        list[Size] | None,
        typer.Option(
            parser=_canvas,
            metavar="HxW",
            help="Height and width that the network sees, the default first; else the checkpoint's",
        ),
    ] = None,
    precision: Annotated[
        list[PrecisionWish] | None,
        typer.Option(help="Arithmetic that has to pass; auto keeps bf16 where it passes"),
    ] = None,
    engine: Annotated[
        list[EngineWish] | None,
        typer.Option(help="Also write graphs that saccade build makes TensorRT engines of"),
    ] = None,
    task: Annotated[
        list[TaskWish] | None,
        typer.Option(help="Tasks to offer; else all that the model can do"),
    ] = None,
    profile: Annotated[
        ProfileWish,
        typer.Option(
            help="Boxes and segments as the papers' authors make them, or as transformers does"
        ),
    ] = ProfileWish.REFERENCE,
    mode: Annotated[
        list[ModeWish] | None,
        typer.Option(help="Modes of a segmenter, the default first; else all three"),
    ] = None,
    stuff: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Classes of a segmenter that are not counted, by name or id: one each time, or "
            "'sky,road', or @FILE with one a line; '' for none. Known of the label sets of COCO, "
            "ADE20K and Cityscapes",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Names of the classes, instead of the checkpoint's: one a line, a JSON list, or "
            "an id2label object",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least score of boxes and segments unless a request says"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Pictures to prove on, before the sample scenes"
        ),
    ] = None,
    preprocessor: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Stands in for the checkpoint's preprocessor_config.json",
        ),
    ] = None,
    pixels: Annotated[
        Pixels,
        typer.Option(
            help="fast lets the server resize with vector instructions, and decode large JPEGs at "
            "1/2, 1/4 or 1/8; what that changes is measured and stated"
        ),
    ] = Pixels.EXACT,
    jpeg_scale: Annotated[
        float | None,
        typer.Option(
            max=8,
            help="Of --pixels fast: at a fraction only where it leaves so many pixels a side for "
            "each that resizing keeps, else 2; 0: always in full",
        ),
    ] = None,
) -> None:
    """Turn a checkpoint into a bundle: graphs, a manifest, and the proof that they are right."""
    precisions = [kind.value for kind in precision or [] if kind != PrecisionWish.AUTO]
    if precisions and PrecisionWish.AUTO in (precision or []):
        raise typer.BadParameter("auto cannot be joined with others", param_hint="--precision")
    scale = checked_scale(pixels, jpeg_scale)
    console, started_s = Console(stderr=True), time.monotonic()
    try:
        with Steps(console) as steps:
            bundle = export_bundle(
                source,
                out,
                name=name,
                version=version,
                canvases=[(size.height, size.width) for size in canvas or []],
                precisions=cast(list[Precision], precisions),
                engines=cast(list[Precision], [kind.value for kind in engine or []]),
                wishes=Wishes(
                    profile=profile.value,
                    tasks=cast(list[Task], [kind.value for kind in task or []]),
                    modes=cast(list[Mode], [kind.value for kind in mode or []]),
                    threshold=threshold,
                    stuff=_stuff(stuff),
                ),
                images=images,
                revision=revision,
                preprocessor=preprocessor,
                labels=labels,
                fast_pixels=pixels == Pixels.FAST,
                jpeg_scale=scale,
                progress=steps,
            )
    except (CheckpointError, ServiceError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    for notice in steps.notices:
        console.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    _print_result(Console(), bundle, started_s)


def _stuff(wanted: list[str] | None) -> list[str] | None:
    """The entries of ``--stuff``, with the lines of the files among them; None if there are none
    of these at all.

    Raises:
        StartError: a file cannot be read.
    """
    if not wanted:  # typer gives an empty list where nothing was asked
        return None
    listed = [lines_of(Path(item[1:])) if item.startswith("@") else [item] for item in wanted]
    return [line for lines in listed for line in lines]


class Steps:
    """Shows the running step, and leaves a line with its duration behind."""

    def __init__(self, console: Console) -> None:
        self.notices: list[str] = []
        self._console = console
        self._status = Status("", console=console)
        self._running: tuple[str, float] | None = None

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()
        self._status.stop()

    def step(self, text: str) -> None:
        """See ``Progress.step``."""
        self._finish()
        self._running = text, time.monotonic()
        self._status.update(f"{text} ...")

    def detail(self, text: str) -> None:
        """How far the running step is."""
        self._status.update(f"{text} ...")

    def notice(self, text: str) -> None:
        """See ``Progress.notice``."""
        self.notices.append(text)

    def _finish(self) -> None:
        if self._running is None:
            return
        text, started_s = self._running
        self._running = None
        seconds = time.monotonic() - started_s
        self._console.print(f"{seconds:6.1f} s  {text}", markup=False, highlight=False)


def _print_result(console: Console, bundle: Bundle, started_s: float) -> None:
    manifest = bundle.manifest
    table = _table(f"against PyTorch fp32, on {manifest.provenance.pictures}")
    for parity in manifest.parity:
        table.add_row(*_cells(parity))
    console.print(table)
    if manifest.decoding is not None:
        console.print(pixels_line(manifest.decoding), highlight=False, soft_wrap=True)
    console.print(
        f"{manifest.name} version {manifest.version}: {', '.join(manifest.tasks)}; "
        f"{manifest.parameters / 1e6:.3g} M parameters, {manifest.macs / 1e9:.3g} G "
        "multiply-accumulates",
        highlight=False,
        soft_wrap=True,
    )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(
        f"written to {bundle.folder} in {time.monotonic() - started_s:.0f} s, with at most "
        f"{peak_mb:.0f} MB of memory",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def quantize(bundle: Bundle, images: Path) -> None:
    """Add int8 graphs to a bundle, and show how its answers change."""
    console = Console(stderr=True)
    with Steps(console) as steps:
        bundle = add_int8(bundle, images, steps)
    for notice in steps.notices:
        console.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    quantization = bundle.manifest.quantization
    assert quantization is not None
    table = _table(f"int8 against the fp32 graph, on {quantization.pictures}")
    for parity in bundle.manifest.parity:
        if parity.precision == "int8":
            table.add_row(*_cells(parity))
    Console().print(table)
    for runtime, share in quantization.same_class.items():
        line = f"{runtime}: the same best class in {share:.2%} of the pictures, ties included"
        Console(soft_wrap=True, highlight=False).print(line)


def build(
    bundle: Bundle,
    precision: Precision,
    batches: list[int],
    device: str,
    images: Path | None,
    cache: CompiledCache | None,
) -> None:
    """Build engines for a bundle, and show how near to the reference and how fast they are."""
    console = Console(stderr=True)
    with Steps(console) as steps:
        bundle = build_engines(
            bundle,
            precision,
            batches,
            device=device,
            images=images,
            cache=cache,
            progress=steps,
            detail=steps.detail,
        )
    for notice in steps.notices:
        console.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    Console().print(engine_table(bundle, precision))


def engine_table(bundle: Bundle, precision: Precision) -> Table:
    """The figures of a bundle's engines in a precision, a row for each profile."""
    names = ("canvas", "batches", "cosine", "agree", "batched", "ms", "images/s")
    columns = [Column(name, overflow="fold") for name in names]
    title = f"{precision} engines against ONNX Runtime fp32 on the CPU"
    table = Table(*columns, box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for engine in bundle.manifest.engines:
        if engine.precision != precision:
            continue
        for batches, parity in zip(engine.fingerprint.profiles, engine.parity, strict=True):
            agreement = min(_shares(parity), default=None)
            seconds = engine.seconds[str(batches)]
            table.add_row(
                str(engine.canvas),
                str(batches),
                f"{parity.cosine:.6f}",
                "" if agreement is None else f"{agreement:.3f}",
                "" if parity.batch_error is None else f"{parity.batch_error:.1e}",
                f"{seconds * 1e3:.2f}",
                f"{batches.best / seconds:.0f}",
            )
    return table


def set_pixels(
    bundle: Bundle, pixels: str, jpeg_scale: float | None, images: Path | None
) -> Bundle:
    """Allow fast pixels or keep them exact, see ``export``."""
    scale = checked_scale(pixels, jpeg_scale)
    return allow_fast(bundle, scale, images) if pixels == Pixels.FAST else keep_exact(bundle)


def checked_scale(pixels: str, jpeg_scale: float | None) -> float | None:
    """What ``--jpeg-scale`` means; None for no fractions.

    Raises:
        BadParameter: it makes no sense.
    """
    if jpeg_scale is None:
        return JPEG_SCALE
    if pixels != Pixels.FAST:
        raise typer.BadParameter("exact pixels are never decoded at a fraction", param_hint=_SCALE)
    if jpeg_scale and not jpeg_scale >= 1:
        fewer = "below 1 the model would get fewer pixels than it asks for"
        raise typer.BadParameter(fewer, param_hint=_SCALE)
    return jpeg_scale or None


def pixels_line(decoding: Decoding | None) -> str:
    """How pictures become pixels and what that changes, for people."""
    if decoding is None:
        return "pixels are exact: every picture is decoded in full, and resized by Pillow"
    ways = ["resized with vector instructions"] if decoding.resizer == "simd" else []
    if decoding.jpeg_scale is not None:
        left = f"{decoding.jpeg_scale:g} pixels for each"
        ways.append(f"large JPEGs decoded at a fraction that leaves {left}")
    errors = max(parity.max_error for parity in decoding.effect)
    agreement = min((s for parity in decoding.effect for s in _shares(parity)), default=None)
    agree = "" if agreement is None else f", agreement {agreement:.3f}"
    return (
        f"pixels are fast: {', '.join(ways)}; at least {decoding.psnr_db:.1f} dB, "
        f"max error {errors:.1e}{agree}, on {decoding.pictures}"
    )


def _table(title: str) -> Table:
    names = ("runtime", "canvas", "max error", "cosine", "agree", "batched", "explain")
    columns = [Column(name, overflow="fold") for name in names]
    return Table(*columns, box=box.SIMPLE_HEAD, title=title, title_justify="left")


def _shares(parity: Parity) -> list[float]:
    shares = (parity.top1_agreement, parity.box_agreement, parity.mask_agreement)
    return [share for share in shares if share is not None]


def _cells(parity: Parity) -> list[str]:
    agreement = min(_shares(parity), default=None)
    return [
        f"{parity.runtime} {parity.precision}",
        str(parity.canvas),
        f"{parity.max_error:.1e}",
        f"{parity.cosine:.6f}",
        "" if agreement is None else f"{agreement:.3f}",
        *("" if e is None else f"{e:.1e}" for e in (parity.batch_error, parity.explain_error)),
    ]
