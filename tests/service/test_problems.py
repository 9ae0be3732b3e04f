"""Errors over HTTP: one status each, in RFC 9457 problem documents."""

import json
from typing import Any

import pytest
from starlette.requests import Request

from service.api.problems import MEDIA_TYPE, STATUS, problem_of, response_of, status_of
from service.api.schemas.base import Problem
from service.errors import (
    ClientError,
    InvalidParameter,
    NotReady,
    Overloaded,
    RuntimeFailed,
    ServerError,
    ServiceError,
    TooLarge,
    leaves,
)
from service.tracing import start_trace


def request_for(path: str, request_id: str) -> Request:
    state = {"trace": start_trace(request_id, None)}
    return Request(
        {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"test")],
            "state": state,
        }
    )


@pytest.mark.parametrize("kind", leaves(ClientError), ids=lambda kind: kind.__name__)
def test_what_the_client_can_mend_is_4xx(kind: type[ServiceError]) -> None:
    assert 400 <= status_of(kind("x")) < 500


@pytest.mark.parametrize("kind", leaves(ServerError), ids=lambda kind: kind.__name__)
def test_what_is_ours_is_5xx_and_overload_is_429(kind: type[ServiceError]) -> None:
    status = status_of(kind("x"))
    assert status == 429 if kind is Overloaded else 500 <= status < 600


def test_the_table_is_the_promised_one() -> None:
    found = {kind.code: status_of(kind("x")) for kind in leaves(ClientError)}
    assert found == {
        "invalid_body": 400,
        "bad_image": 400,
        "decoder_lost": 400,
        "unauthorized": 401,
        "forbidden": 403,
        "unknown_model": 404,
        "not_acceptable": 406,
        "slow_body": 408,
        "cannot_load": 409,
        "too_large": 413,
        "unsupported_format": 415,
        "invalid_parameter": 422,
        "unsupported_task": 422,
        "quarantined": 422,
        "url_refused": 422,
        "url_failed": 424,
    }
    found = {kind.code: status_of(kind("x")) for kind in leaves(ServerError)}
    assert found == {
        "overloaded": 429,
        "runtime_failed": 500,
        "not_ready": 503,
        "worker_lost": 503,
        "out_of_memory": 503,
        "deadline_exceeded": 504,
    }


def test_every_entry_of_the_table_is_an_error() -> None:
    assert all(issubclass(kind, ServiceError) for kind in STATUS)


def test_a_problem_says_what_where_and_for_which_request() -> None:
    error = TooLarge("the body has 12 bytes", found=12, limit=10)
    problem = problem_of(error, request_for("/v1/classify", "abc-1"))
    Problem.model_validate(problem)
    assert "Too Large" in problem.pop("title")  # its wording follows the Python version
    assert problem == {
        "type": "urn:saccade:problem:too_large",
        "status": 413,
        "detail": "the body has 12 bytes",
        "instance": "/v1/classify",
        "code": "too_large",
        "request_id": "abc-1",
        "found": 12,
        "limit": 10,
    }


@pytest.mark.parametrize(("retry_after_s", "header"), [(0.1, "1"), (1.0, "1"), (2.2, "3")])
def test_retry_after_is_in_whole_seconds_and_never_zero(retry_after_s: float, header: str) -> None:
    error = NotReady("starting", retry_after_s=retry_after_s)
    response = response_of(error, request_for("/v1/embed", "r"))
    assert response.status_code == 503
    assert response.headers["retry-after"] == header
    assert response.headers["content-type"] == MEDIA_TYPE
    assert json.loads(bytes(response.body))["retry_after_s"] == retry_after_s


@pytest.mark.parametrize("error", [RuntimeFailed("x"), InvalidParameter("x")])
def test_what_will_not_pass_has_no_retry_after(error: ServiceError) -> None:
    response = response_of(error, request_for("/v1/embed", "r"))
    assert "retry-after" not in response.headers


def test_text_that_utf8_cannot_hold_does_not_break_the_answer() -> None:
    names: list[Any] = ["\ud800"]
    error = InvalidParameter("there is no parameter '\\ud800'", parameters=names)
    response = response_of(error, request_for("/v1/embed", "r"))
    assert json.loads(bytes(response.body))["parameters"] == ["\ud800"]
