"""What ends in the offline half of the project, which need not be installed: ``export``, ``build``,
``models pixels`` and ``models quantize``.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from service.commands.shared import examples, find, needing
from service.settings import DEMO_REPOSITORY, load_settings

app = typer.Typer()
models = typer.Typer()


@app.command(
    "export",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def export_model(context: typer.Context) -> None:
    """Turn a checkpoint into a proven bundle (needs the extra ``export``)."""
    with needing("export", "export"):
        from export.cli import export
    command = typer.Typer(pretty_exceptions_enable=False)
    epilog = examples(
        "saccade export google/vit-base-patch16-224 --out models-repository",
        "saccade export checkpoints/detr --out models-repository --name detr --task detect",
    )
    command.command(epilog=epilog)(export)
    command(args=context.args, prog_name="saccade export")


class EnginePrecision(StrEnum):
    """What ``build --precision`` takes."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP8 = "fp8"


@app.command(
    "build",
    epilog=examples(
        "saccade build vit --repository models-repository",
        "saccade build detr --repository models-repository --precision fp16 --batches 1,4,16",
    ),
)
def build_engines(
    name: Annotated[str, typer.Argument(help="A model; its newest version gets the engines")],
    repository: Annotated[
        Path, typer.Option(help="Model repository \\[default: demo]", show_default=False)
    ] = DEMO_REPOSITORY,
    precision: Annotated[
        EnginePrecision, typer.Option(help="Arithmetic; the bundle has to have a graph for it")
    ] = EnginePrecision.BF16,
    batches: Annotated[
        str, typer.Option(help="Batches to be fast at, with commas; together they take all up to")
    ] = "1,8,32",
    device: Annotated[str, typer.Option(help="The GPU to build on and for")] = "cuda",
    images: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Pictures to prove on, before the sample scenes; fp8 takes every second one to "
            "calibrate and needs 32",
        ),
    ] = None,
) -> None:
    """Build TensorRT engines on this machine's GPU, prove them, and add them to the bundle.

    The manifest is changed in place; running servers go by it when they are started again.
    """
    from service.worker.runtimes.cache import open_cache

    sizes = _batches(batches)
    bundle = find(repository, name)
    with needing("export", "build"):
        from export.cli import build
    cache = open_cache(load_settings({}).cache_folder())
    build(bundle, precision.value, sizes, device, images, cache)


def _batches(text: str) -> list[int]:
    sizes = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(1 <= size <= 1024 for size in sizes):
        raise typer.BadParameter(
            f"{text!r} is not a list of batches from 1 to 1024, such as 1,8,32",
            param_hint="--batches",
        )
    return sizes


class Pixels(StrEnum):
    """What ``models pixels`` takes."""

    EXACT = "exact"
    FAST = "fast"


@models.command(
    "pixels",
    epilog=examples("saccade models pixels models-repository detr fast --images photos"),
)
def choose_pixels(
    repository: Annotated[Path, typer.Argument(help="Folder of <model>/<version>/manifest.json")],
    name: Annotated[str, typer.Argument(help="A model in it; its newest version is changed")],
    pixels: Annotated[
        Pixels,
        typer.Argument(
            help="exact: to the bits of the checkpoint's own processor; fast: resized with vector "
            "instructions, and large JPEGs decoded at 1/2, 1/4 or 1/8, once that is measured"
        ),
    ],
    jpeg_scale: Annotated[
        float | None,
        typer.Option(
            max=8,
            help="Of fast: at a fraction only where it leaves so many pixels a side for each that "
            "resizing keeps, else 2; 0: always in full",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Pictures to measure on")
    ] = None,
) -> None:
    """Let a bundle's pictures be decoded and resized in less time, or not (needs ``export``).

    The manifest is changed in place; running servers go by it when they are started again.
    """
    from rich.console import Console

    bundle = find(repository, name)
    with needing("export", "models pixels"):
        from export.cli import pixels_line, set_pixels
    line = pixels_line(set_pixels(bundle, pixels, jpeg_scale, images).manifest.decoding)
    Console(soft_wrap=True, highlight=False).print(f"{name}: {line}", markup=False)


@models.command(
    "quantize",
    epilog=examples("saccade models quantize models-repository detr --images photos"),
)
def quantize_model(
    repository: Annotated[Path, typer.Argument(help="Folder of <model>/<version>/manifest.json")],
    name: Annotated[str, typer.Argument(help="A model in it; its newest version is changed")],
    images: Annotated[
        Path,
        typer.Option(
            exists=True,
            file_okay=False,
            help="At least 32 pictures of the kind that the model will see, better hundreds: every "
            "second one calibrates (at most 64), the others prove",
        ),
    ],
) -> None:
    """Add int8 graphs to a bundle if they pass, for ``serve --precision int8`` (needs ``export``).

    The manifest is changed in place; running servers go by it when they are started again.
    """
    bundle = find(repository, name)
    with needing("export", "models quantize"):
        from export.cli import quantize
    quantize(bundle, images)
