"""``saccade bench``: load on a running server."""

from pathlib import Path
from typing import Annotated

import typer

from service.commands.shared import examples

app = typer.Typer()


@app.command(
    "bench",
    epilog=examples(
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
