"""Who gets in: keys on every route but probes, admin routes, metrics."""

import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from service.api.app import create_app
from service.api.security import METRICS, PROBES, require_admin
from service.errors import BadSettings
from service.metrics import Metrics
from service.settings import Settings
from tests.service.fake_app import FakeApp, picture

ANNA, BERT, ROOT = "anna-0123456789abcdef", "bert-0123456789abcdef", "root-0123456789abcdef"
KEYS: dict[str, Any] = {"api_keys": f"anna:{ANNA},{BERT}"}
ADMIN: dict[str, Any] = {"admin_keys": f"root:{ROOT}"}


def routes() -> list[tuple[str, str]]:
    """Method and path of every documented route and of what describes them."""
    documented = FakeApp().app.openapi()["paths"]
    found = [
        (method.upper(), path.replace("{name}", "tiny"))
        for path, methods in documented.items()
        for method in methods
    ]
    undocumented = ("/page/status", "/docs", "/openapi.json", "/nowhere")
    return [*found, *(("GET", path) for path in undocumented)]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def with_admin_route(**settings: Any) -> TestClient:
    """An application with one more route, for admins only."""
    fake = FakeApp(**settings)

    async def secret(request: Request) -> dict[str, str]:
        require_admin(request)
        return {"for": "admins"}

    fake.app.add_api_route("/secret", secret)
    return fake.client()


def test_every_route_asks_for_a_key_but_the_probes() -> None:
    with FakeApp(**KEYS).client() as client:
        for method, path in routes():
            response = client.request(method, path, follow_redirects=False)
            if path in PROBES:
                assert response.status_code == 200, path
                continue
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["code"] == "unauthorized"
            assert response.json()["request_id"] == response.headers["x-request-id"]


def test_paths_that_only_resemble_a_probe_ask_for_a_key() -> None:
    with FakeApp(**KEYS).client() as client:
        for path in (
            "/livez/",
            "/LIVEZ",
            "http://testserver//livez",
            "/livez/../v1/models",
            "/livez%2f",
            "/v2/health",
        ):
            response = client.get(path, follow_redirects=False)
            assert response.status_code == 401, path
        assert client.post("/%76%31/classify", content=picture()).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        bearer(ANNA),
        {"authorization": f"bearer  {ANNA} "},
        {"x-api-key": ANNA},
        {"x-api-key": ANNA, "authorization": "Basic YTpi"},
        bearer(BERT),
    ],
)
def test_a_key_opens_as_a_bearer_token_or_in_a_header_of_its_own(headers: dict[str, str]) -> None:
    with FakeApp(**KEYS).client() as client:
        assert client.post("/v1/classify", content=picture(), headers=headers).status_code == 200
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer(ANNA[:-1]),
        bearer(f"anna:{ANNA}"),
        {"authorization": ANNA},
        {"authorization": f"Basic {ANNA}"},
        {"x-api-key": ROOT},
        {"x-api-key": "x" * 5000},
        {"cookie": f"key={ANNA}"},
    ],
)
def test_what_is_no_key_is_refused_before_the_body_and_never_repeated(
    headers: dict[str, str],
) -> None:
    fake = FakeApp(**KEYS)
    with fake.client() as client:
        url = f"/v1/classify?key={ANNA}"
        response = client.post(url, content=picture(), headers=headers)
        assert response.status_code == 401
        assert "0123456789abcdef" not in response.text
    assert fake.link.asked == []
    value = fake.metrics.registry.get_sample_value(
        "saccade_rejections_total", {"reason": "unauthorized"}
    )
    assert value == 1


def test_without_keys_everything_but_admin_routes_is_open() -> None:
    with FakeApp().client() as client:
        assert client.post("/v1/classify", content=picture()).status_code == 200


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        ({}, {}, 404),
        ({}, bearer(ROOT), 404),
        (KEYS, bearer(ANNA), 404),
        (ADMIN, {}, 401),
        (ADMIN, bearer(ANNA), 401),
        (ADMIN, bearer(ROOT), 200),
        (KEYS | ADMIN, {}, 401),
        (KEYS | ADMIN, bearer(ANNA), 403),
        (KEYS | ADMIN, {"x-api-key": ROOT}, 200),
    ],
)
def test_admin_routes_are_not_there_without_admin_keys_and_need_one_with_them(
    settings: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    with with_admin_route(**settings) as client:
        response = client.get("/secret", headers=headers)
        assert response.status_code == status
        if status == 404:
            unknown = client.get("/nowhere", headers=headers).json()
            assert response.json()["detail"] == unknown["detail"].replace("/nowhere", "/secret")


def test_an_admin_key_opens_what_all_keys_open() -> None:
    with FakeApp(**KEYS, **ADMIN).client() as client:
        assert client.get("/v1/models", headers=bearer(ROOT)).status_code == 200


@pytest.mark.parametrize(
    ("access", "without", "with_key"), [("key", 401, 200), ("open", 200, 200), ("off", 401, 404)]
)
def test_metrics_ask_for_a_key_or_not_or_are_off(access: str, without: int, with_key: int) -> None:
    with FakeApp(**KEYS, metrics_access=access).client() as client:
        assert client.get(METRICS).status_code == without
        assert client.get(METRICS, headers=bearer(ANNA)).status_code == with_key
        assert client.get("/v1/models").status_code == 401


def test_clients_are_told_apart_by_key_or_else_by_address() -> None:
    def client_of(fake: FakeApp, headers: dict[str, str]) -> Any:
        async def who(request: Request) -> Any:
            return request.state.client

        fake.app.add_api_route("/who", who)
        with fake.client() as client:
            return client.get("/who", headers=headers).json()

    assert client_of(FakeApp(**KEYS), bearer(ANNA)) == "anna"
    assert client_of(FakeApp(**KEYS), bearer(BERT)).startswith("key-")
    assert client_of(FakeApp(**KEYS, **ADMIN), bearer(ROOT)) == "root"
    assert client_of(FakeApp(), {}) == "testclient"  # the peer's address


def test_the_log_says_who_asked_and_never_with_which_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG), FakeApp(**KEYS).client() as client:
        client.post("/v1/classify", content=picture(), headers=bearer(ANNA))
        client.post(f"/v1/classify?key={ROOT}", content=picture(), headers=bearer(ROOT))
    lines = [record for record in caplog.records if record.name == "saccade.access"]
    assert [vars(line)["facts"]["client"] for line in lines] == ["anna", "testclient"]
    ours = [record for record in caplog.records if record.name.startswith(("saccade", "service"))]
    assert not [line for line in ours if "0123456789abcdef" in repr(vars(line))]


@pytest.mark.parametrize(
    ("settings", "says"),
    [({}, "everybody who reaches the port may ask"), (KEYS, "who shows a key may ask")],
)
def test_the_log_says_at_the_start_who_may_ask(
    caplog: pytest.LogCaptureFixture, settings: dict[str, Any], says: str
) -> None:
    with caplog.at_level(logging.INFO):
        FakeApp(**settings)
    assert says in caplog.messages


def test_a_bad_key_file_stops_the_start_before_anything_is_served(tmp_path: Path) -> None:
    settings = Settings(api_keys_file=str(tmp_path / "missing"))
    with pytest.raises(BadSettings, match=r"--api-keys-file: .*missing"):
        create_app(settings, "ipc://nowhere", Metrics())
