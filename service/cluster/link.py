"""The HTTP replica's end of the line to the engines: stands where ``WorkerLink`` stands in a
server of one machine, and keeps its promises.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol

from service.errors import CannotLoad, DeadlineExceeded, NotReady, ServiceError, WorkerLost
from service.metrics import Metrics
from service.worker.link import SILENCE_S, Result, WorkerState
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group

MAX_DEATHS = 4  # of engines that held a picture, after which it is not sent to another
STATUS_EVERY_S = 1.0
FIRST_PAUSE_S = 0.1  # until a dead engine is known to be dead, others may be asked in vain

_log = logging.getLogger(__name__)


class EngineLost(Exception):
    """The engine died, or cannot be reached, before it answered."""


class Status(NamedTuple):
    """What an engine says of itself."""

    models: dict[str, dict[str, Any]]
    """Those loaded there and what runs them, as ``Models.describe`` tells."""
    passed_ago_s: float
    """Seconds since its device last finished a pass."""


class Engines(Protocol):
    """All engines behind one name; each call goes to one of them."""

    async def run(
        self, group: Group, inputs: Arrays, left_s: float, outputs: tuple[str, ...] | None
    ) -> Result | ServiceError:
        """The outputs of one picture or why there are none; ``left_s`` is its time, for clocks of
        two machines differ.

        Raises:
            EngineLost: nobody knows what became of it.
            NotReady: there are no engines.
        """

    async def status(self) -> Status:
        """That of any engine.

        Raises:
            EngineLost, NotReady: as above.
        """


class EngineLink:
    """What was accepted is sent again if its engine dies, within its deadline.

    A picture that kills engines is not known from its neighbours in the batch, so each is given up
    after ``MAX_DEATHS``.
    """

    def __init__(
        self, engines: Engines, metrics: Metrics, on_change: Callable[[WorkerState], None]
    ) -> None:
        self.state = WorkerState(phase="waiting for an engine")
        self.was_ready = False
        self._engines = engines
        self._metrics = metrics
        self._on_change = on_change
        self._heard = asyncio.Event()

    async def start(self) -> None:
        """Begin to ask how the engines are; returns at once."""
        self._watching = asyncio.create_task(self._watch(), name="engine link")

    async def hear(self) -> None:
        """Return when an engine has told its state."""
        await self._heard.wait()

    async def close(self) -> None:
        """Ask no more."""
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching
        self.state = WorkerState(phase="the replica is shutting down")

    async def infer(
        self,
        group: Group,
        inputs: Arrays,
        deadline_s: float,
        outputs: tuple[str, ...] | None = None,
        client: str = "",
        priority: int = 0,
    ) -> Result:
        """As ``WorkerLink.infer``, but for turns: Ray has none, so ``client`` and ``priority``
        change nothing.

        Raises:
            WorkerLost: engines died again and again while they held the picture.
            DeadlineExceeded, NotReady, RuntimeFailed, OutOfMemory: as their names say.
        """
        asked_s = time.monotonic()
        try:
            async with asyncio.timeout(deadline_s - asked_s):
                answer = await self._until_answered(group, inputs, deadline_s, outputs)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the model had run") from None
        if isinstance(answer, ServiceError):
            raise answer
        self.state.heard_s = time.monotonic()
        queue_s = self.state.heard_s - asked_s - answer.infer_s  # Ray's part of the way, too
        for stage, seconds in (("queue", queue_s), ("infer", answer.infer_s)):
            self._metrics.stage_seconds.labels(group.model, stage).observe(seconds)
        return replace(answer, queue_s=queue_s)

    async def change(
        self, kind: Literal["load", "unload"], model: str, version: str | None = None
    ) -> None:
        """Refuse: a change must reach every replica, those that are yet to come as well.

        Raises:
            CannotLoad: always.
        """
        raise CannotLoad(
            f"replicas serve what is in the repository, so nothing can {kind} {model!r} in one of "
            "them; change the repository, and deploy the application again"
        )

    async def _until_answered(
        self, group: Group, inputs: Arrays, deadline_s: float, outputs: tuple[str, ...] | None
    ) -> Result | ServiceError:
        for deaths in range(1, MAX_DEATHS + 1):
            left_s = deadline_s - time.monotonic()
            try:
                return await self._engines.run(group, inputs, left_s, outputs)
            except EngineLost as error:
                facts = {"model": group.model, "deaths": deaths}
                _log.warning("an engine was lost: %s", error, extra={"facts": facts})
            await asyncio.sleep(FIRST_PAUSE_S * 3 ** (deaths - 1))
        raise WorkerLost(f"{MAX_DEATHS} engines in turn were lost while they held this picture")

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    self._hear_status(await self._engines.status())
            except (EngineLost, NotReady, TimeoutError) as error:
                _log.info("no engine says how it is: %s", error)  # ``answers`` knows for how long
            except Exception:
                _log.exception("status of the engines")  # a bug of ours; the loop goes on
            await asyncio.sleep(STATUS_EVERY_S)

    def _hear_status(self, status: Status) -> None:
        now_s = time.monotonic()
        self.was_ready = True
        self.state = WorkerState(
            ready=True,
            phase="ready",
            # What another engine has loaded stays known.
            models=self.state.models | status.models,
            heard_s=now_s,
            passed_s=max(self.state.passed_s or 0.0, now_s - status.passed_ago_s),
        )
        self._heard.set()
        self._on_change(self.state)
