"""The unmodified Dockerfile is built, and its image run as locked up as a container can be."""

import gzip
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.image.engine import Container, Engine, engine, make_base, obstacle
from deploy.image.sizes import LARGEST_UNPACKED_BYTES, size_bytes
from service.bundle import load_bundle
from tests.conftest import SACCADE
from tests.distribution.places import Answers, Hub, Registry
from tests.distribution.places import served as served_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PATIENCE_S = 120.0
DRAIN_S = 2
EXPORT_S = 600.0


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Where images are built, which takes minutes each."""
    reason = obstacle()
    if reason is not None:
        pytest.skip(reason)
    archive = tmp_path_factory.mktemp("base") / "base.tar"
    make_base(archive, sys.executable)
    with engine() as made:
        made.add_base(archive)
        archive.unlink()
        yield made


@pytest.fixture(scope="session")
def image(images: Engine) -> str:
    return images.build("cpu")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Collector:
    """Takes traces."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    def answer(self, request: Answers, url: Any) -> None:
        self.sent.append((url.path, gunzipped(request.body())))
        request.answer(200)


def gunzipped(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


class Running:
    """A container that is ready, and how to reach it."""

    def __init__(self, container: Container, port: int) -> None:
        self.container = container
        self.url = f"http://127.0.0.1:{port}"

    def wait_until_ready(self) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            try:
                if httpx.get(self.url + "/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(self.container.log())


@pytest.fixture
def served(images: Engine, image: str) -> Iterator[Running]:
    """A container of its own for one test."""
    port = free_port()
    flags = ["--env", f"SACCADE_PORT={port}", "--env", "SACCADE_HOST=127.0.0.1"]
    flags += ["--env", f"SACCADE_DRAIN_DELAY_S={DRAIN_S}"]
    with images.running(image, f"saccade-{port}", *flags) as container:
        running = Running(container, port)
        running.wait_until_ready()
        yield running


def test_the_image_is_small_and_holds_nothing_that_serving_does_not_need(
    images: Engine, image: str
) -> None:
    with images.mounted(image) as root:
        assert size_bytes(root) <= LARGEST_UNPACKED_BYTES
        packages = next((root / "opt" / "saccade" / "lib").glob("python3*/site-packages"))
        installed = {entry.name for entry in packages.iterdir()}
        assert not {"torch", "pip", "setuptools", "pytest"} & installed
        assert {"service", "onnxruntime", "openvino"} <= installed
        compilers = [name for name in ("gcc", "cc", "clang") if (root / "usr/bin" / name).exists()]
        assert compilers == []
        assert (packages / "service" / "demo" / "repository").is_dir()


def test_no_process_of_a_server_compiles_what_it_imports(images: Engine, image: str) -> None:
    """Nobody could keep the bytecode, so every process of every start would do it again."""
    for module in ("service.commands.serve", "service.api.process", "service.worker.process"):
        asked = ["podman", "run", "--rm", "--read-only", "--entrypoint", "python", image]
        told = images.run([*asked, "-P", "-v", "-c", f"import {module}"]).stderr
        read = re.findall(r"^# code object from '?(/[^'\n]+)", told, flags=re.MULTILINE)
        assert len(read) > 100
        assert [path for path in read if not path.endswith(".pyc")] == []


def test_the_image_says_what_it_is_and_how_it_runs(images: Engine, image: str) -> None:
    found: dict[str, Any] = images.describe(image)
    config = found["Config"]
    assert config["User"] == "10001"
    assert config["Entrypoint"] == ["saccade"]
    assert config["Cmd"] == ["serve"]
    assert list(config["Volumes"]) == ["/var/cache/saccade"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert found["Healthcheck"]["Test"] == ["CMD", "python", "/opt/saccade/bin/healthcheck.py"]


def test_a_locked_up_container_answers_and_is_scraped(
    served: Running, demo_scenes: dict[str, Any]
) -> None:
    name, truth = next(iter(demo_scenes.items()))
    answer = httpx.post(
        served.url + "/v1/classify",
        content=truth["path"].read_bytes(),
        headers={"Content-Type": "image/jpeg"},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["label"] == truth["class"], name
    assert served.container.healthcheck() == 0
    metrics = httpx.get(served.url + "/metrics").text
    assert "saccade_requests_total{" in metrics
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("answered; that the metrics are clean needs promtool")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=metrics, capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_container_sends_traces_to_the_collector_that_a_setting_names(
    images: Engine, image: str, demo_scenes: dict[str, Any]
) -> None:
    port, collector = free_port(), Collector()
    with served_by(collector) as at:
        flags = ["--env", f"SACCADE_PORT={port}", "--env", "SACCADE_HOST=127.0.0.1"]
        flags += ["--env", f"SACCADE_OTLP_ENDPOINT=http://{at}"]
        with images.running(image, f"saccade-{port}", *flags) as container:
            running = Running(container, port)
            running.wait_until_ready()
            picture = next(iter(demo_scenes.values()))["path"].read_bytes()
            assert httpx.post(running.url + "/v1/classify", content=picture).status_code == 200
            assert container.stop(within_s=60) == 0, container.log()
    assert [path for path, _ in collector.sent] == ["/v1/traces"]
    assert b"classify" in collector.sent[0][1]


def test_a_container_has_no_rights_and_writes_to_its_volumes_alone(served: Running) -> None:
    container = served.container
    assert container.execute("id", "-u").stdout.strip() == "10001"
    status = container.execute("cat", "/proc/1/status").stdout
    rights = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (rights["CapEff"], rights["CapBnd"]) == ("0" * 16, "0" * 16)
    assert rights["NoNewPrivs"] == "1"
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('')"
    refused = ["/written", "/opt/saccade/written", "/usr/written", "/home/written", "/etc/passwd"]
    for path in refused:
        written = container.execute("python", "-c", code, path)
        assert written.returncode == 1, path
        assert "Read-only file system" in written.stderr or "Permission" in written.stderr
    for path in ("/tmp/written", "/var/cache/saccade/written"):
        assert container.execute("python", "-c", code, path).returncode == 0, path


def test_a_container_that_is_stopped_under_load_fails_no_request_and_exits_with_zero(
    served: Running, demo_scenes: dict[str, Any]
) -> None:
    """Clients send as long as a load balancer would: until /readyz says otherwise."""
    picture = next(iter(demo_scenes.values()))["path"].read_bytes()
    draining = threading.Event()
    outcomes: list[object] = []

    def balance() -> None:
        with httpx.Client(timeout=30) as client:
            while client.get(served.url + "/readyz").status_code == 200:
                time.sleep(0.05)
        draining.set()

    def send() -> None:
        with httpx.Client(timeout=30) as client:
            while not draining.is_set():
                try:
                    outcomes.append(
                        client.post(served.url + "/v1/detect", content=picture).status_code
                    )
                except httpx.TransportError as error:
                    outcomes.append(repr(error))

    threads = [threading.Thread(target=balance), *(threading.Thread(target=send) for _ in range(4))]
    for thread in threads:
        thread.start()
    while outcomes.count(200) < 20:  # it is under load
        assert threads[1].is_alive(), outcomes
        time.sleep(0.01)
    before = len(outcomes)
    code = served.container.stop(within_s=60)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert draining.is_set()
    assert len(outcomes) > before
    assert set(outcomes) == {200}
    assert code == 0, served.container.log()


def test_a_locked_up_container_pulls_models_as_pods_do(
    images: Engine, image: str, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    models.chmod(0o777)  # the container's user is not ours
    locked = [
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--cap-drop",
        "ALL",
        "--volume",
        f"{models}:/models",
    ]
    command = ["podman", "run", "--rm", *locked, image, "pull"]
    with served_by(Registry()) as at:
        push = [str(SACCADE), "push", "vit-scenes", f"oci://{at}/vit"]
        subprocess.run(push, check=True, capture_output=True)
        done = images.run([*command, f"oci://{at}/vit:1", "--repository", "/models"])
    assert "vit-scenes 1 (5.5 MB) is now in /models/vit-scenes/1" in done.stdout
    load_bundle(models / "vit-scenes" / "1").verify()
    for source, sentence in (("s3://b/c", "s3://b/c: "), ("hf://a/b", "hf://a/b: ")):
        refused = images.run([*command, source, "--repository", "/models"], check=False)
        assert refused.returncode == 1
        assert sentence in refused.stderr, refused.stderr  # from a library that is there


def test_the_image_for_gpus_serves_on_processors_only_if_it_may(
    images: Engine, demo_scenes: dict[str, Any]
) -> None:
    image = images.build("gpu")
    port = free_port()
    flags = ["--env", f"SACCADE_PORT={port}", "--env", "SACCADE_HOST=127.0.0.1"]
    with images.running(image, f"saccade-{port}", *flags) as container:
        running = Running(container, port)
        running.wait_until_ready()
        truth = next(iter(demo_scenes.values()))
        answer = httpx.post(
            running.url + "/v1/classify", content=truth["path"].read_bytes(), timeout=30
        )
        assert answer.json()["predictions"][0]["label"] == truth["class"]
        assert container.execute("nvidia-smi").returncode != 0, "no GPU is expected here"
        wanted = ["saccade", "serve", "--port", "0", "--device", "cuda"]
        refused = container.execute("timeout", "60", *wanted)
        assert refused.returncode == 1, refused.stderr
        assert "cuda" in (refused.stdout + refused.stderr).lower()


def test_the_image_for_exporting_exports_and_the_one_for_serving_says_what_it_lacks(
    images: Engine, image: str, tmp_path: Path
) -> None:
    """A checkpoint of the hub, as the Dockerfile and the page say it."""
    pytest.importorskip("transformers", reason="writes the checkpoint")
    from tests.export.family_checkpoints import write

    checkpoint = write("SwinForImageClassification", tmp_path / "checkpoint").folder
    hub = Hub("me/tiny", {path.name: path.read_bytes() for path in checkpoint.iterdir()})
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o777)  # the container's user is not ours

    def export_in(name: str, at: str) -> "subprocess.CompletedProcess[str]":
        asked = ["podman", "run", "--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
        asked += ["--volume", f"{work}:/work", "--workdir", "/work"]
        asked += ["--env", f"HF_ENDPOINT=http://{at}"]
        words = ["export", "me/tiny", "--name", "tiny", "--out", "models-repository"]
        return images.run([*asked, name, *words], check=False, timeout_s=EXPORT_S)

    with served_by(hub) as at:
        able = export_in(images.build("export"), at)
        assert able.returncode == 0, able.stderr
        (folder,) = (work / "models-repository" / "tiny").iterdir()
        load_bundle(folder).verify()
        unable = export_in(image, at)
    assert unable.returncode == 1
    assert "saccade[export]" in unable.stderr
