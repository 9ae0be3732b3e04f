"""What bodies may hold and how long they may take, whatever the rest of the server does."""

import asyncio
import json
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.bodies import MAX_FIELD_BYTES, MAX_FIELDS, parse_options
from service.api.schemas.detect import DetectOptions
from service.errors import InvalidParameter
from tests.service.fake_app import FakeApp, picture
from tests.service.sample_bundle import detector_of
from tests.service.test_detect_api import FOUND

KINDS = ("application/json", "multipart/form-data; boundary=x", "image/png", "", "Multipart/Form")


def part(name: str, data: bytes, *headers: str, file: bool = True) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"' + '; filename="f"' * file
    return "\r\n".join(["--x", disposition, *headers, "", ""]).encode() + data + b"\r\n"


FORM = (
    part("image", picture(green=200), "Content-Type: image/png")
    + part("top_k", b"2", file=False)
    + b"--x--\r\n"
)
JSON = json.dumps({"images": ["aGVsbG8=", "data:image/png;base64,AAAA"], "top_k": 2}).encode()


def post(body: bytes, kind: str = KINDS[1], **settings: Any) -> tuple[int, dict[str, Any]]:
    fake = FakeApp(**settings)
    with fake.client() as client:
        response = client.post("/v1/classify", content=body, headers={"content-type": kind})
    document: dict[str, Any] = response.json()
    return response.status_code, document


def test_a_form_with_a_picture_and_a_parameter_is_answered() -> None:
    status, answer = post(FORM)
    assert status == 200
    assert [found["label"] for found in answer["predictions"]] == ["bee", "ant"]


@pytest.mark.parametrize("end", [b"", b"--x", b"--x\r\n", b"--x-"])
def test_a_form_that_ends_early_is_refused_before_its_last_part_is_missed(end: bytes) -> None:
    body = part("image", picture(green=200)) + part("top_k", b"2", file=False) + end
    status, problem = post(body)
    assert (status, problem["code"]) == (400, "invalid_body")
    assert "ends early" in problem["detail"]


def test_what_comes_several_times_is_a_list_or_refused() -> None:
    fake = FakeApp([detector_of()])
    fake.link.answer = FOUND
    with fake.client() as client:
        url, kind = "/v1/detect?threshold=0", {"content-type": "image/png"}

        def detect(query: str) -> Any:
            return client.post(url + query, content=picture(), headers=kind)

        one = {found["label"] for found in detect("&labels=cat").json()["predictions"]}
        both = {found["label"] for found in detect("&labels=cat&labels=ant").json()["predictions"]}
        refused = detect("&top_k=1&top_k=2&top_k=3")
        files = {"image": ("x", picture())}
        form = client.post(url, files=files, data={"labels": ["cat", "ant"]}).json()
        twice = client.post("/v1/detect", files=files, data={"model": ["tiny", "tiny"]})
    assert (one, both) == ({"cat"}, {"cat", "ant"})
    assert {found["label"] for found in form["predictions"]} == both
    assert refused.status_code == twice.status_code == 422
    assert (refused.json()["parameters"], twice.json()["parameters"]) == (["top_k"], ["model"])
    assert "found ['1', '2', '3']" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        pytest.param(
            part("top_k", b"1", file=False) * (MAX_FIELDS + 1) + FORM, 400, "fields", id="fields"
        ),
        pytest.param(part("image", b"a") * 17 + b"--x--\r\n", 413, "at most 16", id="files"),
        pytest.param(
            part("top_k", b"1" * (MAX_FIELD_BYTES + 1), file=False) + FORM, 400, "64KB", id="field"
        ),
        pytest.param(part("image", b"a", "X: " + "a" * 5000), 400, "form", id="long part header"),
        pytest.param(part("image", b"a", *["X: a"] * 20), 400, "form", id="many part headers"),
    ],
)
def test_parts_of_a_form_are_bounded_in_number_and_size(
    body: bytes, status: int, says: str
) -> None:
    found, problem = post(body)
    assert found == status
    assert says in problem["detail"]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"labels": [None] * 100_000}, "at most 1024 items"),
        ({"labels": [None] * 1_000}, "valid string, found None"),
        ({"labels": "a" * 100_000}, "at most 65536 characters"),
        ({"top_k": ["a" * 100] * 100_000}, "top_k: Input should be a valid integer"),
        ({f"x{i}": 1 for i in range(100_000)}, "found 100000 parameters; there are labels, model"),
    ],
)
def test_a_refusal_of_a_hundred_thousand_faults_is_short(
    parameters: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidParameter) as refused:
        parse_options(DetectOptions, parameters)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 1000
    names = refused.value.facts["parameters"]
    assert isinstance(names, list)
    assert len(names) <= 10


def test_a_boundary_is_bounded() -> None:
    status, problem = post(FORM, "multipart/form-data; boundary=" + "x" * 1000)
    assert (status, problem["code"]) == (400, "invalid_body")


def test_large_files_of_a_form_never_touch_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def rollover(self: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
    status, problem = post(part("image", picture() + bytes(3 * 2**20)) + b"--x--\r\n")
    assert status == 200, problem


def test_bodies_that_dribble_do_not_take_the_room_of_those_that_are_here() -> None:
    fake = FakeApp(max_queue=1)

    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def at_once() -> dict[str, Any]:
        return {"type": "http.request", "body": picture(green=200), "more_body": False}

    async def scenario() -> int:
        async with fake.lifespan(fake.app) as state:
            path, kind = "/v1/classify", {"content-type": "image/png"}
            slow = [asyncio.create_task(fake.call(path, kind, never, state)) for _ in range(5)]
            await asyncio.sleep(0)
            sent = await fake.call(path, kind, _then_wait(at_once), state)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
            status: int = sent[0]["status"]
            return status

    assert asyncio.run(scenario()) == 200


def _then_wait(first: Callable[[], Any]) -> Callable[[], Any]:
    """Receive one message, then nothing more."""
    received: list[bool] = []

    async def receive() -> dict[str, Any]:
        if received:
            await asyncio.Event().wait()
        received.append(True)
        message: dict[str, Any] = await first()
        return message

    return receive


def mutated(valid: bytes) -> st.SearchStrategy[bytes]:
    """A valid text with a stretch of it replaced, removed or repeated."""
    place = st.integers(0, len(valid))

    def change(start: int, end: int, new: bytes, times: int) -> bytes:
        first, last = sorted((start, end))
        return valid[:first] + new + valid[first:last] * times + valid[last:]

    return st.builds(change, place, place, st.binary(max_size=20), st.integers(0, 3))


@pytest.fixture(scope="module")
def post_any() -> Any:
    """Posts to one application, which is costly to make anew for each body."""
    fake = FakeApp()
    with fake.client() as client:
        yield lambda body, kind: client.post(
            "/v1/classify", content=body, headers={"content-type": kind}
        )


leaves = st.none() | st.booleans() | st.floats() | st.text() | st.integers()
documents = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
posted = st.dictionaries(
    st.sampled_from(["image", "images", "top_k", "threshold", "model", "timeout_ms"]) | st.text(),
    documents,
)
bodies = (
    st.binary(max_size=300)
    | mutated(FORM)
    | mutated(JSON)
    | (posted | documents).map(lambda found: json.dumps(found).encode())
)


@settings(deadline=None)
@given(body=bodies, kind=st.sampled_from(KINDS) | st.text(st.characters(codec="latin-1")))
def test_no_body_of_any_kind_is_our_fault(post_any: Any, body: bytes, kind: str) -> None:
    try:
        response = post_any(body, kind.encode("latin-1"))
    except ValueError:  # the client library refuses to send such a header
        return
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        problem = response.json()
        assert response.headers["content-type"] == "application/problem+json"
        assert problem["status"] == response.status_code
