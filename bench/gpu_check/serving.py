"""The whole server on the GPU, under load."""

import json
from collections.abc import Iterator
from typing import Any

from bench.gpu_check.rows import LEAST_S, Room, Row, attempt, needs, needs_gpu, skipped


def measure_server(room: Room) -> Iterator[Row]:
    """The whole server on the GPU with JPEG bodies, at several numbers of clients."""
    needs_gpu()
    for name in ("fastapi", "uvicorn", "uvloop", "onnxruntime"):
        needs(name)
    yield from server_rows(room, "cuda:0", 4.0)


def server_rows(room: Room, device: str, duration_s: float) -> Iterator[Row]:
    """A server of the models on a device."""
    import uvloop

    from bench.server import serving
    from service.bundle import load_repository

    repository = room.served()
    with serving(repository, "--device", device) as server:
        uvloop.run(server.wait_until_ready())
        runtimes = uvloop.run(served_by(server.url))

        def served(bundle: Any, clients: int) -> Iterator[Row]:
            for row in load_rows(server, bundle, clients, duration_s):
                yield row | {"runtime": runtimes[bundle.manifest.name]}

        for bundle in load_repository(repository):
            for clients in (1, 32, 128):
                what = f"server {bundle.manifest.name}, {clients} clients"
                if room.left_s() < LEAST_S:
                    yield skipped(what, "the time was over")
                else:
                    yield from attempt(what, served(bundle, clients))


async def served_by(url: str) -> dict[str, str]:
    """Runtime, precision and device of each model, as the server says."""
    from service.bench.client import Client

    client = Client(url, {}, 60.0)
    try:
        reply = await client.send(client.compose("GET", "/v1/models"))
    finally:
        client.close()
    return {
        one["name"]: f"{one['runtime']} {one['precision']} on {one['device']}"
        for one in json.loads(reply.body)["models"]
    }


def load_rows(server: Any, bundle: Any, clients: int, duration_s: float) -> Iterator[Row]:
    """One closed loop of clients."""
    import asyncio

    import uvloop

    from bench.peers.picture import draw
    from service.bench.client import Client, Reply
    from service.bench.load import Tally, closed_loop
    from service.bench.report import distribution, stage_means

    tally, body = Tally(), draw()
    task = bundle.manifest.tasks[0]

    async def drive() -> None:
        client = Client(server.url, {}, 60.0)
        path = f"/v1/{task}?model={bundle.manifest.name}"
        request = client.compose("POST", path, body, "image/jpeg")

        async def send(index: int) -> Reply:
            return await client.send(request)

        await closed_loop(send, tally, clients, duration_s)
        client.close()
        await asyncio.sleep(0)

    uvloop.run(drive())
    if tally.errors:
        raise RuntimeError(f"requests failed: {dict(tally.errors)}")
    yield {
        "kind": "server",
        "model": bundle.manifest.name,
        "clients": clients,
        "images_per_s": round(tally.requests / tally.wall_s, 1),
        "latency_s": distribution(tally.latencies_s),
        "stages_s": stage_means(tally.timings),
    }
