"""Suspects run with nothing beside them, and probes come when nothing else proves the device."""

import threading
from pathlib import Path

from service.worker.pulse import Pulse
from service.worker.running import Passes, Running
from service.worker.scheduler import Group, Job

PATIENCE_S = 30.0
GROUP = Group("vit", "serve", "1x1")


def job(number: int, alone: bool = False) -> Job:
    return Job((b"peer", number), GROUP, {}, deadline_s=1e9, alone=alone)


class Batch:
    """One batch in a thread of its own, which ends when it is told to."""

    def __init__(self, running: Running, *jobs: Job) -> None:
        self.began, self._may_end = threading.Event(), threading.Event()
        self._running, self._jobs = running, list(jobs)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._may_end.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with self._running.batch(self._jobs):
            self.began.set()
            assert self._may_end.wait(PATIENCE_S)


def waits(batch: Batch) -> bool:
    """It has not begun although it had the time to."""
    return not batch.began.wait(0.05)


def test_a_suspect_waits_for_all_others_and_they_wait_for_it(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path / "pulse")
    running = Running(threading.RLock(), pulse, lambda: 5.0)
    first, second = Batch(running, job(1), job(2)), Batch(running, job(3))
    assert first.began.wait(PATIENCE_S)
    assert second.began.wait(PATIENCE_S)
    assert pulse.running(b"peer") == {1, 2, 3}
    suspect = Batch(running, job(4, alone=True))
    assert waits(suspect)
    later = Batch(running, job(5))
    assert waits(later), "or the suspect would never have its turn"
    first.end()
    assert waits(suspect)
    second.end()
    assert suspect.began.wait(PATIENCE_S)
    assert pulse.running(b"peer") == {4}
    assert pulse.look().batch_s == 5.0
    assert waits(later)
    suspect.end()
    assert later.began.wait(PATIENCE_S)
    later.end()
    assert pulse.running(b"peer") == set()
    assert pulse.look().batch_s == 0
    pulse.close()


def test_two_suspects_run_one_after_the_other(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path / "pulse")
    running = Running(threading.RLock(), pulse, lambda: 5.0)
    first = Batch(running, job(1, alone=True))
    assert first.began.wait(PATIENCE_S)
    second = Batch(running, job(2, alone=True))
    assert waits(second)
    first.end()
    assert second.began.wait(PATIENCE_S)
    second.end()
    pulse.close()


class Device:
    """Passes by a clock that a test moves."""

    def __init__(self, every_s: float = 5.0, liveness_s: float = 60.0) -> None:
        self.now_s = 100.0
        self.passes = Passes(every_s, liveness_s, lambda: self.now_s)

    def probe(self, takes_s: float) -> None:
        self.passes.probe_began()
        self.now_s += takes_s
        self.passes.probe_succeeded()


def test_a_probe_is_due_when_nothing_has_run_for_a_while() -> None:
    device = Device()
    assert device.passes.last_s is None
    assert device.passes.probe_in_s() == 5
    device.now_s += 4
    device.passes.succeeded()
    assert device.passes.last_s == device.now_s
    assert device.passes.probe_in_s() == 5
    device.now_s += 7
    assert device.passes.probe_in_s() == 0
    device.probe(0.1)
    assert device.passes.last_s == device.now_s
    assert device.passes.probe_in_s() == 5


def test_a_probe_that_runs_is_not_begun_again() -> None:
    device = Device()
    device.now_s += 5
    device.passes.probe_began()
    assert device.passes.probe_in_s() == 30


def test_costly_probes_come_more_rarely_and_still_in_time_for_liveness() -> None:
    device = Device(liveness_s=60)
    device.probe(0.5)
    assert device.passes.probe_in_s() == 10
    device.probe(8)
    assert device.passes.probe_in_s() == 30


def test_failed_probes_are_counted_until_one_succeeds() -> None:
    device = Device()
    for count in (1, 2):
        device.passes.probe_began()
        device.passes.probe_failed()
        assert device.passes.failed_probes == count
        assert device.passes.probe_in_s() == 5
    assert device.passes.last_s is None
    device.probe(0.1)
    assert device.passes.failed_probes == 0
