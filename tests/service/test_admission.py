"""Who gets in when many ask, and what becomes of the work of those who leave."""

import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from service.api.app import State, assemble
from service.api.security import network_of
from service.api.serving import Serving
from service.bundle import Bundle, Manifest
from service.errors import Overloaded
from service.metrics import CANCEL_STAGES, Metrics
from service.settings import Settings
from service.worker.drain import DrainRate, retry_after_s
from service.worker.link import WorkerLink
from service.worker.models import Ran
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group
from tests.conftest import PATIENCE_S, Server
from tests.service.fake_app import FakeLink
from tests.service.sample_bundle import manifest_of
from tests.service.test_worker import Rig


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


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:0db8:0001:0002"),
        ("2001:db8:1:2::9", "2001:0db8:0001:0002"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80:0000:0000:0000"),
    ],
)
def test_addresses_that_one_client_may_have_many_of_are_one_client(
    address: str, network: str
) -> None:
    assert network_of(address) == network


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


@contextmanager
def application(endpoint: str, metrics: Metrics) -> Iterator[tuple[str, int]]:
    """The HTTP application on a port, in a thread, in front of a worker's endpoint."""
    settings = Settings()
    bundles = [Bundle(folder=Path("nowhere"), manifest=Manifest.model_validate(manifest_of()))]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        link = WorkerLink(endpoint, lambda state: None)
        serving = Serving(settings, bundles, link, metrics)
        await link.start()
        yield State(serving=serving)
        await link.close()
        serving.close()

    app = assemble(settings, metrics, lifespan)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def wait_until(done: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.01)


def test_when_24_clients_hang_up_nothing_runs_that_had_not_started(
    demo_scenes: dict[str, Any], tmp_path: Path
) -> None:
    picture = demo_scenes["star.jpg"]["path"].read_bytes()
    request = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(picture)
    rig, started = Rig(tmp_path), []

    def run(group: Group, items: list[Arrays], *_: object) -> Ran:
        started.extend(items)
        assert rig.models.may_run.wait(PATIENCE_S)
        return Ran([{"scores": np.zeros(3, np.float32)} for _ in items], "fp32")

    def cancelled(stage: str) -> int:
        return int(rig.value_of("saccade_cancellations_total", stage=stage) or 0)

    rig.models.may_run.clear()
    rig.start()
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            application(rig.endpoint, rig.metrics) as address,
        ):
            patch.setattr(rig.models, "run", run)
            url = f"http://{address[0]}:{address[1]}"
            wait_until(lambda: httpx.get(url + "/readyz").status_code == 200)
            clients = [socket.create_connection(address) for _ in range(24)]
            for client in clients:
                client.sendall(request + picture)
            wait_until(lambda: (rig.value_of("saccade_queue_depth") or 0) + len(started) == 24)
            running = len(started)
            for client in clients:
                client.close()
            wait_until(lambda: sum(map(cancelled, CANCEL_STAGES)) == 24)
            assert (cancelled("infer"), cancelled("queue")) == (running, 24 - running)
            rig.models.may_run.set()
            answer = httpx.post(url + "/v1/classify", content=picture, timeout=PATIENCE_S)
        assert answer.status_code == 200
        assert len(started) == running + 1, "what ran before they left, and the last, who stayed"
    finally:
        rig.close()


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
