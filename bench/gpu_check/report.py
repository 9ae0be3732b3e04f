"""Rows as one JSON document and one Markdown page."""

from collections.abc import Iterable, Sequence

from bench.gpu_check.rows import Row

NONE = "no GPU"


def document(rows: Sequence[Row], started: str, took_s: float) -> Row:
    """All rows, with the share of the measured peak where both are known."""
    peak = next((row["bf16_tflops"] for row in rows if row["kind"] == "peak"), None)
    return {
        "started": started,
        "took_s": round(took_s, 1),
        "green": green(rows),
        "rows": [
            row | {"of_peak": round(row["tflops"] / peak, 4)}
            if peak and row["kind"] == "engine"
            else row
            for row in rows
        ],
    }


def green(rows: Iterable[Row]) -> bool:
    """Whether nothing failed, and all that was compared agrees; what was skipped does not count."""
    return not any(row["kind"] == "failed" or row.get("agrees") is False for row in rows)


def gpu_name(rows: Iterable[Row]) -> str:
    """Of the first GPU."""
    found = [gpu["name"] for row in rows if row["kind"] == "machine" for gpu in row["gpus"]]
    return found[0] if found else NONE


def page(report: Row) -> str:
    """The Markdown page of a document."""
    rows = report["rows"]
    machine: Row = next((row for row in rows if row["kind"] == "machine"), {})
    versions = ", ".join(f"{name} {number}" for name, number in machine.get("packages", {}).items())
    lines = [
        f"# GPU check: {gpu_name(rows)}",
        "",
        f"{report['started']}, {report['took_s']:.0f} s, {'green' if report['green'] else 'RED'}. "
        f"Driver {machine.get('driver') or 'none'}; {versions or 'nothing installed'}. "
        "Made by `python -m bench.gpu_check`.",
    ]
    for row in rows:
        if row["kind"] == "peak":
            lines += ["", f"Measured bf16 matrix peak: {row['bf16_tflops']:.0f} TFLOP/s."]
        if row["kind"] == "tests":
            lines += ["", f"Tests marked `gpu`: {row['summary']}."]
    lines += _table(
        "Engine only",
        (
            *("model", "canvas", "runtime", "batch", "images/s", "median ms", "p99 ms"),
            *("of the peak", "images/s, overlapping"),
        ),
        (
            (
                *(row["model"], row["canvas"], f"{row['runtime']} {row['precision']}"),
                *(str(row["batch"]), f"{row['images_per_s']:.0f}"),
                *(f"{row[name] * 1000:.2f}" for name in ("median_s", "p99_s")),
                f"{row['of_peak']:.1%}" if "of_peak" in row else "",
                f"{row['pipelined_images_per_s']:.0f}" if "pipelined_images_per_s" in row else "",
            )
            for row in rows
            if row["kind"] == "engine"
        ),
    )
    lines += _table(
        "Parity with fp32 on the CPU, as a share of the output's spread",
        ("model", "runtime", "output", "error", "allowed", ""),
        (
            (
                *(row["model"], f"{row['runtime']} {row['precision']}", row["output"]),
                *(f"{row['error']:.2g}", f"{row['allowed']:g}"),
                "agrees" if row["agrees"] else "WRONG",
            )
            for row in rows
            if row["kind"] == "parity"
        ),
    )
    lines += _table(
        "End to end, JPEG bodies over HTTP",
        ("model", "by", "clients", "images/s", "p50 ms", "p95 ms", "p99 ms", "decoding"),
        (
            (
                *(row["model"], row["runtime"], str(row["clients"])),
                f"{row['images_per_s']:.0f}",
                *(f"{row['latency_s'][name] * 1000:.1f}" for name in ("p50", "p95", "p99")),
                f"{_decode_share(row):.0%}",
            )
            for row in rows
            if row["kind"] == "server"
        ),
    )
    for kind, title in (("failed", "Failed"), ("skipped", "Skipped")):
        found = [f"- {row['what']}: {row['why']}" for row in rows if row["kind"] == kind]
        lines += ["", f"## {title}", "", *found] if found else []
    return "\n".join(lines) + "\n"


def _decode_share(row: Row) -> float:
    stages: dict[str, float] = row["stages_s"]
    return stages.get("decode", 0.0) / (sum(stages.values()) or 1.0)


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    found = [f"| {' | '.join(row)} |" for row in rows]
    if not found:
        return []
    rule = "|" + "---|" * len(head)
    return ["", f"## {title}", "", f"| {' | '.join(head)} |", rule, *found]
