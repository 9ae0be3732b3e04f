"""The two clients, which differ only in how they wait."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

import httpx

from saccade_client.asking import Patience, question
from saccade_client.errors import OutOfTime, SaccadeError
from saccade_client.options import (
    AttentionOptions,
    ClassifyOptions,
    DetectOptions,
    EmbedOptions,
    SegmentOptions,
)
from saccade_client.pictures import Picture, sent_of
from saccade_client.results import (
    Attention,
    Classification,
    Detections,
    Embedding,
    Segmentation,
)

TIMEOUT_S = 30.0
MOST_AT_ONCE = 64
LEAST_STEP_S = 0.001  # for a step of a request whose time is up, which ends it
_OF_THE_WIRE = frozenset({"content-encoding", "content-length", "transfer-encoding"})
_Heard = httpx.Response | httpx.TransportError
_Answered = tuple[dict[str, Any], Picture]
"""A document, and the picture that it is about."""
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
        return Classification.of(*self._ask("classify", picture, options))

    def detect(self, picture: Picture, **options: Unpack[DetectOptions]) -> Detections:
        """The objects in it, best first."""
        return Detections.of(*self._ask("detect", picture, options))

    def segment(self, picture: Picture, **options: Unpack[SegmentOptions]) -> Segmentation:
        """Its segments with their masks."""
        return Segmentation.of(*self._ask("segment", picture, options))

    def embed(self, picture: Picture, **options: Unpack[EmbedOptions]) -> Embedding:
        """A vector for it."""
        return Embedding.of(*self._ask("embed", picture, options))

    def attention(self, picture: Picture, **options: Unpack[AttentionOptions]) -> Attention:
        """What a token, place, object or class looked at."""
        return Attention.of(*self._ask("attention", picture, options))

    def ask(self, task: str, picture: Picture, options: Mapping[str, Any]) -> dict[str, Any]:
        """The answer as the server's JSON says it.

        Raises:
            SaccadeError: there is none.
        """
        return self._ask(task, picture, options)[0]

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
            heard = self._hear({"method": "GET", "url": "/readyz"}, Patience(self.timeout_s))
        except OutOfTime:
            return False
        return isinstance(heard, httpx.Response) and heard.is_success

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

    def _ask(self, task: str, picture: Picture, options: Mapping[str, Any]) -> _Answered:
        patience, parameters = _begun(options, self.timeout_s)
        picture = sent_of(picture)
        return self._send(question(task, picture, parameters), patience), picture

    def _get(self, path: str) -> dict[str, Any]:
        return self._send({"method": "GET", "url": path}, Patience(self.timeout_s))

    def _send(self, request: dict[str, Any], patience: Patience) -> dict[str, Any]:
        while True:
            verdict = patience.judge(self._hear(request, patience))
            if isinstance(verdict, dict):
                return verdict
            time.sleep(verdict)

    def _hear(self, request: dict[str, Any], patience: Patience) -> _Heard:
        """httpx gives each step the whole time anew: here each has what is left as it begins, and
        the clock is looked at with each piece of the body.
        """
        timed = _timed(request, patience)
        left_s = httpx.Timeout(timed["timeout"]).as_dict()

        def begin(step: str, about: dict[str, Any]) -> None:
            left_s.update(dict.fromkeys(left_s, max(LEAST_STEP_S, patience.left_s())))

        timed["extensions"] = {"timeout": left_s, "trace": begin}
        try:
            with self._http.stream(**timed) as response:
                pieces = []
                for piece in response.iter_bytes():
                    patience.left()
                    pieces.append(piece)
        except httpx.TransportError as error:
            return error
        headers = [row for row in response.headers.multi_items() if row[0] not in _OF_THE_WIRE]
        return httpx.Response(
            response.status_code,
            headers=headers,
            content=b"".join(pieces),
            request=response.request,
        )


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
        return Classification.of(*await self._ask("classify", picture, options))

    async def detect(self, picture: Picture, **options: Unpack[DetectOptions]) -> Detections:
        """The objects in it, best first."""
        return Detections.of(*await self._ask("detect", picture, options))

    async def segment(self, picture: Picture, **options: Unpack[SegmentOptions]) -> Segmentation:
        """Its segments with their masks."""
        return Segmentation.of(*await self._ask("segment", picture, options))

    async def embed(self, picture: Picture, **options: Unpack[EmbedOptions]) -> Embedding:
        """A vector for it."""
        return Embedding.of(*await self._ask("embed", picture, options))

    async def attention(self, picture: Picture, **options: Unpack[AttentionOptions]) -> Attention:
        """What a token, place, object or class looked at."""
        return Attention.of(*await self._ask("attention", picture, options))

    async def ask(self, task: str, picture: Picture, options: Mapping[str, Any]) -> dict[str, Any]:
        """The answer as the server's JSON says it.

        Raises:
            SaccadeError: there is none.
        """
        return (await self._ask(task, picture, options))[0]

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
            heard = await self._hear({"method": "GET", "url": "/readyz"}, Patience(self.timeout_s))
        except OutOfTime:
            return False
        return isinstance(heard, httpx.Response) and heard.is_success

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

    async def _ask(self, task: str, picture: Picture, options: Mapping[str, Any]) -> _Answered:
        def read() -> tuple[dict[str, Any], Picture]:
            sent = sent_of(picture)
            return question(task, sent, parameters), sent

        async with self._turns:
            patience, parameters = _begun(options, self.timeout_s)
            asked, sent = await asyncio.to_thread(read)
            return await self._send(asked, patience), sent

    async def _get(self, path: str) -> dict[str, Any]:
        return await self._send({"method": "GET", "url": path}, Patience(self.timeout_s))

    async def _send(self, request: dict[str, Any], patience: Patience) -> dict[str, Any]:
        while True:
            verdict = patience.judge(await self._hear(request, patience))
            if isinstance(verdict, dict):
                return verdict
            await asyncio.sleep(verdict)

    async def _hear(self, request: dict[str, Any], patience: Patience) -> _Heard:
        timed = _timed(request, patience)
        try:
            async with asyncio.timeout(timed["timeout"]):  # httpx bounds each step by itself
                return await self._http.request(**timed)
        except httpx.TransportError as error:
            return error
        except TimeoutError:
            return httpx.ReadTimeout("the answer did not come in time")


def _begun(options: Mapping[str, Any], timeout_s: float) -> tuple[Patience, dict[str, Any]]:
    """The patience of a call from now on, and the parameters among its options."""
    parameters = dict(options)
    return Patience(parameters.pop("timeout_s", timeout_s)), parameters


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
