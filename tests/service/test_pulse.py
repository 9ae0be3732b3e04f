"""What a worker leaves in shared memory, and the watchdog that looks at it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.worker.pulse import Look, Pulse, Watchdog

OURS, OTHERS = b"a1234567", b"b1234567"


def test_what_a_killed_process_said_last_is_there_for_others(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from service.worker.pulse import Pulse\n"
        "pulse = Pulse(pathlib.Path(sys.argv[1]))\n"
        "pulse.begin()\n"
        "pulse.beat()\n"
        "pulse.run(12.5, [(b'a1234567', 3), (b'b1234567', 4), (b'a1234567', 2**40)])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pulse")]) as worker:
        assert worker.wait(60) == -9
    pulse = Pulse(tmp_path / "pulse")
    assert pulse.look() == Look(worker.pid, 1, 12.5)
    assert pulse.running(OURS) == {3, 2**40}
    assert pulse.running(OTHERS) == {4}
    assert pulse.running(b"c") == set()
    pulse.begin()
    assert pulse.look() == Look(os.getpid(), 0, 0.0)
    assert pulse.running(OURS) == set()
    pulse.close()


def test_names_of_another_length_are_told_apart_by_their_beginning(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path / "pulse")
    pulse.run(1.0, [(b"short", 1), (b"longer than eight", 2)])
    assert pulse.running(b"short") == {1}
    assert pulse.running(b"longer than eight") == {2}
    pulse.close()


def test_more_jobs_than_there_is_room_for_are_cut_off(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path / "pulse")
    pulse.run(1.0, ((OURS, number) for number in range(5000)))
    assert pulse.running(OURS) == set(range(4096))
    pulse.close()


class Watched:
    """A pulse of this process and a dog that looks three times before it bites."""

    def __init__(self, folder: Path) -> None:
        self.pulse = Pulse(folder / "pulse")
        self.pulse.begin()
        self.dog = Watchdog(self.pulse, os.getpid(), patience=3)

    def looks(self, count: int, beating: bool = True) -> list[str | None]:
        said = []
        for _ in range(count):
            if beating:
                self.pulse.beat()
            said.append(self.dog.look())
        return said


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_worker_that_beats_and_ends_its_batches_is_left_alone(watched: Watched) -> None:
    for began_s in (1.0, 0.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 4.0):
        watched.pulse.run(began_s, [(OURS, 1)])
        assert watched.looks(2) == [None, None]


def test_a_batch_that_does_not_end_is_found_by_the_look_of_its_patience(watched: Watched) -> None:
    watched.pulse.run(1.0, [(OURS, 1)])
    assert watched.looks(4) == [None, None, None, "a batch does not end"]


def test_silence_is_found_whether_or_not_anything_runs(watched: Watched) -> None:
    assert watched.looks(1) == [None]
    assert watched.looks(3, beating=False) == [None, None, "it is silent"]


def test_a_worker_that_loads_may_be_silent_for_as_long_as_it_takes(watched: Watched) -> None:
    assert watched.looks(20, beating=False) == [None] * 20


def test_what_the_predecessor_left_is_no_sign_of_its_successor(watched: Watched) -> None:
    watched.pulse.beat()
    watched.pulse.run(1.0, [(OURS, 1)])
    successor = Watchdog(watched.pulse, os.getpid() + 1, patience=3)
    assert [successor.look() for _ in range(20)] == [None] * 20
