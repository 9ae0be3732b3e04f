"""A request's identity: the caller's ids where they are well-formed, new ones otherwise."""

import json
import logging
import re

import pytest

from service.logs import JsonFormatter
from service.tracing import start_trace

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "traceparent",
    [
        f"00-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-00",
        f"01-{TRACE_ID}-{PARENT_ID}-01-what-a-later-version-adds",
    ],
)
def test_a_well_formed_traceparent_is_joined(traceparent: str) -> None:
    assert start_trace(None, traceparent).trace_id == TRACE_ID


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID.upper()}-{PARENT_ID}-01",
        f"00-{TRACE_ID[:-1]}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}",
        f"00-{TRACE_ID}-{PARENT_ID}-01-extra",
        f" 00-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-01\n",
    ],
)
def test_a_malformed_traceparent_starts_a_new_trace(traceparent: str | None) -> None:
    first, second = start_trace(None, traceparent), start_trace(None, traceparent)
    assert re.fullmatch("[0-9a-f]{32}", first.trace_id)
    assert TRACE_ID not in (first.trace_id, second.trace_id)
    assert first.trace_id != second.trace_id


@pytest.mark.parametrize("given", ["a", "A-b_c.d:e/f+g=", "x" * 128])
def test_a_harmless_request_id_is_kept(given: str) -> None:
    assert start_trace(given, None).request_id == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\n", 'a"', "ü", "a;b", "<a>"])
def test_any_other_request_id_is_replaced(given: str | None) -> None:
    assert re.fullmatch("[0-9a-f]{16}", start_trace(given, None).request_id)


def test_a_log_line_is_one_json_object_with_what_was_passed() -> None:
    record = logging.LogRecord("saccade.access", logging.INFO, "x", 1, "GET %s", ("/\n",), None)
    record.created, record.msecs = 1700000000.25, 250.0
    vars(record)["facts"] = {"request_id": "r-1", "seconds": 0.5}
    line = JsonFormatter("api 0").format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "role": "api 0",
        "logger": "saccade.access",
        "message": "GET /\n",
        "request_id": "r-1",
        "seconds": 0.5,
    }
