"""Pictures over HTTP: every kind of body, every kind of answer, every kind of refusal."""

import asyncio
import base64
import io
import json
import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.errors import NotReady, Overloaded, RuntimeFailed
from service.pictures import prepare_ordinary
from service.worker.link import SILENCE_S, WorkerState
from tests.service.fake_app import RUNNING, FakeApp, picture
from tests.service.sample_bundle import manifest_of

RED, GREEN, BLUE = picture(red=200), picture(green=200), picture(blue=200)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def labels_of(answer: dict[str, Any]) -> list[str]:
    return [prediction["label"] for prediction in answer["predictions"]]


def test_raw_bytes_get_classes_best_first_whatever_their_content_type_claims() -> None:
    fake = FakeApp()
    with fake.client() as client:
        for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
            headers = {"content-type": kind}
            response = client.post("/v1/classify", content=GREEN, headers=headers)
            assert response.status_code == 200
            assert response.json() == {
                "model": "tiny",
                "version": "1",
                "precision": "bf16",
                "image": {"width": 12, "height": 6},
                "predictions": [
                    {"label": "bee", "label_id": 1, "score": 0.784314},
                    {"label": "ant", "label_id": 0, "score": 0.0},
                ],
            }
    group, inputs, deadline_s = fake.link.asked[0]
    assert group == ("tiny", "serve", "8x8", "1")
    assert inputs["images"].shape == (8, 8, 3)
    assert inputs["images"].dtype == np.uint8
    assert 0 < deadline_s - time.monotonic() <= fake.settings.timeout_s


def test_multipart_with_one_file_is_one_answer_and_fields_are_parameters() -> None:
    with FakeApp().client() as client:
        response = client.post(
            "/v1/classify", files={"image": ("b.png", BLUE)}, data={"top_k": "1"}
        )
    assert labels_of(response.json()) == ["cat"]


def test_a_picture_alone_is_decoded_on_the_spot_and_several_by_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where: list[str] = []

    def prepare_noted(*args: Any) -> Any:
        where.append(threading.current_thread().name.partition("_")[0])
        return prepare_ordinary(*args)

    monkeypatch.setattr("service.decoding.pool.prepare_ordinary", prepare_noted)
    file = io.BytesIO()
    Image.new("RGB", (12, 6), (255, 0, 0)).save(file, "JPEG")
    jpeg = file.getvalue()
    with FakeApp().client() as client:
        one = client.post("/v1/classify", content=jpeg, headers={"content-type": "image/jpeg"})
        assert len(where) == 1
        assert where.pop() != "decode"
        files = [("image", (f"{index}.jpg", jpeg)) for index in range(3)]
        several = client.post("/v1/classify", files=files)
    assert several.json()["results"] == [one.json()] * 3
    assert where == ["decode"] * 3


def test_many_pictures_get_answers_in_order_and_problems_in_their_places() -> None:
    with FakeApp().client() as client:
        files = [("image", ("x", data)) for data in (RED, b"no picture", BLUE, BLUE[:40], b"")]
        response = client.post(
            "/v1/classify", files=files, params={"top_k": 1}, headers={"x-request-id": "r1"}
        )
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result.get("code") for result in results] == [
        None,
        "unsupported_format",
        None,
        "bad_image",
        "bad_image",
    ]
    assert [labels_of(results[i]) for i in (0, 2)] == [["ant"], ["cat"]]
    assert [results[i]["status"] for i in (1, 3, 4)] == [415, 400, 400]
    assert {results[i]["request_id"] for i in (1, 3, 4)} == {"r1"}


def test_json_takes_one_picture_or_a_list_and_parameters_beside_them() -> None:
    with FakeApp().client() as client:
        one = client.post("/v1/classify", json={"image": base64_of(RED), "top_k": 1})
        url = client.post("/v1/classify", json={"image": f"data:image/png;base64,{base64_of(RED)}"})
        many = client.post("/v1/classify", json={"images": [base64_of(RED)], "threshold": 0.5})
    assert labels_of(one.json()) == ["ant"]
    assert labels_of(url.json())[0] == "ant"
    assert [labels_of(answer) for answer in many.json()["results"]] == [["ant"]]


def test_parameters_of_the_body_beat_those_of_the_query() -> None:
    with FakeApp().client() as client:
        response = client.post(
            "/v1/classify?top_k=2", json={"image": base64_of(RED), "top_k": 3, "threshold": 0}
        )
        query = client.post("/v1/classify?top_k=3", content=RED)
    assert len(response.json()["predictions"]) == 3
    assert len(query.json()["predictions"]) == 3


def test_a_wrong_parameter_of_the_query_is_refused_even_if_the_body_has_a_right_one() -> None:
    with FakeApp().client() as client:
        response = client.post("/v1/classify?top_k=-2", json={"image": base64_of(RED), "top_k": 3})
    assert response.status_code == 422
    assert response.json()["parameters"] == ["top_k"]


def test_a_threshold_leaves_out_what_is_below_it() -> None:
    with FakeApp().client() as client:
        response = client.post("/v1/classify?threshold=0.7&top_k=3", content=GREEN)
    assert labels_of(response.json()) == ["bee"]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("top_k=0", ["top_k", "greater than or equal to 1", "'0'"]),
        ("top_k=many", ["top_k", "'many'"]),
        ("topk=3", ["'topk'", "top_k", "threshold", "model"]),
        ("threshold=nan", ["threshold", "'nan'"]),
        ("threshold=1.5", ["threshold", "less than or equal to 1", "'1.5'"]),
        ("timeout_ms=0", ["timeout_ms", "'0'"]),
        ("top_k=0&threshold=2", ["top_k", "threshold"]),
    ],
)
def test_a_wrong_parameter_is_named_with_what_was_found_and_what_is_allowed(
    query: str, says: list[str]
) -> None:
    with FakeApp().client() as client:
        response = client.post(f"/v1/classify?{query}", content=RED)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "invalid_parameter")
    assert [part for part in says if part not in problem["detail"]] == []
    assert problem["parameters"] == [part.partition("=")[0] for part in query.split("&")]


@pytest.mark.parametrize("name", ["ünïcode", "a" * 500, "\n", ""])
def test_a_parameter_of_any_name_is_refused_and_nothing_breaks(name: str) -> None:
    body = json.dumps({"image": base64_of(RED), name: 1})
    with FakeApp().client() as client:
        response = client.post(
            "/v1/classify", content=body, headers={"content-type": "application/json"}
        )
    assert (response.status_code, response.json()["parameters"]) == (422, [name])


def test_a_parameter_whose_name_is_no_text_is_refused_and_nothing_breaks() -> None:
    body = json.dumps({"image": base64_of(RED), "\ud800": "\ud800", "model": "\ud800"})
    with FakeApp().client() as client:
        headers = {"content-type": "application/json"}
        response = client.post("/v1/classify", content=body, headers=headers)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")


def test_models_are_found_by_name_or_by_task() -> None:
    embeds = manifest_of("embedder", tasks=["embed"])
    with FakeApp([embeds, manifest_of()]).client() as client:
        named = client.post("/v1/classify?model=tiny", content=RED)
        by_task = client.post("/v1/classify", content=RED)
        unable = client.post("/v1/classify?model=embedder", content=RED)
        unknown = client.post("/v1/classify?model=nobody", content=RED)
        first = client.post("/v1/embed", content=RED)
    assert named.json()["model"] == by_task.json()["model"] == "tiny"
    assert first.json()["model"] == "embedder"
    assert (unable.status_code, unable.json()["code"]) == (422, "unsupported_task")
    assert unable.json()["allowed"] == ["tiny"]
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_model")
    assert unknown.json()["allowed"] == ["embedder", "tiny"]


def test_a_task_that_no_model_does_is_refused() -> None:
    with FakeApp([manifest_of(tasks=["embed"])]).client() as client:
        response = client.post("/v1/classify", content=RED)
    assert (response.status_code, response.json()["code"]) == (422, "unsupported_task")


def test_embeddings_come_as_they_are_or_normalised() -> None:
    with FakeApp().client() as client:
        plain = client.post("/v1/embed", content=RED).json()["embedding"]
        unit = client.post("/v1/embed?normalize=true", content=RED).json()["embedding"]
    assert (plain, unit) == ([3, 4, 0, 0], [0.6, 0.8, 0, 0])


def test_attention_as_json_says_where_its_grid_lies() -> None:
    fake = FakeApp()
    with fake.client() as client:
        answer = client.post("/v1/attention?head=all", content=RED).json()
    assert [shown["head"] for shown in answer["maps"]] == [0, 1]
    assert answer["maps"][1] == {
        "kind": "raw",
        "layer": 1,
        "head": 1,
        "query": "class",
        "grid": [2, 2],
        "values": [[0.04, 0.05], [0.06, 0.07]],
    }
    assert answer["transform"] == {
        "canvas": {"width": 8, "height": 8},
        "scale": [1.5, 0.75],
        "offset": [0, 0],
        "region": {"xmin": 0, "ymin": 0, "xmax": 12, "ymax": 6},
    }
    assert [group.graph for group, _, _ in fake.link.asked] == ["serve"]


def test_other_tokens_and_layers_are_asked_of_the_explain_graph() -> None:
    fake = FakeApp()
    with fake.client() as client:
        patch = client.post("/v1/attention?query=1,0&layer=all", content=RED).json()
        rollout = client.post("/v1/attention?kind=rollout", content=RED).json()
    assert [(group.graph, int(inputs["query"])) for group, inputs, _ in fake.link.asked] == [
        ("explain", 3),
        ("explain", 0),
    ]
    assert [shown["layer"] for shown in patch["maps"]] == [0, 1]
    assert patch["maps"][0]["values"] == [[0.02, 0.03], [0.04, 0.05]]
    assert rollout["maps"][0]["values"] == [[0.0, 0.1], [0.2, 0.3]]
    assert "head" not in rollout["maps"][0]


def test_attention_as_an_array_describes_itself_in_a_header() -> None:
    with FakeApp().client() as client:
        response = client.post(
            "/v1/attention?head=all", content=RED, headers={"accept": "application/x-npy"}
        )
    assert response.headers["content-type"] == "application/x-npy"
    array = np.load(io.BytesIO(response.content))
    assert (array.shape, array.dtype) == ((2, 2, 2), np.float32)
    about = json.loads(response.headers["x-saccade-answer"])
    assert (about["layers"], about["heads"]) == ([1], [0, 1])


def test_attention_as_a_picture_is_one_map_over_the_original() -> None:
    with FakeApp().client() as client:
        headers = {"accept": "image/png"}
        response = client.post("/v1/attention", content=RED, headers=headers)
        many = client.post("/v1/attention?head=all", content=RED, headers=headers)
    assert response.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(response.content)).size == (12, 6)
    assert (many.status_code, many.json()["parameter"]) == (422, "head")


def test_a_file_answers_one_picture_only() -> None:
    with FakeApp().client() as client:
        response = client.post(
            "/v1/attention",
            json={"images": [base64_of(RED)] * 2},
            headers={"accept": "application/x-npy"},
        )
    assert (response.status_code, response.json()["code"]) == (400, "invalid_body")


def test_an_accept_header_that_nothing_meets_is_refused_with_what_is_offered() -> None:
    fake = FakeApp()
    with fake.client() as client:
        response = client.post("/v1/attention", content=RED, headers={"accept": "text/html"})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
    assert response.json()["allowed"] == ["application/json", "application/x-npy", "image/png"]
    assert fake.link.asked == []


@pytest.mark.parametrize("query", ["\u0661,\u0660", "0,2", "-1,0", "class token", "\n"])
def test_a_query_that_is_no_token_is_refused_whatever_its_script(query: str) -> None:
    with FakeApp().client() as client:
        response = client.post(
            "/v1/attention",
            params={"query": query},
            content=RED,
            headers={"accept": "application/x-npy"},
        )
    assert (response.status_code, response.json()["parameter"]) == (422, "query")


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b"", "image/png", "empty"),
        (b"{", "application/json", "not JSON"),
        (b"\xff", "application/json", "not JSON"),
        (b"[" * 100_000, "application/json", "not JSON"),
        (b"[]", "application/json", "'image'"),
        (b"{}", "application/json", "'image'"),
        (b'{"image": "", "images": []}', "application/json", "'image'"),
        (b'{"image": ""}', "application/json", "empty"),
        (b'{"images": []}', "application/json", "'images'"),
        (b'{"images": "AAAA"}', "application/json", "'images'"),
        (b'{"image": 7}', "application/json", "int"),
        (b'{"image": "*"}', "application/json", "base64"),
        (b'{"image": "\xc3\xbc"}', "application/json", "base64"),
        (b"x", "multipart/form-data", "boundary"),
        (b"not multipart", "multipart/form-data; boundary=b", "multipart"),
        (b"--b\r\n", "multipart/form-data; boundary=b", "multipart"),
        (
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            "filename",
        ),
    ],
)
def test_a_body_that_is_not_what_it_claims_is_refused(content: bytes, kind: str, says: str) -> None:
    with FakeApp().client() as client:
        response = client.post("/v1/classify", content=content, headers={"content-type": kind})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (400, "invalid_body"), problem
    assert says in problem["detail"]


def test_too_many_pictures_are_refused_in_every_kind_of_body() -> None:
    with FakeApp(max_images=2).client() as client:
        files = [("image", ("x", RED))] * 5
        answers = [
            client.post("/v1/classify", files=files),
            client.post("/v1/classify", files=files[:3]),
            client.post("/v1/classify", json={"images": [base64_of(RED)] * 3}),
        ]
        allowed = client.post("/v1/classify", files=files[:2])
    assert [response.status_code for response in answers] == [413] * 3
    assert {response.json()["limit"] for response in answers} == {2}
    assert len(allowed.json()["results"]) == 2


def test_a_body_past_the_limit_is_refused_announced_or_not() -> None:
    with FakeApp(max_body_bytes=1024).client() as client:
        exact = client.post("/v1/classify", content=RED + bytes(1024 - len(RED)))
        announced = client.post("/v1/classify", content=bytes(1025))
        chunked = client.post("/v1/classify", content=(bytes(100) for _ in range(11)))
        form = client.post("/v1/classify", files={"image": ("x", bytes(2000))})
    assert exact.status_code == 200
    for response in (announced, chunked, form):
        assert (response.status_code, response.json()["code"]) == (413, "too_large")
        assert response.json()["limit"] == 1024
    assert (announced.json()["found"], chunked.json()["found"]) == (1025, 1100)


def test_a_body_that_announces_too_much_is_not_even_read() -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("read")

    headers = {"content-length": "99999999999"}
    sent = asyncio.run(FakeApp().call("/v1/classify", headers, receive))
    assert sent[0]["status"] == 413


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    sent = asyncio.run(FakeApp(body_timeout_s=0.01).call("/v1/classify", {}, receive))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["code"] == "slow_body"


@pytest.mark.parametrize(
    "kind", ["image/png", "application/json", "multipart/form-data; boundary=b"]
)
def test_a_client_that_leaves_while_sending_is_no_error_of_ours(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    messages = iter([{"type": "http.request", "body": b"--b\r\n", "more_body": True}])

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.disconnect"})

    fake = FakeApp()
    asyncio.run(fake.call("/v1/classify", {"content-type": kind}, receive))
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert fake.link.asked == []
    stage = {"stage": "body"}
    assert fake.metrics.registry.get_sample_value("saccade_cancellations_total", stage) == 1


def test_a_client_that_leaves_cancels_the_inference() -> None:
    async def scenario() -> None:
        fake, running, cancelled = FakeApp(), asyncio.Event(), asyncio.Event()

        async def before() -> None:
            running.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        messages = iter([{"type": "http.request", "body": RED, "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in messages:
                return message
            await running.wait()
            return {"type": "http.disconnect"}

        fake.link.before = before
        await fake.call("/v1/classify", {}, receive)
        await asyncio.wait_for(cancelled.wait(), 10)
        labels = {"model": "tiny", "task": "classify", "status": "499"}
        assert fake.metrics.registry.get_sample_value("saccade_requests_total", labels) == 1

    asyncio.run(scenario())


def test_without_a_worker_nothing_is_admitted_and_the_client_is_told_when_to_come_back() -> None:
    fake = FakeApp()
    fake.link.state = WorkerState(phase="the worker died and is being restarted")
    with fake.client() as client:
        response = client.post("/v1/classify", content=RED)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["code"] == "not_ready"
    assert "died" in response.json()["detail"]
    assert fake.link.asked == []


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Overloaded("full", retry_after_s=3), 429, "3"),
        (NotReady("starting"), 503, "1"),
        (RuntimeFailed("failed"), 500, None),
    ],
)
def test_errors_of_the_worker_reach_the_client(
    error: Exception, status: int, retry_after: str | None
) -> None:
    async def before() -> None:
        raise error

    fake = FakeApp()
    fake.link.before = before
    with fake.client() as client:
        response = client.post("/v1/classify", content=RED)
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after


def test_a_request_may_ask_for_less_time_by_parameter_or_header_and_never_for_more() -> None:
    fake = FakeApp(timeout_s=50)
    asked = [
        ("timeout_ms=20000", {}),
        ("timeout_ms=60000", {}),
        ("", {"X-Request-Timeout-Ms": "20000"}),
        ("", {"X-Request-Timeout-Ms": "60000"}),
        ("timeout_ms=40000", {"X-Request-Timeout-Ms": "20000"}),
        ("timeout_ms=20000", {"X-Request-Timeout-Ms": "40000"}),
    ]
    with fake.client() as client:
        for query, headers in asked:
            began_s = time.monotonic()
            url = f"/v1/classify?{query}"
            assert client.post(url, content=RED, headers=headers).status_code == 200
            given_s = fake.link.asked[-1][2] - began_s
            expected_s = 20 if "20000" in f"{query} {headers}" else 50
            assert expected_s - 0.1 < given_s < expected_s + 10


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1.5", "3600001", "1" * 5000, "\u0661"])
def test_a_timeout_header_that_is_no_number_of_milliseconds_is_refused(value: str) -> None:
    with FakeApp().client() as client:
        headers = [(b"X-Request-Timeout-Ms", value.encode())]
        response = client.post("/v1/classify", content=RED, headers=headers)
    assert response.status_code == 422
    assert response.json()["code"] == "invalid_parameter"
    assert response.json()["parameters"] == ["X-Request-Timeout-Ms"]
    assert "from 1 to 3600000" in response.json()["detail"]


def test_a_deadline_that_passes_while_the_body_comes_ends_the_request() -> None:
    async def scenario() -> list[dict[str, Any]]:
        return await FakeApp().call("/v1/classify", {"x-request-timeout-ms": "50"}, never)

    async def never() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    start, body = asyncio.run(scenario())
    assert start["status"] == 504
    assert json.loads(body["body"])["code"] == "deadline_exceeded"


def test_beyond_the_bound_of_the_queue_nothing_is_read() -> None:
    async def read() -> dict[str, Any]:
        raise AssertionError("read")

    async def scenario() -> None:
        fake, running, leave = FakeApp(max_queue=1), asyncio.Event(), asyncio.Event()

        async def before() -> None:
            running.set()
            await leave.wait()

        messages = iter([{"type": "http.request", "body": RED, "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in messages:
                return message
            await asyncio.Event().wait()
            raise AssertionError

        fake.link.before = before
        async with fake.lifespan(fake.app) as state:
            first = asyncio.create_task(fake.call("/v1/classify", {}, receive, state))
            await asyncio.wait_for(running.wait(), 10)
            refused = await fake.call("/v1/classify", {}, read, state)
            leave.set()
            answered = await first
        assert (refused[0]["status"], answered[0]["status"]) == (429, 200)
        assert json.loads(refused[1]["body"])["limit"] == 1
        refusals = {"reason": "overloaded"}
        count = fake.metrics.registry.get_sample_value("saccade_rejections_total", refusals)
        assert count == 1

    asyncio.run(scenario())


def test_json_may_name_layer_and_head_by_number() -> None:
    body = {"image": base64.b64encode(RED).decode(), "layer": 1, "head": 0}
    with FakeApp().client() as client:
        response = client.post("/v1/attention", json=body)
    assert response.status_code == 200, response.text
    assert [(shown["layer"], shown["head"]) for shown in response.json()["maps"]] == [(1, 0)]


def test_a_silent_worker_is_not_ready() -> None:
    fake = FakeApp()
    fake.link.state = WorkerState(True, "ready", RUNNING, heard_s=time.monotonic() - SILENCE_S)
    with fake.client() as client:
        assert client.get("/readyz").status_code == 503
        assert client.head("/readyz").status_code == 503
        response = client.post("/v1/classify", content=RED)
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert "silent" in response.json()["detail"]


def test_a_rollout_takes_no_layer_and_no_head() -> None:
    with FakeApp().client() as client:
        response = client.post("/v1/attention?kind=rollout&layer=0", content=RED)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
    assert "leave out layer" in response.json()["detail"]
