"""One request for pictures on its way: who asks, until when, and how its answers are shaped."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from service.api.bodies import Posted, RemotePicture, parse_options, read_body
from service.api.negotiation import accepted, choose_media_type
from service.api.problems import count_rejection, problem_of
from service.api.schemas.base import (
    MOST_TIMEOUT_MS,
    TIMEOUT_HEADER,
    Answer,
    ImageSize,
    Options,
)
from service.api.serving import Made, Serving
from service.bundle import Manifest, Task
from service.errors import DeadlineExceeded, InvalidBody, InvalidParameter, ServiceError
from service.pictures import Picture
from service.tracing import Trace
from service.worker.link import Result
from service.worker.runtimes.base import Arrays

Asked = TypeVar("Asked", bound=Options)
Read = TypeVar("Read")
JSON = "application/json"
Work = Callable[[bytes], Awaitable[Answer | str | Response]]
"""Answers one picture; a string is JSON, written off the event loop since it may be long."""
CLIENT_LEFT = 499  # nobody reads it; the log and the metrics do

_ONE_PICTURE = "a picture or an array answers one picture; ask for application/json"


class Call:
    """One request on its way: who asks what of which model, until when."""

    def __init__(
        self,
        serving: Serving,
        manifest: Manifest,
        trace: Trace,
        timeout_s: float,
        accept: str | None = None,
        many: bool = False,
    ) -> None:
        self.serving = serving
        self.manifest = manifest
        self.trace = trace
        self.deadline_s = trace.started_s + timeout_s
        self._accept = accept
        self._many = many

    @classmethod
    def of(
        cls, request: Request, manifest: Manifest, timeout_s: float | None, many: bool = False
    ) -> "Call":
        """The call of a request; ``timeout_s`` is what its parameters ask for, which its header
        and the server bound.
        """
        serving: Serving = request.state.serving
        longest_s = longest_timeout_s(request)
        return cls(
            serving,
            manifest,
            request.state.trace,
            longest_s if timeout_s is None else min(longest_s, timeout_s),
            accepted(request.headers),
            many,
        )

    def media_type(self, offered: Sequence[str]) -> str:
        """Which of the ``offered`` types the client prefers.

        Raises:
            NotAcceptable: none of them will do.
            InvalidBody: it is a file, which answers one picture, and several came.
        """
        chosen = choose_media_type(self._accept, offered)
        if self._many and chosen != JSON:
            raise InvalidBody(_ONE_PICTURE)
        return chosen

    async def picture(self, data: bytes, keep_upright: bool = False) -> Picture:
        """Decode and place one picture."""
        return await self.serving.prepare(
            data, self.manifest, self.deadline_s, self.trace, keep_upright
        )

    async def infer(
        self, picture: Picture, outputs: tuple[str, ...], extra: Arrays | None = None
    ) -> Result:
        """Run it through the serving graph; ``outputs`` are those that come back."""
        return await self.serving.infer(
            picture, self.manifest, self.deadline_s, self.trace, "serve", extra, outputs
        )

    async def offload(self, work: Callable[[], Made], stage: str = "encode") -> Made:
        """Have the decoding threads do ``work`` in time; see ``Serving.offload``."""
        return await self.serving.offload(self.manifest, self.deadline_s, self.trace, work, stage)

    def about(self, picture: Picture, precision: str) -> dict[str, Any]:
        """The members that every answer has."""
        return {
            "model": self.manifest.name,
            "version": self.manifest.version,
            "precision": precision,
            "image": ImageSize(
                width=picture.placement.image.width, height=picture.placement.image.height
            ),
        }


async def answer_all(
    request: Request,
    task: Task,
    kind: type[Asked],
    answer_one: Callable[[Call, bytes, Asked], Awaitable[Answer | str | Response]],
) -> Response:
    """As ``answer_planned``, where options need no second look before pictures are decoded."""

    def plan(call: Call, options: Asked) -> Work:
        return lambda data: answer_one(call, data, options)

    return await answer_planned(request, task, kind, plan)


async def answer_planned(
    request: Request, task: Task, kind: type[Asked], plan: Callable[[Call, Asked], Work]
) -> Response:
    """Read the request, answer each of its pictures at once, and shape the response.

    ``plan`` sees the options before any picture is decoded: what it refuses is refused for the
    whole request. It returns what answers one picture.
    """
    serving: Serving = request.state.serving
    trace: Trace = request.state.trace
    trace.task = task

    async def answer(posted: Posted) -> Response:
        options = parse_options(kind, posted.parameters)
        if posted.overridden:
            parse_options(kind, posted.overridden)
        manifest = serving.find_model(options.model, task)
        trace.model = manifest.name
        timeout_s = None if options.timeout_ms is None else options.timeout_ms / 1000
        call = Call.of(request, manifest, timeout_s, posted.many)
        answer_one = plan(call, options)

        async def fetch_and_answer(image: bytes | RemotePicture) -> Answer | str | Response:
            return await answer_one(await _bytes_of(request, call, image))

        return await _answer_posted(request, posted, fetch_and_answer)

    return await answer_read(request, partial(read_body, request, serving.settings), answer)


def longest_timeout_s(request: Request) -> float:
    """Seconds that a request may take by its header and by the server's setting.

    Raises:
        InvalidParameter: the header is no whole number of milliseconds within bounds.
    """
    limit_s: float = request.state.serving.settings.timeout_s
    asked = request.headers.get(TIMEOUT_HEADER)
    if asked is None:
        return limit_s
    if not re.fullmatch("[0-9]{1,7}", asked) or not 1 <= int(asked) <= MOST_TIMEOUT_MS:
        raise InvalidParameter(
            f"{TIMEOUT_HEADER}: a whole number of milliseconds from 1 to {MOST_TIMEOUT_MS} is "
            f"allowed, found {asked!r:.80}",
            parameters=[TIMEOUT_HEADER],
        )
    return min(limit_s, int(asked) / 1000)


async def answer_read(
    request: Request,
    read: Callable[[], Awaitable[Read]],
    answer: Callable[[Read], Awaitable[Response]],
) -> Response:
    """Read what a request's body says, admit it, and answer that unless the client leaves."""
    serving: Serving = request.state.serving
    trace: Trace = request.state.trace
    client = trace.client = request.state.client
    serving.check_admission(client)
    try:
        asked = await _in_time(request, read)
    except ClientDisconnect:
        serving.metrics.cancellations.labels("body").inc()
        return Response(status_code=CLIENT_LEFT)
    with serving.admitted(client):
        return await _unless_disconnected(request, answer(asked))


async def _in_time(request: Request, read: Callable[[], Awaitable[Read]]) -> Read:
    """Read a body, which has a time of its own, within that of the whole request."""
    limit_s = longest_timeout_s(request)
    if limit_s >= request.state.serving.settings.body_timeout_s:
        return await read()
    trace: Trace = request.state.trace
    try:
        async with asyncio.timeout(trace.started_s + limit_s - time.monotonic()):
            return await read()
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the body had arrived") from None


async def _bytes_of(request: Request, call: Call, image: bytes | RemotePicture) -> bytes:
    if isinstance(image, bytes):
        return image
    data = await call.serving.fetch(image.url, call.deadline_s, call.trace)
    request.state.hold_bytes(len(data))
    return data


async def _answer_posted(
    request: Request,
    posted: Posted,
    answer_one: Callable[[bytes | RemotePicture], Awaitable[Answer | str | Response]],
) -> Response:
    if not posted.many:
        answer = await answer_one(posted.images[0])
        return answer if isinstance(answer, Response) else json_response(dump(answer))
    answers = await asyncio.gather(
        *(answer_one(data) for data in posted.images), return_exceptions=True
    )
    results = []
    for found in answers:
        if isinstance(found, ServiceError):
            count_rejection(found, request)
            results.append(json.dumps(problem_of(found, request)))
        elif isinstance(found, BaseException):
            raise found
        elif isinstance(found, Response):
            raise InvalidBody(_ONE_PICTURE)
        else:
            results.append(dump(found))
    return json_response('{"results":[' + ",".join(results) + "]}")


def dump(answer: Answer | str) -> str:
    return answer if isinstance(answer, str) else answer.model_dump_json(exclude_none=True)


def json_response(body: str) -> Response:
    return Response(body, media_type=JSON)


async def _unless_disconnected(request: Request, work: Awaitable[Response]) -> Response:
    """Give up the work as soon as the client has left."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return Response(status_code=CLIENT_LEFT)
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
