"""Rewrites the plain manifests beside this file: what the chart makes of each file in ``values``.

``python -m deploy.kubernetes.render`` after a change of the chart; needs ``pip install
helm-python-sdk``, which is Helm as a library. Each manifest bears the digest of what it was made
of, so that a stale one is seen where Helm is not.
"""

import hashlib
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
CHART = HERE.parent / "helm" / "saccade"
VALUES = HERE / "values"
NAME, NAMESPACE = "saccade", "default"
OF_HELM = ("helm.sh/chart:", "app.kubernetes.io/managed-by:")


def main() -> None:
    """Write all manifests."""
    for values in sorted(VALUES.glob("*.yaml")):
        (HERE / values.name).write_text(manifest(values))


def manifest(values: Path) -> str:
    """All objects of one file of values, without the marks of a Helm release."""
    documents = render(yaml.safe_load(values.read_text()))
    text = "\n---\n".join(document.strip() for document in documents.values())
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(OF_HELM)]
    head = (
        f"# Written by deploy/kubernetes/render.py from deploy/kubernetes/values/{values.name}.\n"
        f"# sha256 of the chart and those values: {digest(values)}\n"
    )
    return head + "\n".join(lines) + "\n"


def render(values: dict[str, Any], name: str = NAME, namespace: str = NAMESPACE) -> dict[str, str]:
    """Documents by the path of their template, empty ones left out.

    Raises:
        helm_python.HelmError: values that the schema refuses, or that do not go together.
    """
    from helm_python import Chart  # only those who change the chart have it

    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name=name, namespace=namespace)
    return {
        path: text
        for path, text in rendered.items()
        if text.strip() and not path.endswith("NOTES.txt")
    }


def digest(values: Path) -> str:
    """SHA-256 of all that the manifest is made of."""
    files = [CHART / "Chart.yaml", CHART / "values.yaml", *sorted(CHART.glob("templates/*"))]
    content = b"\0".join(file.read_bytes() for file in [*files, values])
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
