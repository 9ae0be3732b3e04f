"""What ``saccade bench`` does: read pictures, put one load after the other on a server, report."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import httptools
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from service.bench.client import Client, Reply
from service.bench.load import Send, Tally, arrivals, closed_loop, open_loop
from service.bench.report import describe_machine, summarize, tabulate
from service.errors import BadSettings, StartError

Number = TypeVar("Number", int, float)

MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
MAX_FILES = 2000
MAX_BYTES = 2**29
TIMEOUT_S = 60.0
REFRESH_S = 0.2
BUSY_CORES = 0.85  # of the one core that the generator can use


@dataclass(frozen=True)
class Plan:
    """What to measure: closed loops at each of ``concurrency``, open loops at each of ``rates``
    (images per second), ``duration_s`` each, after ``warmup_s`` of the same load.
    """

    url: str
    images: Path
    task: str
    model: str | None = None
    concurrency: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    duration_s: float = 10.0
    warmup_s: float = 2.0
    headers: dict[str, str] = field(default_factory=dict)


def bench(plan: Plan, out: Path | None) -> None:
    """Measure, print a table, and write everything to ``out`` as JSON.

    Raises:
        StartError: the plan or the pictures are unusable, nobody answers at the address, or a run
            had not one good answer.
    """
    console = Console()
    result = uvloop.run(measure(plan, Console(stderr=True)))
    console.print(*tabulate(result["runs"]))
    for run in result["runs"]:
        if run["generator_cores"] > BUSY_CORES:
            console.print(
                f"The load generator itself used {run['generator_cores']:.2f} cores of the one it "
                "can use; the server may be faster than this shows."
            )
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")
    failed = [run for run in result["runs"] if not run["latency_s"]]
    if failed:
        raise StartError(f"no request succeeded; errors were {failed[0]['errors']}")


async def measure(plan: Plan, console: Console) -> dict[str, Any]:
    """Every run of the plan, one after the other; progress goes to ``console``."""
    client = Client(plan.url, plan.headers, TIMEOUT_S)
    pictures = read_pictures(plan.images)
    server = await _ask_server(client, plan)
    query = "?" + urlencode({"model": plan.model}) if plan.model else ""
    requests = [
        client.compose("POST", f"/v1/{plan.task}{query}", body, kind) for body, kind in pictures
    ]

    async def send(index: int) -> Reply:
        return await client.send(requests[index % len(requests)])

    started = datetime.now(UTC).isoformat(timespec="seconds")
    loads: list[dict[str, Any]] = [{"concurrency": count} for count in plan.concurrency]
    loads += [{"rate": rate} for rate in plan.rates]
    runs = []
    try:
        for load in loads:
            if plan.warmup_s:
                await _run(send, load, plan.warmup_s, console, "warming up")
            runs.append(load | await _run(send, load, plan.duration_s, console, "measuring"))
    finally:
        client.close()
    return {
        "started": started,
        "url": plan.url,
        "task": plan.task,
        "images": {
            "files": len(pictures),
            "mean_bytes": round(sum(len(body) for body, _ in pictures) / len(pictures)),
        },
        "server": server,
        "machine": describe_machine(),
        "runs": runs,
    }


def parse_numbers(text: str, flag: str, kind: type[Number], most: int) -> tuple[Number, ...]:
    """The numbers of a list with commas.

    Raises:
        BadSettings: one of them is none, not above zero, or above ``most``.
    """
    try:
        numbers = tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = (kind(0),)
    if not all(0 < number <= most for number in numbers):
        whole = "whole numbers" if kind is int else "numbers"
        raise BadSettings(f"{flag} takes {whole} above 0 up to {most}, like 8,32; found {text!r}")
    return numbers


def parse_headers(lines: list[str]) -> dict[str, str]:
    """Names and values of lines like ``Authorization: Bearer abc``.

    Raises:
        BadSettings: a line has no colon.
    """
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise BadSettings(f"--header takes 'Name: value', found {line!r}")
        headers[name.strip()] = value.strip()
    return headers


def read_pictures(folder: Path) -> list[tuple[bytes, str]]:
    """Bytes and media type of every picture in a folder, by name.

    Raises:
        BadSettings: the folder holds none, or more than fit in memory with ease.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in MEDIA_TYPES)
    if not files:
        raise BadSettings(f"{folder} holds no picture named {', '.join(MEDIA_TYPES)}")
    size_bytes = sum(path.stat().st_size for path in files)
    if len(files) > MAX_FILES or size_bytes > MAX_BYTES:
        raise BadSettings(
            f"{folder} holds {len(files)} pictures of {size_bytes} bytes; "
            f"at most {MAX_FILES} of {MAX_BYTES} bytes are read. Name a folder with fewer."
        )
    return [(path.read_bytes(), MEDIA_TYPES[path.suffix.lower()]) for path in files]


async def _ask_server(client: Client, plan: Plan) -> list[dict[str, Any]]:
    """What the server says of its models that can do the task."""
    try:
        reply = await client.send(client.compose("GET", "/v1/models"))
        models = json.loads(reply.body)["models"]
    except (OSError, httptools.HttpParserError) as error:
        raise StartError(f"nobody answers at {plan.url}: {error}. Is the server up?") from None
    except (ValueError, KeyError, TypeError):
        raise StartError(f"what answers at {plan.url}/v1/models is not Saccade") from None
    return [
        model
        for model in models
        if plan.task in model["tasks"] and plan.model in (None, model["name"])
    ]


async def _run(
    send: Send, load: dict[str, Any], duration_s: float, console: Console, doing: str
) -> dict[str, Any]:
    tally = Tally()
    cpu_s = time.process_time()
    if "concurrency" in load:
        label = f"{doing}, {load['concurrency']} at a time"
        loop = closed_loop(send, tally, load["concurrency"], duration_s)
    else:
        label = f"{doing}, {load['rate']:g} a second"
        loop = open_loop(send, tally, arrivals(load["rate"], duration_s))
    running = asyncio.create_task(loop)
    with _progress(console) as progress:
        bar = progress.add_task(label, total=duration_s, rate=0.0)
        started_s = time.perf_counter()
        while not running.done():
            await asyncio.wait((running,), timeout=REFRESH_S)
            elapsed_s = time.perf_counter() - started_s
            rate = len(tally.latencies_s) / elapsed_s
            progress.update(bar, completed=min(elapsed_s, duration_s), rate=rate, refresh=True)
    running.result()
    return summarize(tally, time.process_time() - cpu_s)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]:.0f} images/s"),
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )
