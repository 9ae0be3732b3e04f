"""A server of our own to measure: started on a free port, watched, stopped by its process id."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from service.bench.client import Client

START_S = 300.0
STOP_S = 60.0


class Server:
    """A running ``saccade serve`` with its default settings."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self._process = process
        self.url = url

    def processes(self) -> list[psutil.Process]:
        """The supervisor and its children."""
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_s(self) -> float:
        """Processor seconds that all its processes have used."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(spent.user + spent.system for spent in times)

    async def wait_until_ready(self) -> None:
        """Return when its models have run.

        Raises:
            TimeoutError: that took longer than START_S.
        """
        async with asyncio.timeout(START_S):
            while True:
                if await self._ready():
                    return
                await asyncio.sleep(0.2)

    async def _ready(self) -> bool:
        client = Client(self.url, {}, 10.0)
        try:
            return (await client.send(client.compose("GET", "/readyz"))).status == 200
        except OSError:
            return False
        finally:
            client.close()


@contextmanager
def serving(repository: Path, *flags: str) -> Iterator[Server]:
    """A server of ``repository`` that lives as long as the block."""
    command = [sys.executable, "-c", "from service.cli import main; main()", "serve"]
    command += ["--port", "0", "--repository", str(repository), *flags]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        if " at http://" not in first:
            raise RuntimeError(f"the server did not start; run: {' '.join(command)}")
        yield Server(process, first.split(" at ")[1].strip())
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
