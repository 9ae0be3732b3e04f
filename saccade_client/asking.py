"""What goes over the wire and what comes back, without any input or output of its own."""

import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from saccade_client.errors import OutOfTime, ProblemError, Refused, Unavailable, Unreachable
from saccade_client.pictures import Picture, bytes_of, url_of

RETRIED = frozenset({429, 502, 503})
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 8.0  # where the server names none
LEAST_LATER_S = 1.0  # what pauses grow to, at least, where the server asks for less
NOBODY_S = 5.0  # for a server that is started again; who mistyped an address should not wait long
MOST_TIMEOUT_MS = 3_600_000  # that a server accepts


def question(task: str, picture: Picture, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an httpx request that asks ``task`` of a picture."""
    asked: dict[str, Any] = {
        "method": "POST",
        "url": f"/v1/{task}",
        "params": {name: _text(value) for name, value in parameters.items() if value is not None},
    }
    url = url_of(picture)
    if url is not None:
        return asked | {"json": {"url": url}}
    return asked | {
        "content": bytes_of(picture),
        "headers": {"content-type": "application/octet-stream"},
    }


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


class Patience:
    """How often and until when to try: within ``timeout_s`` of its making, however often that is.

    All tasks can be asked again without harm, so a broken connection is no reason to give up.
    """

    def __init__(
        self,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._chance = chance
        self._until_s = clock() + timeout_s
        self._nobody_until_s = clock() + min(timeout_s, NOBODY_S)
        self._pauses = 0

    def left(self) -> dict[str, Any]:
        """The arguments of an httpx request that has what is left of the time.

        Raises:
            OutOfTime: nothing is.
        """
        left_s = self.left_s()
        if left_s <= 0:
            raise self._too_late()
        left_ms = min(max(1, round(left_s * 1000)), MOST_TIMEOUT_MS)
        return {"timeout": left_s, "headers": {"x-request-timeout-ms": str(left_ms)}}

    def left_s(self) -> float:
        """What is left of the time, in seconds; less than nothing once it is up."""
        return self._until_s - self._clock()

    def judge(self, heard: httpx.Response | httpx.TransportError) -> float | dict[str, Any]:
        """The answer, or the seconds to wait before the next try.

        Raises:
            Refused, Unavailable, OutOfTime, Unreachable: there is no answer, and will be none.
        """
        if isinstance(heard, httpx.TransportError):
            return self._after_failure(heard)
        document = _document(heard)
        if heard.is_success:
            return document
        retry_after_s = _retry_after_s(heard.headers.get("retry-after"))
        if heard.status_code in RETRIED:
            pause_s = self._pause_s(retry_after_s)
            if pause_s is not None:
                return pause_s
        raise _problem(heard, document, retry_after_s)

    def _after_failure(self, error: httpx.TransportError) -> float:
        if isinstance(error, httpx.TimeoutException):
            raise self._too_late() from error
        if isinstance(error, httpx.ConnectError):
            retriable = self._clock() < self._nobody_until_s
        else:
            retriable = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
        pause_s = self._pause_s(None) if retriable else None
        if pause_s is None:
            raise Unreachable(
                f"no answer from the server: {error or type(error).__name__}; see whether it runs"
            )
        return pause_s

    def _pause_s(self, asked_s: float | None) -> float | None:
        """As long as the server asks for and a little more, that not all come back at once; None if
        that is too late. Pauses grow also where it asks for none.
        """
        longest_s = min(FIRST_PAUSE_S * 2**self._pauses, LONGEST_PAUSE_S)
        pause_s = longest_s * (0.5 + 0.5 * self._chance())
        if asked_s is not None:
            pause_s = max(asked_s * (1 + 0.25 * self._chance()), min(pause_s, LEAST_LATER_S))
        self._pauses += 1
        return pause_s if self._clock() + pause_s < self._until_s else None

    def _too_late(self) -> OutOfTime:
        return OutOfTime(f"no answer came within {self._timeout_s:g} seconds")


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        document = None
    if isinstance(document, dict):
        return document
    if response.is_success:
        raise Unreachable(f"what answers at {response.url} is no Saccade server")
    return {"status": response.status_code, "detail": response.reason_phrase, "code": "unknown"}


def _problem(
    response: httpx.Response, document: dict[str, Any], retry_after_s: float | None
) -> ProblemError:
    status = response.status_code
    kind = Unavailable if status == 429 or status >= 500 else Refused
    return kind(document | {"status": status}, retry_after_s)


def _retry_after_s(value: str | None) -> float | None:
    """Seconds out of a Retry-After header, which holds a number of them or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(int(value)))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
