"""How the client asks: when it tries again, how long it waits, and what it raises."""

import asyncio
import contextlib
import gzip
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from saccade_client import (
    AsyncClient,
    Client,
    OutOfTime,
    Refused,
    SaccadeError,
    Unavailable,
    Unreachable,
)
from saccade_client.asking import Patience, question
from saccade_client.pictures import bytes_of, upright_of

ANSWER = {
    "model": "vit",
    "version": "1",
    "precision": "fp32",
    "image": {"width": 4, "height": 3},
    "predictions": [{"label": "star", "label_id": 3, "score": 0.75}],
}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def busy(retry_after: str | None = None, status: int = 429) -> httpx.Response:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    problem = {"code": "overloaded", "detail": "the queue is full", "status": status}
    return httpx.Response(status, json=problem, headers=headers)


def patience(timeout_s: float, clock: Clock, chance: float = 0.0) -> Patience:
    return Patience(timeout_s, clock, lambda: chance)


def transport(*replies: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[Any]]:
    """Answers with each of the replies in turn, and the requests that it saw."""
    seen: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        found = replies[len(seen) - 1]
        if isinstance(found, Exception):
            raise found
        return found

    return httpx.MockTransport(reply), seen


def test_the_pause_is_what_the_server_asks_for_and_up_to_a_quarter_more() -> None:
    assert patience(30, Clock(), chance=0.0).judge(busy("2")) == 2.0
    assert patience(30, Clock(), chance=1.0).judge(busy("2")) == 2.5


def test_a_date_in_retry_after_counts_from_now() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=5), usegmt=True)
    pause_s = patience(30, Clock()).judge(busy(at))
    assert isinstance(pause_s, float)
    assert 3.5 < pause_s <= 5


def test_a_pause_that_ends_after_the_deadline_is_not_begun() -> None:
    with pytest.raises(Unavailable, match="the queue is full") as raised:
        patience(1.5, Clock()).judge(busy("2"))
    assert (raised.value.status, raised.value.code) == (429, "overloaded")
    assert raised.value.retry_after_s == 2.0


def test_without_retry_after_pauses_double_up_to_eight_seconds() -> None:
    tried = patience(1000, Clock(), chance=1.0)
    pauses_s = [tried.judge(busy(status=503)) for _ in range(9)]
    assert pauses_s == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8.0, 8.0])


@pytest.mark.parametrize("value", ["soon", "", "-5"])
def test_a_retry_after_that_makes_no_sense_does_no_harm(value: str) -> None:
    pause_s = patience(30, Clock()).judge(busy(value))
    assert isinstance(pause_s, float)
    assert 0 <= pause_s < 1


def test_the_server_is_told_what_is_left_of_the_time() -> None:
    clock = Clock()
    tried = patience(10, clock)
    clock.now_s += 7.5
    assert tried.left() == {"timeout": 2.5, "headers": {"x-request-timeout-ms": "2500"}}
    clock.now_s += 2.5
    with pytest.raises(OutOfTime, match="within 10 seconds"):
        tried.left()


def test_no_more_time_is_asked_for_than_a_server_accepts() -> None:
    left = patience(10_000, Clock()).left()
    assert left["headers"] == {"x-request-timeout-ms": "3600000"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Refused), (404, Refused), (422, Refused), (500, Unavailable), (504, Unavailable)],
)
def test_what_cannot_be_mended_by_waiting_is_raised_at_once(
    status: int, kind: type[SaccadeError]
) -> None:
    with pytest.raises(kind):
        patience(30, Clock()).judge(httpx.Response(status, json={"detail": "no"}))


def test_broken_connections_are_tried_again_and_timeouts_are_not() -> None:
    assert patience(30, Clock()).judge(httpx.ReadError("reset")) == 0.05
    with pytest.raises(OutOfTime):
        patience(30, Clock()).judge(httpx.ReadTimeout("slow"))
    with pytest.raises(Unreachable, match="refused"):
        patience(0.01, Clock()).judge(httpx.ConnectError("refused"))


def test_nobody_at_an_address_is_waited_for_only_so_long() -> None:
    clock = Clock()
    tried = patience(600, clock)
    assert tried.judge(httpx.ConnectError("refused")) == 0.05
    clock.now_s += 5
    assert tried.judge(httpx.ReadError("reset")) == 0.1
    with pytest.raises(Unreachable, match="no answer from the server: refused"):
        tried.judge(httpx.ConnectError("refused"))


def test_what_answers_without_json_is_no_saccade_server() -> None:
    page = httpx.Response(200, html="<p>Hello", request=httpx.Request("GET", "http://elsewhere"))
    with pytest.raises(Unreachable, match="http://elsewhere is no Saccade server"):
        patience(30, Clock()).judge(page)
    with pytest.raises(Unavailable, match="504"):
        patience(30, Clock()).judge(httpx.Response(504, html="<p>a proxy's page"))


def test_a_busy_server_is_asked_again_with_the_same_picture_and_key() -> None:
    replies, seen = transport(busy("0"), httpx.ReadError("reset"), httpx.Response(200, json=ANSWER))
    with Client("http://host", api_key="secret", transport=replies) as client:
        found = client.classify(b"picture", top_k=3)
    assert [one.label for one in found] == ["star"]
    assert {request.content for request in seen} == {b"picture"}
    assert [request.url.query for request in seen] == [b"top_k=3"] * 3
    assert {request.headers["authorization"] for request in seen} == {"Bearer secret"}


async def _classify_asynchronously(replies: httpx.MockTransport) -> Any:
    async with AsyncClient("http://host", transport=replies) as client:
        return await client.classify(b"picture", timeout_s=5)


def test_the_asynchronous_client_does_the_same() -> None:
    replies, seen = transport(busy("0"), httpx.Response(200, json=ANSWER))
    found = asyncio.run(_classify_asynchronously(replies))
    assert found.predictions[0].score == 0.75
    assert len(seen) == 2
    assert 4000 < int(seen[1].headers["x-request-timeout-ms"]) <= 5000
    assert seen[1].url.query == b""


def test_a_thousand_pictures_take_turns() -> None:
    under_way = most = 0

    async def reply(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return httpx.Response(200, json=ANSWER)

    async def ask_all() -> list[Any]:
        async with AsyncClient("http://host", transport=httpx.MockTransport(reply)) as client:
            return await asyncio.gather(*(client.classify(b"picture") for _ in range(1000)))

    assert len(asyncio.run(ask_all())) == 1000
    assert 1 < most <= 64


def test_an_address_without_a_scheme_is_refused_with_a_sentence() -> None:
    with pytest.raises(SaccadeError, match="looks like http://host:8000"):
        Client("localhost:8000")


def test_a_url_is_left_to_the_server_to_fetch() -> None:
    asked = question("detect", "https://images.example.org/cat.jpg", {"labels": ["cat", 3]})
    assert asked["json"] == {"url": "https://images.example.org/cat.jpg"}
    assert asked["params"] == {"labels": "cat,3"}
    assert "content" not in asked


def _png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PIXELS = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)


@pytest.mark.parametrize(
    "made",
    [
        lambda path: path,
        str,
        lambda path: path.read_bytes(),
        lambda path: io.BytesIO(path.read_bytes()),
        lambda path: Image.open(io.BytesIO(path.read_bytes())),
        lambda path: PIXELS,
    ],
    ids=["path", "text", "bytes", "file", "image", "array"],
)
def test_a_picture_may_be_held_in_anything(made: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(_png(PIXELS))
    sent = Image.open(io.BytesIO(bytes_of(made(path))))
    assert np.array_equal(np.asarray(sent), PIXELS)
    assert np.array_equal(np.asarray(upright_of(made(path))), PIXELS)


def test_what_no_picture_comes_in_is_refused() -> None:
    with pytest.raises(TypeError, match="found int"):
        bytes_of(7)  # type: ignore[arg-type]


def test_a_problem_says_what_the_server_said() -> None:
    problem = {"detail": "there is no model 'x'", "code": "unknown_model", "request_id": "ab"}
    replies, _ = transport(httpx.Response(404, content=json.dumps(problem)))
    with Client("http://host", transport=replies) as client, pytest.raises(Refused) as raised:
        client.detect(b"picture", model="x")
    assert str(raised.value) == "there is no model 'x' (404 unknown_model)"
    assert raised.value.request_id == "ab"


class Dripping:
    """Serves one picture's answer a byte at a time, and never the last one."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Dripping":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        while not self._over.wait(self._pause_s):
            connection.sendall(b" ")


async def _asynchronously(url: str) -> None:
    async with AsyncClient(url, timeout_s=0.3) as client:
        assert not await client.ready()
        with pytest.raises(OutOfTime, match=r"within 0\.3 seconds"):
            await client.classify(b"picture")


def test_an_answer_that_comes_in_drops_is_given_up_in_time() -> None:
    with Dripping(pause_s=0.02) as server:
        began_s = time.monotonic()
        with Client(server.url, timeout_s=0.3) as client:
            assert not client.ready()
            with pytest.raises(OutOfTime, match=r"within 0\.3 seconds"):
                client.classify(b"picture")
        asyncio.run(_asynchronously(server.url))
        assert time.monotonic() - began_s < 3


def test_steps_of_one_request_share_its_time() -> None:
    clock, seen = Clock(), []

    class Steps(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            for step in ("connect_tcp", "send_request_body", "receive_response_headers"):
                request.extensions["trace"](f"{step}.started", {})
                seen.append(dict(request.extensions["timeout"]))
                clock.now_s += 4
            return httpx.Response(200, json=ANSWER)

    with Client("http://host", transport=Steps()) as client:
        client._hear({"method": "GET", "url": "/"}, patience(13, clock))
    assert [one["read"] for one in seen] == [13, 9, 5]
    assert [one["connect"] for one in seen] == [13, 9, 5]


def test_a_compressed_answer_is_read() -> None:
    zipped = gzip.compress(json.dumps(ANSWER).encode())
    replies, _ = transport(
        httpx.Response(200, headers={"content-encoding": "gzip"}, content=zipped)
    )
    with Client("http://host", transport=replies) as client:
        assert client.classify(b"picture").model == "vit"


def test_an_open_file_is_drawn_on_as_it_was_sent() -> None:
    replies, seen = transport(httpx.Response(200, json=ANSWER), httpx.Response(200, json=ANSWER))
    file = _png(PIXELS)
    with Client("http://host", transport=replies) as client:
        found = client.classify(io.BytesIO(file))
    assert found.draw().size == (4, 3)
    found = asyncio.run(_classify_file(replies, io.BytesIO(file)))
    assert found.draw().size == (4, 3)
    assert [request.content for request in seen] == [file, file]


async def _classify_file(replies: httpx.MockTransport, file: io.BytesIO) -> Any:
    async with AsyncClient("http://host", transport=replies) as client:
        return await client.classify(file)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "PA", "L", "LA", "1", "RGBA"])
def test_an_image_of_any_kind_of_pixels_is_sent(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert("LA" if mode == "PA" else "RGB").convert(mode)
    sent = Image.open(io.BytesIO(bytes_of(image))).convert("RGB")
    assert np.array_equal(np.asarray(sent), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_a_16_bit_image_is_drawn_on_as_the_server_sees_it(mode: str) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    image = Image.fromarray(values)
    shown = np.asarray(upright_of(image if mode == "I;16" else image.convert(mode)))
    assert np.array_equal(shown[..., 0], values >> 8)


def test_an_image_of_floats_is_refused_with_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"scale it to 0\.\.255"):
        bytes_of(Image.new("F", (4, 3)))


def test_a_server_that_asks_for_no_pause_is_not_asked_without_end() -> None:
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=5), usegmt=True)
    for asked in ("0", past):
        tried = patience(1000, Clock(), chance=1.0)
        pauses_s = [tried.judge(busy(asked)) for _ in range(6)]
        assert pauses_s == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    tried = patience(1000, Clock(), chance=0.0)
    assert [tried.judge(busy("2")) for _ in range(9)] == [2.0] * 9
