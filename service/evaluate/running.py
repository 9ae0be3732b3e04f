"""One model's answers to all pictures of a data set, through the way of requests, and their scores.

Answers are kept in a file of JSON lines, with which a later run goes on.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter, time
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from saccade_client import AsyncClient
from service.bench.report import distribution, stage_means
from service.errors import StartError
from service.evaluate.annotations import without_mask
from service.evaluate.bootstrap import resample
from service.evaluate.categories import Matching
from service.evaluate.datasets import Dataset
from service.evaluate.report import Document, describe_scores
from service.evaluate.scorers import OtherSize, Scorer, scorer_of
from service.predict.command import Plan, answer_to, client_of, in_order, progress_of
from service.predict.journal import REFUSED, Journal, answerer_of, read_rows
from service.predict.sources import Source

ASKED_AT, SECONDS, CONCURRENCY, TIMING = "asked_at", "seconds", "concurrency", "server_timing"
"""Members of a journal's lines beside the answer: when it was asked for (seconds since 1970), how
long it took, how many were under way at a time, and what the server says.
"""

Refusal = dict[str, str]
"""``file`` and ``why`` of a picture that counts as wrong, for it was not answered."""

_timing: ContextVar[str] = ContextVar("timing")


@dataclass(frozen=True)
class Run:
    """Who answers which pictures: ``plan.out`` is the journal; ``manifest`` is the model's."""

    plan: Plan
    data: str
    dataset: Dataset
    manifest: dict[str, Any]
    matching: Matching

    @property
    def about(self) -> dict[str, Any]:
        """What every line of the journal must be the answer to."""
        plan = self.plan
        by = {"url": None if plan.url is None else _without_user(plan.url)}
        if plan.url is None:
            names = ("repository", "device", "precision", "runtime")
            by = {name: str(getattr(plan.settings, name)) for name in names}
        asked = {"task": plan.task, "parameters": plan.parameters}
        return asked | {"data": self.data, "by": by}


@dataclass(frozen=True)
class Evaluated:
    """A finished run, its scores, and the facts about the model that answered."""

    run: Run
    model: dict[str, Any]
    scorer: Scorer
    refused: list[Refusal]
    remarks: list[str]
    speed: Document

    @property
    def pictures(self) -> int:
        """How many were scored."""
        return len(self.run.dataset.sources)

    @cached_property
    def draws(self) -> dict[str, NDArray[np.float64]]:
        """Figures of resamples of the pictures."""
        return resample(self.pictures, self.scorer.measure(), self.scorer.resamples)

    @cached_property
    def document(self) -> Document:
        """All that is to be known, for JSON."""
        run = self.run
        return {
            "model": self.model,
            "by": run.about["by"],
            "data": run.data,
            "task": run.plan.task,
            "parameters": {n: v for n, v in run.plan.parameters.items() if n != "model"},
            "pictures": self.pictures,
            "refused": len(self.refused),
            "remarks": self.remarks,
            **describe_scores(self.scorer, run.dataset.categories, self.draws),
            "speed": self.speed,
            "refusals": self.refused,
        }

    def answers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and answer of every picture, in the order of the data."""
        return _answers(self.run)


async def evaluate_run(run: Run, console: Console) -> Evaluated:
    """Answer what is not answered yet, and score everything.

    Raises:
        SaccadeError: the model or the server cannot be asked any more; answers so far are kept.
        StartError: the journal holds answers of another version of the model.
    """
    sources = run.dataset.sources
    with Journal(run.plan.out, run.about, run.plan.overwrite) as journal:
        left = [source for source in sources if source.name not in journal.done]
        if len(left) < len(sources):
            done = len(sources) - len(left)
            console.print(f"{done} of {len(sources)} pictures were answered before")
        model = await _answer_left(run, left, journal, console)
    _check_versions(run, model)
    scorer = scorer_of(run.dataset, run.matching, run.plan.task)
    refused, other_size = list[Refusal](), list[Refusal]()
    answered = list[dict[str, Any]]()
    for name, row in _answers(run):
        if REFUSED in row:
            why = row[REFUSED].get("detail", row[REFUSED].get("code"))
            refused.append({"file": name, "why": str(why)})
        else:
            names = (ASKED_AT, SECONDS, CONCURRENCY, TIMING)
            answered.append({member: row[member] for member in names})
        if odd := _note(scorer, name, row):
            other_size.append({"file": name, "why": odd})
    remarks = _remarks(run, refused, other_size)
    speed = _speed(run.plan.concurrency, answered)
    return Evaluated(run, model, scorer, refused + other_size, remarks, speed)


async def _answer_left(
    run: Run, left: list[Source], journal: Journal, console: Console
) -> dict[str, Any]:
    """The facts about the model that answers."""
    total = len(run.dataset.sources)
    with progress_of(console, total, total - len(left)) as (report, advance):
        async with client_of(run.plan, report, _hear) as client:
            models = {one["name"]: one for one in await client.models()}
            model = models[run.manifest["name"]]
            journal.check((model["name"], model["version"], model["precision"]))
            report(run.plan.task)
            running = _running(run) if console.is_terminal else None  # which shows the score so far
            ask = partial(_timed, run.plan, client)
            async for source, answer in in_order(left, ask, run.plan.concurrency):
                journal.add(source.name, answer)
                if running is not None:
                    _note(running, source.name, answer)
                    report(f"{run.plan.task}  {_so_far(running)}")
                advance()
    names = ("name", "version", "runtime", "precision", "device", "parameters", "macs")
    return {name: model[name] for name in names}


async def _timed(plan: Plan, client: AsyncClient, source: Source) -> dict[str, Any]:
    _timing.set("")
    asked_at, started_s = time(), perf_counter()
    answer = await answer_to(plan, client, source)
    return answer | {
        ASKED_AT: round(asked_at, 6),
        SECONDS: round(perf_counter() - started_s, 6),
        CONCURRENCY: plan.concurrency,
        TIMING: _timing.get(),
    }


async def _hear(response: httpx.Response) -> None:
    """In the task that asks, whose variables no other task sees."""
    _timing.set(response.headers.get("server-timing", ""))


def _running(run: Run) -> Scorer:
    """What scores one answer after another, and has heard those of earlier runs."""
    scorer = scorer_of(run.dataset, run.matching, run.plan.task)
    wanted = {source.name for source in run.dataset.sources}
    for row in read_rows(run.plan.out):
        if row["file"] in wanted:
            _note(scorer, row["file"], row)
    return scorer


def _note(scorer: Scorer, name: str, row: dict[str, Any]) -> str | None:
    """Score one line of the journal; says what is odd where it is about another size."""
    try:
        scorer.add(name, None if REFUSED in row else row)
    except OtherSize as error:
        scorer.add(name, None)
        return str(error)
    return None


def _so_far(scorer: Scorer) -> str:
    value = scorer.running()
    return "" if value is None else f"{scorer.headline} {value:.1%}"


def _remarks(run: Run, refused: list[Refusal], other_size: list[Refusal]) -> list[str]:
    """What is odd about the answers and the data, in sentences."""
    remarks = [f"refused: {one['file']}: {one['why']}" for one in refused[:3]]
    if other_size:
        remarks.append(
            f"{len(other_size)} answers are about another size than their truth and count as "
            f"finding nothing ({other_size[0]['file']}: {other_size[0]['why']}, ...)"
        )
    if run.dataset.kind == "coco" and run.plan.task == "segment":
        rows = run.dataset.document["annotations"]
        if lacking := without_mask(run.dataset.document):
            remarks.append(
                f"{lacking} of {len(rows)} annotations have no mask, so that boxes alone are scored"
            )
    if unknown := run.matching.unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        remarks.append(f"{len(unknown)} classes of the data are none of the model's ({shown})")
    return remarks


def _answers(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """The journal's lines in the order of the data, whatever order they were written in."""
    with run.plan.out.open("rb") as file:
        places = dict[str, int]()
        place = 0
        for line in file:
            places[json.loads(line)["file"]] = place
            place += len(line)
        for source in run.dataset.sources:
            file.seek(places[source.name])
            yield source.name, json.loads(file.readline())


def _check_versions(run: Run, model: dict[str, Any]) -> None:
    kinds = {kind for _, row in _answers(run) if (kind := answerer_of(row)) is not None}
    others = kinds - {(model["name"], model["version"], model["precision"])}
    if others:
        raise StartError(
            f"{run.plan.out} holds answers of {' '.join(min(others))}, and now "
            f"{model['name']} {model['version']} {model['precision']} answers; start afresh with "
            "--overwrite"
        )


def _speed(concurrency: int, answered: list[dict[str, Any]]) -> Document:
    """Where the time goes: means by stage of Server-Timing, and what the asking side sees.

    An earlier run may have asked more or fewer at a time; then it is about the larger part.
    """
    counts = Counter(row[CONCURRENCY] for row in answered)
    if counts:
        concurrency = counts.most_common(1)[0][0]
    rows = [row for row in answered if row[CONCURRENCY] == concurrency]
    spent_s = _covered([(row[ASKED_AT], row[ASKED_AT] + row[SECONDS]) for row in rows])
    return {
        "concurrency": concurrency,
        "pictures": len(rows),
        "images_per_s": round(len(rows) / spent_s, 3) if spent_s else 0.0,
        "latency_s": distribution([row[SECONDS] for row in rows]),
        "stages_s": stage_means([row[TIMING] for row in rows]),
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans from start to end: the time in which anything was under way."""
    length, reached = 0.0, 0.0
    for start, end in sorted(spans):
        length += max(end - max(start, reached), 0)
        reached = max(reached, end)
    return length


def _without_user(url: str) -> str:
    """The address but for a name and password in it, which belong into no file."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def journal_path(stem: Path, number: int) -> Path:
    """Where the answers of the first or the second model are kept."""
    return stem.with_name(stem.name + (".jsonl" if number == 1 else f".{number}.jsonl"))
