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
from export.plan import Wishes
from export.quantize import add_int8
from models.checkpoints import CheckpointError
from service.bundle import Bundle, Decoding, Mode, Parity, Precision, Task
from service.errors import ServiceError
from service.geometry import Size


class PrecisionWish(StrEnum):
    """What ``--precision`` takes."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


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
        str | None,
        typer.Option(
            help="Classes of a segmenter that are not counted, such as 'sky,road'; '' for none. "
            "Known of the label sets of COCO and Cityscapes"
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
            exists=True, file_okay=False, help="Pictures to prove on, besides the sample scenes"
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
    jpeg_scale: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=8,
            help="Let the server decode a large JPEG at 1/2, 1/4 or 1/8, where that leaves so many "
            "pixels a side for each that resizing keeps; 2 changes little, and is measured",
        ),
    ] = None,
) -> None:
    """Turn a checkpoint into a bundle: graphs, a manifest, and the proof that they are right."""
    precisions = [kind.value for kind in precision or [] if kind != PrecisionWish.AUTO]
    if precisions and PrecisionWish.AUTO in (precision or []):
        raise typer.BadParameter("auto cannot be joined with others", param_hint="--precision")
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
                wishes=Wishes(
                    profile=profile.value,
                    tasks=cast(list[Task], [kind.value for kind in task or []]),
                    modes=cast(list[Mode], [kind.value for kind in mode or []]),
                    threshold=threshold,
                    stuff=None if stuff is None else [s.strip() for s in stuff.split(",") if s],
                ),
                images=images,
                revision=revision,
                preprocessor=preprocessor,
                jpeg_scale=jpeg_scale,
                progress=steps,
            )
    except (CheckpointError, ServiceError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    for notice in steps.notices:
        console.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    _print_result(Console(), bundle, started_s)


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
        console.print(decoding_line(manifest.decoding), highlight=False, soft_wrap=True)
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


def decoding_line(decoding: Decoding) -> str:
    """What decoding at a fraction changes, for people."""
    errors = max(parity.max_error for parity in decoding.effect)
    agreement = min((s for parity in decoding.effect for s in _shares(parity)), default=None)
    agree = "" if agreement is None else f", agreement {agreement:.3f}"
    return (
        f"large JPEGs at a fraction that leaves {decoding.jpeg_scale:g} pixels for each: "
        f"at least {decoding.psnr_db:.1f} dB, max error {errors:.1e}{agree}, "
        f"on {decoding.pictures}"
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
