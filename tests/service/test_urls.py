"""Pictures by URL over HTTP, from a host that a fake stands for."""

import asyncio
import base64
from typing import Any

import pytest

from service.api.serving import Serving
from service.errors import UrlFailed, UrlRefused
from service.fetch import ImageFetcher
from tests.service.fake_app import FakeApp, picture

URL = "https://images.example.org/green.png"
GREEN, RED = picture(green=200), picture(red=200)


class FakeFetcher(ImageFetcher):
    """Knows one picture; everything else is judged as ever, and not found."""

    def __init__(self, hosts: list[str], data: bytes = GREEN) -> None:
        super().__init__(hosts, 10**6, 1.0)
        self.data = data
        self.begun, self.cancelled = asyncio.Event(), False
        self.wait: asyncio.Event | None = None

    async def fetch(self, url: str) -> bytes:
        self.check(url)
        self.begun.set()
        try:
            if self.wait is not None:
                await self.wait.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if url != URL:
            raise UrlFailed("images.example.org answered with status 404", answered=404)
        return self.data


@pytest.fixture
def fetcher(monkeypatch: pytest.MonkeyPatch) -> FakeFetcher:
    """What stands behind every application that allows hosts."""
    fake = FakeFetcher(["images.example.org"])
    monkeypatch.setattr("service.api.serving.ImageFetcher", lambda *_: fake)
    return fake


def labels(answer: Any) -> str:
    return str(answer["predictions"][0]["label"])


@pytest.mark.parametrize("body", [{"url": URL}, {"image": {"url": URL}}])
def test_a_picture_by_url_is_answered_like_its_bytes(
    fetcher: FakeFetcher, body: dict[str, Any]
) -> None:
    with FakeApp(url_hosts="images.example.org").client() as client:
        response = client.post("/v1/classify", json=body | {"top_k": 1})
        assert response.status_code == 200
        assert labels(response.json()) == "bee"
        assert response.json() == client.post("/v1/classify?top_k=1", content=GREEN).json()
        assert "fetch;dur=" in response.headers["server-timing"]


def test_urls_and_bytes_may_be_mixed_and_each_fails_for_itself(fetcher: FakeFetcher) -> None:
    images = [
        {"url": URL},
        base64.b64encode(RED).decode(),
        {"url": "https://images.example.org/none.png"},
        {"url": "https://169.254.169.254/"},
    ]
    with FakeApp(url_hosts="images.example.org").client() as client:
        response = client.post("/v1/classify", json={"images": images})
    assert response.status_code == 200
    green, red, missing, inside = response.json()["results"]
    assert (labels(green), labels(red)) == ("bee", "ant")
    assert (missing["status"], missing["code"]) == (424, "url_failed")
    assert (inside["status"], inside["code"]) == (422, "url_refused")


def test_by_default_no_url_is_fetched() -> None:
    fake = FakeApp()
    with fake.client() as client:
        response = client.post("/v1/classify", json={"url": URL})
    assert (response.status_code, response.json()["code"]) == (422, "url_refused")
    assert "--url-hosts" in response.json()["detail"]
    assert fake.link.asked == []


@pytest.mark.parametrize(
    "body",
    [
        {"url": URL, "image": "AAAA"},
        {"url": 7},
        {"url": None},
        {"image": {"url": URL, "headers": {}}},
        {"image": {}},
        {"images": [{"uri": URL}]},
        {"images": [{"url": [URL]}]},
    ],
)
def test_json_that_names_no_one_url_is_refused(body: dict[str, Any]) -> None:
    with FakeApp(url_hosts="images.example.org").client() as client:
        response = client.post("/v1/classify", json=body)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_body")


def test_a_fetched_picture_counts_against_the_limit_of_a_body(fetcher: FakeFetcher) -> None:
    fetcher.data = GREEN + bytes(1500)
    with FakeApp(url_hosts="images.example.org", max_body_bytes=2048).client() as client:
        assert client.post("/v1/classify", json={"url": URL}).status_code == 200
        two = client.post("/v1/classify", json={"images": [{"url": URL}, {"url": URL}]})
    codes = [result.get("code") for result in two.json()["results"]]
    assert codes == [None, "too_large"]


def test_a_client_that_leaves_ends_the_fetching(fetcher: FakeFetcher) -> None:
    async def scenario() -> None:
        fetcher.wait = asyncio.Event()
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": b'{"url": "' + URL.encode() + b'"}'}
        ]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await fetcher.begun.wait()
            return {"type": "http.disconnect"}

        fake = FakeApp(url_hosts="images.example.org")
        await fake.call("/v1/classify", {"content-type": "application/json"}, receive)

    asyncio.run(scenario())
    assert fetcher.cancelled


def test_a_fetch_past_the_deadline_of_its_request_is_late(fetcher: FakeFetcher) -> None:
    fetcher.wait = asyncio.Event()
    with FakeApp(url_hosts="images.example.org").client() as client:
        response = client.post("/v1/classify", json={"url": URL, "timeout_ms": 50})
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


def test_settings_bound_what_is_fetched() -> None:
    settings = FakeApp(url_hosts="a.example.org, *.example.com", max_body_bytes=5000).settings
    fake = FakeApp(**settings.model_dump())

    async def scenario() -> ImageFetcher | None:
        async with fake.lifespan(fake.app) as state:
            serving: Serving = state["serving"]
            return serving.fetcher

    fetcher = asyncio.run(scenario())
    assert fetcher is not None
    assert fetcher.check("https://b.example.com/x").host == "b.example.com"
    with pytest.raises(UrlRefused):
        fetcher.check("https://example.com/x")
