"""A rolling restart behind a balancer that honours readiness loses no request."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import Server
from tests.service.test_repository_changes import FAST, PATIENCE_S, repository_of

CLIENTS = 6
LOOK_EVERY_S = 0.1
DRAIN_S = 2.0  # several looks of the balancer, however busy the machine is


class Balancer:
    """Passes each connection on to the next server whose /readyz was 200 when last looked at, and
    tries nothing twice.
    """

    def __init__(self) -> None:
        self.ready: dict[str, bool] = {}
        self._turn = itertools.count()
        self._looked = asyncio.Event()

    async def watch(self) -> None:
        """Look at every server again and again."""
        async with httpx.AsyncClient(timeout=LOOK_EVERY_S * 5) as client:
            while True:
                for url in list(self.ready):
                    try:
                        self.ready[url] = (await client.get(url + "/readyz")).status_code == 200
                    except httpx.HTTPError:
                        self.ready[url] = False
                self._looked.set()
                await asyncio.sleep(LOOK_EVERY_S)

    async def until(self, url: str, ready: bool) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.ready[url] != ready:
                self._looked.clear()
                await self._looked.wait()

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        able = [url for url, ready in self.ready.items() if ready]
        address = httpx.URL(able[next(self._turn) % len(able)])
        async with _closed(writer):
            answers, asks = await asyncio.open_connection(address.host, address.port)
            async with _closed(asks):
                ways = {
                    asyncio.create_task(_copy(*way)) for way in ((reader, asks), (answers, writer))
                }
                _, pending = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in pending:
                    way.cancel()


@asynccontextmanager
async def _closed(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(2**16):
        target.write(data)
        await target.drain()


@asynccontextmanager
async def balanced(*servers: Server) -> AsyncIterator[tuple[Balancer, str]]:
    balancer = Balancer()
    balancer.ready |= dict.fromkeys((server.url for server in servers), True)
    watching = asyncio.create_task(balancer.watch())
    async with await asyncio.start_server(balancer.pass_on, "127.0.0.1", 0) as listener:
        yield balancer, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        watching.cancel()
        ending = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(ending, timeout=PATIENCE_S)


def test_a_rolling_restart_loses_no_request(
    start_server: Callable[..., Server], demo_scenes: dict[str, Any], tmp_path: Path
) -> None:
    body = next(iter(demo_scenes.values()))["path"].read_bytes()
    repository = repository_of(tmp_path, "vit-scenes")
    flags = "--repository", str(repository), "--drain-delay-s", str(DRAIN_S), *FAST
    old = [start_server(*flags) for _ in range(2)]
    found: list[int | str] = []
    stop = asyncio.Event()

    async def ask_on(url: str) -> None:
        while not stop.is_set():
            try:  # a connection for each request, as a balancer of connections sees them
                async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
                    found.append(
                        (await client.post(url + "/v1/classify", content=body)).status_code
                    )
            except httpx.HTTPError as error:
                found.append(repr(error))

    async def scenario() -> None:
        async with balanced(*old) as (balancer, url):
            asking = [asyncio.create_task(ask_on(url)) for _ in range(CLIENTS)]
            for server in old:
                new = await asyncio.to_thread(start_server, *flags)
                balancer.ready[new.url] = False
                await balancer.until(new.url, ready=True)
                before = len(found)
                server.process.terminate()
                await balancer.until(server.url, ready=False)
                assert await asyncio.to_thread(server.process.wait, PATIENCE_S) == 0
                assert len(found) > before, "others were served meanwhile"
            stop.set()
            await asyncio.gather(*asking)
            assert sorted(balancer.ready.values()) == [False, False, True, True]

    asyncio.run(scenario())
    assert set(found) == {200}
