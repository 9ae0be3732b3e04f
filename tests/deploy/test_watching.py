"""The alerts and the dashboard speak of metrics that exist, and promtool agrees with all of it."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import yaml

from deploy.grafana.dashboard import FILE, WIDTH, dashboard
from service import metrics
from service.cli import app
from service.metrics import Metrics
from service.settings import Settings
from service.telemetry import MOST_WAITING
from tests.conftest import Server

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
TARGET_LABELS = {"job", "instance"}
VALUES = {
    ("saccade_rejections_total", "reason"): metrics.REJECTIONS,
    ("saccade_cancellations_total", "stage"): metrics.CANCEL_STAGES,
    ("saccade_stage_duration_seconds", "stage"): metrics.STAGES,
    ("saccade_connections_closed_total", "reason"): metrics.CLOSINGS,
    ("saccade_decoders_lost_total", "reason"): metrics.DECODER_LOSSES,
}
SEVERITIES = {"page", "ticket", "info"}
PATIENCE_S = 60.0
OF_OTHER_MACHINES = ("saccade_gpu_", "saccade_device_ready")
"""How metrics begin that a server with one worker on the CPU does not show."""


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(FILE.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in panels():
        for target in panel["targets"]:
            found[f"{panel['title']} {panel['id']}{target['refId']}"] = target["expr"]
    for variable in dashboard()["templating"]["list"][1:]:
        found[variable["name"]] = variable["query"]["query"]
    return found


def labels_by_sample() -> dict[str, set[str]]:
    """The labels of every sample that a server can show."""
    instruments = Metrics()
    instruments.prepare("1", {"vit": ["classify"]})
    instruments.padding.labels("vit")
    instruments.model_ready.labels("vit")
    instruments.model_info.labels("vit", "1", "openvino", "bf16")
    gpu = ("utilization", "memory_used", "memory_total", "power", "temperature")
    for name in ("device_ready", *(f"gpu_{one}" for one in gpu)):
        getattr(instruments, name).labels("cuda:0")
    found: dict[str, set[str]] = {}
    for family in instruments.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Metric and matchers of every selector of an expression."""
    for name, inside in re.findall(r"\b(saccade_\w+|up)\b(?:\{([^}]*)\})?", expression):
        yield name, dict(re.findall(r'(\w+)\s*[!=]~?\s*"([^"]*)"', inside))


def grouping_labels(expression: str) -> set[str]:
    lists = re.findall(r"\b(?:by|on|ignoring)\s*\(([^)]*)\)", expression)
    return {label.strip() for listed in lists for label in listed.split(",")}


def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    return path


def run_promtool(*arguments: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [promtool(), *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("name", expressions())
def test_an_expression_speaks_of_metrics_and_labels_that_exist(name: str) -> None:
    expression, known = expressions()[name], labels_by_sample()
    found = list(selectors(expression))
    assert found, expression
    there = set(TARGET_LABELS)
    for metric, matchers in found:
        assert metric == "up" or metric in known
        labels = known.get(metric, set()) | TARGET_LABELS
        assert matchers.keys() <= labels
        there |= labels
        for label, pattern in matchers.items():
            values = VALUES.get((re.sub("_(bucket|sum|count)$", "", metric), label))
            assert values is None or set(pattern.split("|")) <= set(values)
    assert grouping_labels(expression) <= there


def test_names_that_do_not_exist_would_be_seen() -> None:
    expression = 'sum by (modle) (rate(saccade_nothing{stage="x"}[5m])) / up'
    assert list(selectors(expression)) == [("saccade_nothing", {"stage": "x"}), ("up", {})]
    assert grouping_labels(expression) == {"modle"}
    assert "saccade_nothing" not in labels_by_sample()


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {name for text in expressions().values() for name, _ in selectors(text)}
    families = {
        re.sub("_(bucket|sum|count|total|created)$", "", sample) for sample in labels_by_sample()
    }
    assert families - {re.sub("_(bucket|sum|count|total)$", "", name) for name in shown} == set()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in SEVERITIES
    annotations = rule["annotations"]
    assert annotations.keys() == {"summary", "description"}
    assert "{{" in annotations["summary"]
    assert len(annotations["description"].split()) > 10
    flags = set(re.findall(r"--([a-z][a-z-]+)", annotations["description"]))
    assert {flag.replace("-", "_") for flag in flags} <= Settings.model_fields.keys()
    named = set(re.findall(r"`saccade (\w+)", annotations["description"]))
    assert named <= typer.main.get_group(app).commands.keys()


def test_every_alert_fires_in_a_test() -> None:
    worlds = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    expected = {
        name
        for world in worlds
        for test in world.get("promql_expr_test", [])
        for sample in test["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    expected |= {
        test["alertname"]
        for world in worlds
        for test in world.get("alert_rule_test", [])
        if test["exp_alerts"]
    }
    assert expected == {rule["alert"] for rule in rules()}


def test_the_page_about_monitoring_names_what_exists() -> None:
    page = (PROMETHEUS.parents[1] / "docs" / "monitoring.md").read_text()
    assert set(re.findall(r"`(Saccade\w+)`", page)) <= {rule["alert"] for rule in rules()}
    families = {metric.name for metric in Metrics().registry.collect()}
    assert set(re.findall(r"`(saccade_\w+)", page)) <= labels_by_sample().keys() | families
    stages = re.search(r"for each stage \(([^)]*)\)", page)
    assert stages is not None
    assert tuple(re.findall(r"`(\w+)`", stages[1])) == metrics.STAGES
    assert f"more than {MOST_WAITING} requests" in page
    for flag in re.findall(r"`--([a-z][a-z-]+) ?[a-z]*`", page):
        known = Settings.model_fields.keys() | {"json"}
        assert flag.replace("-", "_") in known or "completion" in flag


def test_promtool_accepts_the_alerts() -> None:
    checked = run_promtool(
        "check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / "alerts.yml"
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout


def test_alerts_fire_when_they_should_and_only_then() -> None:
    tested = run_promtool("test", "rules", PROMETHEUS / "alerts_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "SUCCESS" in tested.stdout


def test_promtool_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    recorded = []
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m")
            recorded.append(
                {"record": f"panel:{panel['id']}:{target['refId']}", "expr": expression}
            )
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    checked = run_promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(recorded)} rules found" in checked.stdout


def test_the_dashboard_is_what_its_program_writes() -> None:
    assert json.loads(FILE.read_text()) == dashboard(), "run: python deploy/grafana/dashboard.py"


def test_panels_fill_their_rows_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert len(taken) == WIDTH * height  # no holes
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_metrics_of_a_run_are_what_alerts_and_dashboard_ask_for(
    demo_server: Server, demo_scenes: dict[str, Any]
) -> None:
    picture = demo_scenes["star.jpg"]["path"].read_bytes()
    for task in ("classify", "detect", "segment"):
        answer = httpx.post(f"{demo_server.url}/v1/{task}", content=picture, timeout=60)
        assert answer.status_code == 200, answer.text
    scraped = httpx.get(f"{demo_server.url}/metrics", timeout=10).text
    shown = set(re.findall(r"^(saccade_\w+)", scraped, re.MULTILINE))
    asked = {
        name
        for text in expressions().values()
        for name, _ in selectors(text)
        if not name.startswith(OF_OTHER_MACHINES)
    }
    assert asked - {"up"} - shown == set()
    ran = re.findall(r'saccade_batch_size_count{model="([\w-]+)"} (\d+\.\d+)', scraped)
    assert sum(float(count) > 0 for _, count in ran) >= 3
    checked = run_promtool("check", "metrics", stdin=scraped)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@contextmanager
def running_prometheus(target: str, folder: Path) -> Iterator[httpx.Client]:
    """A Prometheus with our alerts that scrapes ``target`` every second."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs prometheus, of Debian's package of that name")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    job = {"job_name": "saccade", "static_configs": [{"targets": [target]}]}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(PROMETHEUS / "alerts.yml")],
        "scrape_configs": [job],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    arguments = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, *arguments], stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def empty_panels(prometheus: httpx.Client) -> list[str]:
    empty = []
    for panel in panels():
        for target in panel["targets"]:
            if any(name.startswith(OF_OTHER_MACHINES) for name, _ in selectors(target["expr"])):
                continue
            chosen = re.sub(r"\$(job|instance|model)", ".*", target["expr"])
            expression = chosen.replace("$__rate_interval", "10s")
            try:
                answer = prometheus.get("/query", params={"query": expression}).json()
            except (httpx.HTTPError, ValueError):  # it is starting
                return ["all"]
            if answer["status"] != "success" or not answer["data"]["result"]:
                empty.append(f"{panel['title']}: {expression}")
    return empty


def test_prometheus_finds_something_of_a_real_run_for_every_panel(
    demo_server: Server, demo_scenes: dict[str, Any], tmp_path: Path
) -> None:
    picture = demo_scenes["star.jpg"]["path"].read_bytes()
    with running_prometheus(demo_server.url.removeprefix("http://"), tmp_path) as prometheus:
        end_s = time.monotonic() + PATIENCE_S
        while (empty := empty_panels(prometheus)) and time.monotonic() < end_s:
            for task in ("classify", "detect", "segment"):
                httpx.post(f"{demo_server.url}/v1/{task}", content=picture, timeout=60)
        assert empty == [], (tmp_path / "log").read_text()
        groups = prometheus.get("/rules").json()["data"]["groups"]
        health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert health.keys() == {rule["alert"] for rule in rules()}
        assert "err" not in health.values()
        firing = prometheus.get("/alerts").json()["data"]["alerts"]
        assert [alert for alert in firing if alert["state"] == "firing"] == []
