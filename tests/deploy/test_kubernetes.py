"""The manifests that are applied without Helm, and the examples for KServe: valid, current, and
true to what the server does.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer

from deploy.helm.schema import FILE, settings_schema
from deploy.kubernetes.render import HERE, VALUES, digest
from service.api import ops
from service.cli import app
from service.errors import BadSettings
from service.metrics import Metrics
from service.settings import PREFIX, Settings, load_settings
from tests.deploy.objects import check, kind, load, seconds

MANIFESTS = sorted(HERE.glob("*.yaml"))
KSERVE = HERE.parent / "kserve"
KILLED_AFTER_S = 10  # how long a server may take beyond its delay and grace

each_manifest = pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)


def set_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_there_is_a_manifest_for_each_example_of_values() -> None:
    examples = [path.name for path in sorted(VALUES.glob("*.yaml"))]

    assert examples == ["autoscaling.yaml", "cpu.yaml", "gpu.yaml", "keda.yaml"]
    assert [path.name for path in MANIFESTS] == examples


@each_manifest
def test_a_manifest_is_made_of_the_chart_as_it_is(manifest: Path) -> None:
    made_of = manifest.read_text().splitlines()[1].rpartition(" ")[2]

    assert made_of == digest(VALUES / manifest.name), "run python -m deploy.kubernetes.render"


@each_manifest
def test_a_manifest_follows_the_published_schemas(manifest: Path) -> None:
    objects = load(manifest)

    check(objects)
    assert {"ConfigMap", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= {
        each["kind"] for each in objects
    }


def test_a_misspelt_field_would_be_found() -> None:
    objects = load(HERE / "keda.yaml")
    kind(objects, "ScaledObject")["spec"]["triggers"][0]["metadata"]["treshold"] = "8"
    with pytest.raises(jsonschema.ValidationError, match="treshold"):
        check(objects)

    published = pytest.importorskip("kubernetes_validate")
    deployment = kind(load(HERE / "cpu.yaml"), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(published.ValidationError, match="readynessProbe"):
        check([deployment])


@each_manifest
def test_the_server_accepts_the_settings_of_a_manifest_and_ends_in_the_time_it_has(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = load(manifest)
    set_environment(monkeypatch, kind(objects, "ConfigMap")["data"])
    pod = kind(objects, "Deployment")["spec"]["template"]["spec"]
    probe = pod["containers"][0]["readinessProbe"]

    settings = load_settings()

    assert settings.host == "0.0.0.0"
    assert settings.drain_delay_s > probe["periodSeconds"] * probe["failureThreshold"]
    needed_s = settings.drain_delay_s + settings.grace_s + KILLED_AFTER_S
    assert pod["terminationGracePeriodSeconds"] == needed_s == 35


@each_manifest
def test_what_speaks_of_the_pods_means_the_pods(manifest: Path) -> None:
    objects = load(manifest)
    template = kind(objects, "Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    (port,) = template["spec"]["containers"][0]["ports"]
    (service_port,) = kind(objects, "Service")["spec"]["ports"]

    for selector in (
        kind(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        kind(objects, "Service")["spec"]["selector"],
        kind(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        kind(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    assert service_port["targetPort"] == port["name"]
    assert kind(objects, "NetworkPolicy")["spec"]["ingress"][0]["ports"][0]["port"] == port["name"]


@each_manifest
def test_containers_are_not_root_write_to_their_volumes_only_and_have_no_privileges(
    manifest: Path,
) -> None:
    pod = kind(load(manifest), "Deployment")["spec"]["template"]["spec"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"/tmp", "/var/cache/saccade"} <= {
            mount["mountPath"] for mount in container["volumeMounts"]
        }


def probes(container: dict[str, Any]) -> list[str]:
    names = ("startupProbe", "readinessProbe", "livenessProbe")
    return [container[name]["httpGet"]["path"] for name in names]


def test_the_probes_ask_routes_that_exist() -> None:
    routes = {route.path for route in ops.router.routes}  # type: ignore[attr-defined]
    asked = ["/startupz", "/readyz", "/livez"]
    runtime = kind(load(KSERVE / "runtime.yaml"), "ServingRuntime")

    assert set(asked) <= routes
    for manifest in MANIFESTS:
        deployment = kind(load(manifest), "Deployment")
        assert probes(deployment["spec"]["template"]["spec"]["containers"][0]) == asked
    assert probes(runtime["spec"]["containers"][0]) == asked


def test_the_values_allow_every_setting_within_its_bounds_and_no_key() -> None:
    written = json.loads(FILE.read_text())["properties"]["settings"]

    assert written == settings_schema(), "run python -m deploy.helm.schema"
    names = set(written["properties"])
    assert set(Settings.model_fields) - names == {"api_keys", "admin_keys"}
    assert written["properties"]["grace_s"]["maximum"] == 3600
    assert written["properties"]["log_level"]["enum"] == ["debug", "info", "warning", "error"]


def test_the_image_has_the_commands_that_containers_are_started_with() -> None:
    commands = typer.main.get_group(app).commands
    pods = [
        kind(load(manifest), "Deployment")["spec"]["template"]["spec"] for manifest in MANIFESTS
    ]
    called = [
        container["args"]
        for pod in pods
        for container in [*pod.get("initContainers", []), *pod["containers"]]
    ]

    assert {words[0] for words in called} == {"serve", "pull"}
    for name, *arguments in called:
        commands[name].make_context(name, arguments)  # which fails at an unknown flag


def test_the_adapter_offers_the_number_that_pods_are_scaled_on_and_the_server_shows_it() -> None:
    (rule,) = load(HERE.parent / "helm" / "prometheus-adapter.yaml")[0]["rules"]["custom"]
    autoscaler = kind(load(HERE / "autoscaling.yaml"), "HorizontalPodAutoscaler")
    (asked,) = [each["pods"] for each in autoscaler["spec"]["metrics"] if "pods" in each]

    assert rule["name"]["as"] == asked["metric"]["name"]
    assert rule["seriesQuery"].startswith(asked["metric"]["name"] + "{")
    assert asked["metric"]["name"] in {metric.name for metric in Metrics().registry.collect()}


def test_kserve_is_told_what_it_understands_and_the_server_what_it_accepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = load(KSERVE / "runtime.yaml", KSERVE / "inferenceservice.yaml")
    runtime = kind(objects, "ServingRuntime")["spec"]
    predictor = kind(objects, "InferenceService")["spec"]["predictor"]
    pod = {"containers": runtime["containers"], "volumes": runtime["volumes"]}
    (container,) = runtime["containers"]

    check([*objects, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}])
    assert container["name"] == "kserve-container"
    assert predictor["model"]["runtime"] == kind(objects, "ServingRuntime")["metadata"]["name"]
    assert predictor["model"]["modelFormat"]["name"] in {
        each["name"] for each in runtime["supportedModelFormats"]
    }
    assert predictor["model"]["protocolVersion"] in runtime["protocolVersions"]
    assert predictor["terminationGracePeriodSeconds"] == sum(seconds(pod)) + KILLED_AFTER_S
    assert predictor["enableServiceLinks"] is False

    set_environment(monkeypatch, {each["name"]: each["value"] for each in container["env"]})
    settings = load_settings()
    assert settings.port == container["ports"][0]["containerPort"]
    assert settings.repository == Path("/mnt/models")  # where KServe puts what it fetched


def test_the_variables_that_kubernetes_makes_of_a_service_are_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = {"SACCADE_SERVICE_HOST": "10.0.0.1", "SACCADE_PORT": "tcp://10.0.0.1:80"}
    set_environment(monkeypatch, made)

    with pytest.raises(BadSettings, match=r"SACCADE_SERVICE_HOST; .*enableServiceLinks: false"):
        load_settings()
    for manifest in MANIFESTS:
        pod = kind(load(manifest), "Deployment")["spec"]["template"]["spec"]
        assert pod["enableServiceLinks"] is False


@pytest.mark.skipif(
    importlib.util.find_spec("helm_python") is None, reason="pip install helm-python-sdk"
)
@each_manifest
def test_a_manifest_is_what_the_chart_makes_now(manifest: Path) -> None:
    from deploy.kubernetes.render import manifest as rendered

    assert manifest.read_text() == rendered(VALUES / manifest.name)
