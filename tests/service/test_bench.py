"""Load loops in virtual time, their arithmetic, and the whole command against a small server."""

import asyncio
import contextlib
import json
import selectors
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from service.bench.client import Client, Reply
from service.bench.command import Plan, bench, measure, parse_headers, parse_numbers, read_pictures
from service.bench.load import MAX_IN_FLIGHT, Tally, arrivals, closed_loop, open_loop
from service.bench.report import distribution, stage_means, summarize, tabulate
from service.errors import BadSettings, StartError

QUIET = Console(quiet=True)


class JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for a timer, moves the clock to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += timeout or 0.0
        return super().select(0)


def in_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    selector = JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(work)


def clock() -> float:
    return asyncio.get_running_loop().time()


@contextlib.asynccontextmanager
async def small_server(classify: bytes, tasks: str = '["classify"]') -> Any:
    """Answers /v1/models, and everything else with ``classify``, a whole response."""
    models = f'{{"models": [{{"name": "m", "tasks": {tasks}}}]}}'.encode()
    listed = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(models), models)
    heads: list[bytes] = []
    answering: set[Any] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                heads.append(head)
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                writer.write(listed if b"/v1/models" in head else classify)
                if b"connection: close" in classify:
                    break
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", heads
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering)


GOOD = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"
    b"server-timing: decode;dur=2.00, total;dur=5.00\r\n\r\n{}"
)
BUSY = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}"


def test_a_percentile_is_a_value_that_occurred_at_its_nearest_rank() -> None:
    assert distribution([float(n) for n in range(100, 0, -1)]) == {
        "mean": 50.5,
        "p50": 50.0,
        "p90": 90.0,
        "p95": 95.0,
        "p99": 99.0,
        "max": 100.0,
    }
    assert distribution([3.0, 1.0])["p50"] == 1.0
    assert distribution([0.25])["p99"] == 0.25
    assert distribution([]) == {}


def test_stage_means_are_seconds_in_the_servers_order() -> None:
    timings = ["decode;dur=2.00, infer;dur=10.0", "decode;dur=4.00, infer;dur=20.0", ""]
    assert list(stage_means(timings).items()) == [("decode", 0.003), ("infer", 0.015)]


def test_closed_loop_keeps_so_many_requests_running_and_no_more() -> None:
    running = most = 0

    async def send(index: int) -> Reply:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.5)
        running -= 1
        return Reply(200, "", b"")

    async def run() -> None:
        tally = Tally()
        await closed_loop(send, tally, 4, 10.0, clock)
        assert most == 4
        assert tally.requests == 80
        assert set(tally.latencies_s) == {0.5}
        assert tally.wall_s == 10.0

    in_virtual_time(run())


def test_open_loop_sends_on_schedule_whatever_the_answers_do() -> None:
    sent_s = []

    async def send(index: int) -> Reply:
        sent_s.append(clock())
        await asyncio.sleep(100.0)
        return Reply(200, "", b"")

    async def run() -> None:
        tally = Tally()
        await open_loop(send, tally, [1.0, 2.0, 3.0], clock)
        assert sent_s == [1.0, 2.0, 3.0]
        assert tally.latencies_s == [100.0, 100.0, 100.0]
        assert tally.lags_s == [0.0, 0.0, 0.0]
        assert tally.wall_s == 103.0

    in_virtual_time(run())


def test_open_loop_latency_counts_from_the_due_time_when_the_sender_is_late() -> None:
    selector_time = {"ahead_s": 0.0}

    def late_clock() -> float:
        return clock() + selector_time["ahead_s"]

    async def send(index: int) -> Reply:
        if index == 0:
            selector_time["ahead_s"] = 0.75  # the process was held up while it sent the first
        return Reply(200, "", b"")

    async def run() -> None:
        tally = Tally()
        await open_loop(send, tally, [0.0, 0.5, 1.0], late_clock)
        assert tally.lags_s == [0.0, 0.75, 0.25]
        assert tally.latencies_s == [0.75, 0.75, 0.25]

    in_virtual_time(run())


def test_open_loop_bounds_what_is_in_flight_and_says_what_was_not_sent() -> None:
    async def send(index: int) -> Reply:
        await asyncio.sleep(1000.0)
        return Reply(200, "", b"")

    async def run() -> None:
        tally = Tally()
        await open_loop(send, tally, [0.01 * n for n in range(MAX_IN_FLIGHT + 5)], clock)
        assert tally.errors == {"not sent": 5}
        assert len(tally.latencies_s) == MAX_IN_FLIGHT

    in_virtual_time(run())


def test_arrivals_have_the_rate_asked_for_and_are_the_same_every_time() -> None:
    due_s = arrivals(100.0, 50.0)
    assert due_s == arrivals(100.0, 50.0)
    assert due_s == sorted(due_s)
    assert due_s[-1] < 50.0
    assert len(due_s) == pytest.approx(5000, rel=0.05)


def test_errors_are_counted_by_status_and_by_exception_and_have_no_latency() -> None:
    async def send(index: int) -> Reply:
        await asyncio.sleep(1.0)
        if index == 1:
            raise ConnectionResetError
        return Reply({2: 429, 3: 503, 4: 429}.get(index, 200), "total;dur=1000.0", b"")

    async def run() -> None:
        tally = Tally()
        await open_loop(send, tally, [float(n) for n in range(6)], clock)
        found = summarize(tally, cpu_s=0.6)
        assert found["requests"] == 6
        assert found["errors"] == {"ConnectionResetError": 1, "429": 2, "503": 1}
        assert found["images_per_s"] == round(2 / 6, 2)
        assert found["latency_s"]["max"] == 1.0
        assert found["stages_s"] == {"total": 1.0}
        assert found["generator_cores"] == 0.1

    in_virtual_time(run())


def test_a_dead_server_is_not_hammered() -> None:
    async def send(index: int) -> Reply:
        raise ConnectionRefusedError

    async def run() -> None:
        tally = Tally()
        await closed_loop(send, tally, 1, 1.0, clock)
        assert 99 <= tally.errors["ConnectionRefusedError"] <= 101

    in_virtual_time(run())


def test_the_table_has_a_row_per_load_in_milliseconds() -> None:
    tally = Tally(latencies_s=[0.0125], timings=["decode;dur=2.00"], wall_s=1.0)
    refused = Tally(wall_s=1.0)
    refused.errors["429"] = 7
    runs = [{"concurrency": 8} | summarize(tally, 0.0), {"rate": 50.0} | summarize(refused, 0.0)]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(*tabulate(runs))
    text = captured.get()
    assert "8 at a time │ 1.0      │ 12.5 │ 12.5 │ 12.5 │ 12.5 │ 12.5 │ none" in text
    assert "50 / s      │ 0.0      │ -    │ -    │ -    │ -    │ -    │ 7 x 429" in text
    assert "8 at a time │ 2.0" in text


def test_the_client_reuses_its_connection_until_the_server_closes_it() -> None:
    closing = GOOD.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)

    async def run(answer: bytes) -> int:
        async with small_server(answer) as (url, _):
            client = Client(url, {}, 5.0)
            opened = 0
            connect = client._connect

            async def counting() -> Any:
                nonlocal opened
                opened += 1
                return await connect()

            client._connect = counting  # type: ignore[method-assign]
            for _ in range(5):
                reply = await client.send(client.compose("POST", "/v1/classify", b"x", "image/png"))
                assert (reply.status, reply.body) == (200, b"{}")
            client.close()
            return opened

    assert asyncio.run(run(GOOD)) == 1
    assert asyncio.run(run(closing)) == 5


def test_a_request_that_is_not_answered_in_time_is_a_timeout_and_gives_up_its_connection() -> None:
    async def run() -> None:
        async with small_server(b"") as (url, _):
            client = Client(url, {}, 0.05)
            with pytest.raises(TimeoutError):
                await client.send(client.compose("POST", "/v1/classify", b"x", "image/png"))
            assert client._take_idle() is None

    asyncio.run(run())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadSettings, match="looks like http://host:8000"):
        Client(url, {}, 1.0)


def test_lists_of_numbers_and_headers_are_parsed_or_refused_with_a_sentence() -> None:
    assert parse_numbers("1, 8,32", "--concurrency", int, 1024) == (1, 8, 32)
    assert parse_numbers("0.5", "--rate", float, 100) == (0.5,)
    assert parse_headers(["Authorization: Bearer a:b"]) == {"Authorization": "Bearer a:b"}
    for text in ("0", "-1", "x", "1.5", "2000"):
        with pytest.raises(BadSettings, match=r"--concurrency takes whole numbers .* found '"):
            parse_numbers(text, "--concurrency", int, 1024)
    with pytest.raises(BadSettings, match="takes 'Name: value', found 'token'"):
        parse_headers(["token"])


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(BadSettings, match="holds no picture"):
        read_pictures(tmp_path)


def test_a_whole_measurement_says_where_when_and_how_fast(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"first")
    (tmp_path / "b.PNG").write_bytes(b"second!")

    async def run() -> tuple[dict[str, Any], list[bytes]]:
        async with small_server(GOOD) as (url, heads):
            plan = Plan(
                url, tmp_path, "classify", "m", (1, 3), (50.0,), 0.2, 0.05, {"X-Api-Key": "k"}
            )
            return await measure(plan, QUIET), heads

    found, heads = asyncio.run(run())
    assert set(found) == {"started", "url", "task", "images", "server", "machine", "runs"}
    assert found["images"] == {"files": 2, "mean_bytes": 6}
    assert found["server"] == [{"name": "m", "tasks": ["classify"]}]
    assert found["machine"]["cores"] >= 1
    assert [run.get("concurrency", run.get("rate")) for run in found["runs"]] == [1, 3, 50.0]
    for result in found["runs"]:
        assert result["requests"] > 0
        assert result["errors"] == {}
        assert result["stages_s"] == {"decode": 0.002, "total": 0.005}
        assert result["latency_s"]["p50"] <= result["latency_s"]["max"]
    assert "sender_lag_s" in found["runs"][2]
    json.dumps(found)
    assert heads[1].startswith(b"POST /v1/classify?model=m HTTP/1.1\r\n")
    assert b"X-Api-Key: k\r\n" in heads[1]
    assert {b"image/jpeg", b"image/png"} == {
        head.partition(b"Content-Type: ")[2].partition(b"\r\n")[0] for head in heads[1:]
    }


def test_refusals_come_out_as_errors_by_status(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")

    async def run() -> dict[str, Any]:
        async with small_server(BUSY) as (url, _):
            return await measure(Plan(url, tmp_path, "classify", None, (2,), (), 0.1, 0.0), QUIET)

    (result,) = asyncio.run(run())["runs"]
    assert result["errors"] == {"429": result["requests"]}
    assert result["latency_s"] == {}
    assert result["images_per_s"] == 0.0


def test_the_command_fails_with_a_sentence_when_nobody_answers(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    plan = Plan("http://127.0.0.1:1", tmp_path, "classify", None, (1,), (), 0.1, 0.0)
    with pytest.raises(StartError, match=r"nobody answers at http://127\.0\.0\.1:1"):
        bench(plan, None)
