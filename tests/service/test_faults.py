"""What clients see while processes of a real server die, hang, run out of memory or are stopped."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import PATIENCE_S, Server
from tests.service.fake_app import picture
from tests.service.poisonous_bundle import write_poisonous

StartServer = Callable[..., Server]
ENDLESS = picture(red=255)
HOGS = picture(green=255)
RECOVERED_S = 30.0  # generous: the machine that tests is shared


@pytest.fixture
def poisonous(tmp_path: Path) -> tuple[str, ...]:
    """Flags to serve what some pictures hang."""
    write_poisonous(tmp_path / "repository")
    return "--repository", str(tmp_path / "repository"), "--runtime", "onnxruntime"


def together(server: Server, bodies: list[bytes], **options: Any) -> list[httpx.Response]:
    """All at once, each on a connection of its own."""

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
            sent = (client.post("/v1/classify", content=body, **options) for body in bodies)
            return await asyncio.gather(*sent)

    return asyncio.run(send())


def until_all_answer(server: Server) -> None:
    """Connections are spread over the HTTP processes, and wait for one that is still starting."""
    responses = together(server, [picture(red=1)] * 20)
    assert {response.status_code for response in responses} == {200}


def until(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end_s, "it did not come about"
        time.sleep(0.05)


def restarts(server: Server) -> float:
    text = httpx.get(server.url + "/metrics").text
    found = [line for line in text.splitlines() if line.startswith("saccade_worker_restarts_total")]
    return float(found[0].split()[1]) if found else 0.0


def test_under_load_the_death_of_the_worker_loses_nothing_that_was_accepted(
    start_server: StartServer, demo_scenes: dict[str, Any]
) -> None:
    server = start_server()
    bodies = [scene["path"].read_bytes() for scene in demo_scenes.values()]
    right = [scene["class"] for scene in demo_scenes.values()]
    seen: Counter[str] = Counter()

    async def client(number: int, stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
            while not stop.is_set():
                number = (number + 1) % len(bodies)
                response = await http.post("/v1/classify", content=bodies[number])
                if response.status_code == 200:
                    label = response.json()["predictions"][0]["label"]
                    seen["right" if label == right[number] else "wrong"] += 1
                else:
                    seen[response.json()["code"]] += 1
                    await asyncio.sleep(0.1)

    async def until_right(count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while seen["right"] < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def load() -> float:
        stop = asyncio.Event()
        clients = [asyncio.create_task(client(number, stop)) for number in range(32)]
        await until_right(64)
        server.children("saccade worker")[0].send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        await until_right(seen["right"] + 64)
        took_s = time.monotonic() - killed_s
        stop.set()
        await asyncio.gather(*clients)
        return took_s

    took_s = asyncio.run(load())
    assert took_s < RECOVERED_S
    assert seen.keys() <= {"right", "not_ready"}, "only what is refused at the door is not answered"
    assert restarts(server) == 1


def test_a_stopped_worker_is_killed_and_what_it_had_accepted_is_answered_by_its_successor(
    start_server: StartServer, demo_scenes: dict[str, Any]
) -> None:
    server = start_server("--batch-timeout-s", "2")
    worker = server.children("saccade worker")[0]
    worker.send_signal(signal.SIGSTOP)
    bodies = [scene["path"].read_bytes() for scene in demo_scenes.values()] * 2
    responses = together(server, bodies)
    assert [response.status_code for response in responses] == [200] * len(bodies)
    assert not worker.is_running()
    assert "worker hangs (" in server.log.read_text()
    assert restarts(server) == 1


def test_a_picture_that_hangs_the_worker_twice_is_refused_for_good_and_its_neighbours_are_not(
    start_server: StartServer, poisonous: tuple[str, ...]
) -> None:
    flags = "--batch-timeout-s", "1", "--api-processes", "2"
    server = start_server(*poisonous, *flags)
    good = [picture(red=10 * number) for number in range(12)]
    responses = together(server, [*good[:6], ENDLESS, *good[6:]])
    statuses = [response.status_code for response in responses]
    assert statuses == [200] * 6 + [422] + [200] * 6
    assert responses[6].json()["code"] == "quarantined"
    until(lambda: restarts(server) == 2)
    for _ in range(10):  # each on a new connection, so both processes are asked
        server.wait_until("/readyz", 200)
        again = httpx.post(server.url + "/v1/classify", content=ENDLESS)
        assert (again.status_code, again.json()["code"]) == (422, "quarantined")
    assert restarts(server) == 2, "nobody ran it again"
    assert httpx.post(server.url + "/v1/classify", content=good[0]).status_code == 200


def test_a_batch_that_does_not_fit_into_memory_is_halved_until_it_does(
    start_server: StartServer, poisonous: tuple[str, ...]
) -> None:
    server = start_server(*poisonous)
    responses = together(server, [HOGS] * 48)
    assert [response.status_code for response in responses] == [200] * 48
    labels = {response.json()["predictions"][0]["label"] for response in responses}
    assert labels == {"bee"}
    text = httpx.get(server.url + "/metrics").text
    assert 'saccade_halved_batches_total{model="poisonous"} 0.0' not in text
    assert 'saccade_isolated_failures_total{model="poisonous"} 0.0' in text
    assert restarts(server) == 0


def test_the_death_of_an_http_process_breaks_its_own_connections_and_no_others(
    start_server: StartServer, poisonous: tuple[str, ...]
) -> None:
    server = start_server(*poisonous, "--api-processes", "2")
    until_all_answer(server)
    first = server.children("saccade api 0")[0]
    body = picture(red=20)
    seen: Counter[str] = Counter()

    async def client(stop: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as http:
            while not stop.is_set():
                try:
                    response = await http.post("/v1/classify", content=body)
                    seen[str(response.status_code)] += 1
                except httpx.TransportError:
                    seen["broken"] += 1

    async def until_good(count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while seen["200"] < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def load() -> None:
        stop = asyncio.Event()
        clients = [asyncio.create_task(client(stop)) for _ in range(16)]
        await until_good(64)
        first.send_signal(signal.SIGKILL)
        await until_good(seen["200"] + 256)
        stop.set()
        await asyncio.gather(*clients)

    asyncio.run(load())
    assert seen.keys() <= {"broken", "200", "503"}
    assert 0 < seen["broken"] <= 16, "each connection broke once at most"
    until(lambda: len(server.children("saccade api")) == 2)
    assert server.children("saccade api 0")[0].pid != first.pid
    server.wait_until("/readyz", 200)
    answers = together(server, [picture(blue=30)] * 20)
    assert [answer.status_code for answer in answers] == [200] * 20
    assert restarts(server) == 0


def test_a_stopped_http_process_is_killed_and_replaced(
    start_server: StartServer, poisonous: tuple[str, ...]
) -> None:
    server = start_server(*poisonous, "--api-processes", "2", "--batch-timeout-s", "2")
    until_all_answer(server)
    stopped = server.children("saccade api 1")[0]
    stopped.send_signal(signal.SIGSTOP)
    until(lambda: not stopped.is_running())
    answers = together(server, [picture(blue=30)] * 20)
    assert [answer.status_code for answer in answers] == [200] * 20
    assert "api 1 hangs (it is silent); killing it" in server.log.read_text()
    assert restarts(server) == 0


def test_liveness_fails_while_the_device_finishes_nothing_and_comes_back_with_it(
    start_server: StartServer, poisonous: tuple[str, ...]
) -> None:
    server = start_server(*poisonous, "--liveness-s", "2", "--probe-every-s", "0.2")
    worker = server.children("saccade worker")[0]
    idle_until_s = time.monotonic() + 4.0
    while time.monotonic() < idle_until_s:  # nobody sends anything, and probes prove it alive
        assert httpx.get(server.url + "/livez").status_code == 200
        time.sleep(0.1)
    worker.send_signal(signal.SIGSTOP)
    server.wait_until("/livez", 503)
    assert httpx.get(server.url + "/v2/health/live").status_code == 503
    worker.send_signal(signal.SIGCONT)
    server.wait_until("/livez", 200)
    assert restarts(server) == 0


def test_after_sigterm_it_is_not_ready_and_answers_until_balancers_have_heard_of_it(
    start_server: StartServer, poisonous: tuple[str, ...]
) -> None:
    server = start_server(*poisonous, "--drain-delay-s", "8")
    until_all_answer(server)
    server.process.terminate()
    server.wait_until("/readyz", 503)
    answers = together(server, [picture(green=40)] * 20)
    assert [answer.status_code for answer in answers] == [200] * 20
    assert {answer.headers["connection"] for answer in answers} == {"close"}
    assert httpx.get(server.url + "/livez").status_code == 200
    assert server.process.wait(PATIENCE_S) == 0


def test_a_worker_that_dies_while_the_server_stops_is_replaced_for_what_was_accepted(
    start_server: StartServer, poisonous: tuple[str, ...]
) -> None:
    server = start_server(*poisonous, "--api-processes", "1")  # which is up, as it has answered
    worker = server.children("saccade worker")[0]
    worker.send_signal(signal.SIGSTOP)

    async def scenario() -> int:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
            accepted = asyncio.create_task(client.post("/v1/classify", content=picture(red=50)))
            await asyncio.sleep(0.5)
            server.process.terminate()
            await asyncio.sleep(0.5)
            worker.send_signal(signal.SIGKILL)
            return (await accepted).status_code

    assert asyncio.run(scenario()) == 200
    assert server.process.wait(PATIENCE_S) == 0
