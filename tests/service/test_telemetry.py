"""Traces: made of what a request's own trace holds, after its answer, and sent by OTLP."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service import telemetry
from service.errors import StartError
from service.telemetry import Telemetry, open_telemetry
from service.tracing import Trace, start_trace
from tests.conftest import Server

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PATIENCE_S = 30.0


def answered(traceparent: str | None = None) -> Trace:
    """A request that began half a second ago."""
    trace = start_trace("r-1", traceparent)
    trace.started_s = time.monotonic() - 0.5
    trace.task, trace.model, trace.batch_sizes = "classify", "vit", [4]
    trace.record("decode", 0.1, ago_s=0.38)
    trace.record("queue", 0.1, ago_s=0.2)
    trace.record("infer", 0.2)
    return trace


def spans_of(trace: Trace, status: int = 200) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    telling = Telemetry(SimpleSpanProcessor(exporter))
    telling.tell(trace, "POST", "/v1/classify", status)
    telling.close()
    return list(exporter.get_finished_spans())


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_request_is_a_span_with_one_below_it_for_each_stage() -> None:
    *stages, request = spans_of(answered())
    assert (request.name, request.kind) == ("classify", SpanKind.SERVER)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/classify",
        "saccade.request_id": "r-1",
        "saccade.model": "vit",
    }
    assert request.status.status_code == StatusCode.UNSET
    assert [span.name for span in stages] == ["decode", "queue", "infer"]
    for span in stages:
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
    assert stages[2].attributes == {"saccade.batch_sizes": (4,)}


def test_spans_lie_where_the_time_was_spent() -> None:
    before_ns = time.time_ns()
    decode, queue, infer, request = spans_of(answered())
    assert [seconds(span) for span in (decode, queue, infer)] == pytest.approx([0.1, 0.1, 0.2])
    assert seconds(request) == pytest.approx(0.5, abs=0.05)
    assert request.start_time == pytest.approx(before_ns - 500_000_000, abs=5e7)
    assert queue.end_time == pytest.approx(infer.start_time, abs=1e6)
    assert decode.start_time == pytest.approx(request.start_time + 2e7, abs=1e6)  # type: ignore[operator]
    for span in (decode, queue, infer):
        assert request.start_time <= span.start_time  # type: ignore[operator]
        assert span.end_time <= request.end_time  # type: ignore[operator]


def test_of_several_pictures_the_slowest_gives_a_stage_its_place() -> None:
    trace = start_trace(None, None)
    trace.record("infer", 0.2, ago_s=0.5)
    trace.record("infer", 0.1)
    assert trace.stages_s == {"infer": 0.2}
    assert trace.ended_s["infer"] == pytest.approx(time.monotonic() - 0.5, abs=0.1)


def test_the_trace_is_the_one_that_the_log_names() -> None:
    trace = answered()
    found = spans_of(trace)
    assert {f"{span.context.trace_id:032x}" for span in found} == {trace.trace_id}
    assert found[-1].parent is None


def test_the_caller_is_the_parent_where_it_named_itself() -> None:
    request = spans_of(answered(f"00-{TRACE_ID}-{PARENT_ID}-01"))[-1]
    assert f"{request.context.trace_id:032x}" == TRACE_ID
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT_ID
    assert request.parent.is_remote


def test_a_caller_that_drops_its_own_spans_gets_none() -> None:
    assert spans_of(answered(f"00-{TRACE_ID}-{PARENT_ID}-00")) == []


def test_our_own_failures_are_errors_and_those_of_clients_are_not() -> None:
    assert spans_of(answered(), 503)[-1].status.status_code == StatusCode.ERROR
    assert spans_of(answered(), 422)[-1].status.status_code == StatusCode.UNSET


def test_what_is_too_much_is_dropped_and_said_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telemetry, "MOST_WAITING", 2)
    busy, free = threading.Event(), threading.Event()

    class Slow(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            busy.set()
            free.wait(PATIENCE_S)
            return super().export(spans)

    exporter = Slow()
    telling = Telemetry(SimpleSpanProcessor(exporter))
    telling.tell(answered(), "POST", "/", 200)
    assert busy.wait(PATIENCE_S)
    for _ in range(5):
        telling.tell(answered(), "POST", "/", 200)
    with caplog.at_level(logging.WARNING, "service.telemetry"):
        free.set()
        telling.close()
    requests = [span for span in exporter.get_finished_spans() if span.name == "classify"]
    assert len(requests) == 3  # one at work, two waiting
    assert "3 traces were dropped" in caplog.text


def test_a_trace_that_cannot_be_made_into_spans_does_not_end_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exporter = InMemorySpanExporter()
    telling = Telemetry(SimpleSpanProcessor(exporter))
    broken = answered()
    broken.trace_id = "no hexadecimal"
    telling.tell(broken, "POST", "/", 200)
    telling.tell(answered(), "POST", "/", 200)
    telling.close()
    assert len(exporter.get_finished_spans()) == 4
    assert "a trace was lost" in caplog.text


def test_without_an_endpoint_there_is_none() -> None:
    assert open_telemetry("") is None


def test_without_the_libraries_the_start_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(StartError, match=r"pip install 'saccade\[otel\]'"):
        open_telemetry("http://127.0.0.1:4318")


@contextmanager
def collector() -> Iterator[tuple[str, Callable[[], list[Any]]]]:
    """A collector's address, and what gives the spans that it got, with their resource."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                got.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", lambda: list(got)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_gets_what_is_left_when_the_process_ends() -> None:
    with collector() as (address, got):
        telling = open_telemetry(address + "/")
        assert telling is not None
        telling.tell(answered(), "POST", "/v1/classify", 200)
        telling.close()
        (resource,) = got()
    facts = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert facts["service.name"] == "saccade"
    assert facts["service.version"] == version("saccade")
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert names == ["decode", "queue", "infer", "classify"]


def test_a_collector_that_is_not_there_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry, "CLOSE_S", 0.5)
    with collector() as (address, _):
        pass  # nobody listens there any more
    telling = open_telemetry(address)
    assert telling is not None
    telling.tell(answered(), "POST", "/v1/classify", 200)
    began_s = time.monotonic()
    telling.close()
    assert time.monotonic() - began_s < 5


def test_a_real_server_sends_the_stages_of_a_real_request(
    start_server: Callable[..., Server], demo_scenes: dict[str, Any]
) -> None:
    picture = demo_scenes["star.jpg"]["path"].read_bytes()
    with collector() as (address, got):
        server = start_server("--otlp-endpoint", address)
        answer = httpx.post(
            f"{server.url}/v1/classify?model=vit-scenes",
            content=picture,
            headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"},
            timeout=60,
        )
        assert answer.status_code == 200
        end_s = time.monotonic() + PATIENCE_S
        while not got() and time.monotonic() < end_s:
            time.sleep(0.05)
        spans = {s.name: s for r in got() for scope in r.scope_spans for s in scope.spans}
    request = spans.pop("classify")
    assert request.trace_id.hex() == TRACE_ID
    assert request.parent_span_id.hex() == PARENT_ID
    assert {"wait", "decode", "preprocess", "queue", "infer", "postprocess"} <= spans.keys()
    for span in spans.values():
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    order = ["wait", "decode", "preprocess", "queue", "infer", "postprocess"]
    ends = [spans[name].end_time_unix_nano for name in order]
    assert ends == sorted(ends)
    timing = dict(
        part.strip().split(";dur=") for part in answer.headers["server-timing"].split(",")
    )
    infer_ms = (spans["infer"].end_time_unix_nano - spans["infer"].start_time_unix_nano) / 1e6
    assert infer_ms == pytest.approx(float(timing["infer"]), abs=0.02)
