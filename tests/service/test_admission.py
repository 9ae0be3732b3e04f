"""Who gets in when many ask, and what becomes of the work of those who leave."""

import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import pytest

from service.api.serving import Serving
from service.errors import Overloaded
from service.metrics import CANCEL_STAGES, Metrics
from service.settings import Settings
from service.worker.drain import DrainRate, retry_after_s
from service.worker.link import WorkerLink
from tests.conftest import PATIENCE_S, Server
from tests.service.fake_app import FakeLink


@contextmanager
def serving_of(max_queue: int) -> Iterator[Serving]:
    settings = Settings(max_queue=max_queue)
    serving = Serving(settings, [], cast(WorkerLink, FakeLink()), Metrics())
    yield serving
    serving.close()


def test_a_client_that_fills_a_process_leaves_others_their_share() -> None:
    with serving_of(max_queue=4) as serving, ExitStack() as inside:
        for _ in range(4):
            inside.enter_context(serving.admitted("greedy"))
        with pytest.raises(Overloaded, match="4 requests are being answered here, 4 of them this"):
            serving.check_admission("greedy")
        for _ in range(2):  # half of what may be here
            serving.check_admission("modest")
            inside.enter_context(serving.admitted("modest"))
        with pytest.raises(Overloaded, match="6 requests are being answered here, 2 of them this"):
            serving.check_admission("modest")
        inside.enter_context(serving.admitted("third"))
        with pytest.raises(Overloaded):
            serving.check_admission("third")


def test_no_number_of_clients_gets_more_in_than_twice_the_bound() -> None:
    with serving_of(max_queue=2) as serving, ExitStack() as inside:
        admitted = 0
        for client in range(10):
            try:
                inside.enter_context(serving.admitted(f"client {client}"))
            except Overloaded:
                continue
            admitted += 1
        assert 2 <= admitted <= 4


def test_who_has_left_takes_no_room() -> None:
    with serving_of(max_queue=1) as serving:
        for client in ("one", "other", "one"):
            with serving.admitted(client), pytest.raises(Overloaded):
                serving.check_admission(client)


def test_the_rate_is_of_the_time_in_which_there_was_work() -> None:
    rate = DrainRate()
    assert rate.per_second(0.0) == 0.0
    rate.begin(100.0)
    rate.finish(5, 100.5)
    rate.begin(900.0)
    rate.finish(5, 900.5)
    assert rate.per_second(900.5) == pytest.approx(10.0)


def test_what_was_finished_long_ago_counts_little() -> None:
    rate = DrainRate()
    rate.begin(0.0)
    for second in range(1, 31):
        rate.finish(100, float(second))
    for second in range(31, 91):
        rate.finish(1, float(second))
    assert 1.0 < rate.per_second(90.0) < 2.0


@pytest.mark.parametrize(
    ("waiting", "per_second", "seconds"),
    [(0, 0.0, 1.0), (50, 0.0, 1.0), (5, 100.0, 1.0), (50, 10.0, 5.0), (10_000, 1.0, 60.0)],
)
def test_the_time_to_come_back_is_what_waits_by_the_rate_within_bounds(
    waiting: int, per_second: float, seconds: float
) -> None:
    assert retry_after_s(waiting, per_second) == seconds


class Scrape:
    """The metrics of a server, by name and labels."""

    def __init__(self, server: Server) -> None:
        text = httpx.get(server.url + "/metrics", timeout=10).text
        lines = re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE)
        self._values = {name: float(value) for name, value in lines}

    def cancellations(self) -> Counter[str]:
        name = 'saccade_cancellations_total{{stage="{}"}}'
        return Counter({stage: int(self._values[name.format(stage)]) for stage in CANCEL_STAGES})

    def total(self, name: str, *labels: str) -> int:
        """Over all label sets that hold ``labels``."""
        return sum(
            int(value)
            for found, value in self._values.items()
            if found.startswith(f"saccade_{name}{{") and all(label in found for label in labels)
        )


def wait_for(server: Server, done: Callable[[Scrape], bool]) -> Scrape:
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        scrape = Scrape(server)
        if done(scrape):
            return scrape
        time.sleep(0.05)
    raise AssertionError(f"not in time: {server.log.read_text()[-2000:]}")


def send_and_keep(server: Server, path: str, data: bytes) -> socket.socket:
    """A request whose answer nobody reads yet."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=10)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def test_when_24_clients_hang_up_nothing_runs_that_had_not_started(
    start_server: Callable[..., Server], demo_scenes: dict[str, Any]
) -> None:
    server = start_server()
    path: Path = next(iter(demo_scenes.values()))["path"]
    picture = path.read_bytes()
    model = httpx.post(server.url + "/v1/classify", content=picture, timeout=60).json()["model"]
    ran = ("stage_duration_seconds_count", f'model="{model}"', 'stage="infer"')
    decoded = ("stage_duration_seconds_count", f'model="{model}"', 'stage="preprocess"')
    before = wait_for(server, lambda scrape: scrape.total(*ran) >= 1)
    (worker,) = server.children("saccade worker")
    worker.send_signal(signal.SIGSTOP)
    try:
        clients = [send_and_keep(server, "/v1/classify", picture) for _ in range(24)]
        expected = before.total(*decoded) + 24
        wait_for(server, lambda scrape: scrape.total(*decoded) == expected)
        for client in clients:
            client.close()
        wait_for(server, lambda scrape: scrape.total("requests_total", 'status="499"') == 24)
    finally:
        worker.send_signal(signal.SIGCONT)
    after = wait_for(server, lambda scrape: scrape.cancellations().total() == 24)
    assert after.cancellations() == Counter(queue=24)
    assert httpx.post(server.url + "/v1/classify", content=picture, timeout=60).status_code == 200
    last = wait_for(server, lambda scrape: scrape.total(*ran) > before.total(*ran))
    assert last.total(*ran) == before.total(*ran) + 1, "only the one that waited for its answer"


@contextmanager
def flood(url: str, key: str, data: bytes, threads: int) -> Iterator[Counter[int]]:
    """Clients that ask again at once whatever they are told; counts the answers by status."""
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(headers={"x-api-key": key}, timeout=60) as client:
            while not stop.is_set():
                statuses[client.post(url, content=data).status_code] += 1

    running = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        for thread in running:
            thread.join()


def test_a_client_of_few_pictures_is_served_while_another_floods(
    start_server: Callable[..., Server], demo_scenes: dict[str, Any], tmp_path: Path
) -> None:
    floods, modest = "0123456789abcdef" * 2, "fedcba9876543210" * 2
    keys = tmp_path / "keys"
    keys.write_text(f"flood:{floods}\nmodest:{modest}\n")
    server = start_server("--api-keys-file", str(keys), "--max-queue", "4", "--api-processes", "1")
    path: Path = next(iter(demo_scenes.values()))["path"]
    picture, url = path.read_bytes(), server.url + "/v1/classify"
    with flood(url, floods, picture, threads=12) as statuses:
        end_s = time.monotonic() + PATIENCE_S
        while statuses[429] < 20 and time.monotonic() < end_s:
            time.sleep(0.02)
        answers = [
            httpx.post(url, content=picture, headers={"x-api-key": modest}, timeout=60)
            for _ in range(10)
        ]
    assert statuses[429] >= 20
    assert statuses[200] >= 1
    assert statuses.keys() <= {200, 429}
    assert [answer.status_code for answer in answers] == [200] * 10
