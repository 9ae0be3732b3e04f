"""The console command ``saccade``; each command imports what it alone needs, so that ``serve`` is
quick.
"""

import asyncio
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from service.errors import BadBundle, BadSettings, ServiceError, StartError
from service.logs import configure_logging
from service.settings import (
    DEMO_REPOSITORY,
    PREFIX,
    SECRETS,
    Settings,
    check_files,
    load_settings,
    registry_logins,
)

if TYPE_CHECKING:
    from service.bundle import Bundle

app = typer.Typer(
    help="Serves vision transformers over HTTP: an image goes in, an answer comes out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
models = typer.Typer(help="Look into a model repository.", no_args_is_help=True)
app.add_typer(models, name="models")


def _examples(*lines: str) -> str:
    """What a command's ``--help`` ends with; an empty line keeps lines apart."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


def main() -> None:
    """Run the command line; our own errors are one sentence on standard error and exit code 1."""
    try:
        app()
    except ServiceError as error:
        from rich.console import Console

        Console(stderr=True, soft_wrap=True).print(
            f"saccade: {error}", markup=False, highlight=False
        )
        sys.exit(1)


def serve(**flags: str | None) -> None:
    """Start the server; without a repository it serves the bundled demo models."""
    from service.supervisor import Supervisor

    settings = load_settings(flags)
    check_files(settings)
    configure_logging("supervisor", settings.log_level)
    supervisor = Supervisor(settings)
    listeners = supervisor.bind()
    host, port = listeners[0].getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    scheme = "https" if settings.tls_certificate else "http"

    def announce(names: list[str]) -> None:
        from rich.console import Console

        console = Console(soft_wrap=True, highlight=False)
        console.print(f"Saccade {version('saccade')} at {scheme}://{address}:{port}", markup=False)
        listed = ", ".join(names)
        if settings.repository == DEMO_REPOSITORY:
            console.print(f"No repository given: serving the bundled demo models ({listed})")
        else:
            console.print(f"Serving {listed} from {settings.repository}", markup=False)
        sys.stdout.flush()

    sys.exit(asyncio.run(supervisor.run(listeners, announce)))


def _completion(allowed: tuple[object, ...]) -> Callable[[str], list[str]] | None:
    """What completes a value in the shell; None where it is not one of a few."""

    def complete(incomplete: str) -> list[str]:
        return [str(value) for value in allowed if str(value).startswith(incomplete)]

    return complete if allowed else None


def _flags() -> list[inspect.Parameter]:
    """One optional flag for every field of Settings but secrets, so that the two cannot differ."""
    parameters = []
    for name, field in Settings.model_fields.items():
        if name in SECRETS:
            continue
        default = (
            "demo" if name == "repository" else "none" if field.default == "" else field.default
        )
        text = f"{field.description} [{PREFIX}{name.upper()}; default: {default}]"
        option = typer.Option(
            "--" + name.replace("_", "-"),
            help=text,
            show_default=False,
            autocompletion=_completion(get_args(field.annotation)),
        )
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[str | None, option],
            )
        )
    return parameters


serve.__signature__ = inspect.Signature(_flags())  # type: ignore[attr-defined]
serve.__annotations__ = {flag.name: flag.annotation for flag in _flags()}
app.command(
    epilog=_examples(
        "saccade serve",
        "saccade serve --repository models-repository --port 8080",
        "saccade serve --host 0.0.0.0 --api-keys-file keys --metrics-access open",
        "SACCADE_PORT=8080 saccade serve",
    )
)(serve)

Repository = Annotated[Path, typer.Argument(help="Folder of <model>/<version>/manifest.json")]


@models.command(
    "list",
    epilog=_examples("saccade models list models-repository", "saccade models list --json"),
)
def list_models(
    repository: Repository = DEMO_REPOSITORY,
    as_json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
) -> None:
    """The newest version of every model: its size, what it was proven in, and how exact that is."""
    from rich.console import Console

    from service.bundle import load_repository
    from service.catalogue import list_bundle, tabulate

    listed = [list_bundle(bundle) for bundle in load_repository(repository)]
    if as_json:
        sys.stdout.write(json.dumps([each.model_dump() for each in listed], indent=2) + "\n")
    else:
        Console(highlight=False).print(tabulate(listed))


def _complete_model(context: typer.Context, incomplete: str) -> list[str]:
    """Names of models in the repository that stands before them on the line."""
    from service.bundle import load_repository

    try:
        bundles = load_repository(Path(context.params.get("repository") or DEMO_REPOSITORY))
    except BadBundle:
        return []
    names = (bundle.manifest.name for bundle in bundles)
    return [name for name in names if name.startswith(incomplete)]


@models.command(
    "show",
    epilog=_examples(
        "saccade models show models-repository vit-base-patch16-224",
        "saccade models show models-repository vit-base-patch16-224 --json",
    ),
)
def show_model(
    repository: Repository = DEMO_REPOSITORY,
    name: Annotated[
        str | None,
        typer.Argument(help="Needed where there are several", autocompletion=_complete_model),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as it is")] = False,
) -> None:
    """One model: sizes, labels, source, and its measured error in each runtime and precision."""
    bundle = _find(repository, name)
    if as_json:
        sys.stdout.write(bundle.manifest.model_dump_json(indent=2) + "\n")
        return
    from rich.console import Console

    from service.catalogue import describe

    Console(highlight=False).print(describe(bundle))


@models.command("verify", epilog=_examples("saccade models verify models-repository"))
def verify_models(repository: Repository = DEMO_REPOSITORY) -> None:
    """Check size and digest of every file; exit code 1 if any bundle is damaged."""
    from rich.console import Console

    from service.bundle import load_repository

    damaged = 0
    for bundle in load_repository(repository):
        try:
            bundle.verify()
            verdict = "ok"
        except BadBundle as error:
            damaged += 1
            verdict = str(error)
        label = f"{bundle.manifest.name} {bundle.manifest.version}"
        Console(soft_wrap=True).print(f"{label}: {verdict}", markup=False, highlight=False)
    if damaged:
        raise StartError(f"{damaged} of the bundles in {repository} are damaged")


@app.command(
    "export",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def export_model(context: typer.Context) -> None:
    """Turn a checkpoint into a proven bundle (needs the extra ``export``)."""
    with _export_side("export"):
        from export.cli import export
    command = typer.Typer(pretty_exceptions_enable=False)
    examples = _examples(
        "saccade export google/vit-base-patch16-224 --out models-repository",
        "saccade export checkpoints/detr --out models-repository --name detr --task detect",
    )
    command.command(epilog=examples)(export)
    command(args=context.args, prog_name="saccade export")


@app.command(
    "bench",
    epilog=_examples(
        "saccade bench http://127.0.0.1:8000 --images photos",
        "saccade bench http://127.0.0.1:8000 --images photos --task detect --rate 50,100",
    ),
)
def bench_server(
    url: Annotated[str, typer.Argument(help="Address of a running server: http://host:port")],
    images: Annotated[Path, typer.Option(help="Folder of JPEG, PNG or WebP files to send")],
    task: Annotated[str, typer.Option(help="Route under /v1")] = "classify",
    model: Annotated[str | None, typer.Option(help="Model to ask")] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Closed loops: requests at a time \\[default: 1,8,32]")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Open loops: requests a second, like 50,100")
    ] = None,
    duration: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds per load")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, max=600, help="Seconds before each load")] = 2.0,
    header: Annotated[list[str] | None, typer.Option(help="'Name: value', repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures")] = None,
) -> None:
    """Put load on a running server and show its throughput and latency."""
    from service.bench.command import Plan, bench, parse_headers, parse_numbers

    if concurrency is None and rate is None:
        concurrency = "1,8,32"
    plan = Plan(
        url=url,
        images=images,
        task=task,
        model=model,
        concurrency=parse_numbers(concurrency or "", "--concurrency", int, 1024),
        rates=parse_numbers(rate or "", "--rate", float, 10_000),
        duration_s=duration,
        warmup_s=warmup,
        headers=parse_headers(header or []),
    )
    bench(plan, out)


class PictureTask(StrEnum):
    """What ``predict`` asks."""

    CLASSIFY = "classify"
    DETECT = "detect"
    SEGMENT = "segment"
    EMBED = "embed"


@app.command(
    "predict",
    epilog=_examples(
        "saccade predict photos --task detect --out results.jsonl",
        "saccade predict photos --task segment --out coco.json --option mode=panoptic",
        "saccade predict list.txt --task embed --out table.parquet --url http://127.0.0.1:8000",
    ),
)
def predict_pictures(
    source: Annotated[
        str,
        typer.Argument(help="Folder of JPEG, PNG or WebP files, one of them, a list, or - for it"),
    ],
    task: Annotated[PictureTask, typer.Option(help="What to ask of each picture")],
    out: Annotated[
        Path,
        typer.Option(
            help="results.jsonl: an answer a line; .json: COCO, with PNGs beside it where segments "
            "have a map; .parquet: a table"
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Model to ask \\[default: the first that does the task]")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="A parameter, like threshold=0.3; repeatable")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A running server to ask; without it, this machine answers")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File of the server's API key")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Without --url: model repository \\[default: demo]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="As for saccade serve")] = None,
    precision: Annotated[str | None, typer.Option(help="As for saccade serve")] = None,
    runtime: Annotated[str | None, typer.Option(help="As for saccade serve")] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, help="Pictures under way at a time")
    ] = 16,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start afresh instead of going on where --out ends")
    ] = False,
) -> None:
    """Answer a folder or a list of pictures, on this machine or by a server (needs ``client``).

    Run it again to go on where it stopped. --out results.jsonl holds the answers in the order of
    the pictures; every other format is made of such a file, which is kept beside it.
    """
    try:
        from service.predict.command import Plan, parse_parameters, predict, read_key
    except ModuleNotFoundError as error:
        raise StartError(
            f"'saccade predict' needs the package {error.name!r}; "
            "install it with: pip install 'saccade[client]'"
        ) from None
    flags = {
        "repository": repository,
        "device": device,
        "precision": precision,
        "runtime": runtime,
    }
    plan = Plan(
        source=source,
        task=task.value,
        out=out,
        settings=load_settings(flags),
        url=url,
        api_key=read_key(api_key_file) if api_key_file else None,
        parameters=parse_parameters(option or []) | ({"model": model} if model else {}),
        concurrency=concurrency,
        overwrite=overwrite,
    )
    predict(plan)


class Match(StrEnum):
    """How ``evaluate`` pairs labels with classes."""

    NAME = "name"
    ID = "id"


class IouType(StrEnum):
    """What ``evaluate`` compares of predictions that have both."""

    BBOX = "bbox"
    SEGM = "segm"


@app.command(
    "evaluate",
    epilog=_examples(
        "saccade evaluate vit-scenes --data folder:scenes/photos",
        "saccade evaluate detr --data coco:coco --precision fp32 --out results/detr.json",
        "saccade evaluate detr --data coco:coco --against precision=int8 --out compared",
        "saccade evaluate detr --data coco:coco --url http://127.0.0.1:8000 --limit 500",
        "saccade evaluate --from-predictions boxes.json --data coco:instances_val2017.json",
    ),
)
def evaluate_model(
    data: Annotated[
        str,
        typer.Option(
            help="imagenet:DIR, coco:DIR, coco-panoptic:DIR, ade20k:DIR, or folder:DIR with a "
            "folder for each class; coco and coco-panoptic take the annotation file, too"
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(help="Model to ask \\[default: the first that does the task]"),
    ] = None,
    from_predictions: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="Instead of a model: COCO's results (JSON), or its panoptic JSON with the PNGs "
            "in a folder or zip beside it that is called alike",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare with a second: a model, or what is other, like precision=fp32 or "
            "MODEL,runtime=onnxruntime or url=URL"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="FILE.json, or a folder: JSON, Markdown, answers to go on with, and the page of "
            "--against \\[default: JSON to standard output]"
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many pictures, drawn by chance")
    ] = None,
    task: Annotated[
        PictureTask | None, typer.Option(help="Where a model has two that the data could ask for")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="A parameter, like threshold=0.3; repeatable")
    ] = None,
    match: Annotated[
        Match | None, typer.Option(help="Labels are classes of the same name, or id")
    ] = None,
    iou_type: Annotated[
        IouType | None, typer.Option(help="Of predictions with boxes and masks: only these")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option(exists=True, help="Folder or zip of the predictions' PNGs")
    ] = None,
    truth_maps: Annotated[
        Path | None, typer.Option(exists=True, help="Folder or zip of the data's PNGs")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A running server to ask; without it, this machine answers")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File of the server's API key")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Without --url: model repository \\[default: demo]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="As for saccade serve")] = None,
    precision: Annotated[str | None, typer.Option(help="As for saccade serve")] = None,
    runtime: Annotated[str | None, typer.Option(help="As for saccade serve")] = None,
    concurrency: Annotated[
        int,
        typer.Option(
            min=1, max=64, help="Pictures under way at a time; of 1 the scores never vary"
        ),
    ] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start afresh instead of going on where --out ends")
    ] = False,
) -> None:
    """Score a model against data with truth, compare two, or score predictions (needs ``client``).

    Prints the columns of the papers: top-1 and top-5, COCO's twelve of boxes and masks, PQ, SQ and
    RQ, or mIoU, with their intervals, and the speed of every stage.
    """
    try:
        from service.evaluate import command
        from service.predict.command import parse_parameters, read_key
    except ModuleNotFoundError as error:
        raise StartError(
            f"'saccade evaluate' needs the package {error.name!r}; "
            "install it with: pip install 'saccade[client]'"
        ) from None
    if from_predictions is not None:
        if name is not None or against is not None:
            raise BadSettings(
                "--from-predictions scores a file instead of a model; leave out NAME and --against"
            )
        kind = None if iou_type is None else iou_type.value
        command.evaluate_predictions(from_predictions, data, out, kind, maps, truth_maps)
        return
    local = {
        "repository": repository,
        "device": device,
        "precision": precision,
        "runtime": runtime,
    }
    key = read_key(api_key_file) if api_key_file else None
    first = command.Answerer(load_settings(local), name, url, key)
    answerers = [first] if against is None else [first, command.parse_against(against, first)]
    command.evaluate(
        command.Evaluation(
            data=data,
            answerers=answerers,
            task=None if task is None else task.value,
            match=None if match is None else match.value,
            limit=limit,
            parameters=parse_parameters(option or []),
            concurrency=concurrency,
            out=out,
            overwrite=overwrite,
        )
    )


class Pixels(StrEnum):
    """What ``models pixels`` takes."""

    EXACT = "exact"
    FAST = "fast"


@models.command(
    "pixels",
    epilog=_examples("saccade models pixels models-repository detr fast --images photos"),
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

    bundle = _find(repository, name)
    with _export_side("models pixels"):
        from export.cli import pixels_line, set_pixels
    line = pixels_line(set_pixels(bundle, pixels, jpeg_scale, images).manifest.decoding)
    Console(soft_wrap=True, highlight=False).print(f"{name}: {line}", markup=False)


@models.command(
    "quantize",
    epilog=_examples("saccade models quantize models-repository detr --images photos"),
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
    bundle = _find(repository, name)
    with _export_side("models quantize"):
        from export.cli import quantize
    quantize(bundle, images)


class EnginePrecision(StrEnum):
    """What ``build --precision`` takes."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP8 = "fp8"


@app.command(
    "build",
    epilog=_examples(
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
            exists=True, file_okay=False, help="Pictures to prove on, besides the sample scenes"
        ),
    ] = None,
) -> None:
    """Build TensorRT engines on this machine's GPU, prove them, and add them to the bundle.

    The manifest is changed in place; running servers go by it when they are started again.
    """
    from service.worker.runtimes.cache import open_cache

    sizes = _batches(batches)
    bundle = _find(repository, name)
    with _export_side("build"):
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


@app.command(
    "tune",
    epilog=_examples(
        "saccade tune --repository models-repository",
        "saccade tune --repository models-repository --model detr --out tuning.json",
    ),
)
def tune_machine(
    repository: Annotated[
        Path, typer.Option(help="Model repository \\[default: demo]", show_default=False)
    ] = DEMO_REPOSITORY,
    model: Annotated[list[str] | None, typer.Option(help="Only this one; repeatable")] = None,
    seconds: Annotated[
        float, typer.Option(min=0.05, max=600, help="Measuring time for each point")
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="File to write instead of tuning.json in the repository")
    ] = None,
    runtime: Annotated[str, typer.Option(help="As for saccade serve")] = "auto",
    precision: Annotated[str, typer.Option(help="As for saccade serve")] = "auto",
) -> None:
    """Measure this machine once: streams, threads and batch sizes that serve each model best."""
    from service.tune.command import tune

    tune(repository, model or [], seconds, out, {"runtime": runtime, "precision": precision})


class Balancing(StrEnum):
    """How ``plan`` spreads requests over replicas."""

    RANDOM = "random"
    ROUND_ROBIN = "round-robin"
    LEAST_OUTSTANDING = "least-outstanding"


@app.command(
    "plan",
    epilog=_examples(
        "saccade plan --model vit-scenes --rate 5000 --p99 100ms",
        "saccade plan --model vit-scenes --rate 5000 --p99 0.1s --price-per-hour 0.08 --spare 1",
        "saccade plan --model vit-scenes --rate 20 --p99 1s --measure --images photos",
    ),
)
def plan_replicas(
    rate: Annotated[float, typer.Option(min=0.001, max=10_000_000, help="Images a second, in all")],
    p99: Annotated[str, typer.Option(help="99 of 100 are answered within this: 100ms, 0.1s")],
    model: Annotated[str | None, typer.Option(help="Needed where several were tuned")] = None,
    repository: Annotated[
        Path, typer.Option(help="Model repository \\[default: demo]", show_default=False)
    ] = DEMO_REPOSITORY,
    tuning: Annotated[
        Path | None, typer.Option(help="What saccade tune wrote, if not in the repository")
    ] = None,
    machine: Annotated[
        str | None, typer.Option(help="A part of its name, where the file holds several")
    ] = None,
    canvas: Annotated[
        str | None, typer.Option(help="Like 800x1344 \\[default: the slowest]")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of those tuned \\[default: the fastest but int8]")
    ] = None,
    balancer: Annotated[
        Balancing, typer.Option(help="How requests are spread over replicas")
    ] = Balancing.RANDOM,
    burst: Annotated[
        float, typer.Option(min=1, max=1000, help="Images that come at once, in the mean")
    ] = 1.0,
    spare: Annotated[
        int, typer.Option(min=0, max=1000, help="Replicas that may be down all the same")
    ] = 0,
    headroom: Annotated[
        float, typer.Option(min=0, max=10, help="Room for more than --rate; 0.2: a fifth more")
    ] = 0.0,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of one replica's machine, in any currency")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="First measure decoding and HTTP on this machine")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="With --measure: pictures like yours"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=600, help="With --measure: for how long")
    ] = 10.0,
    whole_fleet: Annotated[
        bool, typer.Option("--whole-fleet", help="Simulate every replica, not a sample of them")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs")] = False,
) -> None:
    """How many replicas answer a rate in time, with which batches and latency, and at what cost.

    Made of what saccade tune measured; nothing is compiled or loaded, but with --measure.
    """
    from service.plan.command import Asked, Sending, parse_duration, plan
    from service.plan.fleet import Traffic
    from service.plan.search import Target

    if images is not None and not measure:
        raise BadSettings("--images are what --measure sends; give both, or neither")
    p99_s = parse_duration(p99, "--p99")
    target = Target(Traffic(rate, burst), p99_s, balancer.value, spare, headroom)
    asked = Asked(repository, tuning, machine, model, canvas, precision)
    sending = Sending(images, seconds) if measure else None
    plan(asked, target, price_per_hour, sending, whole_fleet, as_json)


@app.command(
    "doctor",
    epilog=_examples(
        "saccade doctor --repository models-repository",
        "saccade doctor --precision int8",
        "saccade doctor --json > doctor.json",
    ),
)
def examine_machine(
    repository: Annotated[
        Path | None, typer.Option(help="Model repository \\[default: demo]", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="As for saccade serve")] = None,
    runtime: Annotated[str | None, typer.Option(help="As for saccade serve")] = None,
    precision: Annotated[str | None, typer.Option(help="As for saccade serve")] = None,
    tuning: Annotated[str | None, typer.Option(help="As for saccade serve")] = None,
    cache: Annotated[str | None, typer.Option(help="As for saccade serve")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs and bug reports")] = False,
) -> None:
    """What this machine has, what would serve each model and why, and what to mend.

    Nothing is compiled or changed. Exit code 1 if saccade serve would fail with these settings.
    """
    from service.doctor.command import doctor

    wishes = {"device": device, "runtime": runtime, "precision": precision}
    places = {"repository": repository, "tuning": tuning, "cache": cache}
    doctor(load_settings(wishes | places), as_json)


@app.command(
    "pull",
    epilog=_examples(
        "saccade pull oci://ghcr.io/me/vit:1 --repository models-repository",
        "saccade pull s3://bucket/models-repository --repository models-repository",
        "saccade pull https://example.org/vit/1 --repository models-repository --digest sha256:...",
    ),
)
def pull_models(
    source: Annotated[
        str,
        typer.Argument(
            help="oci://host/name:tag or @sha256:..., https://host/folder, s3://, gs://, az://, "
            "hf://user/repository, or a folder: a bundle, a model, or a whole repository"
        ),
    ],
    repository: Annotated[
        Path | None, typer.Option(help="Model repository to install into", show_default=False)
    ] = None,
    digest: Annotated[
        str | None, typer.Option(help="What the manifest must be: sha256:..., as push prints it")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where this version is, with other files")
    ] = False,
    cache: Annotated[
        str | None, typer.Option(help="As for saccade serve; fetched files are kept in blobs/")
    ] = None,
    max_gb: Annotated[
        float, typer.Option(min=0.001, help="Largest bundle to fetch, in 1e9 bytes")
    ] = 100.0,
) -> None:
    """Install bundles from a registry, a bucket, a web server or a hub (needs ``pull``).

    Every byte is checked against digests. A bundle is whole in the repository, or not there.
    """
    settings = load_settings({"repository": repository, "cache": cache})
    if settings.repository == DEMO_REPOSITORY:
        raise BadSettings("name the folder to install into: --repository FOLDER")
    if digest is not None and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise BadSettings(f"--digest {digest}: a digest is sha256: and 64 hexadecimal digits")
    with _pull_side("pull"):
        from service.distribution.command import pull
        from service.distribution.install import Wish
    folder = settings.cache_folder()
    wish = Wish(
        repository=settings.repository,
        cache=folder / "blobs" if folder else None,
        digest=digest,
        replace=replace,
        max_bytes=round(max_gb * 1e9),
    )
    pull(source, wish, registry_logins)


@app.command(
    "push",
    epilog=_examples(
        "saccade push vit oci://ghcr.io/me/vit --repository models-repository",
        "saccade push vit s3://bucket/models-repository --repository models-repository",
    ),
)
def push_model(
    name: Annotated[str, typer.Argument(help="A model in the repository")],
    target: Annotated[
        str,
        typer.Argument(
            help="oci://host/name[:tag], where the tag is the version unless you name one; or a "
            "repository: s3://, gs://, az://, hf://user/repository, or a folder"
        ),
    ],
    repository: Annotated[
        Path, typer.Option(help="Model repository \\[default: demo]", show_default=False)
    ] = DEMO_REPOSITORY,
    version: Annotated[
        str | None, typer.Option(help="Which one \\[default: the newest]", show_default=False)
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where something else has its place")
    ] = False,
) -> None:
    """Send a bundle to where pull finds it, and print its digests (needs ``pull``)."""
    from service.bundle import find_bundle

    bundle = find_bundle(repository, name, version)
    with _pull_side("push"):
        from service.distribution.command import push
    push(bundle, target, replace, registry_logins)


@models.command("schema", epilog=_examples("saccade models schema > manifest.schema.json"))
def show_schema() -> None:
    """The JSON Schema of a bundle's manifest."""
    from service.bundle import Manifest

    sys.stdout.write(json.dumps(Manifest.model_json_schema(), indent=2) + "\n")


@contextmanager
def _export_side(command: str) -> Iterator[None]:
    """Say what to install where the offline half of the project, imported inside, is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise StartError(
            f"'saccade {command}' needs the package {error.name!r}; "
            "install it with: pip install 'saccade[export]'"
        ) from None


@contextmanager
def _pull_side(command: str) -> Iterator[None]:
    """Say what to install where a library that reaches other machines, imported inside, is
    missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise StartError(
            f"'saccade {command}' needs the package {error.name!r}; "
            "install it with: pip install 'saccade[pull]'"
        ) from None


def _find(repository: Path, name: str | None) -> "Bundle":
    from service.bundle import load_repository

    bundles = {bundle.manifest.name: bundle for bundle in load_repository(repository)}
    if name is None and len(bundles) == 1:
        return next(iter(bundles.values()))
    if name not in bundles:
        asked = "name a model" if name is None else f"there is no model {name!r}"
        raise BadBundle(f"{asked}: {repository} holds {', '.join(bundles)}")
    return bundles[name]
