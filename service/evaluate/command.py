"""What ``saccade evaluate`` does: score a model, two side by side, or a file of predictions."""

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from saccade_client import Client, SaccadeError
from service.bench.report import describe_machine
from service.bundle import Task, find_bundle, load_repository
from service.errors import BadSettings, StartError, UnsupportedTask
from service.evaluate import comparison, report
from service.evaluate.average_precision import Kind
from service.evaluate.bootstrap import resample
from service.evaluate.categories import Match, match_labels
from service.evaluate.datasets import open_dataset, split_data
from service.evaluate.page import to_html
from service.evaluate.predictions import score_boxes_and_masks, score_panoptic
from service.evaluate.report import Document, describe_scores
from service.evaluate.running import Evaluated, Run, evaluate_run, journal_path
from service.predict.command import Plan
from service.settings import Settings

MANIFEST_TIMEOUT_S = 30.0
TASKS: dict[str, tuple[Task, ...]] = {
    "imagenet": ("classify",),
    "folder": ("classify",),
    "coco": ("detect", "segment"),
    "coco-panoptic": ("segment",),
    "ade20k": ("segment",),
}
"""What may be asked about each kind of data."""
PARAMETERS: dict[tuple[str, str], dict[str, str]] = {
    ("imagenet", "classify"): {"top_k": "5", "threshold": "0"},
    ("folder", "classify"): {"top_k": "5", "threshold": "0"},
    ("coco", "detect"): {"threshold": "0", "top_k": "100"},
    ("coco", "segment"): {"mode": "instance", "threshold": "0", "mask_format": "rle"},
    ("coco-panoptic", "segment"): {"mode": "panoptic", "segment_map": "true"},
    ("ade20k", "segment"): {"mode": "semantic", "segment_map": "true"},
}
"""The metrics rank all findings, so that COCO's are asked for down to a score of 0."""
FIXED: dict[str, tuple[str, ...]] = {
    "classify": ("top_k",),
    "detect": (),
    "segment": ("mode", "segment_map", "mask_format"),
}
"""Those of them without which there would be nothing to score."""
KINDS: dict[str | None, Kind | None] = {None: None, "bbox": "bbox", "segm": "segm"}
LOCAL = ("repository", "device", "precision", "runtime")
AGAINST = ("model", *LOCAL, "url")


@dataclass(frozen=True)
class Answerer:
    """Who is asked: a model of the server at ``url``, or of this machine as ``settings`` say."""

    settings: Settings
    model: str | None = None
    url: str | None = None
    api_key: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Whom to ask about which data, and where to write; ``task`` and ``match`` are chosen if None.

    Without ``out`` the JSON goes to standard output, and nothing is kept.
    """

    data: str
    answerers: Sequence[Answerer]
    task: Task | None = None
    match: Match | None = None
    limit: int | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    concurrency: int = 1
    out: Path | None = None
    overwrite: bool = False
    truth_maps: Path | None = None


def evaluate(evaluation: Evaluation) -> None:
    """Score one model, or compare two.

    Raises:
        StartError: the data or the model will not do, or the run had to stop; answers are kept.
        ServiceError: the model or a parameter will not do.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stem = _stem(evaluation.out) or Path(folder) / "evaluation"
        runs = [  # of which each is possible before the first is begun
            _run(evaluation, answerer, journal_path(stem, number))
            for number, answerer in enumerate(evaluation.answerers, 1)
        ]
        done = [_evaluated(run, evaluation.out is not None, console) for run in runs]
        if len(done) == 1:
            document = done[0].document
            page, html = report.to_markdown(document), None
        else:
            document = comparison.compare(*done)
            page = comparison.to_markdown(document)
            first, second = done
            html = to_html(document, first, second, comparison.differences(first, second))
    _write(evaluation.out, document, page, html, console)


def evaluate_predictions(
    predictions: Path,
    data: str,
    out: Path | None = None,
    kind: str | None = None,
    maps: Path | None = None,
    truth_maps: Path | None = None,
) -> None:
    """Score a file of predictions that any system has written in COCO's formats.

    Raises:
        BadSettings: a file is not in its format, or the two do not belong together.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    of, truth = split_data(data)
    if of == "coco" and (maps or truth_maps):
        raise BadSettings("--maps and --truth-maps are for coco-panoptic data; leave them out")
    if of == "coco-panoptic" and kind is not None:
        raise BadSettings("--iou-type is for coco data; leave it out")
    if of == "coco":
        found = score_boxes_and_masks(predictions, truth, KINDS[kind])
    elif of == "coco-panoptic":
        found = score_panoptic(predictions, truth, maps, truth_maps)
    else:
        raise BadSettings(
            f"--from-predictions reads COCO's formats; found --data {data}, and it takes "
            "coco:ANNOTATIONS_JSON or coco-panoptic:ANNOTATIONS_JSON"
        )
    draws = resample(found.pictures, found.scores.measure(), found.scores.resamples)
    document = {
        "predictions": str(predictions),
        "data": data,
        "pictures": found.pictures,
        "remarks": found.remarks,
        **describe_scores(found.scores, found.categories, draws),
    }
    for remark in found.remarks:
        console.print(f"note: {remark}", markup=False)
    _write(out, document, report.to_markdown(document), None, console)


def parse_against(text: str, first: Answerer) -> Answerer:
    """The second answerer: what ``text`` says, like "precision=int8" or "other,runtime=openvino",
    and all else as the first.

    Raises:
        BadSettings: it says something else.
    """
    said: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        said |= {name: value} if equals else {"model": name}
    strange = [name for name in said if name not in AGAINST]
    if strange or not all(said.values()):
        raise BadSettings(
            f"--against takes a model, or what is other as {', '.join(AGAINST)} with values, like "
            f"precision=fp32 or detr,runtime=onnxruntime; found {text!r}"
        )
    model, url = said.pop("model", first.model), said.pop("url", first.url)
    if said and url is not None:
        raise BadSettings(
            f"--against {text}: {next(iter(said))} says how this machine answers, and {url} is to "
            "answer; a server takes model and url alone"
        )
    try:
        settings = Settings(**(first.settings.model_dump() | said))
    except ValueError as error:
        raise BadSettings(f"--against {text}: {error}") from None
    return replace(first, model=model, url=url, settings=settings)


def _evaluated(run: Run, kept: bool, console: Console) -> Evaluated:
    try:
        return asyncio.run(evaluate_run(run, console))
    except SaccadeError as error:
        there = kept and run.plan.out.exists()
        where = f"; answers so far are kept in {run.plan.out}" if there else ""
        raise StartError(f"{_sentence(run.plan.url, error)}{where}") from None


def _sentence(url: str | None, error: SaccadeError) -> str:
    return (str(error) if url is None else f"{url}: {error}").rstrip(".")


def _run(evaluation: Evaluation, answerer: Answerer, journal: Path) -> Run:
    kind, _ = split_data(evaluation.data)
    try:
        manifest = _manifest(answerer, evaluation.task, kind)
    except SaccadeError as error:
        raise StartError(_sentence(answerer.url, error)) from None
    task = _task(manifest, evaluation.task, kind)
    _check_parameters(evaluation.parameters, kind, task)
    opened = open_dataset(evaluation.data, len(manifest["labels"]), evaluation.truth_maps)
    dataset = opened.limited(evaluation.limit).checked(masks=task == "segment")
    matching = match_labels(
        manifest["labels"], dataset.categories, evaluation.match or dataset.match
    )
    parameters = PARAMETERS[kind, task] | evaluation.parameters | {"model": manifest["name"]}
    plan = Plan(
        source=evaluation.data,
        task=task,
        out=journal,
        settings=answerer.settings,
        url=answerer.url,
        api_key=answerer.api_key,
        parameters=parameters,
        concurrency=evaluation.concurrency,
        overwrite=evaluation.overwrite,
    )
    return Run(plan, evaluation.data, dataset, manifest, matching)


def _check_parameters(wished: dict[str, str], kind: str, task: Task) -> None:
    """Raises BadSettings where an option would leave nothing to score."""
    if "model" in wished:
        raise BadSettings("--option model: write the model's name itself, without --option")
    own = PARAMETERS[kind, task]
    for name in FIXED[task]:
        if name in own and wished.get(name, own[name]) != own[name]:
            raise BadSettings(
                f"--option {name}={wished[name]}: {kind} data is scored with {name}={own[name]}; "
                "leave it out"
            )


def _manifest(answerer: Answerer, task: Task | None, kind: str) -> dict[str, Any]:
    """That of the model with this name, or of the first that may be asked about such data."""
    wanted = TASKS[kind] if task is None else (task,)
    if answerer.url is None:
        repository = answerer.settings.repository
        if answerer.model is not None:
            return find_bundle(repository, answerer.model).manifest.model_dump()
        manifests = [bundle.manifest.model_dump() for bundle in load_repository(repository)]
    else:
        with Client(answerer.url, answerer.api_key, MANIFEST_TIMEOUT_S) as client:
            if answerer.model is not None:
                found: dict[str, Any] = client.model(answerer.model)["manifest"]
                return found
            manifests = [client.model(one["name"])["manifest"] for one in client.models()]
    able = [manifest for manifest in manifests if set(wanted) & set(manifest["tasks"])]
    if not able:
        raise UnsupportedTask(f"no model can {' or '.join(wanted)}, which {kind} data asks for")
    return able[0]


def _task(manifest: dict[str, Any], wish: Task | None, kind: str) -> Task:
    allowed = TASKS[kind]
    if wish is not None and wish not in allowed:
        raise BadSettings(f"--task {wish}: {kind} data asks for {' or '.join(allowed)}")
    able = [task for task in manifest["tasks"] if task in (allowed if wish is None else (wish,))]
    if not able:
        raise UnsupportedTask(
            f"{manifest['name']!r} can {', '.join(manifest['tasks'])}; {kind} data asks for "
            f"{wish or ' or '.join(allowed)}"
        )
    chosen: Task = able[0]
    return chosen


def _stem(out: Path | None) -> Path | None:
    """Out of ``results.json``, or a folder, in which the files are called ``evaluation``."""
    if out is None:
        return None
    return out.with_suffix("") if out.suffix in (".json", ".md") else out / "evaluation"


def _write(
    out: Path | None, document: Document, page: str, html: str | None, console: Console
) -> None:
    document = {"saccade": version("saccade"), "machine": describe_machine()} | document
    text = json.dumps(document, indent=2) + "\n"
    stem = _stem(out)
    if stem is None:
        sys.stdout.write(text)
        console.print(page, markup=False)
        return
    files = {".json": text, ".md": page} | ({".html": html} if html is not None else {})
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in files.items():
            stem.with_name(stem.name + suffix).write_text(content, encoding="utf-8")
    except OSError as error:
        raise StartError(f"cannot write {error.filename}: {error.strerror}") from None
    sys.stdout.write(page)
    names = ", ".join(str(stem.with_name(stem.name + suffix)) for suffix in files)
    console.print(f"written: {names}", markup=False)
