"""The parent of all: binds the port, starts worker and API processes, restarts what dies, stops
them in order.
"""

import asyncio
import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.devices import endpoints, expand, labels
from service.errors import StartError
from service.lifeline import DRAIN, EXIT_BAD_CONFIG
from service.metrics import DIRECTORY_VARIABLE, forget_process
from service.settings import PREFIX, Settings
from service.worker.pulse import Pulse, Watchdog, pulse_beside

STEADY_S = 10.0  # a process that lived this long is restarted without delay
LONGEST_DELAY_S = 8.0
KILL_AFTER_S = 5.0
LOOK_EVERY_S = 0.5
BACKLOG = 2048

# Unless the environment says otherwise.
_ENVIRONMENT = {
    # Of NumPy's products: the decoding threads that make them take every core already, and more
    # threads only wait for each other.
    "OPENBLAS_NUM_THREADS": "1",
    # What a picture took the next one gets, and not page by page from the kernel again.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}

_log = logging.getLogger(__name__)


@dataclass
class _Role:
    """One process to keep alive; ``{incarnation}`` in its arguments counts its starts from 0."""

    name: str
    arguments: list[str]
    watch: Callable[[int], Watchdog]
    descriptors: tuple[int, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = field(default=None, init=False)
    was_up: bool = field(default=False, init=False)
    ending: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def begin(self) -> None:
        """Let the process go on: what it is going to read is whole, see lifeline."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.write(b"\n")


class Supervisor:
    """Runs one server until it is told to stop.

    The children start at once, for their imports take longest, and wait until every bundle has been
    verified: if one is damaged, nothing is served and nothing said but one sentence.

    The order of the end: API processes say that they are not ready any more; after
    ``drain_delay_s`` they stop listening and finish what they accepted, then the worker goes.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._verified = False
        self._exit_code = 0

    def bind(self) -> list[socket.socket]:
        """A listening socket for each API process, all on one port.

        The kernel spreads connections over them; from a socket that several processes share, the
        first to wake takes all that wait. They are ours, so that connections to a process that died
        wait for its successor.

        Raises:
            StartError: the address cannot be had.
        """
        host, port = self._settings.host, self._settings.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        count = self._settings.http_processes()
        try:
            # Not yet shared: another server on this port must be an error.
            only = socket.create_server((host, port), family=family, backlog=BACKLOG)
            if count == 1:
                return [only]
            address = host, only.getsockname()[1]
            only.close()
            return [
                socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=True)
                for _ in range(count)
            ]
        except OSError as error:
            raise StartError(
                f"cannot listen on {host} port {port}: {error.strerror}. "
                "Choose another with --host and --port; --port 0 takes a free one."
            ) from None

    async def run(
        self,
        listeners: list[socket.socket],
        announce: Callable[[list[str]], None] = lambda names: None,
    ) -> int:
        """Keep the processes alive until SIGTERM or SIGINT; the exit code of the whole server.

        ``announce`` hears the names of the models once they may be served.

        Raises:
            BadBundle: a bundle is damaged; the sentence names the file.
            BadSettings: a device is named that is not there.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        devices = expand(self._settings.device, self._settings.runtime)
        folder = Path(tempfile.mkdtemp(prefix="saccade-"))  # mode 0700
        try:
            workers, apis = self._roles(folder, listeners, devices)
            roles = (*workers, *apis)
            keepers = [asyncio.create_task(self._keep(role, folder)) for role in roles]
            stop = asyncio.create_task(self._stopping.wait())
            # A keeper ends before the stop only by a bug, which the last gather then raises.
            ends: list[asyncio.Future[Any]] = [stop, *keepers]
            began_s, verified = time.monotonic(), self._verify()
            await asyncio.wait([verified, *ends], return_when=asyncio.FIRST_COMPLETED)
            if verified.done() and not verified.exception():
                announce(verified.result())
                took_s = round(time.monotonic() - began_s, 3)
                _log.info("every bundle is whole", extra={"facts": {"took_s": took_s}})
                self._verified = True
                for role in roles:
                    role.begin()
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                await self._drain(apis)
            self._stopping.set()
            for listener in listeners:
                listener.close()  # or the kernel would go on accepting what nobody will answer
            await asyncio.gather(*(self._stop(role, self._settings.grace_s) for role in apis))
            await asyncio.gather(*(self._stop(role, 0.0) for role in workers))
            await asyncio.gather(*keepers)
            if verified.done():
                verified.result()  # raises what kept us from serving
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return self._exit_code

    def _verify(self) -> "asyncio.Future[list[str]]":
        """The names of the models, once every file has been found to be what its manifest says."""
        loop = asyncio.get_running_loop()
        verified: asyncio.Future[list[str]] = loop.create_future()

        def verify() -> None:
            from service.bundle import load_repository  # takes as long as to start the children

            with contextlib.suppress(RuntimeError):  # the loop has ended before us
                try:
                    bundles = load_repository(self._settings.repository)
                    for bundle in bundles:
                        bundle.verify()
                except Exception as error:
                    loop.call_soon_threadsafe(verified.set_exception, error)
                else:
                    names = [bundle.manifest.name for bundle in bundles]
                    loop.call_soon_threadsafe(verified.set_result, names)

        # A stop must not wait for gigabytes to be read, as it would for the loop's own threads.
        threading.Thread(target=verify, name="verify", daemon=True).start()
        return verified

    def _roles(
        self, folder: Path, listeners: list[socket.socket], devices: list[str]
    ) -> tuple[list[_Role], list[_Role]]:
        """A worker for each device, and an API process for each socket."""
        endpoint, metrics = f"ipc://{folder}/worker.sock", str(folder / "metrics")
        (folder / "metrics").mkdir()
        patience = math.ceil(self._settings.batch_timeout_s / LOOK_EVERY_S)
        workers = [
            _Role(
                "worker" if len(devices) == 1 else f"worker {label}",
                ["service.worker.process", own, metrics, "{incarnation}"],
                watch=_watcher(pulse_beside(own), patience),
                environment={f"{PREFIX}DEVICE": device},
            )
            for own, device, label in zip(
                endpoints(endpoint, len(devices)), devices, labels(devices), strict=True
            )
        ]
        for role in workers:
            role.arguments.append(role.name)
        descriptors = [listener.fileno() for listener in listeners]
        apis = [
            _Role(
                f"api {index}",
                [
                    *("service.api.process", str(index), str(descriptor)),
                    *(endpoint, metrics, ",".join(labels(devices))),
                ],
                watch=lambda pid: Watchdog(pulse_beside(endpoint, pid), pid, patience),
                descriptors=(descriptor,),
            )
            for index, descriptor in enumerate(descriptors)
        ]
        return workers, apis

    async def _keep(self, role: _Role, folder: Path) -> None:
        incarnation = quick_deaths = 0
        while not role.ending.is_set():
            started_s = time.monotonic()
            code = await self._run_once(role, folder, incarnation)
            if role.ending.is_set():
                return
            if code == EXIT_BAD_CONFIG and not role.was_up:
                self._exit_code = 1
                self._stopping.set()
                return
            # One that was up came to grief over a file that has changed since, a certificate that
            # is half in place: its siblings go on, and so will it once the file is right again.
            incarnation += 1
            quick_deaths = 0 if time.monotonic() - started_s > STEADY_S else quick_deaths + 1
            delay_s = (
                min(0.25 * 2 ** (quick_deaths - 2), LONGEST_DELAY_S) if quick_deaths > 1 else 0
            )
            _log.error(
                "%s ended with code %d; starting it again in %.2g s", role.name, code, delay_s
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(role.ending.wait(), delay_s)

    async def _run_once(self, role: _Role, folder: Path, incarnation: int) -> int:
        shared = {DIRECTORY_VARIABLE: str(folder / "metrics")}
        arguments = [part.format(incarnation=incarnation) for part in role.arguments]
        role.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a folder called service where we were started must not be imported
            "-m",
            *arguments,
            stdin=asyncio.subprocess.PIPE,  # the child ends when this pipe does, see lifeline
            env=_ENVIRONMENT
            | os.environ
            | self._settings.to_environment()
            | shared
            | role.environment,
            pass_fds=role.descriptors,
            start_new_session=True,  # Ctrl-C is for us; we stop the children in order
        )
        if self._verified:
            role.begin()
        if role.ending.is_set():  # came while we were starting it
            role.process.terminate()
        watchdog = role.watch(role.process.pid)
        watching = asyncio.create_task(_kill_if_it_hangs(role, role.process, watchdog))
        try:
            return await role.process.wait()
        finally:
            watching.cancel()
            watchdog.look()
            role.was_up |= watchdog.beaten
            forget_process(folder / "metrics", role.process.pid)

    async def _drain(self, apis: list[_Role]) -> None:
        """Say that we are going, and go on for as long as balancers need to hear of it."""
        _log.info("stopping")
        left_s = self._settings.drain_delay_s
        while True:
            for role in apis:
                role.ending.set()  # a successor would say that it is ready
                if role.process is not None and role.process.returncode is None:
                    role.process.send_signal(DRAIN)  # again and again: one may not yet listen
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, LOOK_EVERY_S))
            left_s -= LOOK_EVERY_S

    async def _stop(self, role: _Role, grace_s: float) -> None:
        role.ending.set()
        process = role.process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), grace_s + KILL_AFTER_S)
        except TimeoutError:
            _log.error("%s did not stop within %g s; killing it", role.name, grace_s + KILL_AFTER_S)
            process.kill()


def _watcher(pulse: Pulse, patience: int) -> Callable[[int], Watchdog]:
    return lambda pid: Watchdog(pulse, pid, patience)


async def _kill_if_it_hangs(
    role: _Role, process: asyncio.subprocess.Process, watchdog: Watchdog
) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        wrong = watchdog.look()
        if wrong is not None:
            _log.error("%s hangs (%s); killing it", role.name, wrong)
            process.kill()  # also wakes up one that was stopped
            return
