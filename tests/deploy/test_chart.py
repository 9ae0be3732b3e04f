"""The Helm chart, rendered by Helm itself: every setting in reach, values checked, and what follows
from them right.
"""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic.fields import FieldInfo

from deploy.grafana.dashboard import FILE as DASHBOARD
from deploy.kubernetes.render import CHART, render
from service.keys import parse_keys
from service.metrics import Metrics
from service.settings import PREFIX, SECRETS, Settings, load_settings
from tests.deploy.objects import Object, check, kind, load, metrics_of

helm = pytest.importorskip("helm_python", reason="pip install helm-python-sdk")

ALERTS = CHART.parents[1] / "prometheus" / "alerts.yml"
KEY = "0123456789abcdef"
TEXTS = {
    "host": "::",
    "repository": "/models here/ünd",
    "tuning": "off",
    "cache": "/var/cache/säccade",
    "device": "cuda:3",
    "api_keys_file": "/run/secrets/keys",
    "admin_keys_file": "/run/secrets/admin",
    "tls_certificate": "/run/secrets/tls.crt",
    "tls_key": "/run/secrets/tls.key",
    "cors_origins": "https://example.org, http://localhost:3000",
    "url_hosts": "images.example.org, *.example.com",
    "otlp_endpoint": "https://collector.example.org:4318",
}
MONITORED: dict[str, Any] = {
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
}


def objects_of(values: dict[str, Any], namespace: str = "vision") -> list[Object]:
    return load(*render(values, name="eyes", namespace=namespace).values())


def pod_of(objects: list[Object]) -> Any:
    return kind(objects, "Deployment")["spec"]["template"]["spec"]


def variables_of(objects: list[Object]) -> Any:
    return kind(objects, "ConfigMap")["data"]


def settings_of(objects: list[Object], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    for name, value in variables_of(objects).items():
        monkeypatch.setenv(name, value)
    return load_settings()


def another_value(name: str, field: FieldInfo) -> Any:
    """Allowed, and not the default; whole numbers as large as can be."""
    if name in TEXTS:
        return TEXTS[name]
    if isinstance(field.default, str):
        return [one for one in get_args(field.annotation) if one != field.default][-1]
    if isinstance(field.default, float):
        return field.default + 1.125
    bounds = [bound.le for bound in field.metadata if hasattr(bound, "le")]
    return bounds[0] if bounds else 2**41


def test_helm_finds_nothing_to_complain_of() -> None:
    report = helm.lint(str(CHART))

    assert report["errors"] == []
    assert [note for note in report["messages"] if note["severity"] >= 2] == []


def test_every_setting_is_reachable_from_values_and_comes_out_as_it_went_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {
        name: another_value(name, field)
        for name, field in Settings.model_fields.items()
        if name not in SECRETS
    }

    settings = settings_of(objects_of({"settings": given}), monkeypatch)

    for name, value in given.items():
        found = getattr(settings, name)
        assert found == (Path(value) if isinstance(found, Path) else value), name
        assert name == "port" or found != Settings.model_fields[name].default, name


def test_keys_stand_in_a_secret_that_the_server_reads_as_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {"keys": {"api": [f"shop:{KEY}", "sha256:" + 64 * "0"], "admin": [KEY[::-1]]}}
    objects = objects_of(values)
    secret, pod = kind(objects, "Secret"), pod_of(objects)
    settings = settings_of(objects, monkeypatch)

    (volume,) = [each for each in pod["volumes"] if each["name"] == "keys"]
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "keys"]
    for file, names in (
        (settings.api_keys_file, ["shop", "key-00000000"]),
        (settings.admin_keys_file, [None]),
    ):
        folder, _, entry = file.rpartition("/")
        assert folder == mount["mountPath"]
        found = list(parse_keys(secret["stringData"][entry]).values())
        assert len(found) == len(names)
        assert names[0] in (None, found[0])
    assert KEY not in json.dumps([each for each in objects if each["kind"] != "Secret"])


def test_a_secret_of_ones_own_takes_the_place_of_keys_in_values() -> None:
    own = {"name": "mine", "apiEntry": "clients", "adminEntry": "operators"}
    objects = objects_of({"keys": {"existingSecret": own}})

    assert "Secret" not in {each["kind"] for each in objects}
    assert variables_of(objects)["SACCADE_API_KEYS_FILE"] == "/etc/saccade/keys/clients"
    assert variables_of(objects)["SACCADE_ADMIN_KEYS_FILE"] == "/etc/saccade/keys/operators"
    assert "mine" in json.dumps(pod_of(objects)["volumes"])


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"settings": {"max_bach": 8}}, "max_bach"),
        ({"settings": {"max_batch": 0}}, "max_batch"),
        ({"settings": {"api_keys": KEY}}, "api_keys"),
        ({"settings": {"precision": "fp64"}}, "precision"),
        ({"replica": 3}, "replica"),
        ({"keys": {"api": ["short"]}}, "keys"),
        ({"models": {"pull": ["no source"]}}, "pull"),
        ({"gpu": {"enabled": "yes"}}, "enabled"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_name(
    values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(helm.HelmValuesError, match=complaint):
        objects_of(values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"autoscaling": {"enabled": True}, "keda": {"enabled": True, "prometheus": "http://x"}},
            "enable one of them",
        ),
        ({"keda": {"enabled": True}}, "keda.prometheus is needed"),
        ({"autoscaling": {"enabled": True, "cpuUtilization": 0}}, "cpuUtilization or queueDepth"),
        ({"models": {"existingClaim": "a", "volume": {"emptyDir": {}}}}, "give one of them"),
        ({"models": {"volume": {"emptyDir": {}}, "pull": ["s3://a/b"]}}, "not into models.volume"),
        (
            {"keys": {"api": [KEY], "existingSecret": {"name": "mine"}}},
            "instead of keys.api and keys.admin",
        ),
        (
            {"serviceMonitor": {"enabled": True}, "keys": {"api": [KEY]}},
            "give serviceMonitor.keySecret",
        ),
        (
            {"serviceMonitor": {"enabled": True}, "settings": {"metrics_access": "off"}},
            "metrics_access turns off",
        ),
        (
            {"serviceMonitor": {"enabled": True, "keySecret": {"name": "mine"}}},
            "serviceMonitor.keySecret.key is needed",
        ),
        ({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}, "raise one of them"),
        ({"rollingUpdate": {"maxSurge": "0%"}}, "raise one of them"),
        ({"ingress": {"enabled": True}}, "ingress.hosts is needed"),
        ({"settings": {"port": 0}}, "settings.port is 0"),
        (
            {"autoscaling": {"enabled": True, "minReplicas": 11}},
            r"autoscaling.minReplicas is 11, and at most maxReplicas \(10\)",
        ),
        (
            {"keda": {"enabled": True, "prometheus": "http://x", "maxReplicas": 1}},
            "keda.minReplicas is 2",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_what_to_do(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(helm.HelmRenderError, match=sentence):
        objects_of(values)


def test_a_pod_has_the_time_that_its_settings_and_probes_need() -> None:
    values = {
        "settings": {"grace_s": 7.5},
        "probes": {"readiness": {"periodSeconds": 5, "failureThreshold": 3}},
    }
    objects = objects_of(values)
    assert variables_of(objects)["SACCADE_DRAIN_DELAY_S"] == "18"  # 5 x 3, and 3 for the news
    assert pod_of(objects)["terminationGracePeriodSeconds"] == 36  # 18 + 7.5 + 10, rounded up

    values["settings"] = {"grace_s": 60, "drain_delay_s": 0.5}
    objects = objects_of(values)
    assert variables_of(objects)["SACCADE_DRAIN_DELAY_S"] == "0.5"
    assert pod_of(objects)["terminationGracePeriodSeconds"] == 71


def test_new_settings_roll_the_pods_and_new_keys_do_not() -> None:
    def annotations(values: dict[str, Any]) -> Any:
        return kind(objects_of(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]

    keys = {"api": [KEY]}
    assert annotations({"settings": {"max_batch": 8}}) != annotations({"settings": {}})
    assert annotations({"keys": keys}) == annotations({"keys": {"api": [KEY, KEY[::-1]]}})


def test_a_pod_with_gpus_asks_for_them_and_does_not_fall_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = objects_of({"gpu": {"enabled": True}})
    container = pod_of(objects)["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["resources"]["limits"]["cpu"] == 2  # what else was there stays
    assert container["image"].endswith("-gpu")
    assert pod_of(objects)["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert settings_of(objects, monkeypatch).device == "cuda"

    two = objects_of({"gpu": {"enabled": True, "count": 2, "tolerate": False}})
    assert pod_of(two)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert settings_of(two, monkeypatch).device == "cuda"  # every one that is there
    assert "tolerations" not in pod_of(two)

    none = objects_of({})
    assert "nvidia.com/gpu" not in pod_of(none)["containers"][0]["resources"]["limits"]
    assert settings_of(none, monkeypatch).device == "auto"


def test_models_are_pulled_before_the_server_starts_into_the_folder_that_it_reads() -> None:
    sources = ["s3://bucket/vit", "https://models.example.org/detr.tar"]
    objects = objects_of({"models": {"pull": sources}})
    pod = pod_of(objects)

    assert [each["args"] for each in pod["initContainers"]] == [
        ["pull", source, "--repository", "/models"] for source in sources
    ]
    for container in [*pod["initContainers"], *pod["containers"]]:
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == "models"]
        assert mount["mountPath"] == "/models"
        assert mount.get("readOnly", False) is (container["name"] == "saccade")
    assert variables_of(objects)["SACCADE_REPOSITORY"] == "/models"


def test_what_pulls_models_has_the_environment_and_the_files_that_the_server_has() -> None:
    """A proxy, and the certificate authority of a company."""
    variable = {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
    mount = {"name": "authority", "mountPath": "/etc/authority"}
    values = {
        "models": {"pull": ["oci://images.example.org/vit:1"]},
        "extraEnv": [variable],
        "extraVolumeMounts": [mount],
        "extraVolumes": [{"name": "authority", "configMap": {"name": "authority"}}],
    }
    objects = objects_of(values)

    check(objects)
    pod = pod_of(objects)
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert variable in container["env"]
        assert mount in container["volumeMounts"]


@pytest.mark.parametrize(
    ("claim", "cache"), [("", "off"), ("compiled", "/var/cache/saccade")], ids=["own", "claim"]
)
def test_what_was_pulled_is_kept_a_second_time_only_where_other_pods_find_it(
    claim: str, cache: str
) -> None:
    values = {"models": {"pull": ["s3://bucket/vit"]}, "cache": {"existingClaim": claim}}
    (container,) = pod_of(objects_of(values))["initContainers"]

    assert container["env"] == [{"name": "SACCADE_CACHE", "value": cache}]


def test_compiled_models_lie_in_a_folder_that_the_server_makes_in_the_volume() -> None:
    """The kubelet gives volumes to root, and to a group that may write: no place for code."""
    objects = objects_of({})
    (mount,) = [
        each for each in pod_of(objects)["containers"][0]["volumeMounts"] if each["name"] == "cache"
    ]

    assert Path(variables_of(objects)["SACCADE_CACHE"]).parent == Path(mount["mountPath"])


@pytest.mark.parametrize(
    ("sources", "ports"),
    [
        (["s3://bucket/vit", "https://models.example.org/detr/1"], [443]),
        (["oci://registry:5000/vit:1", "oci://registry:5000/detr@sha256:" + "0" * 64], [443, 5000]),
        (["https://me:12345@models.example.org:8443/a:7/1"], [443, 8443]),
        (["oci+http://registry/vit:1", "oci://[fd00::7]:5000/vit"], [443, 80, 5000]),
    ],
)
def test_the_network_lets_pods_reach_what_models_are_pulled_from_and_identities_of_clouds(
    sources: list[str], ports: list[int]
) -> None:
    objects = objects_of({"models": {"pull": sources}})
    names, out, identities = kind(objects, "NetworkPolicy")["spec"]["egress"]

    check(objects)
    assert {port["port"] for port in names["ports"]} == {53}
    assert [port["port"] for port in out["ports"]] == ports
    assert [port["port"] for port in identities["ports"]] == [80, 988]
    assert identities["to"] == [{"ipBlock": {"cidr": "169.254.0.0/16"}}]


def test_pictures_by_url_are_fetched_by_https_and_reach_no_identities() -> None:
    objects = objects_of({"settings": {"url_hosts": "images.example.org"}})
    egress = kind(objects, "NetworkPolicy")["spec"]["egress"]

    assert [port["port"] for rule in egress for port in rule["ports"]] == [53, 53, 443]


def test_models_may_lie_on_a_claim_or_any_other_volume() -> None:
    claim = pod_of(objects_of({"models": {"existingClaim": "shared", "subPath": "prod"}}))
    (volume,) = [each for each in claim["volumes"] if each["name"] == "models"]
    (mount,) = [each for each in claim["containers"][0]["volumeMounts"] if each["name"] == "models"]
    assert volume["persistentVolumeClaim"] == {"claimName": "shared", "readOnly": True}
    assert mount["subPath"] == "prod"

    filled = pod_of(objects_of({"models": {"existingClaim": "shared", "pull": ["s3://a/b"]}}))
    (volume,) = [each for each in filled["volumes"] if each["name"] == "models"]
    assert volume["persistentVolumeClaim"] == {"claimName": "shared"}  # which is written to

    nfs = {"server": "files.example.org", "path": "/models"}
    other = pod_of(objects_of({"models": {"volume": {"nfs": nfs}}}))
    (volume,) = [each for each in other["volumes"] if each["name"] == "models"]
    assert volume["nfs"] == nfs


def test_without_models_of_ones_own_the_demo_models_are_served_and_nothing_goes_out() -> None:
    objects = objects_of({})

    assert "SACCADE_REPOSITORY" not in variables_of(objects)
    assert kind(objects, "NetworkPolicy")["spec"]["egress"] == []
    assert kind(objects, "NetworkPolicy")["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_with_a_certificate_everything_speaks_https(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = objects_of({"tls": {"secretName": "cert"}, "serviceMonitor": {"enabled": True}})
    container = pod_of(objects)["containers"][0]

    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    assert kind(objects, "ServiceMonitor")["spec"]["endpoints"][0]["scheme"] == "https"
    settings = settings_of(objects, monkeypatch)
    assert settings.tls_certificate == "/etc/saccade/tls/tls.crt"  # as kubernetes.io/tls names it
    assert settings.tls_key == "/etc/saccade/tls/tls.key"


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ({"cpuUtilization": 70, "queueDepth": 0}, ["Resource"]),
        ({"cpuUtilization": 0, "queueDepth": 4}, ["Pods"]),
        ({"cpuUtilization": 70, "queueDepth": 4}, ["Resource", "Pods"]),
    ],
)
def test_pods_are_scaled_on_cpu_or_queue_or_both_and_nobody_else_sets_their_number(
    values: dict[str, int], kinds: list[str]
) -> None:
    objects = objects_of({"autoscaling": {"enabled": True, **values}})
    autoscaler = kind(objects, "HorizontalPodAutoscaler")["spec"]

    check(objects)
    assert [each["type"] for each in autoscaler["metrics"]] == kinds
    assert autoscaler["scaleTargetRef"]["name"] == kind(objects, "Deployment")["metadata"]["name"]
    assert "replicas" not in kind(objects, "Deployment")["spec"]
    shown = {metric.name for metric in Metrics().registry.collect()}
    scaled_on = {each["pods"]["metric"]["name"] for each in autoscaler["metrics"] if "pods" in each}
    assert scaled_on <= shown


def test_keda_asks_for_the_queue_of_these_pods() -> None:
    keda = {"enabled": True, "prometheus": "http://prometheus:9090", "cpuUtilization": 80}
    objects = objects_of({"keda": keda}, namespace="eyes-of-others")
    queue, cpu = kind(objects, "ScaledObject")["spec"]["triggers"]

    check(objects)
    pattern = queue["metadata"]["query"].split('"')[3]
    assert queue["metadata"]["query"] == (
        f'sum(saccade_queue_depth{{namespace="eyes-of-others",pod=~"{pattern}"}})'
    )
    for pod in ("eyes-saccade-7d9f8b6c5d-x2k4p", "eyes-saccade-6c5dx2k4p"):
        assert re.fullmatch(pattern, pod)  # as Prometheus matches: from end to end
    for other in ("eyes-saccade-gpu-7d9f8b6c5d-x2k4p", "eyes-saccade2-7d9f8b6c5d-x2k4p"):
        assert not re.fullmatch(pattern, other)
    assert metrics_of(queue["metadata"]["query"]) <= {
        metric.name for metric in Metrics().registry.collect()
    }
    assert cpu["metadata"] == {"value": "80"}
    assert "replicas" not in kind(objects, "Deployment")["spec"]


def test_the_alerts_and_the_dashboard_are_those_of_the_repository() -> None:
    objects = objects_of(MONITORED)
    dashboards = [each for each in objects if each["metadata"]["name"].endswith("-dashboard")]

    check(objects)
    assert kind(objects, "PrometheusRule")["spec"] == yaml.safe_load(ALERTS.read_text())
    assert json.loads(dashboards[0]["data"]["saccade.json"]) == json.loads(DASHBOARD.read_text())
    monitor = kind(objects, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    service = kind(objects, "Service")
    selected = monitor["spec"]["selector"]["matchLabels"].items()
    assert selected <= service["metadata"]["labels"].items()


@pytest.mark.parametrize(
    "names", [{}, {"nameOverride": "eyes"}, {"fullnameOverride": "eyes"}], ids=str
)
def test_whatever_a_release_is_called_the_alert_that_it_is_down_finds_its_job(
    names: dict[str, str],
) -> None:
    objects = objects_of({**MONITORED, **names})
    rules = [
        rule
        for group in kind(objects, "PrometheusRule")["spec"]["groups"]
        for rule in group["rules"]
    ]
    (down,) = [rule["expr"] for rule in rules if rule["alert"] == "SaccadeDown"]
    pattern = down.split('"')[1]
    label = kind(objects, "ServiceMonitor")["spec"]["jobLabel"]

    assert down == f'up{{job=~"{pattern}"}} == 0'
    assert re.fullmatch(pattern, kind(objects, "Service")["metadata"]["labels"][label])


def test_with_everything_switched_on_all_objects_are_valid() -> None:
    objects = objects_of(
        {
            **{key: value for key, value in MONITORED.items() if key != "serviceMonitor"},
            "serviceMonitor": {
                "enabled": True,
                "keySecret": {"name": "eyes-key", "key": "prometheus"},
                "tlsConfig": {"insecureSkipVerify": True},
            },
            "fullnameOverride": "vision",
            "image": {"repository": "images/saccade", "tag": "1", "pullSecrets": [{"name": "x"}]},
            "keys": {"api": [KEY], "admin": [KEY[::-1]]},
            "tls": {"secretName": "cert"},
            "models": {"existingClaim": "models", "pull": ["oci://images.example.org/vit:1"]},
            "cache": {"existingClaim": "compiled"},
            "gpu": {"enabled": True},
            "runtimeClassName": "nvidia",
            "priorityClassName": "high",
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "extraEnv": [{"name": "OTEL_TRACES_SAMPLER", "value": "always_off"}],
            "extraVolumes": [{"name": "more", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
            "podAnnotations": {"a": "b"},
            "podLabels": {"team": "vision"},
            "serviceAccount": {"annotations": {"role": "reader"}},
            "autoscaling": {"enabled": True, "queueDepth": 4},
            "ingress": {
                "enabled": True,
                "className": "nginx",
                "hosts": ["vision.example.org"],
                "tlsSecretName": "front",
            },
            "networkPolicy": {
                "from": [{"namespaceSelector": {"matchLabels": {"name": "shop"}}}],
                "extraEgress": [{"ports": [{"port": 4318, "protocol": "TCP"}]}],
            },
        }
    )

    check(objects)
    assert {each["kind"] for each in objects} == {
        "ConfigMap",
        "Deployment",
        "HorizontalPodAutoscaler",
        "Ingress",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PrometheusRule",
        "Secret",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
    }
    named = {each["metadata"]["name"] for each in objects}
    assert named == {"vision", "vision-keys", "vision-dashboard"}
