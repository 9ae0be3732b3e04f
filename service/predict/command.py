"""What ``saccade predict`` does: answer many pictures in order, and go on where a run stopped."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from saccade_client import AsyncClient, ProblemError, SaccadeError
from saccade_client.client import Hear
from service import errors
from service.bundle import Task, find_bundle
from service.errors import BadSettings, StartError
from service.predict.engine import Report, choose_bundle, local_app, local_settings
from service.predict.formats import Labels, choose_format, map_names
from service.predict.journal import REFUSED, Journal, read_rows
from service.predict.sources import Source, find_sources
from service.settings import Settings

PICTURE_TIMEOUT_S = 600.0
Ask = Callable[[Source], Coroutine[Any, Any, dict[str, Any]]]
"""Gives the answer to one picture."""
OF_THE_PICTURE = frozenset(
    kind.code
    for kind in (
        errors.BadImage,
        errors.UnsupportedFormat,
        errors.TooLarge,
        errors.InvalidBody,
        errors.DecoderLost,
        errors.RuntimeFailed,
        errors.Quarantined,
    )
)
"""Problems that other pictures need not have. Any other one ends the run."""


@dataclass(frozen=True)
class Plan:
    """What to answer, and by whom: the server at ``url``, or this machine as ``settings`` say."""

    source: str
    task: Task
    out: Path
    settings: Settings
    url: str | None = None
    api_key: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    concurrency: int = 16
    overwrite: bool = False

    @property
    def model(self) -> str | None:
        """The model that is asked for, if one is."""
        return self.parameters.get("model")

    @property
    def journal(self) -> Path:
        """The file of JSON lines, beside ``out`` where that is something else."""
        return self.out.with_suffix(".jsonl")

    @property
    def maps(self) -> Path | None:
        """The folder of the maps that go with ``out``, if there may be any."""
        has_maps = self.task == "segment" and self.out.suffix == ".json"
        return self.out.with_suffix("") if has_maps else None


def predict(plan: Plan) -> None:
    """Answer every picture that is not answered yet, and write ``plan.out``.

    Raises:
        StartError: the plan or the sources are unusable, the run had to stop, or pictures were
            refused; what was answered is kept.
        ServiceError: the model or a parameter will not do.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    sources = find_sources(plan.source)
    write = choose_format(plan.out, plan.task)
    about = {"task": plan.task, "parameters": plan.parameters}
    with Journal(plan.journal, about, plan.overwrite) as journal:
        _check_precision(plan, journal)
        sources = _without_maps(plan, sources, journal)
        left = [source for source in sources if source.name not in journal.done]
        if len(left) < len(sources):
            done = len(sources) - len(left)
            console.print(f"{done} of {len(sources)} pictures were answered before")
        try:
            asyncio.run(_run(plan, left, journal, console))
            if write is not None:
                write(plan.journal, plan.out, asyncio.run(_labels(plan)))
        except SaccadeError as error:
            raise StartError(_stopped(plan, error, len(journal.done))) from None
        console.print(
            f"pictures gone through: {len(sources)}; their answers: {plan.out}", markup=False
        )
        if journal.refused:
            raise StartError(
                f"{journal.refused} of them could not be answered; '{REFUSED}' in their lines of "
                f"{plan.journal} says why"
            )


def parse_parameters(lines: list[str]) -> dict[str, str]:
    """Names and values of lines like ``threshold=0.3``.

    Raises:
        BadSettings: a line has no equals sign.
    """
    parameters = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals or not name:
            raise BadSettings(f"--option takes NAME=VALUE, like threshold=0.3; found {line!r}")
        parameters[name] = value
    return parameters


def read_key(path: Path) -> str:
    """The key that a file holds.

    Raises:
        BadSettings: it holds none, or several lines.
    """
    lines = path.read_text().split()
    if len(lines) != 1:
        raise BadSettings(f"--api-key-file {path} must hold one key and nothing else")
    return lines[0]


def _check_precision(plan: Plan, journal: Journal) -> None:
    """Raises StartError where kept answers are of another precision than the one that is wanted
    here: if none is left to ask, no answer would show it.
    """
    if plan.url is None and plan.settings.precision != "auto":
        for model, version, _ in journal.answerers:
            journal.check((model, version, plan.settings.precision))


def _without_maps(plan: Plan, sources: list[Source], journal: Journal) -> list[Source]:
    """The sources but for the maps that an earlier run of the same plan wrote among them.

    Raises:
        BadSettings: pictures lie where the maps are to go, which could be overwritten.
    """
    if plan.maps is None:
        return sources
    folder = plan.maps.resolve()
    inside = {one.name: one.path.resolve() for one in sources}
    inside = {name: path for name, path in inside.items() if folder in path.parents}
    if not inside:
        return sources
    if plan.out.exists():
        written = {folder / name for name in map_names(plan.out)}
    else:  # it was killed before it had written all, or has written none
        written = set(inside.values()) if journal.done else set()
    pictures = [n for n, path in inside.items() if path not in written or n in journal.done]
    if pictures or len(inside) == len(sources):
        raise BadSettings(
            f"--out {plan.out} would put its maps into {plan.maps}, where pictures to answer are "
            f"(such as {min(pictures or inside)}); name another file with --out"
        )
    return [one for one in sources if one.name not in inside]


async def _run(plan: Plan, sources: list[Source], journal: Journal, console: Console) -> None:
    if not sources:
        return
    with progress_of(console, len(sources)) as (report, advance):
        async with client_of(plan, report) as client:
            report(plan.task)
            ask = partial(answer_to, plan, client)
            async for source, answer in in_order(sources, ask, plan.concurrency):
                journal.add(source.name, answer)
                advance()


async def in_order(
    sources: list[Source], ask: Ask, concurrency: int
) -> AsyncIterator[tuple[Source, dict[str, Any]]]:
    """Every answer in the order of the sources, while those behind it are being made."""
    under_way: deque[tuple[Source, asyncio.Task[dict[str, Any]]]] = deque()
    waiting = iter(sources)
    try:
        while True:
            while len(under_way) < concurrency and (source := next(waiting, None)):
                under_way.append((source, asyncio.create_task(ask(source))))
            if not under_way:
                return
            yield under_way[0][0], await under_way[0][1]
            under_way.popleft()
    finally:
        for _, task in under_way:
            task.cancel()
        await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)


async def answer_to(plan: Plan, client: AsyncClient, source: Source) -> dict[str, Any]:
    """The answer, or why there is none if that is the picture's own fault.

    Raises:
        SaccadeError: there is none, and others will fare no better.
    """
    try:
        return await client.ask(plan.task, source.path, plan.parameters)
    except OSError as error:
        return {REFUSED: {"code": "unreadable", "detail": f"{source.path}: {error.strerror}"}}
    except ProblemError as error:
        if error.code in OF_THE_PICTURE:
            return {REFUSED: error.problem}
        raise


@asynccontextmanager
async def client_of(
    plan: Plan, report: Report, hear: Hear | None = None
) -> AsyncIterator[AsyncClient]:
    """A client of the server, or of the application in this process."""
    if plan.url is not None:
        async with AsyncClient(plan.url, plan.api_key, PICTURE_TIMEOUT_S, hear=hear) as client:
            yield client
        return
    settings = local_settings(plan.settings)
    bundle = choose_bundle(settings, plan.task, plan.model)
    async with local_app(settings, bundle, report) as app:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = AsyncClient("http://local", None, PICTURE_TIMEOUT_S, transport, hear)
        async with client:
            yield client


async def _labels(plan: Plan) -> Labels:
    """Labels of every model that answered, each once.

    Raises:
        StartError: answers call an id otherwise than the labels do.
    """
    models: dict[str, str] = {}
    said: dict[int, str] = {}
    for row in read_rows(plan.journal):
        if "model" in row:
            models[row["model"]] = row["version"]
        for one in row.get("predictions", row.get("segments", [])):
            if said.setdefault(one["label_id"], one["label"]) != one["label"]:
                raise _renamed(plan, one["label_id"], said[one["label_id"]], one["label"])
    labels: dict[int, dict[str, Any]] = {}
    for name, version in models.items():
        if plan.url is None:
            manifest = find_bundle(plan.settings.repository, name, version).manifest.model_dump()
        else:
            async with AsyncClient(plan.url, plan.api_key) as client:
                manifest = (await client.model(name))["manifest"]
        labels |= {label["id"]: label for label in manifest["labels"]}
    for number, name in said.items():
        known = labels.get(number, {}).get("name")
        if known != name:
            raise _renamed(plan, number, name, str(known))
    return list(labels.values())


def _renamed(plan: Plan, number: int, name: str, other: str) -> StartError:
    return StartError(
        f"in {plan.journal} the label {number} is {name!r}, and of another version or model "
        f"{other!r}; start afresh with --overwrite"
    )


def _stopped(plan: Plan, error: SaccadeError, answered: int) -> str:
    sentence = str(error) if plan.url is None else f"{plan.url}: {error}"
    if not answered:
        return sentence
    kept = f"{answered} answers are kept in {plan.journal}; the same command goes on there"
    return f"{sentence.rstrip('.')}. {kept}"


@contextmanager
def progress_of(
    console: Console, total: int, done: int = 0
) -> Iterator[tuple[Report, Callable[[], None]]]:
    """A bar on a terminal; what to call with a new text, and after each picture."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("starting", total=total, completed=done, rate="")

        def report(text: str) -> None:
            progress.update(bar, description=text)

        def advance() -> None:
            speed = progress.tasks[0].speed
            progress.update(bar, advance=1, rate=f"{speed:.0f} images/s" if speed else "")

        yield report, advance
