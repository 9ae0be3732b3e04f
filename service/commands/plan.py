"""``saccade plan``: how many replicas a rate of pictures takes."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from service.commands.shared import examples
from service.errors import BadSettings
from service.settings import DEMO_REPOSITORY

app = typer.Typer()


class Balancing(StrEnum):
    """How ``plan`` spreads requests over replicas."""

    RANDOM = "random"
    ROUND_ROBIN = "round-robin"
    LEAST_OUTSTANDING = "least-outstanding"


@app.command(
    "plan",
    epilog=examples(
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
