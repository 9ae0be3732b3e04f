"""The API's end of the line to a worker: one coroutine per picture, and the truth about the
worker's state.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from service import errors
from service.errors import (
    DeadlineExceeded,
    NotReady,
    Quarantined,
    ServerError,
    ServiceError,
    WorkerLost,
)
from service.worker import wire
from service.worker.lines import Caller, call
from service.worker.pulse import PEER_BYTES, pulse_beside
from service.worker.quarantine import Quarantine, quarantine_beside
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group

MAX_STRIKES = 2  # worker deaths during its own batch after which a picture is quarantined
MAX_UNTRIED = 3  # workers in a row that die before their first pass, for /livez
SILENCE_S = 5.0  # statuses come every second
CALL_AGAIN_S = 0.02

_QUARANTINED = (
    f"the worker died {MAX_STRIKES} times while it ran this picture; it will not be tried again. "
    "Another picture will do"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """Outputs of one picture, and what its batch cost."""

    outputs: Arrays
    precision: str
    batch_size: int
    queue_s: float
    infer_s: float


@dataclass
class WorkerState:
    """What the worker last said of itself; ``ready`` is False as soon as its process is gone."""

    ready: bool = False
    phase: str = "waiting for the worker"
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    heard_s: float = math.inf
    failed: list[str] = field(default_factory=list)
    """Models that should be served and cannot be loaded."""
    passed_s: float | None = None
    """When a batch or a probe last ran to its end, on the monotonic clock; None: none ever did."""
    phases: list[tuple[str, float]] = field(default_factory=list)
    """What the worker did to get ready, and when it began each."""

    untried: bool = False
    """This worker has finished no pass yet, as long as its models load; False once several died of
    that in a row.
    """

    devices: dict[str, bool] = field(default_factory=dict)
    """Where there are several workers: whether that of each device answers."""

    def answers(self) -> bool:
        """Ready, and not silent: a stopped process keeps its socket and says nothing more."""
        return self.ready and time.monotonic() - self.heard_s < SILENCE_S

    def passes(self, within_s: float) -> bool:
        """Whether the device has lately finished a pass, which an idle worker has it do too; true
        before the first of a worker, too.
        """
        if self.untried or self.passed_s is None:
            return True
        return time.monotonic() - self.passed_s < within_s


class AnotherWorker(Exception):
    """This worker is away, and another is there; the picture was running in so many deaths."""

    def __init__(self, strikes: int) -> None:
        super().__init__(strikes)
        self.strikes = strikes


@dataclass
class _Pending:
    group: Group
    header: wire.Header
    inputs: Arrays
    answer: "asyncio.Future[Result]"
    sent: bool = False
    strikes: int = 0


class WorkerLink:
    """A connection that survives the worker: what was accepted is sent again to its successor.

    The kernel closes the socket of a killed process at once, so its death is known without
    heartbeats. Pictures that were running when it died, as its pulse tells, are run alone the next
    time, with nothing else beside them; one that was running in ``MAX_STRIKES`` deaths is
    quarantined.

    Where ``others`` says that another worker could run them, ``infer`` raises AnotherWorker instead
    of waiting for the successor.
    """

    def __init__(
        self,
        endpoint: str,
        on_change: Callable[[WorkerState], None],
        others: Callable[["WorkerLink"], bool] = lambda link: False,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.state = WorkerState()
        self.was_ready = False
        self._path = Path(endpoint.removeprefix("ipc://"))
        self._on_change = on_change
        self._others = others
        self._pulse = pulse_beside(endpoint)
        self._quarantine = quarantine or quarantine_beside(endpoint)
        self._line: Caller | None = None
        self._closed = False
        self._untried = 0  # workers that died before their first pass
        self._pending: dict[int, _Pending] = {}
        self._changes: dict[int, asyncio.Future[None]] = {}
        self._ids = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect; returns at once, ``state`` tells when the worker is there."""
        self._loop = asyncio.get_running_loop()
        self._heard = asyncio.Event()
        self._tasks = [asyncio.create_task(self._stay_connected(), name="worker link")]

    async def hear(self, within_s: float) -> None:
        """Return when the worker has told its state, or after ``within_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._heard.wait()

    async def close(self) -> None:
        """Disconnect; pictures still pending fail with WorkerLost, new ones with NotReady."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.state = WorkerState(phase="the server is shutting down")
        for pending in list(self._pending.values()):
            _fail(pending, WorkerLost("the server is shutting down"))
        self._fail_changes("the server is shutting down")
        self._closed = True
        self._pulse.close()

    @property
    def in_flight(self) -> int:
        """Pictures sent and not yet answered."""
        return len(self._pending)

    async def infer(
        self,
        group: Group,
        inputs: Arrays,
        deadline_s: float,
        outputs: tuple[str, ...] | None = None,
        client: str = "",
        priority: int = 0,
        strikes: int = 0,
        accepted: bool = False,
    ) -> Result:
        """Run one picture in whatever batch it fits; ``deadline_s`` is on the monotonic clock,
        ``outputs`` are those to bring back, None for all, and ``client`` takes turns with others;
        of its own pictures those of ``priority`` 1 come first and those of 0 last. ``strikes``
        are other workers' deaths of which it is suspected, and ``accepted`` it was by such a one.

        While the worker is away the picture waits for its successor. Cancelling this coroutine
        takes the picture off the worker's queue.

        Raises:
            NotReady: the link is closed.
            AnotherWorker: this one died, and the picture should be sent to another.
            Quarantined: workers died of these inputs before.
            Overloaded, DeadlineExceeded, RuntimeFailed, WorkerLost: as their names say.
        """
        if self._closed:
            raise NotReady(f"{self.state.phase}; try again soon")
        if self._quarantine.holds(group, inputs):
            raise Quarantined(_QUARANTINED)
        job_id = next(self._ids)
        header: wire.Header = {
            "type": "infer",
            "id": job_id,
            "model": group.model,
            "version": group.version,
            "graph": group.graph,
            "canvas": group.canvas,
            "outputs": outputs,
            "deadline_s": deadline_s,
            "alone": strikes > 0,
            "client": client,
            "priority": priority,
        }
        if accepted:
            header["accepted"] = True
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        pending = self._pending[job_id] = _Pending(group, header, inputs, answer, strikes=strikes)
        try:
            if self.state.ready:
                self._send_job(pending)
            async with asyncio.timeout(deadline_s - time.monotonic()):
                return await pending.answer
        except TimeoutError:  # the worker drops late jobs by itself
            raise DeadlineExceeded("the deadline passed before the model had run") from None
        except asyncio.CancelledError:
            if self.state.ready:
                self._send({"type": "cancel", "id": job_id})
            raise
        finally:
            del self._pending[job_id]

    async def change(
        self, kind: Literal["load", "unload"], model: str, version: str | None = None
    ) -> None:
        """Have the worker load another version of a model, or serve it no longer; ``state`` tells
        of it before this returns.

        Raises:
            NotReady: there is no worker that could.
            UnknownModel, CannotLoad, RetryLater: what was served goes on.
        """
        if not self.state.answers():
            raise NotReady(f"{self.state.phase}; try again soon")
        change_id = next(self._ids)
        done = self._changes[change_id] = self._loop.create_future()
        try:
            self._send({"type": kind, "id": change_id, "model": model, "version": version})
            await done
        finally:
            del self._changes[change_id]

    async def _stay_connected(self) -> None:
        while True:
            try:
                line = await call(self._path, self._handle)
            except OSError:
                await asyncio.sleep(CALL_AGAIN_S)
                continue
            # By this name the pulse tells our jobs from those of other processes.
            self._name = secrets.token_bytes(PEER_BYTES)
            self._line = line
            self._send({"type": "hello", "name": self._name.hex()})
            try:
                await line.lost.wait()
            finally:
                self._line = None
                line.close()
            self._lose_worker()

    def _handle(self, header: wire.Header, arrays: Arrays) -> None:
        kind = header["type"]
        if kind == "status":
            self._hear_status(header)
        elif (change := self._changes.get(header["id"])) and not change.done():
            if kind == "done":
                change.set_result(None)
            else:
                change.set_exception(_error(header))
        elif (pending := self._pending.get(header["id"])) and not pending.answer.done():
            if kind == "result":
                facts = (header[name] for name in ("precision", "batch_size", "queue_s", "infer_s"))
                pending.answer.set_result(Result(arrays, *facts))
            else:
                _fail(pending, _error(header))

    def _hear_status(self, header: wire.Header) -> None:
        became_ready = header["ready"] and not self.state.ready
        if header["passed_s"] is not None:
            self._untried = 0
        self.state = WorkerState(
            header["ready"],
            header["phase"],
            header["models"],
            time.monotonic(),
            header.get("failed", []),
            header["passed_s"] or self.state.passed_s,
            [(phase, began_s) for phase, began_s in header["phases"]],
            untried=header["passed_s"] is None and self._untried < MAX_UNTRIED,
        )
        self._heard.set()
        self._on_change(self.state)
        if became_ready:
            self.was_ready = True
            self._quarantine.read()
            for pending in self._pending.values():
                if not pending.sent:
                    pending.header["accepted"] = True  # by us, when there was a worker
                    self._send_job(pending)

    def _lose_worker(self) -> None:
        passed_s = self.state.passed_s  # else a worker that dies all the time would look alive
        self._untried += 1
        self.state = WorkerState(phase="the worker died and is being restarted", passed_s=passed_s)
        self._strike()
        self._on_change(self.state)
        self._fail_changes("the worker died during the change; what was served before will be")
        self.give_away()

    def _strike(self) -> None:
        """Suspect what ran when the worker died, and condemn what did so again."""
        ran = self._pulse.running(self._name)
        for job_id, pending in self._pending.items():
            pending.sent = False
            if job_id in ran:
                pending.strikes += 1
                pending.header["alone"] = True
            if pending.strikes >= MAX_STRIKES and not pending.answer.done():
                _log.error(
                    "the worker died %d times of one picture",
                    pending.strikes,
                    extra={"facts": {"model": pending.group.model}},
                )
                self._quarantine.condemn(pending.group, pending.inputs)
                _fail(pending, Quarantined(_QUARANTINED))

    def give_away(self) -> None:
        """Have others run what waits for a successor, where there are any."""
        if not self._others(self):
            return
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(AnotherWorker(pending.strikes))

    def _fail_changes(self, reason: str) -> None:
        """A load that killed the worker is not tried again by itself."""
        for change in self._changes.values():
            if not change.done():
                change.set_exception(WorkerLost(reason))

    def _send_job(self, pending: _Pending) -> None:
        pending.sent = True
        self._send(pending.header, pending.inputs)

    def _send(self, header: wire.Header, arrays: Arrays | None = None) -> None:
        if self._line is not None:
            self._line.send(header, arrays)


def _fail(pending: _Pending, error: ServiceError) -> None:
    if not pending.answer.done():
        pending.answer.set_exception(error)


def _error(header: wire.Header) -> ServiceError:
    kind: type[ServiceError] = getattr(errors, header["kind"], ServerError)
    error = kind(header["message"], **header["facts"])
    if isinstance(error, errors.RetryLater):
        error.retry_after_s = header["retry_after_s"]
    return error
