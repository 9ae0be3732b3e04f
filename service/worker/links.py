"""One worker for each device: every picture goes to the least loaded of those that can run it."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from service.devices import endpoints
from service.errors import NotReady
from service.worker.link import AnotherWorker, Result, WorkerLink, WorkerState
from service.worker.quarantine import quarantine_beside
from service.worker.runtimes.base import Arrays
from service.worker.scheduler import Group

FOLLOW_S = 10.0  # that others may take to load what one of them has loaded, until it is answered

_log = logging.getLogger(__name__)


class WorkerLinks:
    """Stands where a ``WorkerLink`` stands, and has one for each device.

    A picture that was sent to a worker which dies goes to another at once; one that may have killed
    it takes the suspicion along. As long as any worker is ready, so is this.
    """

    def __init__(
        self,
        listening: Sequence[str],
        devices: Sequence[str],
        on_change: Callable[[WorkerState], None],
    ) -> None:
        self._devices = devices
        self._on_change = on_change
        self._turns = itertools.count()
        self._heard = asyncio.Event()
        self.state = WorkerState()
        quarantine = quarantine_beside(listening[0])
        self._links = [
            WorkerLink(one, self._hear, self._anyone_else, quarantine) for one in listening
        ]
        self.state = merged([link.state for link in self._links], devices)

    @property
    def was_ready(self) -> bool:
        """Whether any worker has been ready."""
        return any(link.was_ready for link in self._links)

    @property
    def in_flight(self) -> int:
        """Pictures sent and not yet answered."""
        return sum(link.in_flight for link in self._links)

    def versions(self, model: str) -> list[str | None]:
        """Which version of a model each worker serves."""
        return [_version(link.state, model) for link in self._links]

    async def start(self) -> None:
        """See ``WorkerLink.start``."""
        for link in self._links:
            await link.start()

    async def hear(self, within_s: float) -> None:
        """Return when every worker has told its state, or after ``within_s``."""
        await asyncio.gather(*(link.hear(within_s) for link in self._links))

    async def close(self) -> None:
        """See ``WorkerLink.close``."""
        await asyncio.gather(*(link.close() for link in self._links))
        self.state = merged([link.state for link in self._links], self._devices)

    async def infer(
        self,
        group: Group,
        inputs: Arrays,
        deadline_s: float,
        outputs: tuple[str, ...] | None = None,
        client: str = "",
        priority: int = 0,
    ) -> Result:
        """See ``WorkerLink.infer``."""
        strikes, moved = 0, False
        while True:
            link = self._least_loaded(group)
            try:
                return await link.infer(
                    group, inputs, deadline_s, outputs, client, priority, strikes, moved
                )
            except AnotherWorker as gone:
                strikes, moved = gone.strikes, True

    async def change(
        self, kind: Literal["load", "unload"], model: str, version: str | None = None
    ) -> None:
        """Have one worker load or unload; the others see what it serves and follow.

        Raises:
            NotReady: no worker could.
            UnknownModel, CannotLoad, RetryLater: as ``WorkerLink.change`` says.
        """
        leader = next((link for link in self._links if link.state.answers()), None)
        if leader is None:
            raise NotReady(f"{self.state.phase}; try again soon")
        await leader.change(kind, model, version)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FOLLOW_S):
                while not self._agree_with(leader.state, model):
                    self._heard.clear()
                    await self._heard.wait()

    def _agree_with(self, leader: WorkerState, model: str) -> bool:
        wanted = _version(leader, model)
        return all(
            _version(link.state, model) == wanted or model in link.state.failed
            for link in self._links
            if link.state.answers()
        )

    def _least_loaded(self, group: Group) -> WorkerLink:
        """Those that serve the wanted version first, then any that is ready, then any at all; ties
        take turns.
        """
        turn, count = next(self._turns), len(self._links)
        wanted = group.version
        best, least = self._links[0], (3, 0)
        for offset in range(count):
            link = self._links[(turn + offset) % count]
            state = link.state
            version = _version(state, group.model)
            if version is not None and wanted in ("", version) and state.answers():
                kind = 0
            else:
                kind = 1 if state.ready else 2
            if (kind, link.in_flight) < least:
                best, least = link, (kind, link.in_flight)
        return best

    def _anyone_else(self, asking: WorkerLink) -> bool:
        return any(link.state.ready for link in self._links if link is not asking)

    def _hear(self, _: WorkerState) -> None:
        self.state = merged([link.state for link in self._links], self._devices)
        if self.state.ready:
            for link in self._links:
                if not link.state.ready:
                    link.give_away()
        self._heard.set()
        self._on_change(self.state)


Link = WorkerLink | WorkerLinks


def connect(
    endpoint: str, devices: Sequence[str], on_change: Callable[[WorkerState], None]
) -> Link:
    """The line to one worker, or to one for each of several devices."""
    if len(devices) > 1:
        return WorkerLinks(endpoints(endpoint, len(devices)), devices, on_change)
    return WorkerLink(endpoint, on_change)


def merged(states: list[WorkerState], devices: Iterable[str]) -> WorkerState:
    """What the workers are together: ready if any is, and what each model is on the first that has
    it.
    """
    ready = [state for state in states if state.ready]
    told = ready or states
    first = told[0]
    return WorkerState(
        ready=bool(ready),
        phase=first.phase,
        models={name: one for state in reversed(told) for name, one in state.models.items()},
        heard_s=max(state.heard_s for state in told) if ready else first.heard_s,
        failed=[name for name in first.failed if all(name in state.failed for state in told)],
        passed_s=max((s.passed_s for s in states if s.passed_s is not None), default=None),
        phases=first.phases,
        untried=any(state.untried for state in states),
        devices={device: state.answers() for device, state in zip(devices, states, strict=True)},
    )


def _version(state: WorkerState, model: str) -> str | None:
    found = state.models.get(model)
    return None if found is None else found["version"]
