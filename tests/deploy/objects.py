"""What the deployment files may say: the published schemas of Kubernetes, and our own short ones
for objects of operators, with the fields that we use and their neighbours; anything else is a
mistake.
"""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

Object = dict[str, Any]

TEXT: Object = {"type": "string"}
NUMBER: Object = {"type": "integer", "minimum": 0}
FLAG: Object = {"type": "boolean"}
ANYTHING: Object = {"type": "object"}
LABELS: Object = {"type": "object", "additionalProperties": TEXT}
DURATION: Object = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}
DIGITS: Object = {"type": "string", "pattern": "^[0-9]+$"}


def fields(*required: str, **properties: Object) -> Object:
    """An object with these fields and no others; a trailing underscore hides a keyword."""
    named = {name.rstrip("_"): schema for name, schema in properties.items()}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": named,
    }


def some(item: Object) -> Object:
    return {"type": "array", "minItems": 1, "items": item}


def one_of(*values: str) -> Object:
    return {"enum": list(values)}


ENTRY = fields("key", name=TEXT, key={"type": "string", "minLength": 1}, optional=FLAG)
SELECTOR = fields(matchLabels=LABELS, matchExpressions=some(ANYTHING))
SOURCE = fields(secret=ENTRY, configMap=ENTRY)
ENDPOINT = fields(
    "port",
    port=TEXT,
    path={"type": "string", "pattern": "^/"},
    scheme=one_of("http", "https"),
    interval=DURATION,
    scrapeTimeout=DURATION,
    authorization=fields(type=TEXT, credentials=ENTRY),
    tlsConfig=fields(
        ca=SOURCE, cert=SOURCE, keySecret=ENTRY, serverName=TEXT, insecureSkipVerify=FLAG
    ),
)
SERVICE_MONITOR = fields(
    "selector",
    "endpoints",
    jobLabel=TEXT,
    targetLabels=some(TEXT),
    podTargetLabels=some(TEXT),
    selector=SELECTOR,
    namespaceSelector=fields(any=FLAG, matchNames=some(TEXT)),
    endpoints=some(ENDPOINT),
    sampleLimit=NUMBER,
)
RULE = fields(
    "expr",
    record=TEXT,
    alert=TEXT,
    expr=TEXT,
    for_=DURATION,
    keep_firing_for=DURATION,
    labels=LABELS,
    annotations=LABELS,
)
PROMETHEUS_RULE = fields(
    "groups", groups=some(fields("name", "rules", name=TEXT, interval=DURATION, rules=some(RULE)))
)

POLICY = fields(
    "type",
    "value",
    "periodSeconds",
    type=one_of("Pods", "Percent"),
    value={"type": "integer", "minimum": 1},
    periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
)
SCALING = fields(
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    selectPolicy=one_of("Max", "Min", "Disabled"),
    policies=some(POLICY),
)


def trigger(kind: str, metric_types: Object, metadata: Object) -> Object:
    return fields(
        "type",
        "metadata",
        type={"const": kind},
        name=TEXT,
        metricType=metric_types,
        metadata=metadata,
        authenticationRef=fields("name", name=TEXT, kind=TEXT),
    )


PROMETHEUS_TRIGGER = trigger(
    "prometheus",
    one_of("AverageValue", "Value"),
    fields(
        "serverAddress",
        "query",
        "threshold",
        serverAddress={"type": "string", "pattern": "^https?://"},
        query=TEXT,
        threshold=DIGITS,
        activationThreshold=DIGITS,
        authModes=TEXT,
        ignoreNullValues=TEXT,
    ),
)
CPU_TRIGGER = trigger(
    "cpu", one_of("Utilization", "AverageValue"), fields("value", value=DIGITS, containerName=TEXT)
)
SCALED_OBJECT = fields(
    "scaleTargetRef",
    "triggers",
    scaleTargetRef=fields("name", apiVersion=TEXT, kind=TEXT, name=TEXT),
    pollingInterval=NUMBER,
    cooldownPeriod=NUMBER,
    idleReplicaCount=NUMBER,
    minReplicaCount=NUMBER,
    maxReplicaCount=NUMBER,
    fallback=fields("failureThreshold", "replicas", failureThreshold=NUMBER, replicas=NUMBER),
    advanced=fields(
        restoreToOriginalReplicaCount=FLAG,
        horizontalPodAutoscalerConfig=fields(
            name=TEXT, behavior=fields(scaleUp=SCALING, scaleDown=SCALING)
        ),
    ),
    triggers=some({"oneOf": [PROMETHEUS_TRIGGER, CPU_TRIGGER]}),
)

PROTOCOL = one_of("v1", "v2", "grpc-v1", "grpc-v2")
SERVING_RUNTIME = fields(
    "supportedModelFormats",
    "containers",
    supportedModelFormats=some(
        fields("name", name=TEXT, version=TEXT, autoSelect=FLAG, priority=NUMBER)
    ),
    protocolVersions=some(PROTOCOL),
    multiModel=FLAG,
    disabled=FLAG,
    annotations=LABELS,
    labels=LABELS,
    containers=some(ANYTHING),
    volumes=some(ANYTHING),
    nodeSelector=LABELS,
    affinity=ANYTHING,
    tolerations=some(ANYTHING),
    imagePullSecrets=some(ANYTHING),
)
SERVED_MODEL = fields(
    "modelFormat",
    "storageUri",
    modelFormat=fields("name", name=TEXT, version=TEXT),
    runtime=TEXT,
    protocolVersion=PROTOCOL,
    storageUri={"type": "string", "pattern": "^(s3|gs|pvc|hf|https|oci)://.+"},
    resources=ANYTHING,
    env=some(ANYTHING),
    args=some(TEXT),
)
INFERENCE_SERVICE = fields(
    "predictor",
    predictor=fields(
        "model",
        minReplicas=NUMBER,
        maxReplicas=NUMBER,
        scaleTarget=NUMBER,
        scaleMetric=one_of("concurrency", "rps", "cpu", "memory"),
        timeout=NUMBER,
        containerConcurrency=NUMBER,
        serviceAccountName=TEXT,
        terminationGracePeriodSeconds=NUMBER,
        enableServiceLinks=FLAG,
        model=SERVED_MODEL,
    ),
)

OF_OPERATORS = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): SERVICE_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PROMETHEUS_RULE,
    ("keda.sh/v1alpha1", "ScaledObject"): SCALED_OBJECT,
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): SERVING_RUNTIME,
    ("serving.kserve.io/v1beta1", "InferenceService"): INFERENCE_SERVICE,
}
METADATA = fields("name", name=TEXT, namespace=TEXT, labels=LABELS, annotations=LABELS)
OLDEST, NEWEST = "1.27", "1.33"  # of Kubernetes; the chart names the first


def load(*sources: Path | str) -> list[Object]:
    """All objects in files or texts."""
    texts = [source.read_text() if isinstance(source, Path) else source for source in sources]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def kind(objects: list[Object], name: str) -> Object:
    """The only object of its kind."""
    (found,) = [each for each in objects if each["kind"] == name]
    return found


def check(objects: list[Object]) -> None:
    """Fails at the first object that its schema refuses; misspelt fields are refused."""
    published = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for found in objects:
        known = OF_OPERATORS.get((found["apiVersion"], found["kind"]))
        if known is None:
            for version in (OLDEST, NEWEST):
                published.validate(found, version, strict=True)
            continue
        whole = fields(
            "metadata", "spec", apiVersion=TEXT, kind=TEXT, metadata=METADATA, spec=known
        )
        jsonschema.validate(found, whole)


def seconds(pod: Object) -> tuple[float, float]:
    """Of a pod's only container: the delay of its drain, and the grace for accepted work."""
    (container,) = pod["containers"]
    variables = {entry["name"]: entry["value"] for entry in container.get("env", [])}
    return float(variables["SACCADE_DRAIN_DELAY_S"]), float(variables["SACCADE_GRACE_S"])


def metrics_of(expression: str) -> set[str]:
    """Names of our metrics in a query."""
    return set(re.findall(r"saccade_[a-z_]+", expression))
