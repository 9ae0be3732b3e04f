"""Phases of a start, from what the processes log."""

from datetime import UTC, datetime
from typing import Any

import pytest

from bench.startup import Start, median_of, phases_of

BEGAN_S = 1_700_000_000.0


def line(role: str, at_s: float, message: str, **facts: float) -> dict[str, Any]:
    time = datetime.fromtimestamp(BEGAN_S + at_s, UTC).isoformat(timespec="milliseconds")
    return {"role": role, "time": time, "message": message, **facts}


def test_each_phase_lasts_until_the_next_one_of_its_process() -> None:
    lines = [
        line("supervisor", 0.5, "every bundle is whole", took_s=0.25),
        line("worker", 0.75, "starting", waited_s=0.125),
        line("worker", 1.0, "passed over for vit: no proof"),
        line("worker", 1.0, "compiling vit 8x8 for openvino bf16"),
        line("worker", 1.25, "opened vit serve 8x8"),
        line("worker", 1.25, "warming up vit 8x8"),
        line("worker", 1.5, "compiling vit 16x16 for openvino bf16"),
        line("worker", 1.625, "warming up vit 16x16"),
        line("api 0", 1.75, "starting", waited_s=0.0),
        line("api 0", 1.875, "accepting requests"),
        line("api 0", 1.875, "something else"),
        line("worker", 2.0, "ready"),
    ]
    phases = phases_of(lines, BEGAN_S, BEGAN_S + 2.25)
    assert phases == pytest.approx(
        {
            "supervisor: imports, socket": 0.25,
            "supervisor: verify bundles": 0.25,
            "worker: imports": 0.375,
            "worker: wait for verification": 0.125,
            "api: imports": 1.5,
            "api: wait for verification": 0.0,
            "api: application": 0.125,
            "worker: choose what runs": 0.25,
            "worker: compiling vit": 0.375,
            "worker: warming up vit": 0.625,
            "from the worker's word to /readyz": 0.25,
        }
    )


def test_the_median_is_taken_of_every_figure_by_itself() -> None:
    starts = [Start(ready, cpu, {"a": a}) for ready, cpu, a in ((1, 9, 3), (2, 8, 2), (3, 7, 4))]
    assert median_of(starts) == Start(2, 8, {"a": 3})
