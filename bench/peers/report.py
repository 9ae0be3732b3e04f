"""From rounds to medians, ratios, a table and a plot."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.peers.peers import OURS

Found = dict[str, Any]
FIGURES = (
    *("requests_per_s", "p50_s", "p95_s", "p99_s", "refused", "errors"),
    *("cpu_s", "peak_rss_bytes"),
)
COMPARED = "32"


def summarize(pair: Found) -> list[Found]:
    """A row for ours and for each runtime of the peer: medians over the rounds.

    ``over_limit`` is the throughput over that of the loop without a server, ``ours_over_it`` ours
    over this server's; both are medians of ratios taken within a round.
    """
    rounds = pair["rounds"]
    return [_row(pair, key, [measured[key] for measured in rounds]) for key in rounds[0]]


def _row(pair: Found, key: str, runs: list[Found]) -> Found:
    ours = [measured[OURS] for measured in pair["rounds"]]
    row: Found = {
        "graph": pair["graph"],
        "server": OURS if key == OURS else pair["peer"],
        "runtime": runs[0]["limit"].get("choice", "default") if key == OURS else key,
        "startup_s": _median(run["startup_s"] for run in runs),
        "limit_per_s": _median(_best(run["limit"]) for run in runs),
        "points": {},
    }
    for count in runs[0]["points"]:
        seen = [run["points"][count] for run in runs]
        paces = [point["requests_per_s"] for point in seen]
        row["points"][count] = _medians(seen) | {
            "over_limit": _median(
                pace / _best(run["limit"]) for pace, run in zip(paces, runs, strict=True)
            ),
            "ours_over_it": _median(
                own["points"][count]["requests_per_s"] / pace
                for own, pace in zip(ours, paces, strict=True)
            ),
        }
    if "overload" in runs[0]:
        offered = _median(run["overload"]["offered_per_s"] for run in runs)
        row["overload"] = _medians([run["overload"] for run in runs]) | {"offered_per_s": offered}
    return row


def merge_ours(rows: list[Found]) -> list[Found]:
    """Ours once for each network, by the medians over all pairs: it was measured beside each."""
    merged = []
    for graph in dict.fromkeys(row["graph"] for row in rows):
        same = [row for row in rows if row["graph"] == graph]
        others = [row for row in same if row["server"] != OURS]
        own = _middle([row for row in same if row["server"] == OURS])
        merged += [own, *sorted(others, key=lambda row: row["runtime"])]
    return merged


def _middle(found: list[Any]) -> Any:
    """The median of each number of like records; of what is no number, the first."""
    if isinstance(found[0], dict):
        return {key: _middle([each[key] for each in found]) for key in found[0]}
    return _median(found) if isinstance(found[0], int | float) else found[0]


def tabulate(report: Found) -> str:
    """A Markdown table for each network."""
    rows = merge_ours([row for pair in report["pairs"] for row in summarize(pair)])
    parts = [_describe(report)]
    for graph in dict.fromkeys(row["graph"] for row in rows):
        same = [row for row in rows if row["graph"] == graph]
        parts.append(f"### {graph}\n\n{_table(same)}")
        noted = [pair.get("pixels") for pair in report["pairs"] if pair["graph"] == graph]
        parts += [f"Saccade's pixels: {how}." for how in dict.fromkeys(noted) if how]
    wrong = report.get("disagreements") or []
    parts += [f"**{sentence}**" for sentence in wrong]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[Found]) -> str:
    counts = list(rows[0]["points"])
    most = COMPARED if COMPARED in counts else counts[-1]
    shown = list(dict.fromkeys((counts[0], most)))
    head = ["server", "runtime", *(f"req/s at {count}" for count in counts)]
    head += [*(f"p50 ms at {count}" for count in shown), f"p99 ms at {most}", f"errors at {most}"]
    head += [f"CPU ms/req at {most}", "RSS MB", "start s", f"of its bare loop at {most}"]
    head += [f"Saccade / it at {most}"]
    overloaded = any("overload" in row for row in rows)
    if overloaded:
        head += ["overload: good/s", "p50 ms", "p99 ms", "refused", "errors"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for row in rows:
        point = row["points"][most]
        cells = [row["server"], row["runtime"]]
        cells += [f"{row['points'][count]['requests_per_s']:.1f}" for count in counts]
        cells += [_ms(row["points"][count]["p50_s"]) for count in shown]
        cells += [_ms(point["p99_s"])]
        cells += [f"{point['errors']:.0f}", _ms(point["cpu_s"])]
        peak = max(each["peak_rss_bytes"] for each in row["points"].values())
        cells += [f"{peak / 1e6:.0f}", f"{row['startup_s']:.1f}", f"{point['over_limit']:.2f}"]
        cells += ["" if row["server"] == OURS else f"{point['ours_over_it']:.2f}"]
        if overloaded:
            cells += _overload_cells(row.get("overload"))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _overload_cells(found: Found | None) -> list[str]:
    if found is None:
        return [""] * 5
    counted = [f"{found['refused']:.0f}", f"{found['errors']:.0f}"]
    latencies = [_ms(found["p50_s"]), _ms(found["p99_s"])]
    return [f"{found['requests_per_s']:.1f} of {found['offered_per_s']:.0f}", *latencies, *counted]


def _describe(report: Found) -> str:
    machine, loads = report["machine"], report["load"]
    network = "a network namespace of its own" if report["isolated"] else "the machine's network"
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}. One picture of "
        f"{report['picture_bytes']} bytes; {report['rounds']} rounds of {report['duration_s']:g} s "
        f"or more per point, medians; load by {loads}, on the same cores, in {network}."
    )


def plot(report: Found, path: Path) -> None:
    """Throughput and latency by concurrency: a column for each network and runtime of the peers.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    rows = merge_ours([row for pair in report["pairs"] for row in summarize(pair)])
    others = [row for row in rows if row["server"] != OURS]
    columns = list(dict.fromkeys((row["graph"], row["runtime"]) for row in others))
    servers = list(dict.fromkeys(row["server"] for row in others))
    figure = Figure(figsize=(4.2 * len(columns), 7), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False)
    for column, (graph, runtime) in enumerate(columns):
        above, below = axes[0][column], axes[1][column]
        above.set_title(f"{graph}\npeers with {runtime}")
        for row in rows:
            ours = row["server"] == OURS
            if row["graph"] != graph or not (ours or row["runtime"] == runtime):
                continue
            counts = [int(count) for count in row["points"]]
            points = list(row["points"].values())
            style: Found = {"color": "black", "linewidth": 2.5, "zorder": 9}
            if not ours:
                style = {"color": f"C{servers.index(row['server'])}", "linewidth": 1.2}
            paces = [point["requests_per_s"] for point in points]
            above.plot(counts, paces, marker="o", label=row["server"], **style)
            below.plot(counts, [point["p50_s"] * 1000 for point in points], marker="o", **style)
        for axis, what in ((above, "requests / s"), (below, "median latency, ms")):
            axis.set_xscale("log", base=2)
            axis.set_xticks(counts, [str(count) for count in counts])
            axis.set_xlabel("clients")
            axis.set_ylabel(what)
            axis.grid(alpha=0.3)
        above.set_ylim(bottom=0)
        below.set_yscale("log")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.savefig(path)


def _medians(points: list[Found]) -> Found:
    return {name: _median(point[name] for point in points) for name in FIGURES}


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _best(limit: Found) -> float:
    """Pictures per second of a loop at the batch size that suits it."""
    return float(max(limit["paces"].values()))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"
