"""Write the schema of `settings` into the chart's values.schema.json, from the settings' models: `bin/chart-schema`."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from listeners.settings import ListenerSettings
from service.settings import Settings

FILE = Path(__file__).resolve().parents[2] / "helm" / "tc-treeherder" / "values.schema.json"

_DURATION = {"type": ["number", "string"], "minimum": 0, "pattern": r"^P|^[0-9.]+$"}
_SHARED = {"pulse", "environments"}
"""Listeners have these from the service's settings, which describe them wholly."""


def written(text: str) -> str:
    """Return the schema file with the settings' part generated again."""
    schema = json.loads(text)
    service, listeners = _of(Settings), _of(ListenerSettings)
    listeners["properties"] = {name: its for name, its in listeners["properties"].items() if name not in _SHARED}
    service["properties"]["listeners"] = listeners
    schema["properties"]["settings"] = service
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _of(model: type[BaseModel]) -> dict[str, Any]:
    whole = model.model_json_schema()
    return _object(whole, whole.get("$defs", {}))


def _object(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    # Nothing is required: secrets come from elsewhere, and pydantic says what is missing when both are there.
    properties = {name: _value(its, definitions) for name, its in schema["properties"].items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _value(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one setting without references, defaults and titles."""
    described = {key: schema[key] for key in ("description",) if key in schema}
    if "$ref" in schema:
        return described | _value(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:  # a value or null
        return described | {"anyOf": [_value(choice, definitions) for choice in schema["anyOf"]]}
    if schema.get("writeOnly"):
        return described  # a secret: templates/_checks.tpl says where it belongs
    if schema.get("format") == "duration":
        return described | _DURATION
    if "properties" in schema:
        return described | _object(schema, definitions)
    kept = {
        key: value
        for key, value in schema.items()
        if key in {"type", "enum", "minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "pattern"}
        or key in {"minItems", "maxItems"}
    }
    if "off" in kept.get("enum", ()):
        kept = {"enum": [*schema["enum"], False]}  # Helm reads YAML 1.1, in which off is false
    if schema.get("format") == "uri":
        kept["pattern"] = "^https?://"
    if "items" in schema:
        kept["items"] = _value(schema["items"], definitions)
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = _value(schema["additionalProperties"], definitions)
    return described | kept


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
