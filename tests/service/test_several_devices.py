"""A whole server with a worker for each of two devices, which are both the CPU here."""

import asyncio
import signal
import subprocess
import time
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import PATIENCE_S, SACCADE, Server, running_server


def samples(server: Server, metric: str) -> dict[str, float]:
    """Values by device, of a metric without any other label."""
    text = httpx.get(server.url + "/metrics").text
    return {
        sample.labels.get("device", ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric
    }


def test_one_device_lost_leaves_the_other_serving(demo_scenes: dict[str, Any]) -> None:
    bodies = [scene["path"].read_bytes() for scene in demo_scenes.values()] * 6

    async def load(server: Server, during: signal.Signals) -> set[int]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            tasks = [
                asyncio.create_task(client.post("/v1/classify", content=body)) for body in bodies
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) < len(tasks)
            server.children("saccade worker")[0].send_signal(during)
            answers = [(await task).status_code for task in tasks]
            ready = await client.get("/readyz")
            assert ready.status_code == 200, "the other device is"
            return set(answers)

    with running_server("--device", "cpu,cpu", "--api-processes", "1") as server:
        assert len(server.children("saccade worker")) == 2
        assert set(samples(server, "saccade_device_ready")) == {"cpu", "cpu#2"}
        assert asyncio.run(load(server, signal.SIGKILL)) == {200}
        end_s = time.monotonic() + PATIENCE_S
        while samples(server, "saccade_device_ready") != {"cpu": 1.0, "cpu#2": 1.0}:
            assert time.monotonic() < end_s, "the lost one does not come back"
            time.sleep(0.1)
        assert samples(server, "saccade_worker_restarts_total") == {"": 1.0}
        log = server.log.read_text()
    assert "ended with code -9" in log


def test_a_gpu_that_is_not_there_keeps_a_server_from_starting_with_a_sentence() -> None:
    command = [str(SACCADE), "serve", "--port", "0", "--device", "cuda:9"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if "cuda:9" in line]
    assert said, ended.stderr
    assert "--device cuda:9: " in said[-1]
    assert "Traceback" not in ended.stderr
