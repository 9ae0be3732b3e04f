"""What clients see while the models of a running server come, go and change on disk."""

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import DEMO_REPOSITORY
from tests.conftest import Server

StartServer = Callable[..., Server]

PATIENCE_S = 60.0
ADMIN = {"Authorization": "Bearer the-key-of-the-operator"}
FAST = "--precision", "fp32", "--max-batch", "8"


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCADE_ADMIN_KEYS", "the-key-of-the-operator")


def repository_of(folder: Path, *names: str) -> Path:
    """A repository with some of the demo models."""
    for name in names:
        shutil.copytree(DEMO_REPOSITORY / name, folder / "repository" / name)
    return folder / "repository"


def add_version(repository: Path, name: str, version: str) -> Path:
    """A copy of version 1 whose labels begin with its number, so that answers betray it."""
    folder = repository / name / version
    shutil.copytree(repository / name / "1", folder)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"version": version}
    for label in manifest["labels"]:
        label["name"] = f"{version}-{label['name']}"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def damage(file: Path) -> None:
    """Flip a bit in the middle, in a new file under the old name."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()
    file.write_bytes(data)


def change(server: Server, what: str, **query: str) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/models/{what}", params=query, headers=ADMIN, timeout=PATIENCE_S
    )


def ask(server: Server, task: str, body: bytes, **query: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{task}", params=query, content=body, timeout=PATIENCE_S)


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def restart_worker(server: Server) -> None:
    """Kill it, and come back when its successor has loaded what it can."""
    worker = server.children("saccade worker")[0]
    worker.send_signal(signal.SIGKILL)
    server.wait_until("/readyz", 503)
    server.wait_until("/readyz", 200)


@pytest.fixture
def scene(demo_scenes: dict[str, Any]) -> bytes:
    """The bytes of one picture."""
    body: bytes = next(iter(demo_scenes.values()))["path"].read_bytes()
    return body


def test_versions_change_under_load_and_every_answer_is_of_one_version(
    start_server: StartServer, admin: None, tmp_path: Path, scene: bytes
) -> None:
    repository = repository_of(tmp_path, "vit-scenes")
    server = start_server("--repository", str(repository), "--api-processes", "2", *FAST)
    first = ask(server, "classify", scene).json()
    assert first["version"] == "1"
    for version in ("2", "10"):
        add_version(repository, "vit-scenes", version)

    async def load() -> tuple[list[httpx.Response], list[httpx.Response]]:
        answers: list[httpx.Response] = []
        changes: list[httpx.Response] = []
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:

            async def ask_on() -> None:
                while len(changes) < 4:
                    answers.append(await client.post("/v1/classify", content=scene))

            asking = [asyncio.create_task(ask_on()) for _ in range(8)]
            for query in ({}, {"version": "2"}, {"version": "1"}, {"version": "10"}):
                path = "/v1/models/vit-scenes/load"
                changes.append(await client.post(path, params=query, headers=ADMIN))
            await asyncio.gather(*asking)
        return answers, changes

    answers, changes = asyncio.run(load())
    assert [(c.status_code, c.json()["version"]) for c in changes] == [
        (200, "10"),
        (200, "2"),
        (200, "1"),
        (200, "10"),
    ]
    assert {answer.status_code for answer in answers} == {200}
    found = [answer.json() for answer in answers]
    assert {answer["version"] for answer in found} >= {"1", "10"}
    expected = [p["label"] for p in first["predictions"]]
    for answer in found:
        prefix = "" if answer["version"] == "1" else answer["version"] + "-"
        assert [p["label"] for p in answer["predictions"]] == [prefix + e for e in expected]
    for _ in range(8):  # whichever process takes the connection
        assert ask(server, "classify", scene).json()["version"] == "10"
    listed = httpx.get(server.url + "/v1/models/vit-scenes").json()
    assert (listed["version"], listed["manifest"]["version"]) == ("10", "10")
    metrics = httpx.get(server.url + "/metrics").text
    running = [line for line in metrics.splitlines() if line.startswith("saccade_model_info")]
    assert sorted(line.rpartition(" ")[2] for line in running) == ["0.0", "0.0", "1.0"]
    assert any('version="10"' in line and line.endswith(" 1.0") for line in running)


def test_a_model_comes_and_goes_while_another_serves(
    start_server: StartServer, admin: None, tmp_path: Path, scene: bytes
) -> None:
    repository = repository_of(tmp_path, "vit-scenes")
    server = start_server("--repository", str(repository), *FAST)
    assert ask(server, "detect", scene).status_code == 422
    shutil.copytree(DEMO_REPOSITORY / "detr-scenes", repository / "detr-scenes")
    assert ask(server, "detect", scene).status_code == 422, "nobody has asked for it yet"
    loaded = change(server, "detr-scenes/load")
    assert (loaded.status_code, loaded.json()["ready"]) == (200, True)
    until(lambda: ask(server, "detect", scene).status_code == 200)
    restart_worker(server)
    assert ask(server, "detect", scene).status_code == 200, "what was loaded is remembered"
    gone = change(server, "vit-scenes/unload")
    assert (gone.status_code, gone.json()) == (200, {"name": "vit-scenes", "version": "1"})
    until(lambda: ask(server, "classify", scene, model="vit-scenes").status_code == 404)
    restart_worker(server)
    names = [m["name"] for m in httpx.get(server.url + "/v1/models").json()["models"]]
    assert names == ["detr-scenes"], "so is what was unloaded"
    assert change(server, "vit-scenes/unload").status_code == 404
    assert change(server, "nobody/load").status_code == 404
    assert change(server, "vit-scenes/load", version="../../etc").status_code == 404
    assert 'model_ready{model="vit-scenes"} 0.0' in httpx.get(server.url + "/metrics").text


def test_a_damaged_new_version_is_refused_with_a_sentence_and_the_old_one_goes_on(
    start_server: StartServer, admin: None, tmp_path: Path, scene: bytes
) -> None:
    repository = repository_of(tmp_path, "vit-scenes")
    server = start_server("--repository", str(repository), *FAST)
    before = ask(server, "classify", scene).json()
    folder = add_version(repository, "vit-scenes", "2")
    damage(folder / "weights.bin")
    refused = change(server, "vit-scenes/load")
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (409, "cannot_load")
    assert f"{folder / 'weights.bin'} has sha256" in problem["detail"]
    (folder / "manifest.json").write_text("{")
    assert "is not JSON" in change(server, "vit-scenes/load", version="2").json()["detail"]
    assert ask(server, "classify", scene).json() == before
    restart_worker(server)
    assert ask(server, "classify", scene).json() == before, "not the newest, but what was served"


def test_without_admin_keys_there_is_nothing_to_load_or_unload(demo_server: Server) -> None:
    for what in ("vit-scenes/load", "vit-scenes/unload"):
        assert change(demo_server, what).status_code == 404


def test_a_wrong_key_changes_nothing(
    start_server: StartServer, admin: None, tmp_path: Path, scene: bytes
) -> None:
    server = start_server("--repository", str(repository_of(tmp_path, "vit-scenes")), *FAST)
    path = server.url + "/v1/models/vit-scenes/unload"
    assert httpx.post(path).status_code == 401
    assert httpx.post(path, headers={"Authorization": "Bearer guess"}).status_code == 401
    assert ask(server, "classify", scene).status_code == 200


def test_loaded_models_go_on_when_their_files_are_deleted_and_the_rest_is_said(
    start_server: StartServer, tmp_path: Path, scene: bytes
) -> None:
    repository = repository_of(tmp_path, "detr-scenes", "vit-scenes")
    server = start_server("--repository", str(repository), "--api-processes", "1", *FAST)
    before = ask(server, "classify", scene).json(), ask(server, "detect", scene).json()
    kept = shutil.copytree(repository / "vit-scenes", tmp_path / "kept")
    shutil.rmtree(repository / "vit-scenes")
    assert ask(server, "classify", scene).json() == before[0]
    maps = ask(server, "attention", scene, model="vit-scenes", kind="rollout")
    assert (maps.status_code, maps.json()["code"]) == (503, "not_ready"), "opened when asked for"
    assert "put them back" in maps.json()["detail"]
    api = server.children("saccade api")[0]
    api.kill()
    api.wait(PATIENCE_S)
    server.wait_until("/readyz", 200)
    assert ask(server, "classify", scene).json() == before[0], "nor does the new process need them"

    restart_worker(server)
    refused = ask(server, "classify", scene, model="vit-scenes")
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert "'vit-scenes' cannot be loaded" in refused.json()["detail"]
    assert str(tmp_path) not in refused.text
    assert ask(server, "detect", scene).json() == before[1], "the other model serves"
    ready = {m["name"]: m["ready"] for m in httpx.get(server.url + "/v1/models").json()["models"]}
    assert ready == {"detr-scenes": True, "vit-scenes": False}
    assert "explain.onnx is missing" in server.log.read_text()
    shutil.copytree(kept, repository / "vit-scenes")
    until(lambda: ask(server, "classify", scene, model="vit-scenes").status_code == 200)
    assert ask(server, "classify", scene).json() == before[0], "by itself"


def test_a_repository_that_vanishes_whole_is_waited_for(
    start_server: StartServer, tmp_path: Path, scene: bytes
) -> None:
    repository = repository_of(tmp_path, "vit-scenes")
    server = start_server("--repository", str(repository), *FAST)
    repository.rename(tmp_path / "away")
    server.children("saccade worker")[0].send_signal(signal.SIGKILL)
    until(lambda: "vit-scenes cannot be served" in server.log.read_text())
    refused = ask(server, "classify", scene)
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert httpx.get(server.url + "/readyz").status_code == 503
    (tmp_path / "away").rename(repository)
    server.wait_until("/readyz", 200)
    assert ask(server, "classify", scene).status_code == 200


@pytest.mark.parametrize("cache", ["off", "cache"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_files_that_change_in_place_never_change_answers(
    start_server: StartServer, tmp_path: Path, scene: bytes, runtime: str, cache: str
) -> None:
    repository = repository_of(tmp_path, "vit-scenes")
    flags = "--runtime", runtime, "--cache", cache if cache == "off" else str(tmp_path / cache)
    server = start_server("--repository", str(repository), *flags, *FAST)
    before = ask(server, "classify", scene).json()
    weights = repository / "vit-scenes" / "1" / "weights.bin"
    size_bytes = weights.stat().st_size
    with weights.open("r+b") as file:
        file.write(bytes(size_bytes))
    assert ask(server, "classify", scene).json() == before
    maps = ask(server, "attention", scene, kind="rollout")
    assert (maps.status_code, maps.json()["code"]) == (503, "not_ready")
    with weights.open("r+b") as file:
        file.truncate(0)
    assert ask(server, "classify", scene).json() == before
