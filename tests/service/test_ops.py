"""What operators and machines see: health, models, metrics, request ids, problems, OpenAPI."""

import asyncio
import base64
import logging
import re
import time
from typing import Any

import pytest

from service.api.schemas.attention import AttentionAnswer, AttentionOptions
from service.api.schemas.base import Answer, Options, Problem
from service.api.schemas.classify import ClassifyAnswer, ClassifyOptions
from service.api.schemas.detect import DetectAnswer, DetectOptions
from service.api.schemas.embed import EmbedAnswer, EmbedOptions
from service.api.schemas.segment import SegmentAnswer, SegmentOptions
from service.api.security import PROBES
from service.tracing import Trace
from service.worker.link import WorkerState
from tests.service.fake_app import FakeApp, picture
from tests.service.sample_bundle import detector_of, manifest_of, segmenter_of
from tests.service.test_detect_api import FOUND
from tests.service.test_segment import PANOPTIC

RED = picture(red=200)


@pytest.mark.parametrize("path", ["/livez", "/v2/health/live"])
def test_liveness_means_that_the_device_has_lately_finished_a_pass(path: str) -> None:
    fake = FakeApp(liveness_s=20)
    with fake.client() as client:
        for passed_ago_s, status in ((None, 200), (10, 200), (19, 200), (21, 503), (500, 503)):
            passed_s = None if passed_ago_s is None else time.monotonic() - passed_ago_s
            for ready in (True, False):  # a worker that is restarting is none that is hung
                fake.link.state = WorkerState(ready, passed_s=passed_s)
                answer = client.get(path)
                assert (answer.status_code, answer.json()) == (status, {"live": status == 200})
        fake.link.state = WorkerState(phase="compiling", passed_s=passed_s, untried=True)
        assert client.get(path).status_code == 200


def test_a_draining_server_is_not_ready_and_answers_all_the_same() -> None:
    fake = FakeApp()
    with fake.client() as client:
        before = client.post("/v1/classify", content=RED)
        client.app_state["serving"].drain()
        refused = client.get("/readyz")
        after = client.post("/v1/classify", content=RED)
    assert "connection" not in before.headers
    assert (refused.status_code, refused.json()) == (503, {"ready": False})
    assert (after.status_code, after.headers["connection"]) == (200, "close")
    assert after.json() == before.json()


@pytest.mark.parametrize("path", ["/readyz", "/health", "/healthz", "/ping", "/v2/health/ready"])
def test_readiness_follows_the_worker(path: str) -> None:
    fake = FakeApp()
    with fake.client() as client:
        assert (client.get(path).status_code, client.get(path).json()) == (200, {"ready": True})
        fake.link.state = WorkerState(phase="compiling")
        refused = client.get(path)
        assert (refused.status_code, refused.json()) == (503, {"ready": False})
        assert refused.headers["retry-after"] == "1"


def test_startup_is_over_for_good_once_the_worker_was_ready() -> None:
    fake = FakeApp()
    with fake.client() as client:
        fake.link.state, fake.link.was_ready = WorkerState(phase="compiling vit"), False
        waiting = client.get("/startupz")
        assert waiting.status_code == 503
        assert waiting.json() == {"started": False, "phase": "compiling vit", "phases": []}
        fake.link.was_ready = True
        assert client.get("/startupz").json() == {"started": True, "phase": "started", "phases": []}


def test_startup_tells_how_long_each_phase_took_and_the_present_one_has_taken_so_far() -> None:
    fake = FakeApp()
    with fake.client() as client:
        now_s = time.monotonic()
        began = [("verifying vit", now_s - 9), ("compiling vit", now_s - 8.5)]
        fake.link.state, fake.link.was_ready = (
            WorkerState(False, "compiling vit", phases=began),
            False,
        )
        first, second = client.get("/startupz").json()["phases"]
        assert first == {"phase": "verifying vit", "elapsed_s": 0.5}
        assert 8.5 <= second["elapsed_s"] < 8.5 + 30
        fake.link.state = WorkerState(True, "ready", phases=[*began, ("ready", now_s - 1)])
        phases = client.get("/startupz").json()["phases"]
    assert [(phase["phase"], phase["elapsed_s"]) for phase in phases] == [
        ("verifying vit", 0.5),
        ("compiling vit", 7.5),
    ]


def test_models_are_listed_with_what_really_runs_them() -> None:
    fake = FakeApp([manifest_of(), manifest_of("other", tasks=["embed"])])
    with fake.client() as client:
        tiny, other = client.get("/v1/models").json()["models"]
        detail = client.get("/v1/models/tiny").json()
        fake.link.state = WorkerState()
        gone = client.get("/v1/models/tiny").json()
    assert (tiny["name"], tiny["version"], tiny["tasks"]) == (
        "tiny",
        "1",
        ["classify", "embed", "attention"],
    )
    assert (tiny["ready"], tiny["runtime"], tiny["precision"], tiny["device"]) == (
        True,
        "fake",
        "bf16",
        "cpu",
    )
    assert tiny["canvases"] == [{"width": 8, "height": 8}]
    assert (other["ready"], other["runtime"]) == (False, None)
    assert {name: detail[name] for name in tiny} == tiny
    assert [label["name"] for label in detail["manifest"]["labels"]] == ["ant", "bee", "cat"]
    assert (gone["ready"], gone["precision"]) == (False, None)


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "says"),
    [
        ("GET", "/v1/models/nobody", 404, "unknown_model", "tiny"),
        ("GET", "/nowhere", 404, "not_found", "/nowhere"),
        ("GET", "/v1/classify", 405, "method_not_allowed", "POST"),
        ("DELETE", "/readyz", 405, "method_not_allowed", "GET"),
        ("POST", "/v1/classify", 400, "invalid_body", "empty"),
    ],
)
def test_every_refusal_is_a_problem_document(
    method: str, path: str, status: int, code: str, says: str
) -> None:
    with FakeApp().client() as client:
        response = client.request(method, path)
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert response.status_code == problem["status"] == status
    assert (problem["code"], problem["instance"]) == (code, path)
    assert problem["type"] == f"urn:saccade:problem:{code}"
    assert says in problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    Problem.model_validate(problem)


def test_a_bug_is_a_500_that_says_nothing_of_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    async def before() -> None:
        raise ZeroDivisionError("secret path")

    fake = FakeApp()
    fake.link.before = before
    with fake.client() as client:
        response = client.post("/v1/classify", content=RED, headers={"x-request-id": "bug-1"})
    problem = response.json()
    assert response.status_code == problem["status"] == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == problem["request_id"] == "bug-1"
    assert problem["code"] == "internal_error"
    assert "secret" not in response.text
    assert any(record.exc_info for record in caplog.records if record.levelname == "ERROR")
    labels = {"model": "tiny", "task": "classify", "status": "500"}
    assert fake.metrics.registry.get_sample_value("saccade_requests_total", labels) == 1


def test_a_request_id_is_echoed_if_it_is_harmless_and_replaced_otherwise() -> None:
    with FakeApp().client() as client:
        for given in ("abc-123", "a/b:c.d_e=f+1"):
            response = client.get("/livez", headers={"x-request-id": given})
            assert response.headers["x-request-id"] == given
        for given in ("", "two words", "x" * 129, '"quoted"', "{id}"):
            response = client.get("/livez", headers={"x-request-id": given})
            assert re.fullmatch("[0-9a-f]{16}", response.headers["x-request-id"])
        first, second = client.get("/livez"), client.get("/livez")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


def test_one_log_line_a_request_joins_the_callers_trace(caplog: pytest.LogCaptureFixture) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "x-request-id": "r-1"}
    with caplog.at_level(logging.INFO, "saccade.access"), FakeApp().client() as client:
        client.post("/v1/classify", content=RED, headers=headers)
        client.get("/livez")
    lines = [record for record in caplog.records if record.name == "saccade.access"]
    assert [line.message for line in lines] == ["POST /v1/classify 200"]
    facts = vars(lines[0])["facts"]
    assert (facts["trace_id"], facts["request_id"]) == (trace_id, "r-1")
    assert (facts["model"], facts["status"], facts["batch_sizes"]) == ("tiny", 200, [1])
    assert list(facts["stages_s"]) == [
        "wait",
        "decode",
        "preprocess",
        "queue",
        "infer",
        "postprocess",
    ]


def timing_of(header: str) -> dict[str, float]:
    found = dict(re.findall(r"([\w-]+);dur=([\d.]+)(?:, |$)", header))
    assert ", ".join(f"{name};dur={value}" for name, value in found.items()) == header
    return {name: float(value) for name, value in found.items()}


def test_server_timing_tells_the_stages_in_milliseconds_and_on_errors_what_there_is() -> None:
    with FakeApp().client() as client:
        answered = client.post("/v1/classify", content=RED)
        failed = client.post("/v1/classify", content=b"no picture")
        png = client.post("/v1/attention", content=RED, headers={"accept": "image/png"})
        refused = client.post("/v1/attention", content=RED, headers={"accept": "text/html"})
        health = client.get("/livez")
    stages = timing_of(answered.headers["server-timing"])
    assert list(stages) == [
        "wait",
        "decode",
        "preprocess",
        "queue",
        "infer",
        "postprocess",
        "total",
    ]
    assert (stages["queue"], stages["infer"]) == (2, 3)
    assert list(timing_of(failed.headers["server-timing"])) == ["total"]
    assert "encode" in timing_of(png.headers["server-timing"])
    assert list(timing_of(refused.headers["server-timing"])) == ["total"]
    assert "server-timing" not in health.headers


def test_a_scrape_is_written_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeApp()

    def render() -> bytes:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return b"text"

    monkeypatch.setattr(fake.metrics, "render", render)
    with fake.client() as client:
        assert client.get("/metrics").text == "text"


def test_metrics_count_by_what_is_served_and_never_by_what_clients_say() -> None:
    fake = FakeApp()
    with fake.client() as client:
        before = client.get("/metrics").text
        client.post("/v1/classify", content=RED)
        client.post("/v1/classify?model=evil-model", content=RED)
        client.post("/v1/classify?evil_parameter=1", content=RED)
        client.post("/v1/classify", content=RED, headers={"x-request-id": "evil-id"})
        client.post("/v1/attention", content=RED, headers={"accept": "evil/type"})
        client.get("/evil/path")
        client.request("EVIL", "/v1/classify")
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert "evil" not in response.text.lower()
    requests = dict(re.findall(r"^saccade_requests_total\{(.*)\} (.*)$", response.text, re.M))
    for status in ("200", "500", "503", "504"):  # for alerts, which miss a rise out of nothing
        series = f'saccade_requests_total{{model="tiny",status="{status}",task="classify"}} 0.0'
        assert series in before
    assert 'saccade_padding_ratio_count{model="tiny"} 0.0' in before
    assert {labels: value for labels, value in requests.items() if value != "0.0"} == {
        'model="tiny",status="200",task="classify"': "2.0",
        'model="none",status="404",task="classify"': "1.0",
        'model="none",status="422",task="classify"': "1.0",
        'model="none",status="406",task="attention"': "1.0",
    }
    stage = 'saccade_stage_duration_seconds_count{model="tiny",stage="decode"}'
    assert f"{stage} 0.0" in before
    assert f"{stage} 2.0" in response.text
    assert 'saccade_padding_ratio_count{model="tiny"} 2.0' in response.text


def test_refusals_are_counted_by_reason() -> None:
    fake = FakeApp(max_body_bytes=1024, max_images=2)
    with fake.client() as client:
        client.post("/v1/classify", content=bytes(2000))
        client.post("/v1/classify", files=[("image", ("x", RED))] * 3)
        client.post("/v1/classify", content=b"no picture")
    value = fake.metrics.registry.get_sample_value
    assert value("saccade_rejections_total", {"reason": "too_large"}) == 2
    assert value("saccade_rejections_total", {"reason": "overloaded"}) == 0


@pytest.mark.parametrize(
    "path",
    [
        *sorted(PROBES),
        "/metrics",
        "/v1/models",
        "/v1/models/tiny",
        "/v2",
        "/docs",
        "/page/page.js",
        "/",
    ],
)
def test_head_is_answered_as_get_without_a_body(path: str) -> None:
    with FakeApp().client() as client:
        head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    varying = {"x-request-id", "content-length"} if path == "/metrics" else {"x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in varying} == {
        k: v for k, v in get.headers.items() if k not in varying
    }


def test_head_is_refused_where_there_is_no_get() -> None:
    with FakeApp().client() as client:
        answer = client.head("/v1/classify")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_several_lines_of_accept_are_one_list() -> None:
    lines = [("accept", "text/html"), ("accept", "image/png")]
    with FakeApp().client() as client:
        answer = client.post("/v1/attention", content=RED, headers=lines)
        refused = client.post("/v1/attention", content=RED, headers=lines[:1])
    assert answer.headers["content-type"] == "image/png"
    assert refused.status_code == 406


def test_root_leads_to_something_to_read() -> None:
    with FakeApp().client() as client:
        response = client.get("/", headers={"accept": "text/html"})
        docs = client.get("/docs")
    assert response.status_code == docs.status_code == 200
    assert "html" in response.headers["content-type"]


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        here = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return here + [found for value in node.values() for found in references(value)]
    if isinstance(node, list):
        return [found for value in node for found in references(value)]
    return []


def test_the_openapi_document_holds_together() -> None:
    with FakeApp().client() as client:
        document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for reference in references(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    operations = {
        (path, method): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(set(ids)) == len(ids)
    for (path, _), operation in operations.items():
        named = [parameter["name"] for parameter in operation.get("parameters", [])]
        assert len(set(named)) == len(named)
        in_path = [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]
        assert in_path == re.findall(r"{(\w+)}", path)
        assert "200" in operation["responses"]
        assert operation.get("description"), path


@pytest.mark.parametrize(
    ("path", "options", "answer"),
    [
        ("/v1/classify", ClassifyOptions, ClassifyAnswer),
        ("/v1/embed", EmbedOptions, EmbedAnswer),
        ("/v1/detect", DetectOptions, DetectAnswer),
        ("/v1/segment", SegmentOptions, SegmentAnswer),
        ("/v1/attention", AttentionOptions, AttentionAnswer),
    ],
)
def test_a_picture_route_documents_its_parameters_bodies_answers_and_problems(
    path: str, options: type[Options], answer: type[Answer]
) -> None:
    fake = FakeApp([manifest_of(), detector_of(), segmenter_of()])
    fake.link.answer = {"/v1/detect": FOUND, "/v1/segment": PANOPTIC}.get(path)
    with fake.client() as client:
        document = client.get("/openapi.json").json()
        operation = document["paths"][path]["post"]
        bodies = operation["requestBody"]["content"]
        for example in bodies["application/json"]["examples"].values():
            assert client.post(path, json=example["value"]).status_code == 200
    named: dict[str, set[str]] = {"query": set(), "header": set()}
    for parameter in operation["parameters"]:
        assert parameter["description"]
        named[parameter["in"]].add(parameter["name"])
    assert named == {"query": set(options.model_fields), "header": {"X-Request-Timeout-Ms"}}
    assert {"image/jpeg", "image/png", "image/webp", "multipart/form-data"} < bodies.keys()
    base64.b64decode(bodies["application/json"]["examples"]["one"]["value"]["image"])
    for example in answer.model_json_schema()["examples"]:
        assert answer.model_validate(example).model_dump(exclude_none=True).keys() == example.keys()
    statuses = {"200", "400", "404", "408", "413", "415", "422", "429", "500", "503", "504"}
    assert statuses <= operation["responses"].keys()
    files = {
        "/v1/attention": {"image/png", "application/x-npy"},
        "/v1/detect": {"image/png", "image/jpeg", "image/webp"},
        "/v1/segment": {"image/png", "image/jpeg", "image/webp", "multipart/mixed"},
    }.get(path, set())
    good = operation["responses"]["200"]
    assert good["content"].keys() == {"application/json"} | files
    assert ("406" in operation["responses"], "headers" in good) == (bool(files), bool(files))


def test_a_trace_keeps_the_slowest_picture_of_each_stage() -> None:
    trace = Trace("r", "t", started_s=0)
    for stage, seconds in (("decode", 1.0), ("infer", 2.0), ("decode", 3.0), ("decode", 2.0)):
        trace.record(stage, seconds)
    assert trace.stages_s == {"decode": 3.0, "infer": 2.0}
