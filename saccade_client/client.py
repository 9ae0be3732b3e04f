"""The two clients, which differ only in how they wait."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

import httpx

from saccade_client.asking import Patience, question
from saccade_client.errors import SaccadeError
from saccade_client.options import (
    AttentionOptions,
    ClassifyOptions,
    DetectOptions,
    EmbedOptions,
    SegmentOptions,
)
from saccade_client.pictures import Picture
from saccade_client.results import (
    Attention,
    Classification,
    Detections,
    Embedding,
    Segmentation,
)

TIMEOUT_S = 30.0
MOST_AT_ONCE = 64
Hear = Callable[[httpx.Response], Awaitable[None]]
"""Is told of a response as soon as its headers are there, in the task that asked."""


class _Connection(TypedDict):
    base_url: str
    headers: dict[str, str]
    limits: httpx.Limits


class Client:
    """Asks one server; safe to share between threads, and best closed by ``with``.

    Every call answers within ``timeout_s``, retries included, or raises a ``SaccadeError``: it is
    sent again after the pause that a busy server asks for, as long as that ends in time.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self._http = httpx.Client(**_connection(url, api_key), transport=transport)

    def classify(self, picture: Picture, **options: Unpack[ClassifyOptions]) -> Classification:
        """Its classes, best first."""
        return Classification.of(self.ask("classify", picture, options), picture)

    def detect(self, picture: Picture, **options: Unpack[DetectOptions]) -> Detections:
        """The objects in it, best first."""
        return Detections.of(self.ask("detect", picture, options), picture)

    def segment(self, picture: Picture, **options: Unpack[SegmentOptions]) -> Segmentation:
        """Its segments with their masks."""
        return Segmentation.of(self.ask("segment", picture, options), picture)

    def embed(self, picture: Picture, **options: Unpack[EmbedOptions]) -> Embedding:
        """A vector for it."""
        return Embedding.of(self.ask("embed", picture, options), picture)

    def attention(self, picture: Picture, **options: Unpack[AttentionOptions]) -> Attention:
        """What a token, place, object or class looked at."""
        return Attention.of(self.ask("attention", picture, options), picture)

    def ask(self, task: str, picture: Picture, options: Mapping[str, Any]) -> dict[str, Any]:
        """The answer as the server's JSON says it.

        Raises:
            SaccadeError: there is none.
        """
        parameters = dict(options)
        patience = Patience(parameters.pop("timeout_s", self.timeout_s))
        return self._send(question(task, picture, parameters), patience)

    def models(self) -> list[dict[str, Any]]:
        """What is served: names, tasks, precision, what runs it."""
        models: list[dict[str, Any]] = self._get("/v1/models")["models"]
        return models

    def model(self, name: str) -> dict[str, Any]:
        """One model with its whole manifest."""
        return self._get(f"/v1/models/{name}")

    def ready(self) -> bool:
        """Whether the server answers, and would answer a picture."""
        try:
            return self._http.get("/readyz", timeout=self.timeout_s).is_success
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({str(self._http.base_url)!r})"

    def _get(self, path: str) -> dict[str, Any]:
        return self._send({"method": "GET", "url": path}, Patience(self.timeout_s))

    def _send(self, request: dict[str, Any], patience: Patience) -> dict[str, Any]:
        while True:
            heard: httpx.Response | httpx.TransportError
            try:
                heard = self._http.request(**_timed(request, patience))
            except httpx.TransportError as error:
                heard = error
            verdict = patience.judge(heard)
            if isinstance(verdict, dict):
                return verdict
            time.sleep(verdict)


class AsyncClient:
    """As ``Client``, to be awaited; ``async with`` closes it.

    As many pictures are under way as are awaited at once, up to ``MOST_AT_ONCE``. Others wait for
    their turn, and only then are read and have their time begin: ``asyncio.gather`` over thousands
    is fine. ``hear`` is told of every response, as for its Server-Timing.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
        hear: Hear | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        hooks = {"response": [] if hear is None else [hear]}
        self._http = httpx.AsyncClient(
            **_connection(url, api_key), transport=transport, event_hooks=hooks
        )
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)

    async def classify(
        self, picture: Picture, **options: Unpack[ClassifyOptions]
    ) -> Classification:
        """Its classes, best first."""
        return Classification.of(await self.ask("classify", picture, options), picture)

    async def detect(self, picture: Picture, **options: Unpack[DetectOptions]) -> Detections:
        """The objects in it, best first."""
        return Detections.of(await self.ask("detect", picture, options), picture)

    async def segment(self, picture: Picture, **options: Unpack[SegmentOptions]) -> Segmentation:
        """Its segments with their masks."""
        return Segmentation.of(await self.ask("segment", picture, options), picture)

    async def embed(self, picture: Picture, **options: Unpack[EmbedOptions]) -> Embedding:
        """A vector for it."""
        return Embedding.of(await self.ask("embed", picture, options), picture)

    async def attention(self, picture: Picture, **options: Unpack[AttentionOptions]) -> Attention:
        """What a token, place, object or class looked at."""
        return Attention.of(await self.ask("attention", picture, options), picture)

    async def ask(self, task: str, picture: Picture, options: Mapping[str, Any]) -> dict[str, Any]:
        """The answer as the server's JSON says it.

        Raises:
            SaccadeError: there is none.
        """
        parameters = dict(options)
        timeout_s = parameters.pop("timeout_s", self.timeout_s)
        async with self._turns:
            patience = Patience(timeout_s)
            asked = await asyncio.to_thread(question, task, picture, parameters)
            return await self._send(asked, patience)

    async def models(self) -> list[dict[str, Any]]:
        """What is served: names, tasks, precision, what runs it."""
        models: list[dict[str, Any]] = (await self._get("/v1/models"))["models"]
        return models

    async def model(self, name: str) -> dict[str, Any]:
        """One model with its whole manifest."""
        return await self._get(f"/v1/models/{name}")

    async def ready(self) -> bool:
        """Whether the server answers, and would answer a picture."""
        try:
            return (await self._http.get("/readyz", timeout=self.timeout_s)).is_success
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({str(self._http.base_url)!r})"

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._send({"method": "GET", "url": path}, Patience(self.timeout_s))

    async def _send(self, request: dict[str, Any], patience: Patience) -> dict[str, Any]:
        while True:
            heard: httpx.Response | httpx.TransportError
            try:
                heard = await self._http.request(**_timed(request, patience))
            except httpx.TransportError as error:
                heard = error
            verdict = patience.judge(heard)
            if isinstance(verdict, dict):
                return verdict
            await asyncio.sleep(verdict)


def _connection(url: str, api_key: str | None) -> _Connection:
    if not url.startswith(("http://", "https://")):
        raise SaccadeError(f"{url!r} is no address of a server; it looks like http://host:8000")
    headers = {"accept": "application/json"}
    return {
        "base_url": url,
        "headers": headers | ({} if api_key is None else {"authorization": f"Bearer {api_key}"}),
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=MOST_AT_ONCE),
    }


def _timed(request: dict[str, Any], patience: Patience) -> dict[str, Any]:
    left = patience.left()
    return request | left | {"headers": request.get("headers", {}) | left["headers"]}
