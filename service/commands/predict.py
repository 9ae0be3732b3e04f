"""``saccade predict``: answers for a folder or a list of pictures."""

from pathlib import Path
from typing import Annotated

import typer

from service.commands.shared import (
    ApiKeyFile,
    AsForServe,
    LocalRepository,
    Parameters,
    PictureTask,
    Url,
    examples,
    needing,
    refuse_beside_url,
)
from service.settings import load_settings

app = typer.Typer()


@app.command(
    "predict",
    epilog=examples(
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
    option: Parameters = None,
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    repository: LocalRepository = None,
    device: AsForServe = None,
    precision: AsForServe = None,
    runtime: AsForServe = None,
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
    with needing("client", "predict"):
        from service.predict.command import Plan, parse_parameters, predict, read_key
    flags = {"repository": repository, "device": device}
    flags |= {"precision": precision, "runtime": runtime}
    refuse_beside_url(url, flags)
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
