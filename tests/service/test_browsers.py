"""What browsers are told, and whose pages may ask."""

import base64
import hashlib
import re

import pytest

from service.api.browsers import page_policy
from tests.service.fake_app import FakeApp, picture

ORIGIN = "https://example.org"
KEY = "anna-0123456789abcdef"


def test_every_answer_may_do_nothing_in_a_browser() -> None:
    fake = FakeApp()
    with fake.client() as client:
        answers = [
            client.get("/v1/models"),
            client.get("/metrics"),
            client.get("/nothing"),
            client.get("/page/status"),
            client.post("/v1/classify", content=picture()),
            client.post("/v1/classify", content=b"x"),
            client.post("/v1/attention", content=picture(), headers={"accept": "image/png"}),
        ]
        fake.link.before = lambda: 1 / 0  # type: ignore[assignment]
        answers.append(client.post("/v1/classify", content=picture()))
    assert [answer.status_code for answer in answers] == [200, 200, 404, 200, 200, 415, 200, 500]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = answer.headers["content-security-policy"]
        assert policy == "default-src 'none'; frame-ancestors 'none'"


def test_the_documentation_runs_its_own_script_and_no_other() -> None:
    with FakeApp().client() as client:
        page = client.get("/docs")
    policy = page.headers["content-security-policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert "'unsafe-inline'" not in rules["script-src"]
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert "https:" not in page.text + policy


def test_the_documentation_comes_with_what_it_loads() -> None:
    with FakeApp().client() as client:
        page = client.get("/docs").text
        paths = re.findall(r'(?:src|href)="([^"]+)"', page)
        answers = {path: client.get(path) for path in paths}
        assert client.get("/docs/redoc.standalone.js").status_code == 422
    assert sorted(answers) == [
        "/docs/swagger-ui-bundle.js",
        "/docs/swagger-ui.css",
        "/page/mark.svg",
    ]
    assert {answer.status_code for answer in answers.values()} == {200}
    assert b"SwaggerUIBundle" in answers["/docs/swagger-ui-bundle.js"].content


def test_a_policy_names_what_a_page_loads() -> None:
    page = '<img src="https://a.example/x.png"><script src="https://b.example/y.js"></script>'
    assert "script-src 'self' https://a.example https://b.example;" in page_policy(page)


def test_pages_of_other_origins_may_read_nothing_unless_they_are_named() -> None:
    headers = {"origin": ORIGIN}
    with FakeApp().client() as client:
        answer = client.post("/v1/classify", content=picture(), headers=headers)
        asked = client.options(
            "/v1/classify", headers=headers | {"access-control-request-method": "POST"}
        )
    for found in (answer, asked):
        assert not [name for name in found.headers if name.startswith("access-control")]


@pytest.mark.parametrize(("named", "allowed"), [(ORIGIN, ORIGIN), ("*", "*")])
def test_pages_of_named_origins_ask_with_a_key_and_read_answers_and_refusals(
    named: str, allowed: str
) -> None:
    fake = FakeApp(cors_origins=f"{named}, http://localhost:3000", api_keys=KEY)
    headers = {"origin": ORIGIN}
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    with fake.client() as client:
        asked = client.options("/v1/classify", headers=headers | preflight)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == allowed
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        refused = client.post("/v1/classify", content=picture(), headers=headers)
        assert refused.status_code == 401
        key = {"authorization": f"Bearer {KEY}"}
        answer = client.post("/v1/classify", content=picture(), headers=headers | key)
        assert answer.status_code == 200
    for found in (refused, answer):
        assert found.headers["access-control-allow-origin"] == allowed
        assert "x-request-id" in found.headers["access-control-expose-headers"].lower()
        assert "access-control-allow-credentials" not in found.headers


def test_an_origin_that_is_not_named_is_told_nothing() -> None:
    fake = FakeApp(cors_origins=ORIGIN)
    with fake.client() as client:
        for origin in ("https://evil.net", "null", f"{ORIGIN}.evil.net", "http://example.org"):
            answer = client.post("/v1/classify", content=picture(), headers={"origin": origin})
            assert "access-control-allow-origin" not in answer.headers


def test_the_document_says_how_a_key_is_sent_where_one_is_needed() -> None:
    assert "security" not in FakeApp().app.openapi()
    document = FakeApp(api_keys=KEY).app.openapi()
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"] == {"type": "http", "scheme": "bearer"}
    assert schemes["header"]["name"] == "X-API-Key"
    assert {"bearer": []} in document["security"]
    assert "401" in document["paths"]["/v1/classify"]["post"]["responses"]
