"""Everything that the installed software allows on this machine's GPU, within minutes.

    python -m bench.gpu_check [--minutes 8] [--repository DIR] [--only NAME,...] [--out FILE.json]

Writes one JSON document and, beside it, one Markdown page. Each step is a process of its own, so
that one that crashes, hangs or breaks its device takes no other with it. What could not be done is
said with the reason; the exit code is 1 if anything failed or computes wrongly.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.gpu_check.bundles import can_build
from bench.gpu_check.full_size import unmeasured
from bench.gpu_check.report import document, gpu_name, page
from bench.gpu_check.rows import DEMO, LEAST_S, ROOT, Room, Row, failed, skipped
from bench.gpu_check.steps import STEPS, run_step

RESULTS = ROOT / "bench" / "results"


def main() -> int:
    """Run the steps; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument(
        "--repository", type=Path, default=DEMO, help="models; else those of the demo"
    )
    parser.add_argument("--only", default=",".join(STEPS), help="steps, like machine,torch")
    parser.add_argument("--out", type=Path, help="the JSON document; the page lies beside it")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step is not None:
        run_step(asked.step, Room(asked.out.parent, asked.until, asked.repository), asked.out)
        return 0
    names = asked.only.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        parser.error(f"there is no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    started, began_s = datetime.now(UTC).isoformat(timespec="seconds"), time.time()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        until_s = began_s + asked.minutes * 60
        rows = run_all(names, Path(work), until_s, asked.repository.absolute())
    report = document(rows, started, time.time() - began_s)
    out = asked.out or RESULTS / f"gpu-{_slug(gpu_name(rows))}.json"
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page(report), encoding="utf-8")
    print(page(report))
    print(f"Written to {out} and {out.with_suffix('.md')}")
    return 0 if report["green"] else 1


def run_all(names: list[str], work: Path, until_s: float, models: Path) -> list[Row]:
    """The rows of every step, in their order."""
    rows: list[Row] = []
    asked = [one for one in STEPS if one in names]
    for place, name in enumerate(asked):
        parts = [STEPS[one][1] for one in asked[place:]]
        left_s = (until_s - time.time()) * parts[0] / sum(parts)
        if left_s < LEAST_S:
            rows.append(skipped(name, "the time was over"))
            continue
        print(f"{name}, at most {left_s:.0f} s", file=sys.stderr, flush=True)
        rows += run_apart(name, work, left_s, models)
    if "tensorrt" in asked and can_build():
        rows += unmeasured(rows)
    return rows


def run_apart(name: str, work: Path, left_s: float, models: Path) -> list[Row]:
    """The rows of a step that runs in a process of its own, with ``left_s`` to end by itself."""
    out, said = work / f"{name}.jsonl", work / f"{name}.log"
    command = [sys.executable, "-m", "bench.gpu_check", "--step", name, "--out", str(out)]
    command += ["--repository", str(models)]
    with said.open("w") as log:
        process = subprocess.Popen(
            [*command, "--until", str(time.time() + left_s)],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            code: int | None = process.wait(left_s + LEAST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    rows: list[Row] = [json.loads(line) for line in lines]
    if code is None:
        rows.append(skipped(f"the rest of {name}", f"it took more than {left_s:.0f} s"))
    elif code != 0:
        tail = " / ".join(said.read_text(errors="replace").splitlines()[-3:])
        rows.append(failed(name, f"its process ended with code {code}: {tail}"))
    return rows


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
