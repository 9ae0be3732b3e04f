"""Where the time of a panoptic answer goes, for a photograph of two megapixels.

    python -m bench.panoptic [--repository DIR] [--model NAME] [--image FILE] [--out FILE]

Every way of answering is asked for in turn, alone and eight at a time, and that again in every
round, so that whatever else the machine does falls on all of them. Stages are those of
``Server-Timing``: "encode" is all that turns merged segments into bytes (PNG, run lengths,
polygons, overlays, base64, JSON), so that it is the share of encoding and formatting; "postprocess"
is merging masks at the resolution of the picture, which is part of the models' algorithm. "rest" is
what no stage names: reading the request, waking up, sending the answer. A ping of /livez every few
milliseconds meanwhile shows for how long nothing else is answered.
"""

import argparse
import asyncio
import io
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench.server import Server, serving
from service.bench.client import Client, Reply
from service.bench.load import Tally, closed_loop
from service.bench.report import describe_machine, distribution, stage_means
from service.settings import DEMO_REPOSITORY

SIZE = (1632, 1224)  # width and height
SCENE = DEMO_REPOSITORY.parent / "scenes" / "ring.jpg"
CONCURRENCY = (1, 8)
PING_S = 0.002
TIMEOUT_S = 60.0
JSON = "application/json"
WIDTH = 220  # of the table in a file


@dataclass(frozen=True)
class Way:
    """One way of answering: what follows the ``?``, and the media type asked for."""

    name: str
    query: str
    accept: str = JSON


WAYS = (
    Way("map in JSON", ""),
    Way("map, fast", "detail=fast"),
    Way("map as PNG", "", "image/png"),
    Way("rle", "mask_format=rle&segment_map=false"),
    Way("png masks", "mask_format=png&segment_map=false"),
    Way("polygons", "mask_format=polygon&segment_map=false"),
    Way("rle, fast", "mask_format=rle&segment_map=false&detail=fast"),
    Way("overlay, JPEG", "render=overlay", "image/jpeg"),
    Way("overlay, PNG", "render=overlay", "image/png"),
)


@dataclass
class Run:
    """What one way met at one concurrency, over all rounds."""

    tally: Tally = field(default_factory=Tally)
    pings_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    answer_bytes: int = 0

    def figures(self) -> dict[str, Any]:
        """Means by stage, their shares of the server's total, and what the clients saw."""
        stages = stage_means(self.tally.timings)
        total_s = stages.pop("total")
        stages["rest"] = max(0.0, total_s - sum(stages.values()))
        return {
            "requests": self.tally.requests,
            "latency_s": distribution(self.tally.latencies_s),
            "total_s": total_s,
            "stages_s": stages,
            "shares": {name: round(spent / total_s, 4) for name, spent in stages.items()},
            "server_cpu_s": round(self.cpu_s / self.tally.requests, 6),
            "longest_ping_s": round(max(self.pings_s), 6),
            "median_ping_s": round(statistics.median(self.pings_s), 6),
            "answer_bytes": self.answer_bytes,
        }


def main() -> None:
    """Measure every way of answering, print a table, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.panoptic")
    parser.add_argument("--repository", type=Path, default=DEMO_REPOSITORY)
    parser.add_argument("--model", help="a segmenter; the first one if absent")
    parser.add_argument("--image", type=Path, help="instead of the drawn photograph")
    parser.add_argument("--threshold", type=float, help="least score of a segment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=1.0, help="seconds per way and round")
    parser.add_argument("--out", type=Path, default=Path("panoptic.json"))
    asked = parser.parse_args()
    data = asked.image.read_bytes() if asked.image else photograph()
    common = "mode=panoptic"
    common += f"&model={asked.model}" if asked.model else ""
    common += f"&threshold={asked.threshold}" if asked.threshold is not None else ""
    with serving(asked.repository, "--api-processes", "1") as server:
        uvloop.run(server.wait_until_ready())
        measured = measure(server, data, common, asked.rounds, asked.duration)
    report = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "image_bytes": len(data),
        "asked": common,
        "rounds": asked.rounds,
        "duration_s": asked.duration,
        "ways": measured,
    }
    asked.out.write_text(json.dumps(report, indent=2) + "\n")
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    console.print(*(tabulate(measured, count) for count in CONCURRENCY))


def photograph(size: tuple[int, int] = SIZE, seed: int = 0) -> bytes:
    """A JPEG as a camera would have made it of a demo scene: enlarged, with grain."""
    scene = Image.open(SCENE).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, 6, (size[1], size[0], 1))
    pixels = np.clip(np.asarray(scene) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def measure(
    server: Server, data: bytes, common: str, rounds: int, duration_s: float
) -> list[dict[str, Any]]:
    """The figures of every way at every concurrency."""
    runs = {(way, count): Run() for way in WAYS for count in CONCURRENCY}
    for way in WAYS:  # what a first request pays is not of interest here
        uvloop.run(drive(server, way, data, common, 1, 0.1, Run()))
    for _ in range(rounds):
        for (way, count), run in runs.items():
            uvloop.run(drive(server, way, data, common, count, duration_s, run))
    return [
        {"way": way.name, "concurrency": count} | run.figures()
        for (way, count), run in runs.items()
    ]


async def drive(
    server: Server,
    way: Way,
    data: bytes,
    common: str,
    concurrency: int,
    duration_s: float,
    run: Run,
) -> None:
    """One closed loop, with pings beside it.

    Raises:
        RuntimeError: a request failed, so that the figures would say nothing.
    """
    client = Client(server.url, {"Accept": way.accept}, TIMEOUT_S)
    path = f"/v1/segment?{common}" + (f"&{way.query}" if way.query else "")
    request = client.compose("POST", path, data, "image/jpeg")

    async def send(_: int) -> Reply:
        reply = await client.send(request)
        run.answer_bytes = len(reply.body)
        return reply

    cpu_s = server.cpu_s()
    pinging = asyncio.ensure_future(ping(server.url, run.pings_s))
    await closed_loop(send, run.tally, concurrency, duration_s)
    pinging.cancel()
    await asyncio.wait([pinging])
    run.cpu_s += server.cpu_s() - cpu_s
    client.close()
    await asyncio.sleep(0)  # lets the connections go
    if run.tally.errors:
        raise RuntimeError(f"requests failed ({way.name}): {dict(run.tally.errors)}")


async def ping(url: str, found_s: list[float]) -> None:
    """Ask /livez again and again until cancelled; seconds of each answer."""
    client = Client(url, {}, TIMEOUT_S)
    request = client.compose("GET", "/livez")
    clock = asyncio.get_running_loop().time
    try:
        while True:
            started_s = clock()
            await client.send(request)
            found_s.append(clock() - started_s)
            await asyncio.sleep(PING_S)
    finally:
        client.close()


def tabulate(measured: Sequence[dict[str, Any]], concurrency: int) -> Table:
    """Milliseconds and the share of encoding, a row per way."""
    rows = [row for row in measured if row["concurrency"] == concurrency]
    stages = list(dict.fromkeys(stage for row in rows for stage in row["stages_s"]))
    columns = ("median", "total", *stages, "encode %", "CPU", "ping median", "ping max", "KB")
    table = Table("way", *columns, title=f"{concurrency} at a time, ms")
    for row in rows:
        seconds = (
            row["latency_s"]["p50"],
            row["total_s"],
            *(row["stages_s"].get(stage, 0.0) for stage in stages),
        )
        others = (row["server_cpu_s"], row["median_ping_s"], row["longest_ping_s"])
        table.add_row(
            row["way"],
            *(f"{value * 1000:.1f}" for value in seconds),
            f"{row['shares'].get('encode', 0.0):.1%}",
            *(f"{value * 1000:.1f}" for value in others),
            f"{row['answer_bytes'] / 1000:.0f}",
        )
    return table


if __name__ == "__main__":
    main()
