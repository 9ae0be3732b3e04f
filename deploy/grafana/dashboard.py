"""Writes dashboard.json, for Grafana 10 and later: ``python deploy/grafana/dashboard.py``.

Panels are named here, and laid out from left to right in rows of 24 columns.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "dashboard.json"
WIDTH = 24
HEIGHT = 8
HERE = 'job=~"$job", instance=~"$instance"'
MODEL = f'{HERE}, model=~"$model"'
RATE = "$__rate_interval"

Panel = dict[str, Any]


def panel(
    title: str,
    about: str,
    unit: str,
    *queries: tuple[str, str],
    kind: str = "timeseries",
    width: int = 8,
    stacked: bool = False,
    thresholds: tuple[float, float] | None = None,
) -> Panel:
    """One panel; a query is an expression and the legend of its series."""
    custom: dict[str, Any] = {}
    if kind == "timeseries":
        custom = {"fillOpacity": 40 if stacked else 8, "showPoints": "never"}
        custom["stacking"] = {"mode": "normal" if stacked else "none"}
    defaults: dict[str, Any] = {"unit": unit, "min": 0, "custom": custom}
    if thresholds is not None:
        colours = zip((None, *thresholds), ("green", "orange", "red"), strict=True)
        steps = [{"value": value, "color": colour} for value, colour in colours]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(kind),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "expr": expression,
                "legendFormat": legend,
                "format": "heatmap" if kind == "heatmap" else "time_series",
            }
            for index, (expression, legend) in enumerate(queries)
        ],
        "gridPos": {"w": width, "h": 4 if kind == "stat" else HEIGHT},
    }


def _options(kind: str) -> dict[str, Any]:
    if kind == "timeseries":
        legend = {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"]}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"}
    if kind == "heatmap":
        return {"calculate": False, "yAxis": {"unit": "short"}, "color": {"scheme": "Blues"}}
    return {}


def quantile(share: float, metric: str, by: str, selector: str) -> str:
    """The share of ``metric``'s observations below what this gives."""
    inner = f"sum by (le{by}) (rate({metric}_bucket{{{selector}}}[{RATE}]))"
    return f"histogram_quantile({share}, {inner})"


def mean(metric: str, by: str, selector: str) -> str:
    """The average observation of a histogram."""
    total, count = (
        f"sum by ({by}) (rate({metric}_{part}{{{selector}}}[{RATE}]))" for part in PARTS
    )
    return f"{total} / {count}"


PARTS = ("sum", "count")
REQUEST = "saccade_request_duration_seconds"
STAGE = "saccade_stage_duration_seconds"
REQUESTS = f"saccade_requests_total{{{HERE}}}"
LAST = f"saccade_device_last_success_timestamp_seconds{{{HERE}}}"


def per_second(counter: str, by: str, selector: str = HERE) -> str:
    """How often a counter counts."""
    return f"sum by ({by}) (rate({counter}{{{selector}}}[{RATE}]))"


def rows() -> Iterator[tuple[str, list[Panel]]]:
    """Title and panels of each row."""
    failed = f'saccade_requests_total{{{HERE}, status=~"5.."}}'
    yield (
        "Now",
        [
            panel(
                "Models ready",
                "Models that have really run, over all replicas, and those that should.",
                "short",
                (f"sum(saccade_model_ready{{{HERE}}})", "ready"),
                (f"count(saccade_model_ready{{{HERE}}})", "known"),
                kind="stat",
                width=4,
            ),
            panel(
                "Requests",
                "Answered a second, whatever the answer.",
                "reqps",
                (f"sum(rate({REQUESTS}[{RATE}]))", "requests"),
                kind="stat",
                width=4,
            ),
            panel(
                "Server errors",
                "Share of 5xx.",
                "percentunit",
                (
                    f"(sum(rate({failed}[{RATE}])) or vector(0)) / sum(rate({REQUESTS}[{RATE}]))",
                    "5xx",
                ),
                kind="stat",
                width=4,
                thresholds=(0.001, 0.01),
            ),
            panel(
                "Latency, 99 %",
                "99 of 100 requests are answered in less.",
                "s",
                (quantile(0.99, REQUEST, "", MODEL), "p99"),
                kind="stat",
                width=4,
                thresholds=(0.5, 2),
            ),
            panel(
                "Waiting",
                "Pictures that wait for a batch.",
                "short",
                (f"sum(saccade_queue_depth{{{HERE}}})", "pictures"),
                kind="stat",
                width=4,
                thresholds=(64, 200),
            ),
            panel(
                "Device silent for",
                "Since a batch last ran to its end; an idle worker runs one every few seconds.",
                "s",
                (f"max(time() - ({LAST} > 0))", "silent"),
                kind="stat",
                width=4,
                thresholds=(20, 60),
            ),
        ],
    )
    yield (
        "Latency",
        [
            panel(
                "Requests",
                "From the first byte of a request to the last of its answer.",
                "s",
                *((quantile(q, REQUEST, "", MODEL), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
            ),
            panel(
                "A picture's time, by stage",
                "Averages, which add up: what to mend first.",
                "s",
                (mean(STAGE, "stage", MODEL), "{{stage}}"),
                stacked=True,
            ),
            panel(
                "99 % by stage",
                "wait: for a thread; queue: for a batch; infer: the batch itself.",
                "s",
                (quantile(0.99, STAGE, ", stage", MODEL), "{{stage}}"),
            ),
            panel(
                "Requests by model and task, 99 %",
                "",
                "s",
                (quantile(0.99, REQUEST, ", model, task", MODEL), "{{model}} {{task}}"),
                width=12,
            ),
            panel(
                "Inference by model, mean",
                "",
                "s",
                (mean(STAGE, "model", f'{MODEL}, stage="infer"'), "{{model}}"),
                width=12,
            ),
        ],
    )
    yield (
        "Throughput and batches",
        [
            panel(
                "Requests by status",
                "499: the client left; 429 and 503 come with a time to wait.",
                "reqps",
                (per_second("saccade_requests_total", "status"), "{{status}}"),
                stacked=True,
            ),
            panel(
                "Requests by model and task",
                "",
                "reqps",
                (per_second("saccade_requests_total", "model, task", MODEL), "{{model}} {{task}}"),
                stacked=True,
            ),
            panel(
                "Pictures run, by model",
                "Pictures a second that the device has run.",
                "short",
                (per_second("saccade_batch_size_sum", "model", MODEL), "{{model}}"),
                stacked=True,
            ),
            panel(
                "Batch size, mean",
                "1 where the device waits for pictures, near the best batch where they wait.",
                "short",
                (mean("saccade_batch_size", "model", MODEL), "{{model}}"),
            ),
            panel(
                "Batch sizes",
                "How many batches of each size were run.",
                "short",
                (f"sum by (le) (increase(saccade_batch_size_bucket{{{MODEL}}}[{RATE}]))", "{{le}}"),
                kind="heatmap",
            ),
            panel(
                "Padding, mean",
                "Share of the canvas that is computed for nothing; another canvas may fit better.",
                "percentunit",
                (mean("saccade_padding_ratio", "model", MODEL), "{{model}}"),
            ),
        ],
    )
    yield (
        "Overload",
        [
            panel(
                "Queue",
                "Pictures that wait, by replica.",
                "short",
                (f"saccade_queue_depth{{{HERE}}}", "{{instance}}"),
            ),
            panel(
                "Queue, bytes",
                "Decoded; bounded by --max-queue-bytes.",
                "bytes",
                (f"saccade_queue_bytes{{{HERE}}}", "{{instance}}"),
            ),
            panel(
                "Refused, by reason",
                "A second.",
                "reqps",
                (per_second("saccade_rejections_total", "reason"), "{{reason}}"),
                stacked=True,
            ),
            panel(
                "Cancelled, by stage",
                "Pictures a second whose client left, by where they were then.",
                "short",
                (per_second("saccade_cancellations_total", "stage"), "{{stage}}"),
                stacked=True,
                width=12,
            ),
            panel(
                "Connections closed, by reason",
                "Those closed against the client's will.",
                "short",
                (per_second("saccade_connections_closed_total", "reason"), "{{reason}}"),
                stacked=True,
                width=12,
            ),
        ],
    )
    yield (
        "Faults",
        [
            panel(
                "Worker restarts",
                "In the last hour.",
                "short",
                (f"increase(saccade_worker_restarts_total{{{HERE}}}[1h])", "{{instance}}"),
                width=6,
            ),
            panel(
                "Decoders lost, by reason",
                "In the last hour; each cost one request.",
                "short",
                (
                    f"sum by (reason) (increase(saccade_decoders_lost_total{{{HERE}}}[1h]))",
                    "{{reason}}",
                ),
                width=6,
            ),
            panel(
                "Pictures that failed alone",
                "In the last hour, by model.",
                "short",
                (
                    f"sum by (model) (increase(saccade_isolated_failures_total{{{MODEL}}}[1h]))",
                    "{{model}}",
                ),
                width=6,
            ),
            panel(
                "Batches halved for memory",
                "In the last hour, by model.",
                "short",
                (
                    f"sum by (model) (increase(saccade_halved_batches_total{{{MODEL}}}[1h]))",
                    "{{model}}",
                ),
                width=6,
            ),
        ],
    )
    yield (
        "Devices",
        [
            panel(
                "Devices that answer",
                "Workers of several devices; and how often one was lost in the last hour.",
                "short",
                (f"saccade_device_ready{{{HERE}}}", "{{instance}} {{device}}"),
                (f"increase(saccade_devices_lost_total{{{HERE}}}[1h])", "{{instance}} lost"),
                width=12,
            ),
            panel(
                "GPU utilisation",
                "Share of the time in which any kernel runs, be it a small one.",
                "percentunit",
                (f"saccade_gpu_utilization_ratio{{{HERE}}}", "{{instance}} {{device}}"),
                width=12,
            ),
            panel(
                "GPU memory",
                "Taken, by whomever, as a share of what there is.",
                "percentunit",
                (
                    f"saccade_gpu_memory_used_bytes{{{HERE}}}"
                    f" / saccade_gpu_memory_total_bytes{{{HERE}}}",
                    "{{instance}} {{device}}",
                ),
            ),
            panel(
                "GPU power",
                "",
                "watt",
                (f"saccade_gpu_power_watts{{{HERE}}}", "{{instance}} {{device}}"),
            ),
            panel(
                "GPU temperature",
                "",
                "celsius",
                (f"saccade_gpu_temperature_celsius{{{HERE}}}", "{{instance}} {{device}}"),
            ),
        ],
    )
    yield (
        "What runs",
        [
            panel(
                "Models ready, by replica",
                "1 when a real forward pass succeeded.",
                "short",
                (f"saccade_model_ready{{{MODEL}}}", "{{model}} on {{instance}}"),
                width=12,
            ),
            panel(
                "Replicas by version, runtime and precision",
                "More than one line for a model: replicas answer differently.",
                "short",
                (
                    "count by (model, version, runtime, precision) "
                    f"(saccade_model_info{{{MODEL}}} == 1)",
                    "{{model}} {{version}}: {{runtime}} {{precision}}",
                ),
                width=8,
            ),
            panel(
                "Replicas by release",
                "",
                "short",
                (
                    f"count by (version) (saccade_build_info{{{HERE}}})",
                    "{{version}}",
                ),
                width=4,
            ),
        ],
    )


def lay_out() -> list[Panel]:
    """All panels in their places, each row under a title."""
    placed: list[Panel] = []
    y = 0
    for title, panels in rows():
        bar = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        placed.append({"type": "row", "title": title, "collapsed": False, "gridPos": bar})
        x, y = 0, y + 1
        for each in panels:
            place = each["gridPos"]
            if x + place["w"] > WIDTH:
                x, y = 0, y + place["h"]
            place |= {"x": x, "y": y}
            x += place["w"]
            placed.append(each)
        y += panels[-1]["gridPos"]["h"]
    return [each | {"id": number} for number, each in enumerate(placed, 1)]


def variable(name: str, query: str) -> dict[str, Any]:
    """A choice of label values at the top of the page; all of them unless chosen."""
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    build = 'saccade_build_info{job=~"$job"}'
    return {
        "title": "Saccade",
        "uid": "saccade",
        "tags": ["saccade"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                source,
                variable("job", "label_values(saccade_build_info, job)"),
                variable("instance", f"label_values({build}, instance)"),
                variable("model", 'label_values(saccade_model_ready{job=~"$job"}, model)'),
            ]
        },
        "panels": lay_out(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")
