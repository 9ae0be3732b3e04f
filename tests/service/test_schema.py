"""Every answer to what the OpenAPI document allows, and to much that it does not, is one that the
document announces.

A run of all tests sends a few requests to each operation. For a thousand, and schemathesis' own
phases besides, start a server and give its address to::

    schemathesis --config-file tests/service/schemathesis.toml \\
        run http://127.0.0.1:8000/openapi.json --mode all --max-examples 1000
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import schemathesis.checks
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, CheckContext, GenerationMode, Response

from tests.service.fake_app import FakeApp


def no_bug(context: CheckContext, response: Response, case: Case[Any]) -> None:
    """A deadline of one millisecond may pass; nothing else that is sent may be our fault."""
    assert response.status_code < 500 or response.status_code in (503, 504)


CHECKS = [
    no_bug,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_headers_conformance,
    schemathesis.checks.response_schema_conformance,
]
OPERATIONS = [
    (path, method)
    for path, methods in FakeApp().app.openapi()["paths"].items()
    for method in methods
]


@pytest.fixture(scope="module")
def document() -> Iterator[Any]:
    """What the application says of itself, and a way to ask it."""
    fake = FakeApp()
    with fake.client():
        yield schemathesis.openapi.from_asgi("/openapi.json", fake.app)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_are_those_that_the_document_announces(
    document: Any, path: str, method: str, mode: GenerationMode
) -> None:
    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=document[path][method].as_strategy(mode))
    def answers(case: Case[Any]) -> None:
        case.call_and_validate(checks=CHECKS)

    with contextlib.suppress(Unsatisfiable):  # where nothing can be wrong, nothing is tried
        answers()
