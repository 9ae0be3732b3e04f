"""Metrics: names that Prometheus users expect, zeros before the first request, and the sum of all
processes.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from service.metrics import DIRECTORY_VARIABLE, REJECTIONS, STAGES, Metrics, forget_process

ROOT = Path(__file__).parents[2]


def families(exposition: str) -> dict[str, tuple[str, dict[tuple[str, str], float]]]:
    """Type, and values by (sample, labels), of every family."""
    return {
        family.name: (
            family.type,
            {
                (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): (
                    sample.value
                )
                for sample in family.samples
            },
        )
        for family in text_string_to_metric_families(exposition)
    }


def test_names_follow_the_conventions() -> None:
    metrics = Metrics()
    metrics.prepare("1.2.3", {"vit": ["classify"]})
    text = metrics.render().decode()
    for name, (kind, samples) in families(text).items():
        if name.endswith("_created"):  # the library's own
            continue
        assert re.fullmatch(r"saccade_[a-z]+(_[a-z]+)*", name)
        assert f"# HELP {name}" in text
        if kind == "counter":
            assert all(sample.endswith(("_total", "_created")) for sample, _ in samples)
        else:
            assert not name.endswith(("_total", "_count", "_sum", "_bucket"))
        if "duration" in name or "timestamp" in name:
            assert name.endswith("_seconds")
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent)$", name)


def test_every_label_set_that_can_occur_shows_from_the_start() -> None:
    metrics = Metrics()
    metrics.prepare("1.2.3", {"vit": ["classify", "embed"], "swin": ["classify"]})
    found = families(metrics.render().decode())
    requests = found["saccade_requests"][1]
    for labels in ("model=swin,status=200,task=classify", "model=vit,status=200,task=embed"):
        assert requests["saccade_requests_total", labels] == 0
    stages = found["saccade_stage_duration_seconds"][1]
    for stage in STAGES:
        count = "saccade_stage_duration_seconds_count", f"model=swin,stage={stage}"
        assert stages[count] == 0
    rejections = found["saccade_rejections"][1]
    assert all(rejections["saccade_rejections_total", f"reason={r}"] == 0 for r in REJECTIONS)
    assert found["saccade_build_info"][1]["saccade_build_info", "version=1.2.3"] == 1


def test_buckets_cover_half_a_millisecond_to_the_timeout() -> None:
    metrics = Metrics()
    metrics.prepare("1", {"vit": ["classify"]})
    text = metrics.render().decode()
    pattern = r'saccade_request_duration_seconds_bucket\{le="([^"]+)",model="vit"'
    edges = [float(edge) for edge in re.findall(pattern, text)]
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (0.0005, float("inf"))
    assert edges[-2] > 15


PROGRAM = """
import sys
from pathlib import Path
from service.metrics import Metrics
role, folder = sys.argv[1:]
metrics = Metrics(Path(folder))
if role.startswith("api"):
    metrics.prepare("1.2.3", {"vit": ["classify"]})
    metrics.requests.labels("vit", "classify", "200").inc(2)
    metrics.stage_seconds.labels("vit", "decode").observe(0.25)
    metrics.model_ready.labels("vit").set(role == "api late")
else:
    metrics.queue_depth.set(7)
    metrics.worker_restarts.inc()
    metrics.batch_size.labels("vit").observe(4)
if role == "api late":
    sys.stdout.write(metrics.render().decode())
"""


def run_process(role: str, folder: Path) -> str:
    environment = os.environ | {DIRECTORY_VARIABLE: str(folder)}
    command = [sys.executable, "-c", PROGRAM, role, str(folder)]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""
    return ended.stdout


def test_a_scrape_adds_up_all_processes_dead_ones_included(tmp_path: Path) -> None:
    for role in ("api early", "worker", "worker", "api late"):
        text = run_process(role, tmp_path)
    found = families(text)

    def value(family: str, sample: str, labels: str = "") -> float:
        return found[family][1][sample, labels]

    labels = "model=vit,status=200,task=classify"
    assert value("saccade_requests", "saccade_requests_total", labels) == 4
    assert value("saccade_worker_restarts", "saccade_worker_restarts_total") == 2
    stage, labels = "saccade_stage_duration_seconds", "model=vit,stage=decode"
    assert value(stage, f"{stage}_count", labels) == 2
    assert value(stage, f"{stage}_sum", labels) == 0.5
    assert value("saccade_batch_size", "saccade_batch_size_sum", "model=vit") == 8
    # Gauges are what was last said, without a label that tells processes apart; queues add up.
    assert value("saccade_queue_depth", "saccade_queue_depth") == 14
    assert value("saccade_model_ready", "saccade_model_ready", "model=vit") == 1
    assert value("saccade_build_info", "saccade_build_info", "version=1.2.3") == 1
    assert "pid=" not in text


def test_what_waited_in_a_dead_process_waits_no_more_and_what_it_counted_stays(
    tmp_path: Path,
) -> None:
    for role in ("worker", "worker"):
        run_process(role, tmp_path)
    dead, alive = (int(p.stem.rpartition("_")[2]) for p in tmp_path.glob("gauge_livesum_*.db"))
    forget_process(tmp_path, dead)
    found = families(run_process("api late", tmp_path))
    assert found["saccade_queue_depth"][1]["saccade_queue_depth", ""] == 7
    assert found["saccade_worker_restarts"][1]["saccade_worker_restarts_total", ""] == 2
    forget_process(tmp_path, alive)
    found = families(run_process("api late", tmp_path))
    assert found["saccade_queue_depth"][1]["saccade_queue_depth", ""] == 0
