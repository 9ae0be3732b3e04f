"""``bench.precisions``: what takes part, and what is reported."""

from typing import Any

import pytest

from bench.precisions import measure, tabulate
from service.bundle import load_repository
from service.settings import DEMO_REPOSITORY
from service.worker.runtimes.choose import FASTEST_FIRST, supports


def test_every_runtime_that_the_bundle_has_is_compared_with_onnxruntime_fp32() -> None:
    bundle = next(b for b in load_repository(DEMO_REPOSITORY) if b.manifest.name == "vit-scenes")
    found: dict[str, Any] = measure(bundle, [1, 2], rounds=2, threads=1)
    here = {(c.runtime, c.precision) for c in FASTEST_FIRST if supports(c) is None}
    for batch in (1, 2):
        runs = [run for run in found["runs"] if run["batch"] == batch]
        assert {(run["runtime"], run["precision"]) for run in runs} == here, "no int8 in the demo"
        assert (runs[0]["runtime"], runs[0]["ratio"]) == ("onnxruntime", pytest.approx(1))
        assert all(run["median_s"] > 0 for run in runs)
    assert tabulate(found).row_count == 2 * len(here)
