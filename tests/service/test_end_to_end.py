"""The whole server as its users meet it: real processes, the demo models, HTTP."""

import asyncio
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from service.settings import DEMO_REPOSITORY
from tests.conftest import SACCADE, Server

StartServer = Callable[..., Server]


def test_a_sample_scene_gets_its_class(demo_server: Server, demo_scenes: dict[str, Any]) -> None:
    answers = {
        name: httpx.post(
            demo_server.url + "/v1/classify", content=scene["path"].read_bytes()
        ).json()
        for name, scene in demo_scenes.items()
    }
    found = {name: answer["predictions"][0]["label"] for name, answer in answers.items()}
    assert found == {name: scene["class"] for name, scene in demo_scenes.items()}


def test_concurrent_requests_share_batches_and_get_the_answers_they_get_alone(
    start_server: StartServer, demo_scenes: dict[str, Any]
) -> None:
    server = start_server("--precision", "fp32")
    bodies = [scene["path"].read_bytes() for scene in demo_scenes.values()] * 8

    async def classify(top_k: int, body: bytes, client: httpx.AsyncClient) -> list[Any]:
        response = await client.post("/v1/classify", params={"top_k": top_k}, content=body)
        assert response.status_code == 200, response.text
        predictions: list[Any] = response.json()["predictions"]
        return predictions

    async def together() -> tuple[list[list[Any]], list[list[Any]]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            alone = [await classify(1 + i % 8, body, client) for i, body in enumerate(bodies)]
            shared = await asyncio.gather(
                *(classify(1 + i % 8, body, client) for i, body in enumerate(bodies))
            )
        return alone, list(shared)

    alone, shared = asyncio.run(together())
    for one, other in zip(alone, shared, strict=True):
        assert [p["label"] for p in one] == [p["label"] for p in other]
        assert np.allclose([p["score"] for p in one], [p["score"] for p in other], atol=2e-6)
    metrics = httpx.get(server.url + "/metrics").text
    batches = {
        float(edge): float(count)
        for edge, count in re.findall(
            r'batch_size_bucket\{le="([\d.]+)",model="swin-scenes"\} ([\d.]+)', metrics
        )
    }
    assert batches[128.0] > batches[1.0], "no batch held more than one picture"


def test_one_request_may_carry_many_pictures(
    demo_server: Server, demo_scenes: dict[str, Any]
) -> None:
    names = list(demo_scenes)[:3]
    files = [("image", (name, demo_scenes[name]["path"].read_bytes())) for name in names]
    files.insert(1, ("image", ("notes.txt", b"no picture at all")))
    response = httpx.post(demo_server.url + "/v1/classify?top_k=1", files=files)
    results = response.json()["results"]
    assert [r.get("status") for r in results] == [None, 415, None, None]
    found = [results[i]["predictions"][0]["label"] for i in (0, 2, 3)]
    assert found == [demo_scenes[name]["class"] for name in names]


def test_attention_comes_as_json_as_an_array_and_as_a_picture(
    demo_server: Server, demo_scenes: dict[str, Any]
) -> None:
    scene = next(iter(demo_scenes.values()))
    body = scene["path"].read_bytes()
    url = demo_server.url + "/v1/attention"
    vit = {"model": "vit-scenes"}
    answer = httpx.post(url, params=vit | {"head": "all"}, content=body).json()
    values = np.array([shown["values"] for shown in answer["maps"]])
    array = httpx.post(
        url, params=vit | {"head": "all"}, content=body, headers={"accept": "application/x-npy"}
    )
    assert np.allclose(np.load(io.BytesIO(array.content)), values, atol=1e-6)
    assert np.all(values >= 0)
    assert np.all(values.sum(axis=(1, 2)) <= 1 + 1e-4)
    picture = httpx.post(
        url, params=vit | {"kind": "rollout"}, content=body, headers={"accept": "image/png"}
    )
    assert Image.open(io.BytesIO(picture.content)).size == (
        answer["image"]["width"],
        answer["image"]["height"],
    )


def _png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + checksum


def _jpeg() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def _gif() -> bytes:
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "query", "status", "code", "says"),
    [
        (b"this is no picture", "", 415, "unsupported_format", "JPEG, PNG and WebP"),
        (_gif(), "", 415, "unsupported_format", "GIF"),
        (_jpeg()[:5000], "", 400, "bad_image", "truncated"),
        (_png_header(30000, 30000), "", 413, "too_large", "64"),
        (b"", "", 400, "invalid_body", "empty"),
        (bytes(200 * 2**20), "", 413, "too_large", str(20 * 2**20)),
        (_jpeg(), "?model=nobody", 404, "unknown_model", "vit-scenes"),
        (_jpeg(), "?top_k=many", 422, "invalid_parameter", "top_k"),
        (_jpeg(), "?topk=3", 422, "invalid_parameter", "top_k"),
    ],
    ids=["text", "gif", "truncated", "bomb", "empty", "200MB", "model", "value", "name"],
)
def test_bad_input_is_told_what_is_allowed_and_the_server_stays_well(
    demo_server: Server, body: bytes, query: str, status: int, code: str, says: str
) -> None:
    response = httpx.post(demo_server.url + "/v1/classify" + query, content=body, timeout=60)
    problem = response.json()
    assert response.status_code == status, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["code"]) == (status, code)
    assert says in problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert httpx.get(demo_server.url + "/readyz").status_code == 200


def test_memory_stays_bounded_under_oversized_bodies(start_server: StartServer) -> None:
    server = start_server()
    api = server.children("saccade api")[0]
    before_bytes = api.memory_info().rss

    def chunks() -> Any:
        for _ in range(100):
            yield bytes(2**20)

    for _ in range(5):
        response = httpx.post(server.url + "/v1/classify", content=chunks(), timeout=60)
        assert response.status_code == 413
        bomb = httpx.post(server.url + "/v1/classify", content=_png_header(30000, 30000))
        assert bomb.status_code == 413
    assert api.memory_info().rss - before_bytes < 120 * 2**20


def test_a_killed_worker_is_replaced_and_readiness_tells_the_truth(
    start_server: StartServer, demo_scenes: dict[str, Any]
) -> None:
    server = start_server()
    scene = next(iter(demo_scenes.values()))
    body = scene["path"].read_bytes()
    server.children("saccade worker")[0].send_signal(signal.SIGKILL)
    server.wait_until("/readyz", 503)
    refused = httpx.post(server.url + "/v1/classify", content=body)
    assert refused.status_code in (200, 503)  # the successor may be there by now
    if refused.status_code == 503:
        assert int(refused.headers["retry-after"]) >= 1
    assert httpx.get(server.url + "/livez").status_code == 200
    server.wait_until("/readyz", 200)
    answer = httpx.post(server.url + "/v1/classify", content=body).json()
    assert answer["predictions"][0]["label"] == scene["class"]
    assert "saccade_worker_restarts_total 1.0" in httpx.get(server.url + "/metrics").text


def test_accepted_requests_survive_the_death_of_the_worker(
    start_server: StartServer, demo_scenes: dict[str, Any]
) -> None:
    server = start_server()
    bodies = [scene["path"].read_bytes() for scene in demo_scenes.values()] * 12
    worker = server.children("saccade worker")[0]
    worker.send_signal(signal.SIGSTOP)  # so that all of them are accepted and none is answered

    async def load() -> list[int]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            tasks = [
                asyncio.create_task(client.post("/v1/classify", content=body)) for body in bodies
            ]
            await asyncio.sleep(1.0)
            worker.send_signal(signal.SIGKILL)
            return [(await task).status_code for task in tasks]

    assert asyncio.run(load()) == [200] * len(bodies)


def test_sigterm_ends_everything_with_exit_code_zero(start_server: StartServer) -> None:
    server = start_server("--api-processes", "2")
    children = server.children("")
    assert len(children) == 3
    server.process.terminate()
    assert server.process.wait(30) == 0
    assert not [child for child in children if child.is_running()]


def test_children_end_when_the_supervisor_is_killed(start_server: StartServer) -> None:
    server = start_server()
    children = server.children("")
    server.process.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_the_second_start_reads_what_the_first_one_compiled_and_answers_the_same(
    start_server: StartServer, demo_scenes: dict[str, Any], tmp_path: Path
) -> None:
    body = next(iter(demo_scenes.values()))["path"].read_bytes()
    answers, files = [], []
    for _ in range(2):
        server = start_server("--cache", str(tmp_path / "cache"))
        answers.append(
            [
                httpx.post(f"{server.url}/v1/{task}", content=body, timeout=30).json()
                for task in ("classify", "detect", "segment")
            ]
        )
        server.process.terminate()
        assert server.process.wait(30) == 0
        files.append({path.stat().st_ino for path in (tmp_path / "cache").iterdir()})
    assert len(files[0]) == 4
    assert files[1] == files[0]  # a model compiled anew would have been written anew
    assert answers[1] == answers[0]


def test_a_cache_that_cannot_be_is_a_warning(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = start_server("--cache", str(tmp_path / "file" / "cache"))
    assert "no cache of compiled models in" in server.log.read_text()


@pytest.mark.parametrize("damage", ["flipped byte", "missing graph", "other version"])
def test_a_damaged_bundle_is_refused_at_start_with_a_sentence_that_names_the_file(
    tmp_path: Path, damage: str
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(DEMO_REPOSITORY, repository)
    weights = next(repository.glob("*/*/weights.bin"))
    manifest = weights.with_name("manifest.json")
    if damage == "flipped byte":
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
        named = weights
    elif damage == "missing graph":
        named = weights.with_name("model.onnx")
        named.unlink()
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 99}))
        named = manifest
    command = [str(SACCADE), "serve", "--port", "0", "--repository", str(repository)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert str(named) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_taken_port_and_a_wrong_setting_are_refused_with_a_sentence(demo_server: Server) -> None:
    port = demo_server.url.rpartition(":")[2]
    taken = subprocess.run(
        [str(SACCADE), "serve", "--port", port], capture_output=True, text=True, check=False
    )
    assert taken.returncode == 1
    assert f"port {port}" in taken.stderr
    wrong = subprocess.run(
        [str(SACCADE), "serve"],
        env=os.environ | {"SACCADE_MAX_BTACH": "8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 1
    assert "SACCADE_MAX_BTACH" in wrong.stderr
    assert "SACCADE_MAX_BATCH" in wrong.stderr


def test_nothing_is_accepted_after_sigterm_while_the_accepted_is_finished(
    start_server: StartServer, demo_scenes: dict[str, Any]
) -> None:
    server = start_server()
    scene = next(iter(demo_scenes.values()))
    worker = server.children("saccade worker")[0]
    worker.send_signal(signal.SIGSTOP)

    async def scenario() -> int:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            body = scene["path"].read_bytes()
            accepted = asyncio.create_task(client.post("/v1/classify", content=body))
            await asyncio.sleep(0.5)
            server.process.terminate()
            await asyncio.sleep(1.0)
            with pytest.raises(httpx.ConnectError):
                await asyncio.to_thread(httpx.get, server.url + "/readyz", timeout=10)
            worker.send_signal(signal.SIGCONT)
            return (await accepted).status_code

    assert asyncio.run(scenario()) == 200
    assert server.process.wait(30) == 0
