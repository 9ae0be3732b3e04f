"""What ``saccade plan`` does: read the profile, measure what it lacks, find the replicas, tell."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from service.bench.command import read_pictures
from service.bundle import load_repository
from service.errors import BadBundle, BadSettings
from service.plan.around import measure, started
from service.plan.calibration import costs_of
from service.plan.costs import Costs
from service.plan.fleet import Outcome
from service.plan.search import Answer, Target, find
from service.settings import DEMO_REPOSITORY, load_settings
from service.tuning import FILE, Entry, Profile, read_tuning, this_machine, write_profile

SCENES = DEMO_REPOSITORY.parent / "scenes"
DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s)")
SECONDS = {"ms": 0.001, "s": 1.0}
LONGEST_S = 600.0


@dataclass(frozen=True)
class Asked:
    """Which figures to plan with; what is None is chosen."""

    repository: Path
    tuning: Path | None = None
    machine: str | None = None
    model: str | None = None
    canvas: str | None = None
    precision: str | None = None

    @property
    def path(self) -> Path:
        """The file of profiles."""
        return self.tuning or self.repository / FILE


@dataclass(frozen=True)
class Sending:
    """What to measure with: pictures of a folder, one at a time, for so long."""

    images: Path | None
    seconds: float


def plan(
    asked: Asked,
    target: Target,
    price: float | None,
    sending: Sending | None,
    whole: bool,
    as_json: bool,
) -> None:
    """Find the fewest replicas and tell of them; ``sending`` measures this machine before.

    Raises:
        StartError: there are no figures to plan with, or no number of replicas is enough.
    """
    profile, entry = choose(asked)
    if sending is not None:
        entry = measure_around(asked.path, asked.repository, profile, entry, sending)
    costs = costs_of(profile, entry, entry.around, max_queue=load_settings({}).max_queue)
    answer = find(costs, target, whole)
    figures = summarize(profile, entry, costs, target, answer, price)
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        console = Console(soft_wrap=True, highlight=False)
        console.print("\n".join(sentences(figures)), markup=False)
        console.print(tabulate(answer, target))


def parse_duration(text: str, flag: str) -> float:
    """Seconds of a time like 100ms or 0.1s.

    Raises:
        BadSettings: it is none, or not within bounds.
    """
    match = DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= LONGEST_S:
        raise BadSettings(
            f"{flag} takes a time with its unit, like 100ms or 0.1s, above 0 and up to "
            f"{LONGEST_S:g}s; found {text!r}"
        )
    return seconds


def choose(asked: Asked) -> tuple[Profile, Entry]:
    """The profile of a machine, and in it the figures of a canvas: of several machines this one,
    of several precisions the fastest that serves without being asked for, of several canvases the
    one that takes longest.

    Raises:
        BadSettings: there is nothing of that kind, or several.
    """
    if not asked.path.is_file():
        raise BadSettings(
            f"there is no tuning file {asked.path}; measure this machine with: saccade tune "
            f"--repository {asked.repository}, or name a file with --tuning"
        )
    profiles = read_tuning(asked.path).profiles
    profile = _choose_machine(profiles, asked)
    names = sorted({entry.model for entry in profile.entries})
    model = asked.model or (names[0] if len(names) == 1 else None)
    if model not in names:
        what = f"there is no {model!r}" if model else "say which with --model"
        raise BadSettings(f"{asked.path} holds figures of {', '.join(names) or 'nothing'}: {what}")
    entries = [entry for entry in profile.entries if entry.model == model]
    entries = _choose_precision(entries, asked.precision)
    if asked.canvas is not None:
        known = ", ".join(str(entry.canvas) for entry in entries)
        entries = [entry for entry in entries if str(entry.canvas) == asked.canvas]
        if not entries:
            raise BadSettings(f"{model!r} was tuned on {known}; found --canvas {asked.canvas}")
    return profile, min(entries, key=lambda entry: entry.images_per_s)


def measure_around(
    path: Path, repository: Path, profile: Profile, entry: Entry, sending: Sending
) -> Entry:
    """Measure on this machine what a request costs around its batch, and keep it in the file.

    Raises:
        StartError: the profile is another machine's, or the server will not serve.
    """
    if profile.machine != this_machine():
        raise BadSettings(
            f"--measure measures this machine, and the figures are of {profile.machine}"
        )
    bundles = {bundle.manifest.name: bundle for bundle in load_repository(repository)}
    if entry.model not in bundles:
        raise BadBundle(f"{repository} holds {', '.join(bundles)}, and no {entry.model!r}")
    route = f"/v1/{bundles[entry.model].manifest.tasks[0]}?model={entry.model}"
    pictures = read_pictures(sending.images or SCENES)
    with started(repository, path, entry) as server:
        around = measure(server, route, pictures, sending.seconds)
    arithmetic = (entry.model, entry.runtime, entry.precision)
    entries = [
        one.model_copy(update={"around": around})
        for one in profile.entries
        if (one.model, one.runtime, one.precision) == arithmetic
    ]
    write_profile(path, profile.machine, profile.measured, entries)
    return entry.model_copy(update={"around": around})


def summarize(
    profile: Profile,
    entry: Entry,
    costs: Costs,
    target: Target,
    answer: Answer,
    price: float | None,
) -> dict[str, Any]:
    """Everything, for programs."""
    traffic = target.traffic
    cost = None if price is None else price * answer.replicas / (traffic.rate * 3600) * 1e6
    return {
        "model": entry.model,
        "canvas": str(entry.canvas),
        "runtime": entry.runtime,
        "precision": entry.precision,
        "machine": profile.machine.model_dump(),
        "rate": traffic.rate,
        "burst": traffic.burst,
        "p99_s": target.p99_s,
        "balancer": target.balancer,
        "headroom": target.headroom,
        "spare": target.spare,
        "replicas": answer.replicas,
        "utilisation": round(answer.utilisation, 4),
        "capacity_of_one": round(costs.capacity, 3),
        "price_per_hour": price,
        "cost_per_million": None if cost is None else round(cost, 4),
        "rest_measured": entry.around is not None,
        "alone": asdict(answer.alone),
        "usual": asdict(answer.usual),
        "worst": asdict(answer.worst),
    }


def sentences(figures: dict[str, Any]) -> list[str]:
    """What a person wants to know first."""
    count = figures["replicas"]
    spare = f", {figures['spare']} of them spare" if figures["spare"] else ""
    lines = [
        f"{figures['model']} at {figures['canvas']}, {figures['runtime']} {figures['precision']}, "
        f"on {figures['machine']['cpu']} with {figures['machine']['cores']} cores each:",
        f"{count} replica{'s' if count > 1 else ''}{spare} for {figures['rate']:g} images/s with "
        f"99 of 100 answered within {figures['p99_s'] * 1000:g} ms, at "
        f"{figures['utilisation']:.0%} of the {figures['capacity_of_one']:.1f} images/s that one "
        "can do.",
    ]
    if figures["cost_per_million"] is not None:
        lines.append(
            f"{figures['cost_per_million']:.2f} per million images, at "
            f"{figures['price_per_hour']:g} an hour for each."
        )
    if not figures["rest_measured"]:
        lines.append(
            "Decoding and HTTP are taken for 3 ms of a core, as for a JPEG of 500 x 375 elsewhere; "
            "measure yours with --measure --images FOLDER."
        )
    return lines


def tabulate(answer: Answer, target: Target) -> Table:
    """Latency and batches of what was simulated."""
    names = ("p50 ms", "p95 ms", "p99 ms", "mean batch", "batches of 1", "cores busy")
    table = Table(Column("simulated"), *(Column(name, justify="right") for name in names))
    rows: list[tuple[str, Outcome]] = [
        ("a picture alone", answer.alone),
        ("as asked", answer.usual),
    ]
    if target.spare or target.headroom:
        what = [f"{target.spare} down"] * bool(target.spare)
        what += [f"{target.headroom:.0%} more"] * bool(target.headroom)
        rows.append((", ".join(what), answer.worst))
    for name, outcome in rows:
        times = (outcome.p50_s, outcome.p95_s, outcome.p99_s)
        table.add_row(
            name,
            *(f"{seconds * 1000:.1f}" for seconds in times),
            f"{outcome.mean_batch:.2f}",
            f"{outcome.batches.get(1, 0.0):.0%}",
            f"{outcome.busy:.0%}",
        )
    return table


def _choose_machine(profiles: Sequence[Profile], asked: Asked) -> Profile:
    if asked.machine is not None:
        named = [p for p in profiles if asked.machine.lower() in str(p.machine).lower()]
        if len(named) == 1:
            return named[0]
        found = f"{len(named)} machines match --machine {asked.machine!r}"
    elif len(profiles) == 1:
        return profiles[0]
    else:
        machine = this_machine()
        for profile in profiles:
            if profile.machine == machine:
                return profile
        found = "this machine is not among them; choose one with --machine TEXT"
    known = "; ".join(str(profile.machine) for profile in profiles) or "no machine"
    raise BadSettings(f"{asked.path} holds figures of {known}: {found}")


def _choose_precision(entries: list[Entry], precision: str | None) -> list[Entry]:
    known = sorted({entry.precision for entry in entries})
    if precision is None:
        able = [entry for entry in entries if entry.precision != "int8"] or entries
        precision = max(able, key=lambda entry: entry.images_per_s).precision
    found = [entry for entry in entries if entry.precision == precision]
    if not found:
        raise BadSettings(f"tuned in {', '.join(known)}; found --precision {precision}")
    best = max(found, key=lambda entry: entry.images_per_s)
    return [entry for entry in found if entry.runtime == best.runtime]
