"""How requests of the soak are judged, and a short one of a real server."""

import asyncio
import dataclasses
import json
import math
from pathlib import Path

import pytest

from bench.faults.__main__ import Plan, questions, try_server
from bench.faults.figures import Run, covered_s, ready_at, recovered_at, verdict
from bench.faults.injection import Fault, Held, Look, schedule
from bench.faults.outcomes import Event, Outcome, judge, substance_of
from bench.server import serving
from service.bench.client import Reply
from service.settings import DEMO_REPOSITORY

KNOWN = [("cat", 0.9), ("dog", 0.1)]
SCENES = DEMO_REPOSITORY.parent / "scenes"


def classified(*pairs: tuple[str, float]) -> bytes:
    found = [{"label": label, "score": score} for label, score in pairs]
    return json.dumps({"predictions": found}).encode()


def problem(code: str) -> bytes:
    return json.dumps({"code": code}).encode()


@pytest.mark.parametrize(
    ("status", "body", "expected", "outcome"),
    [
        (200, classified(("cat", 0.90005), ("dog", 0.1)), {200}, "answered"),
        (200, classified(("cat", 0.9002), ("dog", 0.1)), {200}, "wrong"),
        (200, classified(("dog", 0.9), ("cat", 0.1)), {200}, "wrong"),
        (200, classified(("cat", 0.9)), {200}, "wrong"),
        (200, b"not JSON", {200}, "wrong"),
        (200, b"{}", {200}, "wrong"),
        (429, problem("overloaded"), {200}, "refused"),
        (503, problem("not_ready"), {200}, "refused"),
        (503, problem("worker_lost"), {200}, "lost"),
        (500, problem("internal_error"), {200}, "lost"),
        (502, b"<html>", {200}, "lost"),
        (504, problem("deadline_exceeded"), {200}, "lost"),
        (504, problem("deadline_exceeded"), {200, 504}, "late"),
        (422, problem("invalid_parameter"), {200}, "wrong"),
        (400, problem("bad_image"), {400}, "answered"),
        (200, classified(*KNOWN), {400}, "wrong"),
    ],
)
def test_an_answer_is_judged_by_what_its_request_may_get(
    status: int, body: bytes, expected: set[int], outcome: Outcome
) -> None:
    assert judge(Reply(status, "", body), expected, KNOWN) == outcome


def test_segments_are_compared_like_predictions() -> None:
    body = json.dumps({"segments": [{"label": "sky", "score": 0.5, "area": 7}], "mode": "x"})
    assert substance_of(body.encode()) == [("sky", 0.5)]


def test_recovery_ends_with_the_longest_silence_after_the_fault() -> None:
    answered_s = [9.9, 10.0, 10.2, 10.3, 12.5, 12.6, 19.0]
    assert recovered_at(10.1, answered_s) == 12.5  # two were on their way when the worker died
    assert recovered_at(12.55, answered_s) == 19.0
    assert recovered_at(19.5, answered_s) == math.inf
    assert recovered_at(10.1, []) == math.inf


def test_a_server_has_not_recovered_before_it_says_that_it_is_ready() -> None:
    looks = [Look(9.9, True), Look(10.2, False), Look(10.3, False), Look(12.0, True)]
    assert ready_at(10.1, looks) == 12.0
    assert ready_at(12.5, looks) == 12.5  # it never said that it was not
    assert ready_at(10.1, looks[:-1]) == math.inf
    run = run_of([Fault("worker killed", 4.0)], range(45, 50))
    looks = [Look(4.1, False), Look(6.0, True)]
    assert dataclasses.replace(run, looks=looks).recoveries() == [(4.0, 6.0)]


def test_windows_that_overlap_are_counted_once() -> None:
    assert covered_s([(4.0, 6.0), (1.0, 2.0), (5.0, 9.0), (5.5, 6.0)]) == 6.0


def test_faults_are_due_at_every_multiple_of_their_period_before_the_end() -> None:
    due = schedule({"worker killed": 2.0, "worker stopped": 0.0, "API process killed": 3.0}, 6.0)
    assert due == [(2.0, "worker killed"), (3.0, "API process killed"), (4.0, "worker killed")]


def run_of(faults: list[Fault], silent: range, *others: Event) -> Run:
    """Ten good answers a second for 10 s, but for the tenths of seconds in ``silent``."""
    good = [
        Event("good", "200", "answered", tenth / 10) for tenth in range(100) if tenth not in silent
    ]
    return Run(0.0, 10.0, [*good, *others], faults)


def test_goodput_is_that_outside_of_recoveries_and_the_verdict_names_what_fails() -> None:
    calm = run_of([], range(0))
    lost = Event("good", "503", "lost", 4.0)
    faulty = run_of([Fault("worker killed", 4.0)], range(40, 60), lost)
    assert calm.goodput() == pytest.approx(10.0)
    assert faulty.goodput() == pytest.approx(10.0)
    assert faulty.recoveries() == [(4.0, 6.0)]
    held = Held(1000, 100)
    lines = {line["figure"]: line for line in verdict(calm, faulty, held, Held(1060, 100))}
    assert [figure for figure, line in lines.items() if not line["holds"]] == [
        "lost",
        "memory after / before",
    ]
    assert lines["slowest recovery from a kill, s"]["found"] == 2.0
    hung = run_of([Fault("worker stopped", 2.0)], range(20, 60))
    assert all(line["holds"] for line in verdict(calm, hung, held, held))
    late = run_of([], range(0), Event("good", "504", "late", 4.0))
    lines = {line["figure"]: line for line in verdict(calm, late, held, held)}
    assert not lines["late, of those in no hurry"]["holds"]
    hurried = run_of([], range(0), Event("hurried", "504", "late", 4.0))
    assert all(line["holds"] for line in verdict(calm, hurried, held, held))
    slow = run_of([Fault("worker killed", 2.0)], range(20, 60))
    lines = {line["figure"]: line for line in verdict(calm, slow, held, held)}
    assert [figure for figure, line in lines.items() if not line["holds"]] == [
        "slowest recovery from a kill, s"
    ]


def test_a_connection_that_broke_with_a_killed_http_process_is_cut_and_any_other_is_lost() -> None:
    broken = [Event("good", "ConnectionResetError", "lost", at_s) for at_s in (2.9, 3.5, 4.1)]
    run = run_of([Fault("API process killed", 3.0)], range(0), *broken)
    assert run.by_kind()["good"]["outcomes"] == {"answered": 100, "lost": 2, "cut": 1}
    without = run_of([Fault("worker killed", 3.0)], range(0), *broken)
    assert without.by_kind()["all"]["outcomes"]["lost"] == 3


def test_a_loaded_server_whose_worker_is_killed_loses_nothing_and_answers_as_before(
    tmp_path: Path,
) -> None:
    plan = Plan(duration_s=6.0, calm_s=2.0, load=1.0, every_s={"worker killed": 2.0})
    with serving(DEMO_REPOSITORY, "--cache", str(tmp_path)) as server:
        report = asyncio.run(try_server(server, questions(DEMO_REPOSITORY, SCENES), plan))
    everyone = report["disturbed"]["kinds"]["all"]
    assert everyone["sent"] > 20
    assert everyone["outcomes"]["answered"] > 0
    assert everyone["outcomes"].get("lost", 0) == 0, everyone
    assert everyone["outcomes"].get("wrong", 0) == 0, everyone
    assert [fault["kind"] for fault in report["disturbed"]["faults"]] == ["worker killed"] * 2
    assert {line["figure"] for line in report["verdict"] if line["found"] == 0} >= {"lost", "wrong"}
