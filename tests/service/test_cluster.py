"""The replicas of a cluster without the cluster: engines are called where Ray would call them."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.types import Message, Receive, Scope, Send

from service.cluster import link as links
from service.cluster import proxy
from service.cluster.engine import Engine, model_id
from service.cluster.front import create_front
from service.cluster.link import MAX_DEATHS, EngineLink, EngineLost, Status
from service.cluster.proxy import RepeatLost
from service.errors import (
    CannotLoad,
    DeadlineExceeded,
    NotReady,
    RuntimeFailed,
    ServiceError,
    UnknownModel,
    WorkerLost,
)
from service.metrics import Metrics
from service.settings import Settings
from service.worker.link import Result, WorkerState
from service.worker.models import Models, Outputs, Ran
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group

GROUP = Group("vit-scenes", "serve", "128x128", "1")
ANSWER = Result({"scores": np.array([1.0], np.float32)}, "fp32", 1, 0.0, 0.25)


class Scripted:
    """Engines that do one thing after another; the last of them again and again."""

    def __init__(self, *steps: Exception | ServiceError | Result) -> None:
        self.steps = list(steps)
        self.asked = 0

    async def run(
        self, group: Group, inputs: Arrays, left_s: float, outputs: Outputs
    ) -> Result | ServiceError:
        step = self.steps[min(self.asked, len(self.steps) - 1)]
        self.asked += 1
        if isinstance(step, EngineLost):
            raise step
        assert isinstance(step, Result | ServiceError)
        return step

    async def status(self) -> Status:
        return Status({"vit-scenes": {"version": "1"}}, 0.0)


class Local:
    """Ray's part: finds the engine, and loads the model first."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def run(
        self, group: Group, inputs: Arrays, left_s: float, outputs: Outputs
    ) -> Result | ServiceError:
        return await self._engine.run(group, inputs, left_s, outputs)

    async def status(self) -> Status:
        return self._engine.status()


def link_to(scripted: Any, heard: Callable[[WorkerState], None] = lambda _: None) -> EngineLink:
    return EngineLink(scripted, Metrics(), heard)


def infer(link: EngineLink, within_s: float = 30.0) -> Awaitable[Result]:
    return link.infer(GROUP, {}, time.monotonic() + within_s)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(proxy, "FIRST_PAUSE_S", 0.0)


def test_a_picture_whose_engine_dies_is_sent_to_another() -> None:
    scripted = Scripted(EngineLost("died"), EngineLost("died"), ANSWER)
    found = asyncio.run(_await(infer(link_to(scripted))))
    assert found.outputs["scores"].tolist() == [1.0]
    assert scripted.asked == 3


def test_a_picture_that_kills_every_engine_is_given_up() -> None:
    scripted = Scripted(EngineLost("died"))
    with pytest.raises(WorkerLost, match=f"{MAX_DEATHS} engines in turn"):
        asyncio.run(_await(infer(link_to(scripted))))
    assert scripted.asked == MAX_DEATHS


def test_an_error_of_the_engine_is_not_repeated() -> None:
    scripted = Scripted(RuntimeFailed("no"), ANSWER)
    with pytest.raises(RuntimeFailed, match="no"):
        asyncio.run(_await(infer(link_to(scripted))))
    assert scripted.asked == 1


def test_the_deadline_ends_the_wait_for_engines() -> None:
    class Never(Scripted):
        async def run(self, *args: Any) -> Result | ServiceError:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(DeadlineExceeded):
        asyncio.run(_await(infer(link_to(Never()), within_s=0.01)))


def test_a_replica_changes_no_models_by_itself() -> None:
    with pytest.raises(CannotLoad, match="deploy the application again"):
        asyncio.run(link_to(Scripted()).change("load", "vit-scenes"))


def test_the_link_is_ready_when_an_engine_has_spoken() -> None:
    async def run() -> None:
        states: list[WorkerState] = []
        link = link_to(Scripted(ANSWER), states.append)
        assert not link.state.answers()
        await link.start()
        await link.hear()
        assert link.was_ready
        assert link.state.answers()
        assert link.state.passes(1.0)
        assert list(states[0].models) == ["vit-scenes"]
        await link.close()
        assert not link.state.answers()

    asyncio.run(run())


def test_engines_that_cannot_be_reached_are_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "STATUS_EVERY_S", 0.0)

    class Shy(Scripted):
        async def status(self) -> Status:
            self.asked += 1
            if self.asked == 1:
                raise NotReady("none yet")
            if self.asked == 2:
                raise EngineLost("died")
            return await super().status()

    async def run() -> bool:
        link = link_to(Shy())
        await link.start()
        await link.hear()
        await link.close()
        return link.was_ready

    assert asyncio.run(run())


@pytest.fixture(scope="module")
def vit_engine() -> Engine:
    """An engine that has loaded one small classifier."""
    engine = Engine(Settings(threads=1))
    loaded = asyncio.run(engine.load(model_id("vit-scenes", "1")))
    loaded._unload = None  # it stays
    engine.begin()
    return engine


def test_the_front_answers_over_http_what_the_engine_found(
    vit_engine: Engine, demo_scenes: dict[str, Any]
) -> None:
    scene = next(iter(demo_scenes.values()))
    picture = scene["path"].read_bytes()

    async def run() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        front = create_front(Settings(), Local(vit_engine), Metrics())
        async with _running(front), _client(front) as client:
            listed = await client.get("/v1/models/vit-scenes")
            ready = await client.get("/readyz")
            url = "/v1/classify?model=vit-scenes"
            return listed, ready, await client.post(url, content=picture)

    listed, ready, answer = asyncio.run(run())
    assert ready.status_code == 200
    assert listed.json()["ready"] is True
    assert answer.status_code == 200
    assert answer.json()["predictions"][0]["label"] == scene["class"]
    assert "infer;dur=" in answer.headers["server-timing"]


def test_an_engine_refuses_a_model_that_is_not_there() -> None:
    with pytest.raises(UnknownModel, match="nothing"):
        asyncio.run(Engine(Settings()).load("nothing/1"))


def test_a_repository_is_loaded_up_to_the_bound() -> None:
    engine = Engine(Settings())
    assert engine.first_models(2) == ["detr-scenes/1", "mask2former-scenes/1"]


def test_what_leaves_the_engine_is_served_no_longer() -> None:
    engine = Engine(Settings(threads=1))

    async def come_and_go() -> None:
        loaded = await engine.load("vit-scenes/1")
        assert list(engine.status().models) == ["vit-scenes"]
        del loaded

    asyncio.run(come_and_go())
    assert engine.status().models == {}


def test_an_idle_engine_proves_its_health_by_a_pass(
    vit_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    monkeypatch.setattr(Models, "probe", lambda self: passed.append(1))
    models = vit_engine._models
    models.passed_s = time.monotonic() - 60
    asyncio.run(vit_engine.check_health())
    assert passed == [1]
    assert vit_engine.status().passed_ago_s < 30


def test_an_engine_whose_batch_does_not_end_is_unhealthy(
    vit_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vit_engine._models._began_s, 0, time.monotonic() - 3600)
    with pytest.raises(RuntimeError, match="running for 3600 s"):
        asyncio.run(vit_engine.check_health())


def test_an_engine_is_healthy_while_models_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Settings())
    compiled, dropped = threading.Event(), threading.Event()
    monkeypatch.setattr(Models, "change", lambda *_: compiled.wait(60))
    monkeypatch.setattr(Models, "drop_replaced", lambda _: dropped.set())
    monkeypatch.setattr(Models, "probe", lambda _: None)
    engine._models.passed_s = time.monotonic() - 60  # so that a pass is asked for, too

    async def check() -> None:
        loads = [asyncio.create_task(engine.load(f"m{n}/1")) for n in range(64)]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(30):
                await engine.check_health()
                await engine.check_health()
            assert not dropped.is_set()  # one thread at a time changes models
        finally:
            compiled.set()
        await asyncio.gather(*loads)
        assert await asyncio.to_thread(dropped.wait, 30)

    asyncio.run(check())


def test_a_batch_is_counted_while_it_runs(
    vit_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = vit_engine._models
    seen: list[float] = []

    def run(self: Models, *args: Any) -> Ran:
        seen.append(models.oldest_s)
        return Ran([{}], "fp32")

    monkeypatch.setattr(Models, "run", run)
    models.run(GROUP, [{}], [None])
    assert seen[0] <= models.passed_s
    assert models.oldest_s == math.inf


async def _await(awaitable: Awaitable[Result]) -> Result:
    return await awaitable


@asynccontextmanager
async def _running(app: Any) -> AsyncIterator[None]:
    """The lifespan of an application, as its server runs it."""
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.create_task(app(scope, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    yield
    await inbox.put({"type": "lifespan.shutdown"})
    await task


def _client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://front")


class Frail:
    """Ray's proxy as its middleware sees it: some tries read the body and end without a word."""

    def __init__(self, deaths: int) -> None:
        self.deaths = deaths
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message["body"]
            more = message.get("more_body", False)
        scope["headers"].append((b"of-this-try", b""))
        self.bodies.append(body)
        assert [name for name, _ in scope["headers"]].count(b"of-this-try") == 1
        if len(self.bodies) <= self.deaths:
            return
        headers = [(b"x-request-id", b"ours"), (b"x-request-id", b"ray's")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"answer"})


def through_the_proxy(frail: Frail, *messages: Message) -> list[Message]:
    """What the client gets for a request of these messages."""
    sent: list[Message] = []
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "headers": []}
    asyncio.run(RepeatLost(frail)(scope, receive, send))
    return sent


def part(body: bytes, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_request_whose_replica_dies_is_sent_again_whole() -> None:
    frail = Frail(deaths=2)
    sent = through_the_proxy(frail, part(b"pic", True), part(b"ture", False))
    assert frail.bodies == [b"picture"] * 3
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


def test_an_answer_has_one_request_id() -> None:
    start, _ = through_the_proxy(Frail(deaths=0), part(b"", False))
    assert start["headers"] == [(b"x-request-id", b"ours")]


def test_a_request_that_kills_every_replica_is_given_up() -> None:
    frail = Frail(deaths=100)
    assert through_the_proxy(frail, part(b"picture", False)) == []
    assert len(frail.bodies) == proxy.MAX_TRIES


def test_nobody_repeats_what_nobody_waits_for() -> None:
    frail = Frail(deaths=100)
    assert through_the_proxy(frail, part(b"half a pic", True)) == []
    assert frail.bodies == [b"half a pic"]


def test_a_body_too_large_to_keep_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "MOST_BYTES", 4)
    frail = Frail(deaths=100)
    through_the_proxy(frail, part(b"pic", True), part(b"ture", False))
    assert frail.bodies == [b"picture"]


def test_ray_is_told_of_the_middleware() -> None:
    classes: list[Any] = [middleware.cls for middleware in proxy.middlewares()]
    assert classes == [RepeatLost]
