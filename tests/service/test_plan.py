"""Capacity planning: known queues, one policy in model and simulation, the search, the command."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from service.bench.load import Tally
from service.cli import app
from service.errors import BadSettings, StartError
from service.plan import search
from service.plan.around import around_of, cpu_s
from service.plan.calibration import costs_of, full_rate
from service.plan.command import Asked, choose, parse_duration
from service.plan.costs import Costs
from service.plan.estimate import estimate
from service.plan.fleet import Traffic, simulate
from service.plan.replica import Replica, Seen
from service.plan.search import Target, find
from service.tuning import Around, Entry, Machine, Profile, read_tuning, this_machine, write_profile

HERE = Machine(cpu="Small", cores=2, libraries={"openvino": "1"})
WHEN = "2030-01-01T00:00:00+00:00"
FEW, SOME = 4000, 8000  # pictures in a search
NOTHING = (1e-12,)  # a request that is all model
BULK = tuple(0.004 + 0.01 * size for size in range(1, 9))


def one_core(**changes: Any) -> Costs:
    fields: dict[str, Any] = {
        "paces": (1.0,),
        "streams": 1,
        "threads": 1,
        "batch": 1,
        "work_s": (0.01,),
        "rest_s": NOTHING,
    }
    return Costs(**fields | changes)


def entry(**changes: Any) -> Entry:
    one = {
        "streams": 1,
        "threads": 1,
        "latency_s": 0.010,
        "points": [
            {"batch": 1, "seconds": 0.010, "images_per_s": 100, "cpu_s": 0.010},
            {"batch": 4, "seconds": 0.028, "images_per_s": 143, "cpu_s": 0.007},
        ],
    }
    two = {
        "streams": 2,
        "threads": 2,
        "latency_s": 0.010,
        "points": [
            {"batch": 1, "seconds": 0.0125, "images_per_s": 160, "cpu_s": 0.0125},
            {"batch": 4, "seconds": 0.035, "images_per_s": 229, "cpu_s": 0.009},
        ],
    }
    fields: dict[str, Any] = {
        "model": "tiny",
        "version": "1",
        "sha256": "0" * 64,
        "runtime": "openvino",
        "precision": "bf16",
        "canvas": {"height": 8, "width": 8},
        "streams": 2,
        "threads": 2,
        "batch": 4,
        "images_per_s": 229,
        "latency_s": 0.010,
        "batch_latency_s": 0.035,
        "grid": [one, two],
    }
    return Entry.model_validate(fields | changes)


def profile(*entries: Entry) -> Profile:
    return Profile(machine=HERE, measured=WHEN, entries=list(entries))


def tuned(folder: Path, *entries: Entry, machine: Machine = HERE) -> Path:
    path = folder / "tuning.json"
    write_profile(path, machine, WHEN, entries)
    return path


@pytest.fixture(autouse=True)
def small_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PICTURES", FEW)
    monkeypatch.setattr(search, "DECIDING", SOME)


# Queues that the books know.


def waiting_in_md1(at_s: float, service_s: float, load: float) -> float:
    """The chance to wait no longer in M/D/1 (Erlang 1909)."""
    rate = load / service_s
    terms = (
        (-rate * (at_s - k * service_s)) ** k
        / math.factorial(k)
        * math.exp(rate * (at_s - k * service_s))
        for k in range(int(at_s / service_s) + 1)
    )
    return (1 - load) * sum(terms)


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_batches_of_one_on_one_core_are_the_queue_with_fixed_service(load: float) -> None:
    found = simulate(one_core(), Traffic(load / 0.01), 1, pictures=20_000)
    quick = estimate(one_core(), load / 0.01)
    for wait_s, share in ((found.p99_s - 0.01, 0.99), (quick.p99_s - 0.01, 0.99)):
        assert waiting_in_md1(wait_s, 0.01, load) == pytest.approx(share, abs=0.005)
    assert found.p50_s == pytest.approx(quick.p50_s, rel=0.05)
    assert found.busy == pytest.approx(load, rel=0.04)


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_service_of_random_length_is_the_queue_of_erlang(load: float) -> None:
    jitter = tuple(-np.log(1 - np.linspace(0, 0.9999, 4001)))
    found = simulate(one_core(jitter=jitter), Traffic(load / 0.01), 1, pictures=25_000)
    mean_s = 0.01 / (1 - load)
    assert found.p50_s == pytest.approx(mean_s * math.log(2), rel=0.06)
    assert found.p99_s == pytest.approx(mean_s * math.log(100), rel=0.10)


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_what_shares_a_core_without_a_queue_is_processor_sharing(load: float) -> None:
    costs = one_core(work_s=(1e-9,), rest_s=(0.01,), before=0.0)
    seen = Seen()
    replica = Replica(costs, seen)
    for now_s in np.cumsum(np.random.default_rng(3).exponential(0.01 / load, 20_000)).tolist():
        replica.arrive(now_s)
    replica.advance(math.inf)
    assert np.mean(seen.latencies_s) == pytest.approx(0.01 / (1 - load), rel=0.05)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_the_quick_estimate_of_batches_is_near_the_simulation(load: float) -> None:
    costs = one_core(batch=8, work_s=BULK)
    found = simulate(costs, Traffic(load * costs.capacity), 1, pictures=30_000)
    quick = estimate(costs, load * costs.capacity)
    assert quick.mean_batch == pytest.approx(found.mean_batch, rel=0.05)
    assert quick.p50_s == pytest.approx(found.p50_s, rel=0.12)
    assert quick.p99_s == pytest.approx(found.p99_s, rel=0.12)


def test_the_quick_estimate_is_of_use_where_decoding_shares_the_cores() -> None:
    costs = Costs((1.0, 1.8), 1, 2, 8, tuple(work / 2 for work in BULK), rest_s=(0.003,))
    for load in (0.3, 0.7):
        found = simulate(costs, Traffic(load * costs.capacity), 1, pictures=20_000)
        quick = estimate(costs, load * costs.capacity)
        assert quick.p50_s == pytest.approx(found.p50_s, rel=0.3)
        assert quick.p99_s == pytest.approx(found.p99_s, rel=0.35)


def test_beyond_the_capacity_the_estimate_is_endless_and_pictures_are_refused() -> None:
    costs = one_core(batch=8, work_s=BULK)
    assert costs.capacity == pytest.approx(8 / 0.084)
    assert estimate(costs, 96).p99_s == math.inf
    found = simulate(costs, Traffic(2 * costs.capacity), 1, pictures=5000)
    assert found.refused > 0.2
    assert max(found.batches) == 8


# One replica.


def arrive(costs: Costs, *times_s: float) -> tuple[list[float], dict[int, int]]:
    seen = Seen()
    replica = Replica(costs, seen)
    for now_s in times_s:
        replica.arrive(now_s)
    replica.advance(math.inf)
    return [round(latency_s, 9) for latency_s in seen.latencies_s], dict(seen.batches)


def test_the_next_batch_gathers_while_one_runs_and_nobody_waits_for_company() -> None:
    costs = one_core(batch=8, work_s=BULK)
    latencies_s, batches = arrive(costs, 0.0, 0.002, 0.004)
    assert batches == {1: 1, 2: 1}
    assert latencies_s == [0.014, 0.036, 0.034]


def test_threads_that_are_more_than_the_cores_share_them() -> None:
    # Two batches on two cores of a joint pace of 1.6: each at 0.8.
    costs = Costs((1.0, 1.6), 2, 1, 1, (0.008,), rest_s=NOTHING)
    assert arrive(costs, 0.0, 0.0)[0] == [0.01, 0.01]
    assert arrive(costs, 0.0)[0] == [0.008]


def test_more_threads_than_cores_are_as_slow_as_a_full_server_says() -> None:
    costs = Costs((1.0, 2.0), 3, 1, 1, (0.008,), rest_s=NOTHING, crowded=0.8)
    assert arrive(costs, 0.0, 0.0)[0] == [0.008, 0.008]
    assert arrive(costs, 0.0, 0.0, 0.0)[0] == [0.015, 0.015, 0.015]
    assert (costs.pace(2), costs.pace(2.5), costs.pace(4)) == pytest.approx((2.0, 1.8, 1.6))


def test_a_picture_with_nothing_beside_it_runs_in_its_own_runtime() -> None:
    costs = Costs((1.0, 2.0), 2, 1, 1, (0.008,), lone=(0.005, 2), rest_s=NOTHING)
    assert arrive(costs, 0.0)[0] == [0.005]


def test_what_varies_is_the_runtime_that_was_measured() -> None:
    costs = Costs((1.0, 2.0), 1, 1, 1, (0.008,), lone=(0.005, 2), rest_s=NOTHING, jitter=(2.0,))
    # The second has the third beside it.
    assert arrive(costs, 0.0, 0.001, 0.001)[0] == [0.010, 0.017, 0.027]
    costs = Costs((1.0, 2.0), 1, 1, 1, (0.008,), rest_s=NOTHING, jitter=(2.0,))
    assert arrive(costs, 0.0)[0] == [0.016]


def test_as_many_wait_as_the_setting_lets() -> None:
    assert len(arrive(one_core(max_queue=3), *[0.0] * 8)[0]) == 4  # one runs


def test_decoding_waits_for_a_thread_and_what_is_no_work_of_a_core_does_not() -> None:
    costs = Costs(
        (1.0, 2.0),
        1,
        1,
        8,
        tuple([1e-12] * 8),
        rest_s=(0.004,),
        before=1.0,
        on_cores=0.5,
        processes=1,
    )
    assert arrive(costs, 0.0, 0.0)[0] == [0.004, 0.006]  # 2 ms decoding in turn, 2 ms on the way


def test_a_device_does_not_take_the_cores() -> None:
    costs = one_core(on_device=True, rest_s=(0.002,), before=1.0)
    assert arrive(costs, 0.0, 0.0)[0] == [0.012, 0.022]


# Many replicas.


def test_balancers_that_look_do_better_than_chance() -> None:
    costs = one_core(batch=4, work_s=BULK[:4])
    traffic = Traffic(30 * 0.6 * costs.capacity)
    p99_s = {
        name: simulate(costs, traffic, 30, name, pictures=8000, sample=30).p99_s
        for name in ("random", "round-robin", "least-outstanding")
    }
    assert p99_s["least-outstanding"] < p99_s["random"] * 0.8
    assert p99_s["round-robin"] < p99_s["random"] * 0.8


@pytest.mark.parametrize("burst", [1.0, 4.0])
def test_a_sample_stands_for_the_fleet(burst: float) -> None:
    costs = one_core(batch=4, work_s=BULK[:4])
    traffic = Traffic(200 * 0.6 * costs.capacity, burst)
    sample = simulate(costs, traffic, 200, pictures=10_000)
    whole = simulate(costs, traffic, 200, pictures=20_000, sample=200)
    assert sample.p50_s == pytest.approx(whole.p50_s, rel=0.06)
    assert sample.p99_s == pytest.approx(whole.p99_s, rel=0.12)


def test_pictures_that_come_at_once_wait_for_each_other() -> None:
    costs = one_core(batch=4, work_s=BULK[:4])
    alone, burst = (
        simulate(costs, Traffic(0.3 * costs.capacity, together), 1, pictures=8000)
        for together in (1.0, 6.0)
    )
    assert burst.p50_s > alone.p50_s * 1.5
    assert burst.mean_batch > alone.mean_batch


# The search.


def test_the_fewest_replicas_that_keep_the_target() -> None:
    costs = one_core(batch=8, work_s=BULK)
    answer = find(costs, Target(Traffic(1000), 0.1))
    assert answer.worst.p99_s <= 0.1
    fewer = simulate(costs, Traffic(1000), int(answer.replicas * 0.85), pictures=8000)
    assert fewer.p99_s > 0.1
    assert answer.utilisation == pytest.approx(1000 / (answer.replicas * costs.capacity))


def test_spare_replicas_and_room_come_on_top() -> None:
    costs = one_core(batch=8, work_s=BULK)
    plain = find(costs, Target(Traffic(100), 0.1))
    safe = find(costs, Target(Traffic(100), 0.1, spare=2, headroom=0.5))
    assert safe.replicas >= plain.replicas + 3
    assert safe.usual.p99_s < safe.worst.p99_s <= 0.1


def test_a_target_below_the_time_of_a_lone_picture_is_out_of_reach() -> None:
    with pytest.raises(StartError) as caught:
        find(one_core(work_s=(0.030,), rest_s=(0.005,)), Target(Traffic(10), 0.02))
    assert str(caught.value).startswith(
        "no number of replicas answers 99 of 100 within 20 ms: a picture with nothing beside it "
        "takes 35.0 ms (99 of 100: 35.0), of which 30.0 are the model and 5.0 decoding and HTTP."
    )


def test_a_target_just_above_it_would_need_idle_replicas() -> None:
    with pytest.raises(StartError, match="too near to the time of a picture alone"):
        find(one_core(), Target(Traffic(10), 0.0101))


# What was measured.


def test_costs_are_in_seconds_of_a_thread_that_has_the_machine_to_itself() -> None:
    costs = costs_of(profile(entry()), entry(), None)
    assert costs.paces == pytest.approx((1.0, 1.6))
    assert costs.work_s == pytest.approx((0.010, 0.016, 0.022, 0.028))
    assert costs.batch_s(4) == pytest.approx(0.035)
    assert costs.batch_s(1) == pytest.approx(0.0125)
    assert costs.capacity == pytest.approx(1.6 / (0.007 + 0.003))


def around(**changes: Any) -> Around:
    fields: dict[str, Any] = {
        "measured": WHEN,
        "requests": 100,
        "mean_bytes": 1000,
        "processes": 2,
        "decoders": 1,
        "rest_s": [0.004, 0.004],
        "infer_s": [0.011, 0.011],
        "before": 0.75,
        "cpu_s": 0.003,
        "client_s": 0.001,
        "full_per_s": 120,
    }
    return Around.model_validate(fields | changes)


def test_what_a_server_adds_to_each_batch_and_to_each_request_is_taken_from_the_measurement() -> (
    None
):
    costs = costs_of(profile(entry()), entry(), around(), clients_here=True)
    assert costs.work_s[0] == pytest.approx(0.010 + 0.001 * 0.8)
    assert (costs.on_cores, costs.beside_s) == pytest.approx((0.75, 0.0))
    assert costs.rest_cpu_s == pytest.approx(0.004)
    assert costs.crowded < 1
    assert full_rate(costs) == pytest.approx(120, rel=0.02)
    assert full_rate(costs_of(profile(entry()), entry(), around())) > 125
    busier = costs_of(profile(entry()), entry(), around(cpu_s=0.006))
    assert (busier.on_cores, busier.beside_s) == pytest.approx((1.0, 0.002))


def test_a_full_server_is_never_taken_to_do_more_than_its_cores() -> None:
    costs = costs_of(profile(entry()), entry(), around(full_per_s=500), clients_here=True)
    assert costs.crowded == 1.0
    assert full_rate(costs) < 170


def test_a_lone_picture_has_the_threads_that_tuning_gave_it() -> None:
    lone = entry(lone_threads=1)
    assert costs_of(profile(lone), lone, None).lone == pytest.approx((0.010, 1))


def test_the_model_of_another_device_leaves_the_cores_to_the_rest() -> None:
    costs = costs_of(profile(entry()), entry(device="cuda"), None)
    assert costs.on_device
    assert costs.paces == (1.0, 2.0)
    assert costs.work_s[3] == pytest.approx(0.035)


def test_requests_one_at_a_time_are_taken_apart_by_the_server_s_own_stages() -> None:
    timing = "wait;dur=0.5, decode;dur=2, preprocess;dur=1, queue;dur=0.2, infer;dur=10, "
    timing += "postprocess;dur=0.3, encode;dur=0.2, total;dur=15"
    tally = Tally(latencies_s=[0.016] * 50, timings=[timing] * 50)
    found = around_of(tally, [(b"12345678", "image/jpeg")], 0.0045, 0.001, 90.0)
    assert found.rest_s == pytest.approx([0.005] * 34)
    assert found.infer_s == pytest.approx([0.010] * 34)
    assert found.before == pytest.approx((3.5 + 0.5) / 5)
    assert (found.cpu_s, found.mean_bytes, found.full_per_s) == (0.0045, 8, 90.0)


def test_the_processor_time_is_that_of_the_http_and_decoding_processes(tmp_path: Path) -> None:
    for pid, parent, title, ticks in (
        (7, 1, "saccade supervisor", 900),
        (8, 7, "saccade api 0", 10),
        (9, 7, "saccade worker cpu", 800),
        (10, 8, "saccade decoder", 30),
        (11, 1, "saccade api 0", 700),
    ):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_text(title)
        fields = " ".join(["S", str(parent), *["0"] * 9, str(ticks), str(ticks), "0"])
        (folder / "stat").write_text(f"{pid} (a (b) c) {fields}")
    assert cpu_s(7, tmp_path) == pytest.approx(80 / os.sysconf("SC_CLK_TCK"))


def test_measuring_again_replaces_and_tuning_again_forgets(tmp_path: Path) -> None:
    path = tuned(tmp_path, entry(around=around()))
    assert read_tuning(path).profiles[0].entries[0].around == around()
    assert read_tuning(tuned(tmp_path, entry())).profiles[0].entries[0].around is None


# The command.


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("0.1s", 0.1), ("2 s", 2.0), (".5ms", 0.0005)]
)
def test_a_time_has_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text, "--p99") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["100", "0ms", "-1s", "1h", "nan s", "", "601s", "1e3ms"])
def test_what_is_no_time_is_answered_with_one(text: str) -> None:
    with pytest.raises(BadSettings, match="--p99 takes a time with its unit, like"):
        parse_duration(text, "--p99")


def test_what_there_are_no_figures_of_is_said_with_what_there_are(tmp_path: Path) -> None:
    wide = {"height": 8, "width": 16}
    path = tuned(
        tmp_path,
        entry(),
        entry(canvas=wide, images_per_s=100),
        entry(model="other"),
        entry(precision="int8", images_per_s=900),
    )
    asked = {"repository": tmp_path, "model": "tiny"}
    assert str(choose(Asked(**asked))[1].canvas) == "8x16"  # type: ignore[arg-type]
    assert choose(Asked(tmp_path, model="tiny", precision="int8"))[1].images_per_s == 900
    for wrong, sentence in (
        ({"model": None}, "holds figures of other, tiny: say which with --model"),
        ({"model": "huge"}, "holds figures of other, tiny: there is no 'huge'"),
        ({"canvas": "1x1"}, "'tiny' was tuned on 8x8, 8x16; found --canvas 1x1"),
        ({"precision": "fp64"}, "tuned in bf16, int8; found --precision fp64"),
        ({"machine": "Large"}, "0 machines match --machine 'Large'"),
        ({"tuning": tmp_path / "none.json"}, "measure this machine with: saccade tune"),
    ):
        with pytest.raises(BadSettings, match=sentence.replace("(", r"\(")):
            choose(Asked(**asked | wrong))  # type: ignore[arg-type]
    other = Machine(cpu="Large", cores=64, libraries={"openvino": "1"})
    tuned(tmp_path, entry(), machine=other)
    with pytest.raises(BadSettings, match="this machine is not among them; choose one with"):
        choose(Asked(tmp_path, path, model="tiny"))
    assert choose(Asked(tmp_path, path, model="tiny", machine="large"))[0].machine == other


def run(folder: Path, *words: str) -> Any:
    known = ["plan", "--repository", str(folder), "--rate", "300", *words]
    return CliRunner().invoke(app, known, env={"COLUMNS": "150"})


def test_the_command_tells_people_and_programs_the_same(tmp_path: Path) -> None:
    tuned(tmp_path, entry())
    words = ["--p99", "100ms", "--price-per-hour", "0.5", "--spare", "1"]
    shown = run(tmp_path, *words)
    figures = json.loads(run(tmp_path, *words, "--json").stdout)
    assert shown.exit_code == 0, shown.exception
    count = figures["replicas"]
    assert f"{count} replicas, 1 of them spare for 300 images/s" in shown.stdout
    assert figures["cost_per_million"] == pytest.approx(0.5 * count / (300 * 3600) * 1e6, rel=1e-3)
    assert f"{figures['cost_per_million']:.2f} per million images" in shown.stdout
    assert f"{figures['worst']['p99_s'] * 1000:.1f}" in shown.stdout
    assert "measure yours with --measure --images FOLDER" in shown.stdout
    assert figures["usual"]["p99_s"] <= figures["worst"]["p99_s"] <= 0.1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--p99", "100"], "--p99 takes a time with its unit"),
        (["--p99", "5ms"], "no number of replicas answers 99 of 100 within 5 ms"),
        (["--p99", "1s", "--images", "."], "--images are what --measure sends"),
        (["--p99", "1s", "--measure"], "--measure measures this machine, and the figures are of"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    tuned(tmp_path, entry())
    ended = run(tmp_path, *words)
    assert isinstance(ended.exception, StartError)
    assert sentence in str(ended.exception)


@pytest.mark.slow
def test_measuring_starts_a_server_and_keeps_what_it_found(tmp_path: Path) -> None:
    path = tuned(tmp_path, entry(model="vit-scenes", precision="fp32"), machine=this_machine())
    words = ["--model", "vit-scenes", "--tuning", str(path), "--measure", "--seconds", "4"]
    known = ["plan", "--rate", "1", "--p99", "60s", "--json", *words]
    ended = CliRunner().invoke(app, known)
    assert ended.exit_code == 0, ended.exception
    assert json.loads(ended.stdout)["rest_measured"]
    kept = read_tuning(path).profiles[0].entries[0].around
    assert kept is not None
    assert 0 < kept.cpu_s < kept.rest_s[-1] * 10
    assert kept.requests >= 20
