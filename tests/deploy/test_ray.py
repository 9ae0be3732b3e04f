"""A real Ray cluster of two nodes, configured by deploy/ray/serve.yaml, that loses replicas and a
node under load.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ray = pytest.importorskip("ray", reason="needs the extra ray, half a gigabyte, which dev has not")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # Ray leaves descriptors open and uses what is deprecated; none of that is ours.
    pytest.mark.filterwarnings("ignore"),
]

PORT = 18_110
URL = f"http://127.0.0.1:{PORT}"
CLIENTS = 8
PATIENCE_S = 90.0
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # All of Ray speaks on 127.0.0.1 only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # The only proxy is on the first node, and must use replicas of the second as well.
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "service.cluster.proxy:middlewares",
}
NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 100 * 2**20}


@dataclass
class Cluster:
    """Two nodes; ``second`` can be killed and started again."""

    nodes: Any
    second: Any

    def replicas(self, deployment: str, node: Any | None = None) -> list[psutil.Process]:
        """Processes of a deployment, of one node or of both."""
        found = []
        for each in [self.nodes.head_node, self.second] if node is None else [node]:
            raylet = each.all_processes["raylet"][0].process.pid
            with suppress(psutil.NoSuchProcess):
                found += [
                    child
                    for child in psutil.Process(raylet).children(recursive=True)
                    if f":{deployment}" in _title(child)
                ]
        return found

    def second_serves(self) -> bool:
        """Whether both deployments have a replica there."""
        return all(self.replicas(name, self.second) for name in ("Engine", "Front"))

    def kill_second(self) -> None:
        """Without a word to anybody."""
        self.nodes.remove_node(self.second, allow_graceful=False)

    def start_second(self) -> None:
        """A new machine in its place."""
        self.second = self.nodes.add_node(**NODE)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    from ray import serve
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        nodes = Nodes(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        try:
            cluster = Cluster(nodes, nodes.add_node(**NODE))
            nodes.wait_for_nodes()
            ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
            config = tmp_path_factory.mktemp("ray") / "serve.yaml"
            config.write_text(yaml.safe_dump(configuration()))
            deploy(nodes.address, config)
            yield cluster
            serve.shutdown()
        finally:
            ray.shutdown()
            nodes.shutdown()


def configuration() -> dict[str, Any]:
    """The file of the repository, cut to two cores and made to scale at once."""
    made: dict[str, Any] = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    made |= {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": PORT}}
    application = made["applications"][0]
    application["args"] = {"settings": {"threads": 1}, "models_per_replica": 3}
    front, engine = application["deployments"]
    for deployment in (front, engine):
        deployment["ray_actor_options"] = {"num_cpus": 0.5}
        deployment["max_replicas_per_node"] = 1
    front["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
    engine["autoscaling_config"] |= {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 1,
        "metrics_interval_s": 1,
        "downscale_delay_s": 600,
    }
    return made


def deploy(address: str, config: Path) -> None:
    serve = Path(sys.executable).with_name("serve")
    command = [str(serve), "run", "--address", address, "--non-blocking", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    wait_until(_is_running, "the application")


@dataclass
class Load:
    """Clients that ask without a pause, and what became of it."""

    statuses: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def answered(self) -> int:
        return self.statuses[200]

    def wait_for_more(self, count: int) -> None:
        """Until so many more are answered."""
        enough = self.answered() + count
        wait_until(lambda: self.answered() >= enough, f"{count} more answers: {self}")


@contextmanager
def load(scene: dict[str, Any]) -> Iterator[Load]:
    picture, stop, load = scene["path"].read_bytes(), threading.Event(), Load()

    def ask() -> None:
        with httpx.Client(base_url=URL, timeout=60) as client:
            while not stop.is_set():
                try:
                    answer = client.post("/v1/classify?model=vit-scenes", content=picture)
                    load.statuses[answer.status_code] += 1
                    if answer.status_code == 200:
                        load.labels[answer.json()["predictions"][0]["label"]] += 1
                    else:
                        load.faults.append(answer.text)
                except httpx.HTTPError as error:
                    load.faults.append(repr(error))

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield load
    finally:
        stop.set()
        for client in clients:
            client.join(PATIENCE_S)


def wait_until(reached: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end_s, f"waited in vain for {what}"
        time.sleep(0.1)


def test_the_cluster_answers_as_one_server(cluster: Cluster, demo_scenes: dict[str, Any]) -> None:
    scene = demo_scenes["circle.jpg"]
    picture = scene["path"].read_bytes()
    with httpx.Client(base_url=URL, timeout=60) as client:
        assert client.get("/readyz").status_code == 200
        for model in ("vit-scenes", "swin-scenes", "vit-scenes"):
            answer = client.post(f"/v1/classify?model={model}", content=picture)
            assert answer.json()["predictions"][0]["label"] == scene["class"]
            assert len(answer.headers.get_list("x-request-id")) == 1
        boxes = client.post("/v1/detect", content=picture).json()["predictions"]
        assert "circle" in {box["label"] for box in boxes}
        segments = client.post("/v1/segment", content=picture).json()["segments"]
        assert "sky" in {segment["label"] for segment in segments}
        wrong = client.post("/v1/classify?model=none", content=picture)
        assert (wrong.status_code, wrong.json()["code"]) == (404, "unknown_model")
        assert client.get("/metrics").status_code == 404
        ready = "/v2/models/vit-scenes/ready"  # it was loaded when it was asked for
        wait_until(lambda: client.get(ready).status_code == 200, "word from the engine")


def test_an_engine_keeps_no_more_models_than_it_may(cluster: Cluster) -> None:
    from ray import serve

    status = serve.get_deployment_handle("Engine", "saccade").status.remote().result(timeout_s=30)
    assert 1 <= len(status.models) <= 3


def test_engines_come_when_there_is_load(cluster: Cluster, demo_scenes: dict[str, Any]) -> None:
    with load(demo_scenes["circle.jpg"]) as under:
        wait_until(lambda: len(cluster.replicas("Engine")) == 2, "a second engine")
    assert under.faults == []
    assert set(under.labels) == {"circle"}


@pytest.mark.parametrize("deployment", ["Engine", "Front"])
def test_the_death_of_a_replica_loses_no_request(
    cluster: Cluster, demo_scenes: dict[str, Any], deployment: str
) -> None:
    with load(demo_scenes["circle.jpg"]) as under:
        wait_until(lambda: len(cluster.replicas(deployment)) == 2, f"two of {deployment}")
        under.wait_for_more(50)
        victim = cluster.replicas(deployment)[0]
        os.kill(victim.pid, signal.SIGKILL)
        under.wait_for_more(100)
        wait_until(lambda: len(cluster.replicas(deployment)) == 2, "its successor")
    assert under.faults == []
    assert set(under.labels) == {"circle"}


def test_the_death_of_a_node_loses_no_request(
    cluster: Cluster, demo_scenes: dict[str, Any]
) -> None:
    with load(demo_scenes["circle.jpg"]) as under:
        wait_until(cluster.second_serves, "both deployments on the second node")
        under.wait_for_more(50)
        cluster.kill_second()
        under.wait_for_more(100)
        cluster.start_second()
        wait_until(cluster.second_serves, "both deployments on a new node")
        under.wait_for_more(50)
    assert under.faults == []
    assert set(under.labels) == {"circle"}


def _title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def _is_running() -> bool:
    from ray import serve

    application = serve.status().applications["saccade"]
    assert application.status != "DEPLOY_FAILED", application.message
    return bool(application.status == "RUNNING")
