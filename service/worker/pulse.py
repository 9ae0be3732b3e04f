"""What a worker leaves in shared memory for those who outlive it: that it beats, since when its
oldest batch runs, and which jobs are running.

A message that was on its way when a process crashed is lost; what lies in a file's pages is not.
"""

import asyncio
import itertools
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PEER_BYTES = 8  # a longer name of an API process is cut, a shorter one padded

_LIFE = struct.Struct("=qQ")  # process id, beats
_BATCHES = struct.Struct("=dQ")  # start of the oldest batch, number of jobs
_JOB = struct.Struct(f"={PEER_BYTES}sq")
_MOST_JOBS = 4096  # of more, the rest is not told
_JOBS_AT = _LIFE.size + _BATCHES.size
_SIZE = _JOBS_AT + _MOST_JOBS * _JOB.size


class Look(NamedTuple):
    """What a worker last said; ``batch_s`` names its oldest batch by when it began, 0 is none."""

    pid: int
    beats: int
    batch_s: float


class Pulse:
    """One file, mapped by the worker that writes it and by whoever looks."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)  # as long as it is already, for all but the first
            self._memory = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._beats = 0

    def begin(self) -> None:
        """This process is the worker from now on."""
        self.run(0.0, ())
        self._beats = 0
        self._write_life()

    def beat(self) -> None:
        """It is alive and not stopped."""
        self._beats += 1
        self._write_life()

    def run(self, batch_s: float, jobs: Iterable[tuple[bytes, int]]) -> None:
        """These jobs, (peer, id) each, are running now, the oldest since ``batch_s``."""
        packed = b"".join(_JOB.pack(*job) for job in itertools.islice(jobs, _MOST_JOBS))
        self._memory[_JOBS_AT : _JOBS_AT + len(packed)] = packed
        _BATCHES.pack_into(self._memory, _LIFE.size, batch_s, len(packed) // _JOB.size)

    def look(self) -> Look:
        """What the worker says now, or said last."""
        pid, beats = _LIFE.unpack_from(self._memory)
        batch_s, _ = _BATCHES.unpack_from(self._memory, _LIFE.size)
        return Look(pid, beats, batch_s)

    def running(self, peer: bytes) -> set[int]:
        """Ids of this peer's jobs that run, or ran when the worker died."""
        _, count = _BATCHES.unpack_from(self._memory, _LIFE.size)
        told = self._memory[_JOBS_AT : _JOBS_AT + count * _JOB.size]
        name = peer[:PEER_BYTES].ljust(PEER_BYTES, b"\0")
        return {job_id for found, job_id in _JOB.iter_unpack(told) if found == name}

    async def beat_forever(self, every_s: float = 1.0) -> None:
        """Beat for as long as the event loop turns."""
        while True:
            self.beat()
            await asyncio.sleep(every_s)

    def close(self) -> None:
        """Unmap the file."""
        self._memory.close()

    def _write_life(self) -> None:
        # Apart from the batches: another thread tells of those.
        _LIFE.pack_into(self._memory, 0, os.getpid(), self._beats)


class Watchdog:
    """Says when a worker hangs: a batch that does not end, or no beat any more.

    It counts its own looks instead of seconds: a machine that was asleep, or a process that had to
    wait for its turn, condemns nobody.
    """

    def __init__(self, pulse: Pulse, pid: int, patience: int) -> None:
        self._pulse = pulse
        self._pid = pid
        self._patience = patience
        self._last: Look | None = None
        self._silent = self._stuck = 0

    @property
    def beaten(self) -> bool:
        """Whether it has been seen to beat: it had loaded, and was there for others."""
        return self._last is not None

    def look(self) -> str | None:
        """What is wrong, None if nothing is; a worker that has not yet beaten is loading."""
        now = self._pulse.look()
        if now.pid != self._pid or not now.beats:
            return None
        last, self._last = self._last, now
        if last is None:
            return None
        self._silent = self._silent + 1 if now.beats == last.beats else 0
        self._stuck = self._stuck + 1 if now.batch_s and now.batch_s == last.batch_s else 0
        if self._stuck >= self._patience:
            return "a batch does not end"
        if self._silent >= self._patience:
            return "it is silent"
        return None


def pulse_beside(endpoint: str, pid: int | None = None) -> Pulse:
    """That of the worker which listens at ``endpoint``, or of an API process that speaks to it."""
    socket = Path(endpoint.removeprefix("ipc://"))
    name = f"{socket.stem}.pulse" if pid is None else f"pulse-{pid}"
    return Pulse(socket.with_name(name))
