"""``saccade evaluate``: the scores of models and of prediction files."""

from enum import StrEnum
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
from service.errors import BadSettings
from service.settings import load_settings

app = typer.Typer()


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
    epilog=examples(
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
    option: Parameters = None,
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
    url: Url = None,
    api_key_file: ApiKeyFile = None,
    repository: LocalRepository = None,
    device: AsForServe = None,
    precision: AsForServe = None,
    runtime: AsForServe = None,
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
    with needing("client", "evaluate"):
        from service.evaluate import command
        from service.predict.command import parse_parameters, read_key
    local = {
        "repository": repository,
        "device": device,
        "precision": precision,
        "runtime": runtime,
    }
    if from_predictions is not None:
        if name is not None or against is not None:
            raise BadSettings(
                "--from-predictions scores a file instead of a model; leave out NAME and --against"
            )
        _refuse(
            "is about asking a model, and --from-predictions asks none",
            **local,
            limit=limit,
            task=task,
            option=option,
            match=match,
            url=url,
            api_key_file=api_key_file,
            concurrency=concurrency if concurrency != 1 else None,
            overwrite=overwrite or None,
        )
        kind = None if iou_type is None else iou_type.value
        command.evaluate_predictions(from_predictions, data, out, kind, maps, truth_maps)
        return
    _refuse("is about --from-predictions, which is not there", iou_type=iou_type, maps=maps)
    refuse_beside_url(url, local)
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
            truth_maps=truth_maps,
        )
    )


def _refuse(why: str, **options: object) -> None:
    """Raises BadSettings where one of the options was given."""
    for name, value in options.items():
        if value is not None:
            raise BadSettings(f"--{name.replace('_', '-')} {why}; leave it out")
