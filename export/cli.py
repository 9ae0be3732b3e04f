"""``saccade export``: a checkpoint in, a proven bundle out."""

import re
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
from models.checkpoints import CheckpointError
from service.bundle import Bundle, Parity, Precision, Task
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
    ATTENTION = "attention"
    EMBED = "embed"


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
) -> None:
    """Turn a checkpoint into a bundle: graphs, a manifest, and the proof that they are right."""
    precisions = [kind.value for kind in precision or [] if kind != PrecisionWish.AUTO]
    if precisions and PrecisionWish.AUTO in (precision or []):
        raise typer.BadParameter("auto cannot be joined with others", param_hint="--precision")
    console = Console(stderr=True)
    try:
        with Steps(console) as steps:
            bundle = export_bundle(
                source,
                out,
                name=name,
                version=version,
                canvases=[(size.height, size.width) for size in canvas or []],
                precisions=cast(list[Precision], precisions),
                tasks=cast(list[Task], [kind.value for kind in task or []]),
                images=images,
                revision=revision,
                preprocessor=preprocessor,
                progress=steps,
            )
    except (CheckpointError, ServiceError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    for notice in steps.notices:
        console.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    _print_result(Console(), bundle)


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


def _print_result(console: Console, bundle: Bundle) -> None:
    manifest = bundle.manifest
    columns = ("runtime", "canvas", "max error", "cosine", "top-1", "batched", "explain")
    table = Table(
        *(Column(name, overflow="fold") for name in columns),
        box=box.SIMPLE_HEAD,
        title=f"against PyTorch fp32, on {manifest.provenance.pictures}",
        title_justify="left",
    )
    for parity in manifest.parity:
        table.add_row(*_cells(parity))
    console.print(table)
    console.print(
        f"{manifest.name} version {manifest.version}: {', '.join(manifest.tasks)}; "
        f"{manifest.parameters / 1e6:.3g} M parameters, {manifest.macs / 1e9:.3g} G "
        "multiply-accumulates",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"written to {bundle.folder}", markup=False, highlight=False, soft_wrap=True)


def _cells(parity: Parity) -> list[str]:
    agreement = parity.top1_agreement
    return [
        f"{parity.runtime} {parity.precision}",
        str(parity.canvas),
        f"{parity.max_error:.1e}",
        f"{parity.cosine:.6f}",
        "" if agreement is None else f"{agreement:.3f}",
        *("" if e is None else f"{e:.1e}" for e in (parity.batch_error, parity.explain_error)),
    ]
