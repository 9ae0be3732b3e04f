"""What ``saccade doctor`` prints."""

import sys
from collections.abc import Iterable, Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from service.doctor.examination import Examination, ModelReport, examine
from service.doctor.machine import FEATURES, MachineReport
from service.errors import StartError
from service.settings import Settings
from service.worker.runtimes.choose import FASTEST_FIRST


def doctor(settings: Settings, as_json: bool) -> None:
    """Examine, and show what was found.

    Raises:
        StartError: a server with these settings would not start, or not serve every model.
    """
    found = examine(settings)
    if as_json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    else:
        Console(highlight=False).print(render(found))
    fatal = sum(trouble.fatal for trouble in found.troubles)
    if fatal:
        raise StartError(f"saccade serve would fail here: {fatal} thing(s) to mend, see above")


def render(found: Examination) -> Group:
    """Everything as tables, what to mend at the end."""
    parts: list[RenderableType] = [
        _titled("Machine"),
        _facts(_machine(found.machine)),
        _titled("Server"),
    ]
    parts += [_facts(_server(found)), _titled("Models")]
    parts.append(_models(found.models, found.tuning.state))
    parts += [_titled("To mend"), _troubles(found)]
    return Group(*parts)


def _machine(machine: MachineReport) -> Iterable[tuple[str, str]]:
    cpu, files = machine.cpu, machine.open_files
    packages = {name: number for name, number in machine.packages.items() if number is not None}
    yield "versions", ", ".join(f"{name} {number}" for name, number in packages.items())
    yield "system", f"Python {machine.python}, {machine.system}"
    yield "CPU", f"{cpu.name} ({cpu.architecture})"
    features = [f"{name} ({FEATURES[name]})" for name in cpu.features]
    yield "instructions", ", ".join(features) or "none of those that matter, or not listed here"
    granted = "no quota" if cpu.quota is None else f"a quota of {cpu.quota:g}"
    yield (
        "cores",
        f"{cpu.usable_cores} usable ({cpu.physical_cores} physical) of {cpu.cores}; {granted}",
    )
    for library in machine.libraries:
        if library.precisions is None:
            yield library.name, "not installed"
        else:
            backends = ", ".join(library.backends)
            yield library.name, f"{', '.join(library.precisions)} on the CPU; has {backends}"
    yield "GPU", "; ".join(machine.gpus) or "none"
    soft, hard = ("no limit" if n is None else str(n) for n in (files.soft, files.hard))
    yield "open files", f"{soft}, raised to {hard} at the start"


def _server(found: Examination) -> Iterable[tuple[str, str]]:
    yield "repository", found.repository
    yield (
        "processes",
        f"a worker, {found.http_processes} for HTTP with {found.decode_threads} decoding "
        "thread(s) each",
    )
    tuning, cache = found.tuning, found.cache
    states = {
        "used": f"{tuning.file}, measured here {tuning.measured}",
        "another machine": f"{tuning.file}, measured on other machines only",
        "missing": f"none ({tuning.file} does not exist)",
        "damaged": f"{tuning.file} is damaged",
        "off": "off",
    }
    yield "tuning", states[tuning.state]
    if cache.folder is None:
        yield "cache", "off"
    elif not cache.usable:
        yield "cache", f"{cache.folder} cannot be used"
    else:
        size = f"{cache.size_bytes / 1e6:.1f} MB"
        yield "cache", f"{cache.folder}, {cache.entries} compiled graph(s), {size}"


def _models(models: list[ModelReport], tuning: str) -> Table:
    table = Table(
        Column("model", overflow="fold"), Column("runs as", overflow="fold"), "why", box=box.SIMPLE
    )
    for model in models:
        reasons = [model.why]
        reasons += [f"not {choice}: {why}" for choice, why in _faster(model)]
        if model.untuned is not None and tuning != "missing":
            reasons.append(f"not tuned: {model.untuned}")
        table.add_row(
            Text(f"{model.name} {model.version}"),
            Text("cannot be served", style="red") if model.choice is None else Text(_runs(model)),
            Text("\n".join(reasons)),
        )
    return table


def _faster(model: ModelReport) -> Iterator[tuple[str, str]]:
    """What would have come before the choice; all of it, where there is none."""
    for choice in map(str, FASTEST_FIRST):
        if choice == model.choice:
            return
        if choice in model.passed_over:
            yield choice, model.passed_over[choice]


def _runs(model: ModelReport) -> str:
    threads = f"{model.threads} thread(s)" if model.threads else "the library's threads"
    batches = "".join(f"\nbatch {batch} at {canvas}" for canvas, batch in model.batches.items())
    return f"{model.choice}\n{model.streams} stream(s), {threads}{batches}"


def _troubles(found: Examination) -> Text | Table:
    if not found.troubles:
        return Text("  nothing", style="green")
    table = Table.grid(padding=(0, 1))
    for trouble in found.troubles:
        style = "red" if trouble.fatal else "yellow"
        mark = Text("  failure" if trouble.fatal else "  advice", style=style)
        table.add_row(mark, Text(f"{trouble.found}\n-> {trouble.advice}"))
    return table


def _titled(title: str) -> Text:
    return Text(f"\n{title}", style="bold")


def _facts(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(f"  {name}", style="dim"), Text(value))
    return table
