"""The check of the planner: what it compares, and that the page shows what was measured."""

import json
from pathlib import Path

import pytest

from bench.plan_check import BEGIN, END, WITHIN, compare, merge, plot, put, replay, section, table
from service.bench.load import Tally, arrivals
from service.plan.costs import Costs
from service.tuning import Around

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "bench" / "results" / "plan.json"
COSTS = Costs((1.0,), 1, 1, 1, (0.01,), rest_s=(1e-9,))


def point(p50_ms: float, p99_ms: float) -> dict[str, object]:
    return {
        "utilisation": 0.4,
        "rate": 40.0,
        "measured_s": {"p50": p50_ms / 1000, "p99": p99_ms / 1000},
        "predicted_s": {"p50": 0.01, "p99": 0.04},
        "within": {"p50": False, "p99": True},
    }


def test_a_prediction_is_held_to_what_was_measured_at_the_rate_that_was_sent() -> None:
    due_s = [arrivals(40, 50, seed) for seed in range(2)]
    sent = sum(map(len, due_s))
    tally = Tally(latencies_s=[0.0125] * (sent - 40) + [0.05] * 40, lags_s=[0.001] * sent)
    found = compare(COSTS, 100.0, tally, due_s)
    assert found["utilisation"] == pytest.approx(0.4, rel=0.05)
    assert found["off"]["p50"] == pytest.approx(0.01 / 0.0125 - 1, abs=0.02)
    assert found["within"] == {"p50": False, "p99": abs(found["off"]["p99"]) <= WITHIN["p99"]}
    assert found["measured_s"]["p50"] == 0.0125


def test_a_replay_is_of_the_very_arrivals() -> None:
    assert replay(COSTS, [[0.0, 1.0], [0.0, 0.005]])["p99"] == pytest.approx(0.015, abs=1e-6)


def test_rounds_are_merged_figure_by_figure() -> None:
    rounds = [
        Around(
            measured="2030-01-01",
            requests=10,
            mean_bytes=5,
            processes=2,
            decoders=1,
            rest_s=[0.001 * number, 0.002],
            infer_s=[0.01, 0.02],
            before=0.5,
            cpu_s=0.001 * number,
            client_s=0.0,
            full_per_s=100 * number,
        )
        for number in (1, 2, 9)
    ]
    merged = merge(rounds)
    assert (merged.rest_s, merged.cpu_s, merged.requests) == ([0.002, 0.002], 0.002, 30)
    assert merged.full_per_s == 200


def test_the_table_goes_between_the_marks_of_the_page_and_the_plot_is_drawn(tmp_path: Path) -> None:
    curve = [{"utilisation": 0.1, "p50": 0.01, "p99": 0.02}]
    model = {
        "model": "tiny",
        "points": [point(12.5, 50)],
        "curve": curve,
        "capacity": {"measured": 100.0},
    }
    machine = {"processor": "Small", "cores": 2}
    report = {
        "models": [model],
        "machine": machine,
        "started": "2030-01-01T00:00:00+00:00",
        "simulator": {"replicas": 2000, "random": 12.3, "least-outstanding": 25.1},
    }
    rows = table(report)
    assert rows.splitlines()[2] == "| tiny | 40% | 40.0 | 12.5 | 10.0 (-20%) | 50.0 | 40.0 (-20%) |"
    page = put(f"before\n{BEGIN}old\n{END}after\n", rows)
    assert page == f"before\n{BEGIN}{rows}{END}after\n"
    with pytest.raises(ValueError, match="the page has no"):
        put("nothing", rows)
    said = section(report)
    assert said.startswith(
        "Predictions: 0 of 1 within 15% of the measured p50, 1 of 1 within 25% of the measured p99 "
        "(Small, 2 cores, 2030-01-01). Milliseconds:"
    )
    assert rows in said
    assert "Simulating every one of 2000 replicas takes 12 s of a core" in said
    plot(report, tmp_path / "plan.svg")
    assert "share of the measured capacity" in (tmp_path / "plan.svg").read_text()


@pytest.mark.skipif(not MEASURED.exists(), reason="nothing was measured yet")
def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / "docs" / "planning.md").read_text()
    assert put(page, section(json.loads(MEASURED.read_text()))) == page
