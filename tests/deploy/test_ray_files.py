"""The files of deploy/ray agree with each other and with the application; no Ray is needed."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from service.cluster import proxy
from service.cluster.options import ENGINE, FRONT, Options
from service.errors import BadSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/ray"
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=service.cluster.proxy:middlewares"


def serve_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((FOLDER / "serve.yaml").read_text())
    return config


def test_the_configuration_names_what_there_is() -> None:
    (application,) = serve_config()["applications"]
    module, _, function = application["import_path"].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert function in {
        node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)
    }
    assert [each["name"] for each in application["deployments"]] == [FRONT, ENGINE]
    assert Options(**application["args"]) == Options()


def test_the_service_of_kuberay_holds_the_same_configuration() -> None:
    service = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == serve_config()


def test_the_cluster_of_kuberay_has_room_for_both_deployments() -> None:
    cluster = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    (application,) = serve_config()["applications"]
    wanted = [each["ray_actor_options"]["num_cpus"] for each in application["deployments"]]
    assert float(worker["resources"]["limits"]["cpu"]) >= sum(wanted)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert group["minReplicas"] >= 2
    image = (FOLDER / "Dockerfile").read_text()
    assert f"rayproject/ray:{cluster['rayVersion']}-" in image


def test_every_way_of_deploying_names_the_middleware_of_the_proxy() -> None:
    for file in (FOLDER / "Dockerfile", FOLDER / "serve.yaml", ROOT / "docs/ray.md"):
        assert CALLBACK in file.read_text()
    assert callable(proxy.middlewares)


def test_settings_in_the_configuration_are_checked() -> None:
    with pytest.raises(BadSettings, match="--max-queue"):
        Options(settings={"max_queue": 0}).on_this_node()
    with pytest.raises(ValidationError, match="models_per_replicas"):
        Options(models_per_replicas=2)  # type: ignore[call-arg]


def test_settings_come_from_the_file_and_then_from_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SACCADE_MAX_QUEUE", "7")
    monkeypatch.setenv("SACCADE_MAX_BATCH", "3")
    settings = Options(settings={"max_queue": 9}).on_this_node()
    assert (settings.max_queue, settings.max_batch) == (9, 3)
    assert settings.metrics_access == "off"
