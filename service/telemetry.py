"""OpenTelemetry traces: a span for each request for pictures, and one below it for each stage.

Spans are made of what a request's ``Trace`` holds once it has been answered, by a thread of their
own: the way of a picture stays as it is. The SDK is imported where traces are asked for only.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

from service.errors import StartError
from service.tracing import Trace

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.id_generator import IdGenerator

MOST_WAITING = 2048
"""Answered requests whose spans are not made yet; more are dropped, and counted in the log."""
EXPORT_S = 5.0
CLOSE_S = 3.0
PATH = "/v1/traces"

_log = logging.getLogger(__name__)


class Answered(NamedTuple):
    """A request that is over, and when on both clocks."""

    trace: Trace
    method: str
    path: str
    status: int
    ended_s: float
    ended_ns: int

    def wall_ns(self, monotonic_s: float) -> int:
        """The wall time of a moment on the monotonic clock."""
        return self.ended_ns - round((self.ended_s - monotonic_s) * 1e9)


class Telemetry:
    """Makes spans of answered requests and hands them to a processor of the SDK.

    Sampling and resource follow the SDK's own variables, ``OTEL_TRACES_SAMPLER`` and
    ``OTEL_RESOURCE_ATTRIBUTES``; a caller that has its own spans dropped gets none here.
    """

    def __init__(self, processor: "SpanProcessor") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        release = version("saccade")
        self._trace_id = 0
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "saccade", "service.version": release}),
            id_generator=_ids(lambda: self._trace_id),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("saccade", release)
        self._waiting: queue.SimpleQueue[Answered | None] = queue.SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def tell(self, trace: Trace, method: str, path: str, status: int) -> None:
        """Take note of a request that has been answered; takes microseconds."""
        if not trace.sampled:
            return
        if self._waiting.qsize() >= MOST_WAITING:
            self._dropped += 1
            return
        now_s, now_ns = time.monotonic(), time.time_ns()
        self._waiting.put(Answered(trace, method, path, status, now_s, now_ns))

    def close(self) -> None:
        """Send what is left, within ``CLOSE_S`` or so."""
        self._waiting.put(None)
        self._thread.join(CLOSE_S)
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(CLOSE_S)

    def _run(self) -> None:
        while (answered := self._waiting.get()) is not None:
            try:
                self._make_spans(answered)
            except Exception:  # a bug must not end the thread
                _log.exception("a trace was lost")
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                _log.warning("%d traces were dropped: requests end faster than spans", dropped)

    def _make_spans(self, answered: Answered) -> None:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        trace = answered.trace
        self._trace_id = int(trace.trace_id, 16)
        request = self._tracer.start_span(
            trace.task or "request",
            context=_caller(trace),
            kind=SpanKind.SERVER,
            start_time=answered.wall_ns(trace.started_s),
            attributes={
                "http.request.method": answered.method,
                "http.response.status_code": answered.status,
                "url.path": answered.path,
                "saccade.request_id": trace.request_id,
                "saccade.model": trace.model or "none",
            },
        )
        if answered.status >= 500:
            request.set_status(StatusCode.ERROR)
        below = set_span_in_context(request)
        for stage, seconds in trace.stages_s.items():
            self._make_stage(answered, stage, seconds, below)
        request.end(answered.ended_ns)

    def _make_stage(self, answered: Answered, stage: str, seconds: float, below: "Context") -> None:
        ended_s = answered.trace.ended_s[stage]
        span = self._tracer.start_span(stage, below, start_time=answered.wall_ns(ended_s - seconds))
        if stage == "infer":
            span.set_attribute("saccade.batch_sizes", answered.trace.batch_sizes)
        span.end(answered.wall_ns(ended_s))


def open_telemetry(endpoint: str) -> Telemetry | None:
    """What sends traces to a collector by OTLP over HTTP; None without an ``endpoint``.

    Raises:
        StartError: the libraries are not installed.
    """
    if not endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise StartError(
            f"--otlp-endpoint needs the package {error.name!r}; "
            "install it with: pip install 'saccade[otel]'"
        ) from None
    url = endpoint.rstrip("/")
    exporter = OTLPSpanExporter(url if url.endswith(PATH) else url + PATH, timeout=EXPORT_S)
    return Telemetry(BatchSpanProcessor(exporter))


def _caller(trace: Trace) -> "Context":
    """The caller's span as the parent; without one, nothing around us."""
    from opentelemetry.context import Context
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    if trace.parent_id is None:
        return Context()
    caller = SpanContext(
        int(trace.trace_id, 16), int(trace.parent_id, 16), True, TraceFlags(TraceFlags.SAMPLED)
    )
    return set_span_in_context(NonRecordingSpan(caller), Context())


def _ids(trace_id: Callable[[], int]) -> "IdGenerator":
    """Random spans, in the traces that the log names."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return trace_id()

    return Ids()
