"""Describe all settings: as Markdown, and as JSON Schema of the YAML file, for `tc-treeherder settings`."""

from collections.abc import Iterator
from datetime import timedelta
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from service.settings import Environment, Token

_NESTED: dict[str, type[BaseModel]] = {"tokens": Token, "environments": Environment}
"""Settings that are a list or mapping, with the model of an element."""

HEAD = """\
# Settings

Each setting can be an environment variable or an entry of the YAML file that `TC_TREEHERDER_CONFIG` names. A variable
overrides the file. Its name is `TC_TREEHERDER_` and the setting's name in capitals, nested with `__`; for example,
`poll.interval` is `TC_TREEHERDER_POLL__INTERVAL`. Lists and mappings in a variable are JSON. Durations are seconds, or
ISO 8601 such as `PT5M`. Service and listeners can share one environment and one file; in a shared file, settings that
only the listeners have are below `listeners:`.

Variables that are not ours hold, too: `PORT`, those of proxies, and OpenTelemetry's `OTEL_…` for traces; see
[operations.md](operations.md#traces).

`tc-treeherder settings` prints this page.
"""


def describe(**chapters: type[BaseModel]) -> str:
    """Return the page, with a chapter for each program's settings."""
    return "\n".join([HEAD, *(f"## {name.capitalize()}\n\n{_table(model)}" for name, model in chapters.items())])


def _table(model: type[BaseModel]) -> str:
    rows = [f"| `{name}` | {_default(field)} | {_meaning(field)} |" for name, field in _fields(model)]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows, ""])


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        nested = _model_of(field)
        if nested is not None:
            yield from _fields(nested, f"{prefix}{name}.")
            continue
        yield prefix + name, field
        if name in _NESTED and prefix == "":
            element = "[]" if name == "tokens" else ".<prefix>"
            yield from _fields(_NESTED[name], f"{name}{element}.")


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    kinds = [field.annotation, *get_args(field.annotation)]
    if get_origin(field.annotation) not in {None, Union, UnionType}:
        return None  # a list or mapping
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "see meaning"
    value: Any = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, timedelta):
        return f"`{value.total_seconds():g}`"
    if value is None or value in ([], {}) or value is PydanticUndefined:
        return "none"
    if isinstance(value, dict):
        return "a task on `built-in/fail`"
    return f"`{value}`".lower() if isinstance(value, bool) else f"`{value}`"


def _meaning(field: FieldInfo) -> str:
    choices = get_args(field.annotation)
    text = (field.description or "").replace("|", "\\|")
    if choices and all(isinstance(choice, str) for choice in choices):
        alternatives = " \\| ".join(choices)
        text = f"{alternatives}. {text}".strip()
    return text


_DURATION = {"type": ["number", "string"], "minimum": 0, "pattern": r"^P|^[0-9.]+$"}


def describe_file(service: type[BaseModel], listeners: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of a file that service and listeners share, for editors.

    Nothing is required, because any setting may come from the environment.
    """
    document, of_listeners = service.model_json_schema(), listeners.model_json_schema()
    shared = document["properties"].keys() & of_listeners["properties"].keys()
    only = {name: schema for name, schema in of_listeners["properties"].items() if name not in shared}
    document["$defs"] = document.get("$defs", {}) | of_listeners.get("$defs", {})
    document["properties"]["listeners"] = {
        "type": "object",
        "description": "settings that only the listeners have",
        "additionalProperties": False,
        "properties": only,
    }
    document |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "tc-treeherder settings"}
    _loosen(document)
    return document


def _loosen(schema: Any) -> None:
    """Let durations be numbers too, and let a file leave out what the environment has."""
    if isinstance(schema, list):
        for element in schema:
            _loosen(element)
    elif isinstance(schema, dict):
        if schema.get("format") == "duration":
            del schema["format"]
            schema |= _DURATION
        schema.pop("required", None)
        schema.pop("default", None) if schema.get("writeOnly") else None
        for element in list(schema.values()):
            _loosen(element)
