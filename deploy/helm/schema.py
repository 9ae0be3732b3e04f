"""Rewrites the part of the chart's ``values.schema.json`` that follows from the server's settings.

``python -m deploy.helm.schema`` after a setting was added or its bounds changed. The other parts
are written by hand.
"""

import json
from pathlib import Path
from typing import Any

from service.settings import SECRETS, Settings

FILE = Path(__file__).with_name("saccade") / "values.schema.json"
KEPT = ("description", "minimum", "maximum", "exclusiveMinimum", "enum", "pattern", "minLength")


def main() -> None:
    """Write the file."""
    schema = json.loads(FILE.read_text())
    schema["properties"]["settings"] = settings_schema()
    FILE.write_text(json.dumps(schema, indent=2) + "\n")


def settings_schema() -> dict[str, Any]:
    """What ``settings`` in the values may hold; keys never, they have a Secret."""
    properties = {
        name: {"type": field["type"]} | {key: field[key] for key in KEPT if key in field}
        for name, field in Settings.model_json_schema()["properties"].items()
        if name not in SECRETS
    }
    return {
        "type": "object",
        "description": "Settings of the server, each a variable SACCADE_*",
        "additionalProperties": False,
        "required": ["host", "port", "grace_s"],
        "properties": properties,
    }


if __name__ == "__main__":
    main()
