"""The server's own application without a server: its runtimes are opened in this process.

Requests take the same way as over HTTP but for the socket and the worker's process, so that the
answers are the same.
"""

import asyncio
import logging
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, cast

from service.api.app import State, assemble
from service.api.serving import Serving
from service.bundle import Bundle, find_bundle, load_repository
from service.cores import usable_cores
from service.errors import RetryLater, RuntimeFailed, UnsupportedTask
from service.metrics import Metrics
from service.settings import Settings
from service.worker.link import Result, WorkerLink, WorkerState
from service.worker.models import Models, Ran
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]
"""An ASGI application."""
Report = Callable[[str], None]
"""Hears what is being done until the first picture can be answered."""

_log = logging.getLogger(__name__)


@dataclass
class _Waiting:
    inputs: Arrays
    outputs: tuple[str, ...] | None
    answer: "asyncio.Future[Result]"
    asked_s: float


class LocalLink:
    """Runs pictures in threads of this process; the API's end of a worker that is not there.

    As in a worker, what waits forms the next batch while one runs, and of a batch that fails each
    picture is tried alone.
    """

    def __init__(self, models: Models) -> None:
        self.state = WorkerState(ready=True, phase="ready", models=models.describe())
        self.was_ready = True
        self._models = models
        self._waiting: dict[Group, deque[_Waiting]] = defaultdict(deque)
        self._running: Counter[Group] = Counter()
        self._batches: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(models.most_streams(), "batches")

    async def infer(
        self,
        group: Group,
        inputs: Arrays,
        deadline_s: float,
        outputs: tuple[str, ...] | None = None,
        client: str = "",
        priority: int = 0,
    ) -> Result:
        """As ``WorkerLink.infer``; nobody else is here to take turns with."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting[group].append(_Waiting(inputs, outputs, answer, monotonic()))
        self._launch(group)
        result: Result = await answer
        return result

    def close(self) -> None:
        """Let the threads end; nothing may be under way."""
        self._threads.shutdown()

    def _launch(self, group: Group) -> None:
        waiting = self._waiting[group]
        while waiting and self._running[group] < self._models.streams(group):
            count = min(len(waiting), self._models.best_batch(group))
            jobs = [waiting.popleft() for _ in range(count)]
            lone = len(jobs) == 1 and not self._running.total()
            self._running[group] += 1
            batch = asyncio.create_task(self._run(group, jobs, lone))
            self._batches.add(batch)
            batch.add_done_callback(self._batches.discard)

    async def _run(self, group: Group, jobs: list[_Waiting], lone: bool) -> None:
        try:
            await self._answer([job for job in jobs if not job.answer.done()], group, lone)
        finally:
            self._running[group] -= 1
            self._launch(group)

    async def _answer(self, jobs: list[_Waiting], group: Group, lone: bool) -> None:
        if not jobs:
            return
        started_s = monotonic()
        try:
            ran = await self._in_thread(group, jobs, lone)
        except Exception as error:
            await self._fail(jobs, group, error)
            return
        infer_s = monotonic() - started_s
        for job, outputs in zip(jobs, ran.outputs, strict=True):
            queue_s = started_s - job.asked_s
            result = Result(outputs, ran.precision, len(jobs), queue_s, infer_s)
            if not job.answer.done():
                job.answer.set_result(result)

    async def _in_thread(self, group: Group, jobs: list[_Waiting], lone: bool) -> Ran:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads,
            self._models.run,
            group,
            [job.inputs for job in jobs],
            [job.outputs for job in jobs],
            lone,
        )

    async def _fail(self, jobs: list[_Waiting], group: Group, error: Exception) -> None:
        if len(jobs) > 1:
            for job in jobs:
                await self._answer([job], group, lone=False)
            return
        if not isinstance(error, RetryLater):
            _log.error("inference failed: %s", error)
            error = RuntimeFailed(f"the model failed on this picture: {error}")
        if not jobs[0].answer.done():
            jobs[0].answer.set_exception(error)


@asynccontextmanager
async def local_app(settings: Settings, bundle: Bundle, report: Report) -> AsyncIterator[App]:
    """The application that answers with one model, opened and warmed here.

    Raises:
        ServiceError: it is damaged, or nothing here may run it.
    """
    models, metrics = Models(settings), Metrics()
    await asyncio.to_thread(models.change, bundle.manifest.name, bundle.manifest.version, report)

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[State]:
        link = LocalLink(models)
        serving = Serving(settings, [bundle], cast(WorkerLink, link), metrics)
        yield State(serving=serving)
        serving.close()
        link.close()

    app = assemble(settings, metrics, lifespan)
    async with lifespan(app) as state:

        async def with_state(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            scope["state"] = dict(state)
            await app(scope, receive, send)

        yield with_state


def choose_bundle(settings: Settings, task: str, name: str | None) -> Bundle:
    """The model that a server of the same repository would ask.

    Raises:
        ServiceError: there is no such model, or none does the task.
    """
    bundles = load_repository(settings.repository)
    able = [bundle for bundle in bundles if task in bundle.manifest.tasks]
    if name is not None:
        bundle = find_bundle(settings.repository, name)
        if task not in bundle.manifest.tasks:
            can = ", ".join(one.manifest.name for one in able) or "none"
            raise UnsupportedTask(f"{name!r} cannot {task}; models that can: {can}")
        return bundle
    if not able:
        raise UnsupportedTask(f"no model in {settings.repository} can {task}", allowed=[])
    return able[0]


def local_settings(settings: Settings) -> Settings:
    """The same for one user on one machine: no keys, no hurry, and every core may decode."""
    changed: dict[str, Any] = {
        "api_keys": "",
        "api_keys_file": "",
        "admin_keys": "",
        "admin_keys_file": "",
        "timeout_s": 3600.0,
        "decode_threads": settings.decode_threads or usable_cores(),
    }
    return Settings(**(settings.model_dump() | changed))
