"""Make a form of a JSON Schema that strangers wrote, and the input of an action of what somebody entered.

Strings, numbers, booleans, enums, arrays of strings and nested objects have fields. Anything else is entered as YAML.
The names of fields are positions in the schema, so no text of it becomes part of one. The tree's own validation
decides: it happens with the preview.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from service import yaml12
from service.errors import Problem

MOST_FIELDS, MAX_DEPTH = 200, 5
"""Fields of a form, and levels of objects in objects; what is beyond is entered as YAML."""

MOST_CHOICES = 500
"""Choices of all fields of a form."""

MAX_DEFAULTS = 10_000
"""Characters of all defaults of a form that are shown as YAML: what is longer is not edited by hand."""

MAX_LABEL, MAX_HELP = 200, 2_000
"""Characters of a label and of a description that are shown."""

MAX_YAML, MAX_YAML_DEPTH = 20_000, 50
"""Characters of YAML that are read of a form, and levels of what it says."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml, if it is available: it is ten times as fast."""

Kind = Literal["text", "number", "integer", "boolean", "choice", "lines", "object", "yaml"]

_COMPOSED = ("$ref", "oneOf", "anyOf", "allOf", "not", "if", "const")
"""Keywords after which the type alone does not say what is wanted."""


@dataclass
class Field:
    """A field of a form, or several in an object."""

    name: str  # `in` and positions: `in.0.2`
    key: str  # in the object around it
    kind: Kind
    label: str
    help: str
    required: bool
    value: str = ""  # the default, as it is entered
    choices: list[tuple[str, Any]] = field(default_factory=list)  # the text and the value of each
    least: float | None = None
    most: float | None = None
    fields: list["Field"] = field(default_factory=list)


@dataclass
class _Budget:
    """What is left for a form, so that no schema makes one that is slow to make or to show."""

    fields: int = MOST_FIELDS
    choices: int = MOST_CHOICES
    defaults: int = MAX_DEFAULTS

    def take(self, name: Literal["fields", "choices", "defaults"], number: int) -> bool:
        """Take so many; return False if not as many are left."""
        left: int = getattr(self, name) - number
        if left >= 0:
            setattr(self, name, left)
        return left >= 0


def form_of(schema: Any) -> Field | None:
    """Return the form for a schema, an object or one field of YAML; None: the action takes no input."""
    if schema is None or schema is False:
        return None
    form = _field("in", "", schema if isinstance(schema, dict) else {}, _Budget(), required=False, depth=0)
    form.required = form.kind == "object"
    return form


def _field(name: str, key: str, schema: Any, budget: _Budget, *, required: bool, depth: int) -> Field:
    known = schema if isinstance(schema, dict) else {}
    label = known.get("title") if isinstance(known.get("title"), str) and known["title"] else key
    description = known.get("description")
    made = Field(
        name,
        key,
        "yaml",
        str(label)[:MAX_LABEL],
        description[:MAX_HELP] if isinstance(description, str) else "",
        required,
    )
    if not any(word in known for word in _COMPOSED):
        _fill(made, known, budget, depth)
    if made.kind != "object":
        made.value = _entered(made, known["default"], budget) if "default" in known else ""
    return made


def _fill(made: Field, schema: Mapping[str, Any], budget: _Budget, depth: int) -> None:
    """Give a field its kind, if its schema is a simple one."""
    enum, kind, properties = schema.get("enum"), schema.get("type"), schema.get("properties")
    if isinstance(enum, list):
        simple = all(isinstance(each, str | int | float | bool) for each in enum)
        if enum and simple and budget.take("choices", len(enum)):
            made.kind, made.choices = "choice", [(str(each)[:MAX_LABEL], each) for each in enum]
    elif kind == "string":
        made.kind = "text"
    elif kind == "boolean":
        made.kind, made.choices = "boolean", [("yes", True), ("no", False)]
    elif kind in ("number", "integer"):
        made.kind = kind
        made.least, made.most = (_number(schema.get(name)) for name in ("minimum", "maximum"))
    elif kind == "array" and isinstance(schema.get("items"), dict) and schema["items"].get("type") == "string":
        made.kind = "lines"
    elif kind == "object" and isinstance(properties, dict) and properties and depth < MAX_DEPTH:
        if not budget.take("fields", len(properties)):
            return
        required = schema.get("required")
        names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        made.kind = "object"
        made.fields = [
            _field(f"{made.name}.{number}", key, of_key, budget, required=key in names, depth=depth + 1)
            for number, (key, of_key) in enumerate(properties.items())
        ]


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _entered(made: Field, default: Any, budget: _Budget) -> str:
    """Return a default as somebody would enter it; nothing if it is too large."""
    if made.kind in {"choice", "boolean"}:
        places = [number for number, (_, value) in enumerate(made.choices) if _same(value, default)]
        return str(places[0]) if places else ""
    if made.kind == "lines" and isinstance(default, list):
        return "\n".join(str(each) for each in default)[:MAX_YAML]
    if made.kind in {"text", "number", "integer"} and isinstance(default, str | int | float):
        return str(default)[:MAX_YAML]
    text = json.dumps(default, indent=2, ensure_ascii=False)  # which is YAML, too
    return text if budget.take("defaults", len(text)) else ""


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def input_of(form: Field | None, entered: Mapping[str, str]) -> Any:
    """Return the input that somebody entered. Raises a 422 that names the field."""
    if form is not None:
        _check_yaml(form, entered)
    value = None if form is None else _value(form, entered)
    return {} if value is None else value


def _check_yaml(form: Field, entered: Mapping[str, str]) -> None:
    """Raise a 422 if all that is entered as YAML is too much."""
    fields, length = [form], 0
    while fields:
        made = fields.pop()
        fields += made.fields
        length += len(entered.get(made.name, "")) if made.kind == "yaml" else 0
        if length > MAX_YAML:
            name = made.label or "the input"
            detail = f"{name}: enter at most {MAX_YAML:,} characters of YAML in all of the form"
            raise Problem(422, "Invalid request", detail)


def _value(made: Field, entered: Mapping[str, str]) -> Any:
    """Return the value of a field, None for one that was left empty."""
    if made.kind == "object":
        values = {each.key: _value(each, entered) for each in made.fields}
        given = {key: value for key, value in values.items() if value is not None}
        return given if made.required or any(value not in ("", []) for value in given.values()) else None
    text = entered.get(made.name, "")
    if made.kind == "text":
        return text if text or made.required else None
    text = text.strip()
    if made.kind == "lines":
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines if lines or made.required else None
    return _read(made, text) if text else None


def _read(made: Field, text: str) -> Any:
    """Return the value that a text stands for."""
    if made.kind == "yaml":
        return _parse_yaml(made, text)
    try:
        if made.kind in {"choice", "boolean"}:
            return made.choices[_position(text)][1]
        number = int(text) if made.kind == "integer" else float(text)
        if not math.isfinite(number):
            raise ValueError(text)
    except (ValueError, IndexError, OverflowError):
        raise Problem(422, "Invalid request", f"{made.label}: {text[:100]!r} is no {made.kind}") from None
    return number


def _position(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise ValueError(text)
    return int(text)


def _parse_yaml(made: Field, text: str) -> Any:
    """Return what YAML says. Anchors are refused: with them a few lines can stand for gigabytes."""
    name = made.label or "the input"
    try:
        depth = 0
        for event in yaml.parse(text, _LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise Problem(422, "Invalid request", f"{name}: YAML's `*` is not taken: repeat what it stands for")
            if depth > MAX_YAML_DEPTH:
                raise Problem(422, "Invalid request", f"{name}: enter at most {MAX_YAML_DEPTH} levels")
        value = json.loads(json.dumps(yaml12.load(text), allow_nan=False))
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:  # a tag on what it is not for
        why = " ".join(str(error).split())[:300]
        raise Problem(422, "Invalid request", f"{name} is no YAML that JSON could say: {why}") from None
    return value
