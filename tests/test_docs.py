"""The documentation names everything that users can set, call and meet."""

import re
from pathlib import Path

import pytest
from prometheus_client import Metric

from service.errors import ClientError, ServerError, leaves
from service.metrics import Metrics
from service.settings import PREFIX, SECRETS, Settings
from tests.service.fake_app import FakeApp

ROOT = Path(__file__).parents[1]
ROUTES = [*FakeApp().app.openapi()["paths"], "/", "/docs", "/openapi.json"]
CODES = [kind.code for side in (ClientError, ServerError) for kind in leaves(side)]


def documentation() -> str:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
    return "\n".join(page.read_text() for page in pages)


def mentions(text: str, word: str) -> bool:
    """Whether the word stands there by itself: ``--port`` is not in ``--port-range``."""
    return re.search(rf"(?<![\w/-]){re.escape(word)}(?![\w/-])", text) is not None


def test_a_word_inside_another_is_no_mention() -> None:
    assert mentions("give `--port`, or", "--port")
    assert mentions("POST /v1/classify.", "/v1/classify")
    assert not mentions("--port-range", "--port")
    assert not mentions("/v1/models/{name}", "/v1/models")
    assert not mentions("/v2/health/ready", "/health")
    assert not mentions("SACCADE_PORTS", "SACCADE_PORT")


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_documented_as_flag_and_as_variable(name: str) -> None:
    text = documentation()
    assert name in SECRETS or mentions(text, "--" + name.replace("_", "-"))
    assert mentions(text, PREFIX + name.upper())


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_is_documented(path: str) -> None:
    assert mentions(documentation(), path)


@pytest.mark.parametrize("code", [*CODES, "internal_error"])
def test_every_error_code_is_documented(code: str) -> None:
    assert mentions(documentation(), code)


@pytest.mark.parametrize("metric", list(Metrics().registry.collect()), ids=lambda one: one.name)
def test_every_metric_is_documented_with_its_meaning(metric: Metric) -> None:
    name = metric.name + ("_total" if metric.type == "counter" else "")
    row = f"| `{name}` | {metric.type} | {metric.documentation} |"
    assert row in documentation()


def test_no_variable_is_documented_that_does_not_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", documentation())) - known == set()
