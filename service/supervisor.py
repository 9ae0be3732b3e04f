"""The parent of all: binds the port, starts worker and API processes, restarts what dies, stops
them in order.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from service.bundle import load_repository
from service.errors import StartError
from service.lifeline import EXIT_BAD_CONFIG
from service.metrics import DIRECTORY_VARIABLE
from service.settings import Settings

STEADY_S = 30.0  # a process that lived this long is restarted without delay
LONGEST_DELAY_S = 8.0
KILL_AFTER_S = 5.0

_log = logging.getLogger(__name__)


@dataclass
class _Role:
    """One process to keep alive; ``{incarnation}`` in its arguments counts its starts from 0."""

    name: str
    arguments: list[str]
    descriptors: tuple[int, ...] = ()
    process: asyncio.subprocess.Process | None = field(default=None, init=False)


class Supervisor:
    """Runs one server until it is told to stop.

    The order of the end: API processes stop listening and finish what they accepted, then the
    worker goes.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._exit_code = 0

    def check(self) -> None:
        """Read and verify every bundle, so that a damaged one is refused before anything starts.

        Raises:
            BadBundle: naming the file.
        """
        for bundle in load_repository(self._settings.repository):
            bundle.verify()

    def bind(self) -> socket.socket:
        """The listening socket that all API processes share.

        Raises:
            StartError: the address cannot be had.
        """
        host, port = self._settings.host, self._settings.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            return socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            raise StartError(
                f"cannot listen on {host} port {port}: {error.strerror}. "
                "Choose another with --host and --port; --port 0 takes a free one."
            ) from None

    async def run(self, listener: socket.socket) -> int:
        """Keep the processes alive until SIGTERM or SIGINT; the exit code of the whole server."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        folder = Path(tempfile.mkdtemp(prefix="saccade-"))  # mode 0700
        try:
            worker, apis = self._roles(folder, listener)
            keepers = [asyncio.create_task(self._keep(role, folder)) for role in (worker, *apis)]
            stop = asyncio.create_task(self._stopping.wait())
            # A keeper ends before the stop only by a bug, which the last gather then raises.
            await asyncio.wait((stop, *keepers), return_when=asyncio.FIRST_COMPLETED)
            self._stopping.set()
            _log.info("stopping")
            listener.close()  # or the kernel would go on accepting what nobody will answer
            await asyncio.gather(*(self._stop(role, self._settings.grace_s) for role in apis))
            await self._stop(worker, 0.0)
            await asyncio.gather(*keepers)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return self._exit_code

    def _roles(self, folder: Path, listener: socket.socket) -> tuple[_Role, list[_Role]]:
        endpoint, metrics = f"ipc://{folder}/worker.sock", str(folder / "metrics")
        (folder / "metrics").mkdir()
        worker = _Role("worker", ["service.worker.process", endpoint, metrics, "{incarnation}"])
        descriptor = listener.fileno()
        apis = [
            _Role(
                f"api {index}",
                ["service.api.process", str(index), str(descriptor), endpoint, metrics],
                (descriptor,),
            )
            for index in range(self._settings.api_processes)
        ]
        return worker, apis

    async def _keep(self, role: _Role, folder: Path) -> None:
        incarnation = quick_deaths = 0
        while not self._stopping.is_set():
            started_s = time.monotonic()
            code = await self._run_once(role, folder, incarnation)
            if self._stopping.is_set():
                return
            if code == EXIT_BAD_CONFIG:
                self._exit_code = 1
                self._stopping.set()
                return
            incarnation += 1
            quick_deaths = 0 if time.monotonic() - started_s > STEADY_S else quick_deaths + 1
            delay_s = (
                min(0.25 * 2 ** (quick_deaths - 2), LONGEST_DELAY_S) if quick_deaths > 1 else 0
            )
            _log.error(
                "%s ended with code %d; starting it again in %.2g s", role.name, code, delay_s
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _run_once(self, role: _Role, folder: Path, incarnation: int) -> int:
        shared = {DIRECTORY_VARIABLE: str(folder / "metrics")}
        arguments = [part.format(incarnation=incarnation) for part in role.arguments]
        role.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a folder called service where we were started must not be imported
            "-m",
            *arguments,
            stdin=asyncio.subprocess.PIPE,  # the child ends when this pipe does, see lifeline
            env=os.environ | self._settings.to_environment() | shared,
            pass_fds=role.descriptors,
            start_new_session=True,  # Ctrl-C is for us; we stop the children in order
        )
        if self._stopping.is_set():  # came while we were starting it
            role.process.terminate()
        return await role.process.wait()

    async def _stop(self, role: _Role, grace_s: float) -> None:
        process = role.process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), grace_s + KILL_AFTER_S)
        except TimeoutError:
            _log.error("%s did not stop within %g s; killing it", role.name, grace_s + KILL_AFTER_S)
            process.kill()
