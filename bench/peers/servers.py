"""One server at a time: started, watched, and stopped with everything that it started."""

import ctypes
import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from bench.peers import bodies
from bench.peers.peers import Launch

START_S = 120.0
ANSWER_S = 60.0
GRACE_S = 20.0
ASKING_AGAIN_S = 0.05
LOOKING_S = 0.25
PR_SET_CHILD_SUBREAPER = 36
LOG_TAIL = 2000


class ServerError(Exception):
    """A server that did not start, or answered something else than classes."""


class Server:
    """A running server; everything below this process but the load generator belongs to it."""

    def __init__(self, launch: Launch, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.launch = launch
        self.startup_s = 0.0
        self._process = process
        self._log = log

    def processes(self) -> list[psutil.Process]:
        """Its own, those that it has let go of, and none of the load generator's."""
        return [
            process
            for process in psutil.Process().children(recursive=True)
            if not _is_load(process)
        ]

    def cpu_s(self) -> float:
        """Processor seconds that they have used."""
        spent = 0.0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                spent += times.user + times.system
        return spent

    def rss_bytes(self) -> int:
        """Resident memory of all; what they share counts once for each."""
        held = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                held += process.memory_info().rss
        return held

    def ask(self) -> tuple[int, bytes]:
        """Status and body of one answer to the picture."""
        launch = self.launch
        connection = http.client.HTTPConnection("127.0.0.1", launch.port, timeout=ANSWER_S)
        try:
            connection.request("POST", launch.path, launch.body.data, launch.body.headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def wait(self) -> bodies.Best:
        """The classes in its first good answer.

        Raises:
            ServerError: it ended, gave no good answer in START_S, or one without sane classes.
        """
        started_s = time.monotonic()
        last = "it never listened"
        while time.monotonic() < started_s + START_S:
            if self._process.poll() is not None:
                raise ServerError(self._tell(f"ended with {self._process.returncode}"))
            try:
                status, data = self.ask()
            except (OSError, http.client.HTTPException) as error:
                last = f"the last try ended with {error!r}"
            else:
                if status == 200:
                    self.startup_s = time.monotonic() - started_s
                    return self._classes(data)
                last = f"the last answer was {status} {data[:200]!r}"
            time.sleep(ASKING_AGAIN_S)
        raise ServerError(self._tell(f"gave no good answer in {START_S:.0f} s; {last}"))

    def _classes(self, data: bytes) -> bodies.Best:
        try:
            best = self.launch.read(json.loads(data))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ServerError(self._tell(f"answered {data[:200]!r} ({error!r})")) from error
        wrong = bodies.fault(best)
        if wrong:
            raise ServerError(self._tell(f"gave an answer that {wrong}"))
        return best

    def _tell(self, what: str) -> str:
        tail = self._log.read_text(errors="replace")[-LOG_TAIL:]
        return f"{self.launch.name} {what}. The end of {self._log}:\n{tail}"


@contextmanager
def running(launch: Launch, work: Path) -> Iterator[Server]:
    """A server that lives as long as the block, in a folder of its own below ``work``."""
    folder = work / "run" / launch.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    # Should this process be killed, the server's first process is too.
    argv = ["setpriv", "--pdeathsig", "KILL", *launch.argv]
    with log.open("wb") as file:
        process = subprocess.Popen(argv, cwd=folder, stdout=file, stderr=file)
    server = Server(launch, process, log)
    try:
        yield server
    finally:
        _stop(process, server)


def _stop(process: "subprocess.Popen[bytes]", server: Server) -> None:
    """As a supervisor would, by the process that was started; then whatever it has left behind."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    for grace_s, signal in ((GRACE_S / 4, "terminate"), (GRACE_S, "kill")):
        left = server.processes()
        for orphan in left:
            with suppress(psutil.NoSuchProcess):
                getattr(orphan, signal)()
        psutil.wait_procs(left, grace_s)
    process.wait()


def _is_load(process: psutil.Process) -> bool:
    try:
        return process.name() == "wrk"
    except psutil.NoSuchProcess:
        return True


def adopt_orphans() -> None:
    """Make processes whose parents end children of this one, so that they are counted and stopped.

    Without it, as anywhere but on Linux, they would be lost.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Watch:
    """Processor time and peak memory of a server while a block runs."""

    def __init__(self, server: Server) -> None:
        self.cpu_s = 0.0
        self.peak_rss_bytes = 0
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self.cpu_s = -self._server.cpu_s()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s += self._server.cpu_s()
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak_rss_bytes = max(self.peak_rss_bytes, self._server.rss_bytes())
            if self._ended.wait(LOOKING_S):
                return


def isolated() -> bool:
    """Whether nothing but a loopback can be reached from here."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]
