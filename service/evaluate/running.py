"""One model's answers to all pictures of a data set, through the way of requests, and their scores.

Answers are kept in a file of JSON lines, with which a later run goes on.
"""

import json
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from saccade_client import AsyncClient
from service.bench.report import distribution, stage_means
from service.errors import StartError
from service.evaluate.bootstrap import resample
from service.evaluate.categories import Matching
from service.evaluate.datasets import Dataset
from service.evaluate.report import Document, describe_scores
from service.evaluate.scorers import OtherSize, Scorer, scorer_of
from service.predict.command import Plan, answer_to, client_of, in_order, progress_of
from service.predict.journal import REFUSED, Journal
from service.predict.sources import Source

SECONDS, TIMING = "seconds", "server_timing"
"""Members of a journal's lines beside the answer: how long it took, and what the server says."""

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
        by = {"url": plan.url}
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
    refused: list[str]
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
            "data": run.data,
            "task": run.plan.task,
            "parameters": {n: v for n, v in run.plan.parameters.items() if n != "model"},
            "pictures": self.pictures,
            "refused": len(self.refused),
            "remarks": self.remarks,
            **describe_scores(self.scorer, run.dataset.categories, self.draws),
            "speed": self.speed,
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
    refused, other_size, seconds, timings = list[str](), list[str](), list[float](), list[str]()
    for name, row in _answers(run):
        seconds.append(row[SECONDS])
        timings.append(row[TIMING])
        if REFUSED in row:
            refused.append(f"{name}: {row[REFUSED].get('detail', row[REFUSED].get('code'))}")
        try:
            scorer.add(name, None if REFUSED in row else row)
        except OtherSize as error:
            scorer.add(name, None)
            other_size.append(f"{name}: {error}")
    remarks = [f"refused: {line}" for line in refused[:3]]
    if other_size:
        remarks.append(
            f"{len(other_size)} answers are about another size than their truth and count as "
            f"finding nothing ({other_size[0]}, ...)"
        )
    if unknown := run.matching.unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        remarks.append(f"{len(unknown)} classes of the data are none of the model's ({shown})")
    speed = _speed(run.plan.concurrency, seconds, timings)
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
            report(run.plan.task)
            running = scorer_of(run.dataset, run.matching, run.plan.task)
            ask = partial(_timed, run.plan, client)
            async for source, answer in in_order(left, ask, run.plan.concurrency):
                journal.add(source.name, answer)
                if console.is_terminal:  # which shows the score so far
                    report(f"{run.plan.task}  {_so_far(running, source.name, answer)}")
                advance()
    names = ("name", "version", "runtime", "precision", "device", "parameters", "macs")
    return {name: model[name] for name in names}


async def _timed(plan: Plan, client: AsyncClient, source: Source) -> dict[str, Any]:
    _timing.set("")
    started_s = perf_counter()
    answer = await answer_to(plan, client, source)
    return answer | {SECONDS: round(perf_counter() - started_s, 6), TIMING: _timing.get()}


async def _hear(response: httpx.Response) -> None:
    """In the task that asks, whose variables no other task sees."""
    _timing.set(response.headers.get("server-timing", ""))


def _so_far(scorer: Scorer, name: str, answer: dict[str, Any]) -> str:
    try:
        scorer.add(name, None if REFUSED in answer else answer)
    except OtherSize:
        scorer.add(name, None)
    value = scorer.running()
    return "" if value is None else f"{scorer.headline} {value:.1%}"


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
    kinds = {
        (row["model"], row["version"], row["precision"])
        for _, row in _answers(run)
        if REFUSED not in row
    }
    others = kinds - {(model["name"], model["version"], model["precision"])}
    if others:
        raise StartError(
            f"{run.plan.out} holds answers of {' '.join(min(others))}, and now "
            f"{model['name']} {model['version']} {model['precision']} answers; start afresh with "
            "--overwrite"
        )


def _speed(concurrency: int, seconds: list[float], timings: list[str]) -> Document:
    """Where the time goes: means by stage of Server-Timing, and what the asking side sees."""
    latency = distribution(seconds)
    return {
        "concurrency": concurrency,
        "images_per_s": round(concurrency / latency["mean"], 3),
        "latency_s": latency,
        "stages_s": stage_means(timings),
    }


def journal_path(stem: Path, number: int) -> Path:
    """Where the answers of the first or the second model are kept."""
    return stem.with_name(stem.name + (".jsonl" if number == 1 else f".{number}.jsonl"))
