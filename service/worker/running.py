"""Which batches run now, who may join them, and when the device last finished one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.worker.pulse import Pulse
from service.worker.scheduler import Job

PROBE_SHARE = 0.05  # of an idle device's time, at most


class Running:
    """The batches that run, told to the pulse; ``lock`` is the one that guards the scheduler.

    A job that must run alone is suspected of having killed a worker. Nothing may run beside it, or
    its neighbours in other streams would be suspected with it.
    """

    def __init__(self, lock: threading.RLock, pulse: Pulse, clock: Callable[[], float]) -> None:
        self._free = threading.Condition(lock)
        self._pulse = pulse
        self._clock = clock
        self._batches: dict[int, tuple[float, list[tuple[bytes, int]]]] = {}  # by thread
        self._suspects_waiting = 0
        self._suspect_runs = False
        self._left = False

    def leave_to_successor(self) -> None:
        """What the pulse tells now stays there: this process has not run it, and will not."""
        with self._free:
            self._left = True

    @contextmanager
    def batch(self, jobs: list[Job]) -> Iterator[float]:
        """Wait until these jobs may run, and tell of them as long as they do; yields when that
        began.
        """
        alone, thread = any(job.alone for job in jobs), threading.get_ident()
        with self._free:
            self._suspects_waiting += alone
            self._free.wait_for(lambda: self._may_begin(alone))
            self._suspects_waiting -= alone
            self._suspect_runs = alone
            started_s = self._clock()
            self._batches[thread] = started_s, [job.id for job in jobs]
            self._tell()
        try:
            yield started_s
        finally:
            with self._free:
                del self._batches[thread]
                self._suspect_runs = False
                self._tell()
                self._free.notify_all()

    def _may_begin(self, alone: bool) -> bool:
        if alone:
            return not self._batches
        return not self._suspects_waiting and not self._suspect_runs

    def _tell(self) -> None:
        if self._left:
            return
        oldest_s = min((began_s for began_s, _ in self._batches.values()), default=0.0)
        self._pulse.run(oldest_s, (job for _, jobs in self._batches.values() for job in jobs))


class Passes:
    """When a pass last succeeded, and when one must be made for want of others.

    Every ``every_s``; more rarely where a probe takes long, but in time for ``liveness_s``.
    """

    def __init__(self, every_s: float, liveness_s: float, clock: Callable[[], float]) -> None:
        self._every_s = every_s
        self._longest_s = liveness_s / 2
        self._clock = clock
        self._next_s = clock() + every_s
        self._began_s = self._cost_s = 0.0
        self.last_s: float | None = None
        self.failed_probes = 0

    def succeeded(self) -> None:
        """A batch or a probe has run to its end."""
        self.last_s = self._clock()
        self.failed_probes = 0
        self._postpone()

    def probe_in_s(self) -> float:
        """Seconds until a probe is due, 0 when it is."""
        return max(0.0, self._next_s - self._clock())

    def probe_began(self) -> None:
        """Nobody else is to begin one meanwhile."""
        self._began_s = self._clock()
        self._next_s = self._began_s + self._longest_s

    def probe_succeeded(self) -> None:
        """The probe has run to its end, which tells what one costs."""
        self._cost_s = self._clock() - self._began_s
        self.succeeded()

    def probe_failed(self) -> None:
        """The device could not even do that."""
        self.failed_probes += 1
        self._postpone()

    def _postpone(self) -> None:
        wait_s = max(self._every_s, self._cost_s / PROBE_SHARE)
        self._next_s = self._clock() + min(wait_s, self._longest_s)
