"""What ``saccade tune`` does: measure every canvas, pick, show, store."""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from service.bundle import Bundle, load_repository
from service.cores import usable_cores
from service.errors import BadBundle
from service.geometry import Size
from service.tune.measure import (
    MEMORY_SHARE,
    Contender,
    Inputs,
    available_bytes,
    layouts_of_this_machine,
    measure,
)
from service.tune.pick import (
    TWICE_PARAMETERS,
    pick_batch,
    pick_layout,
    pick_lone_threads,
    served_per_s,
)
from service.tuning import (
    FILE,
    Entry,
    Layout,
    check_writable,
    graph_digest,
    this_machine,
    write_profile,
)
from service.worker.runtimes.choose import Choice, candidates, open_runtime


def tune(
    repository: Path,
    names: Sequence[str],
    seconds: float,
    out: Path | None,
    wishes: dict[str, str],
) -> None:
    """Measure the models called ``names`` (all without), as the server would run them under
    ``wishes`` (see ``candidates``), and put the result in ``out`` or beside the models.

    Raises:
        StartError: the file cannot be written, or a model cannot be served.
        BadBundle: there is no such model.
    """
    path = out or repository / FILE
    bundles = _chosen(repository, names)
    check_writable(path)
    machine, load = this_machine(), os.getloadavg()[0]
    if load > machine.cores / 2:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"The machine is busy (load {load:.1f} on {machine.cores} cores); figures are better "
            "where nothing else runs."
        )
    entries: list[Entry] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for bundle in bundles:
            choice = candidates(bundle, **wishes)[0]
            canvases = bundle.manifest.canvases
            task = progress.add_task(f"{bundle.manifest.name}, {choice}", total=len(canvases))

            def advance(done: float, task: TaskID = task) -> None:
                progress.update(task, completed=done)

            entries += tune_model(bundle, choice, seconds, advance, progress.console.print)
    console = Console(soft_wrap=True)
    console.print(tabulate(entries, machine.cores))
    write_profile(path, machine, datetime.now(UTC).isoformat(timespec="seconds"), entries)
    served = "" if out is None else f"; serve with --tuning {path}"
    console.print(f"Written to {path}{served}", markup=False, highlight=False)


def tune_model(
    bundle: Bundle,
    choice: Choice,
    seconds: float,
    report: Callable[[float], None],
    say: Callable[[str], None],
) -> list[Entry]:
    """Measure every canvas of a model and pick; ``report`` hears how many canvases are done, and
    ``say`` what a user should know.
    """
    bundle.verify()
    grids, layouts = [], layouts_of_this_machine()
    for index, canvas in enumerate(bundle.manifest.canvases):
        contenders = _contenders(bundle, choice, canvas, layouts)
        if len(contenders) < len(layouts):
            say(
                f"{bundle.manifest.name} {canvas}: memory for {len(contenders)} of {len(layouts)} "
                "layouts at once; those with more streams were not tried"
            )
            layouts = layouts[: len(contenders)]

        def advance(share: float, before: int = index) -> None:
            report(before + share)

        try:
            grids.append(measure(contenders, seconds, advance))
        finally:
            for contender in contenders:
                contender.close()
    cores = usable_cores()
    grids = [grid[: len(layouts)] for grid in grids]  # what every canvas was measured in
    chosen = pick_layout(grids, cores, bundle.manifest.parameters > TWICE_PARAMETERS)
    lone = {"lone_threads": pick_lone_threads(grids, chosen)}
    return [
        _entry(bundle, choice, canvas, grid, grid[chosen], cores).model_copy(update=lone)
        for canvas, grid in zip(bundle.manifest.canvases, grids, strict=True)
    ]


def tabulate(entries: list[Entry], cores: int) -> Table:
    """What was picked, and the best of every layout that was tried."""
    numbers = ("streams", "threads", "batch", "images/s", "CPU ms", "served/s", "one, ms")
    columns = (Column(name, justify="right", no_wrap=True) for name in numbers)
    table = Table(Column("model", overflow="fold"), *columns)
    for entry in entries:
        title = f"{entry.model} {entry.canvas}, {entry.runtime} {entry.precision}"
        if entry.lone_threads:
            title += f"; a lone picture on {entry.lone_threads} threads"
        for index, layout in enumerate(entry.grid):
            point = pick_batch(layout, cores)
            picked = (layout.streams, layout.threads) == (entry.streams, entry.threads)
            table.add_row(
                "" if index else title,
                str(layout.streams),
                str(layout.threads),
                str(point.batch),
                f"{point.images_per_s:.1f}",
                f"{point.cpu_s * 1000:.2f}",
                f"{served_per_s(point, cores):.1f}",
                f"{layout.latency_s * 1000:.2f}",
                style="bold" if picked else "dim",
            )
        table.add_section()
    return table


def _contenders(
    bundle: Bundle, choice: Choice, canvas: Size, layouts: Sequence[tuple[int, int]]
) -> list[Contender]:
    """The first layouts, as many as fit into memory beside each other and have room to run."""
    inputs, found = Inputs(bundle.manifest, canvas), []
    for streams, threads in layouts:
        before = available_bytes()
        runtime = open_runtime(bundle, "serve", canvas, choice, threads, streams=streams)
        found.append(Contender(runtime, inputs))
        left = available_bytes()
        if (before - left) * MEMORY_SHARE > left:
            break
    return found


def _entry(
    bundle: Bundle, choice: Choice, canvas: Size, grid: list[Layout], layout: Layout, cores: int
) -> Entry:
    point = pick_batch(layout, cores)
    return Entry(
        model=bundle.manifest.name,
        version=bundle.manifest.version,
        sha256=graph_digest(bundle, canvas, choice),
        runtime=choice.runtime,
        precision=choice.precision,
        device=choice.device,
        canvas=canvas,
        streams=layout.streams,
        threads=layout.threads,
        batch=point.batch,
        images_per_s=point.images_per_s,
        latency_s=layout.latency_s,
        batch_latency_s=point.seconds,
        grid=grid,
    )


def _chosen(repository: Path, names: Sequence[str]) -> list[Bundle]:
    bundles = {bundle.manifest.name: bundle for bundle in load_repository(repository)}
    unknown = [name for name in names if name not in bundles]
    if unknown:
        raise BadBundle(
            f"there is no model {', '.join(map(repr, unknown))}: "
            f"{repository} holds {', '.join(bundles)}"
        )
    return [bundle for name, bundle in bundles.items() if not names or name in names]
