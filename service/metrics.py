"""Prometheus metrics of the whole service; every process writes, any API process answers a scrape.

The supervisor sets ``PROMETHEUS_MULTIPROC_DIR`` for its children, so that values lie in
memory-mapped files of one folder; ``render`` adds up those of all processes, dead ones included, so
that counters never fall back.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

STAGES = ("wait", "decode", "preprocess", "queue", "infer", "postprocess", "encode")
REJECTIONS = (
    "unauthorized",
    "forbidden",
    "overloaded",
    "not_ready",
    "worker_lost",
    "out_of_memory",
    "quarantined",
    "too_large",
    "deadline_exceeded",
)
STATUSES = (
    "200",
    "500",
    "503",
    "504",
)  # of answers that an alert counts; others come when they come
CANCEL_STAGES = ("body", "fetch", "decode", "queue", "infer", "postprocess", "encode")
CLOSINGS = (
    "idle",
    "crowded",
    "refused",
    "slow_headers",
    "large_headers",
    "slow_body",
    "stalled",
    "malformed",
)
DECODER_LOSSES = ("crashed", "killed", "slow")
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = tuple(0.0005 * 2**power for power in range(16))  # 0.5 ms to 16 s
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All instruments, by attribute; label sets are bounded by the served models."""

    def __init__(self, shared_folder: Path | None = None) -> None:
        self._shared_folder = shared_folder
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "saccade_requests", "Requests answered", ["model", "task", "status"], registry=r
        )
        self.request_seconds = Histogram(
            "saccade_request_duration_seconds",
            "From the first byte of a request to the last of its answer",
            ["model", "task"],
            buckets=_SECONDS,
            registry=r,
        )
        self.stage_seconds = Histogram(
            "saccade_stage_duration_seconds",
            "Where the time of a picture goes",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=r,
        )
        self.batch_size = Histogram(
            "saccade_batch_size", "Pictures run together", ["model"], buckets=_BATCHES, registry=r
        )
        self.padding = Histogram(
            "saccade_padding_ratio",
            "Share of the canvas that is padding",
            ["model"],
            buckets=(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1),
            registry=r,
        )
        self.rejections = Counter(
            "saccade_rejections", "Requests refused, by reason", ["reason"], registry=r
        )
        self.cancellations = Counter(
            "saccade_cancellations",
            "Pictures whose client left, by the stage they were in",
            ["stage"],
            registry=r,
        )
        self.closings = Counter(
            "saccade_connections_closed",
            "Connections closed against the client's will, by what they kept us waiting for",
            ["reason"],
            registry=r,
        )
        self.isolated_failures = Counter(
            "saccade_isolated_failures",
            "Pictures that failed when their batch was run one by one",
            ["model"],
            registry=r,
        )
        self.halved_batches = Counter(
            "saccade_halved_batches",
            "Batches that did not fit into memory and were run in halves",
            ["model"],
            registry=r,
        )
        self.queue_depth = self._sum("saccade_queue_depth", "Pictures waiting for a batch")
        self.queue_bytes = self._sum("saccade_queue_bytes", "Decoded bytes waiting for a batch")
        self.device_last_success = self._gauge(
            "saccade_device_last_success_timestamp_seconds", "When a batch last ran to its end"
        )
        self.decoders_lost = Counter(
            "saccade_decoders_lost", "Decoder processes killed or dead", ["reason"], registry=r
        )
        self.worker_restarts = Counter(
            "saccade_worker_restarts", "Worker processes started again after a death", registry=r
        )
        self.device_ready = self._gauge(
            "saccade_device_ready",
            "1 while the worker of a device answers; only where there are several",
            ["device"],
        )
        self.devices_lost = Counter(
            "saccade_devices_lost",
            "Times a device failed for good, and its worker process ended",
            registry=r,
        )
        self.gpu_utilization = self._live(
            "saccade_gpu_utilization_ratio", "Share of the last moments in which any kernel ran"
        )
        self.gpu_memory_used = self._live(
            "saccade_gpu_memory_used_bytes", "Memory of the GPU that is taken, by whomever"
        )
        self.gpu_memory_total = self._live(
            "saccade_gpu_memory_total_bytes", "Memory that the GPU has"
        )
        self.gpu_power = self._live("saccade_gpu_power_watts", "What the GPU draws")
        self.gpu_temperature = self._live(
            "saccade_gpu_temperature_celsius", "Temperature of the GPU"
        )
        self.model_ready = self._gauge(
            "saccade_model_ready", "1 when a real forward pass of the model succeeded", ["model"]
        )
        self.model_info = self._gauge(
            "saccade_model_info",
            "1 for what runs each model now, 0 for what ran it before",
            ["model", "version", "runtime", "precision"],
        )
        self.build_info = self._gauge("saccade_build_info", "Always 1; the release", ["version"])

    def _gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(
            name, text, list(labels), registry=self.registry, multiprocess_mode="mostrecent"
        )

    def _live(self, name: str, text: str) -> Gauge:
        """Of devices; what a dead worker said of one holds no more."""
        return Gauge(
            name, text, ["device"], registry=self.registry, multiprocess_mode="livemostrecent"
        )

    def _sum(self, name: str, text: str) -> Gauge:
        """Of the processes that live: each worker has a queue of its own."""
        return Gauge(name, text, registry=self.registry, multiprocess_mode="livesum")

    def prepare(self, release: str, models_to_tasks: Mapping[str, Iterable[str]]) -> None:
        """Make every label set that can occur, but for most statuses: a scrape before the first
        request shows zeros.
        """
        self.build_info.labels(release).set(1)
        self.prepare_models(models_to_tasks)
        for reason in REJECTIONS:
            self.rejections.labels(reason)
        for reason in CLOSINGS:
            self.closings.labels(reason)
        for reason in DECODER_LOSSES:
            self.decoders_lost.labels(reason)
        for stage in CANCEL_STAGES:
            self.cancellations.labels(stage)

    def prepare_models(self, models_to_tasks: Mapping[str, Iterable[str]]) -> None:
        """The same for models that came later."""
        for model, tasks in models_to_tasks.items():
            for task in tasks:
                for status in STATUSES:
                    self.requests.labels(model, task, status)
                self.request_seconds.labels(model, task)
            for stage in STAGES:
                self.stage_seconds.labels(model, stage)
            self.batch_size.labels(model)
            self.padding.labels(model)
            self.isolated_failures.labels(model)
            self.halved_batches.labels(model)

    def render(self) -> bytes:
        """The exposition text: this process alone, or all of them when they share a folder."""
        return generate_latest(self._everyone())

    def collect(self) -> Iterable[Metric]:
        """What ``render`` would write, as objects."""
        return self._everyone().collect()

    def _everyone(self) -> CollectorRegistry:
        if self._shared_folder is None:
            return self.registry
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone, str(self._shared_folder))  # type: ignore[no-untyped-call]
        return everyone


def forget_process(shared_folder: Path, pid: int) -> None:
    """A process has died: what it measured last holds no more, its counts stay."""
    mark_process_dead(pid, str(shared_folder))  # type: ignore[no-untyped-call]
