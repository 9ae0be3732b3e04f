"""What the training of a detector took and what it reached, in one file.

``python -m bench.detector WORK REPORT OUT``: the folder of ``export.detector.train``, and the JSON
of ``saccade evaluate``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

FIGURES = "AP50", "AP"
SAID_BY_REPORT = "saccade", "machine", "model", "pictures"


def main() -> None:
    """Put both together."""
    parser = argparse.ArgumentParser(description="Time and precision of a detector's training.")
    parser.add_argument("work", type=Path, help="folder of the training")
    parser.add_argument("report", type=Path, help="JSON of saccade evaluate")
    parser.add_argument("out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    lines = (arguments.work / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    document = together(
        [json.loads(line) for line in lines], json.loads(arguments.report.read_bytes())
    )
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def together(curve: list[dict[str, float]], report: dict[str, Any]) -> dict[str, Any]:
    """Figures of the report in 0..1 with their intervals, those of every class by its name, and
    the course of the training, whose last entry says how long it took.
    """
    boxes, intervals = report["bbox"], report["intervals"]["bbox"]
    return {
        **{name: report[name] for name in SAID_BY_REPORT},
        **{name: boxes[name] for name in FIGURES},
        "intervals": {name: intervals[name] for name in FIGURES},
        "per_class": {
            one["name"]: {name: one["bbox"][name] for name in FIGURES}
            for one in report["per_class"].values()
        },
        "training": curve[-1],
        "curve": curve,
    }


if __name__ == "__main__":
    main()
