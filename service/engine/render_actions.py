"""Read and render the in-tree actions that a decision task offers, in the child process of `service.engine.render`.

`public/actions.json` is written by strangers: what reads it is for the child alone. It imports no settings, and follows
no reference of a JSON Schema that leaves the document.
"""

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from service.sanitize import InvalidJSONError, parse

MAX_ACTIONS = 1_000
"""Actions that one file may have; Firefox's has some dozens."""

MAX_TEXT = 10_000
"""Characters that are kept of a title or a description."""

MAX_LISTED = 2 * 1024 * 1024
"""Characters of all actions without their templates: the service keeps them in memory, and answers them."""

MAX_PROBLEMS = 5
"""Problems of one input that an error names."""

MAX_TAG_SETS = 50
"""Sets of tags that one `context` may have: the service compares them with the tags of each task."""

MAX_INPUT = 512 * 1024
"""Characters of an input with its defaults, as JSON: the service stores it. What is given has half of that at most."""

MAX_RENDERED, MAX_VALUES = 1_000_000, 50_000
"""Characters as JSON, and values, of what an action is rendered as. Those of Firefox have some thousand characters."""

MAX_DEPTH = 50
"""Levels of a schema in which defaults are looked for, because references may go in a circle."""

ACTION_NAME = r"^[A-Za-z0-9_.-]{1,100}$"
"""The names of actions that are taken: a name is a part of a scope, in which `:` and `*` have a meaning."""

_HOOK_GROUP, _HOOK = re.compile(r"[A-Za-z0-9_-]{1,1000}"), re.compile(r"[A-Za-z0-9_/-]{1,1000}")
_NAME = re.compile(ACTION_NAME)
_STRUCTURE = b"{[,"

Render = Callable[[Any, dict[str, Any]], Any]
"""Renders a JSON-e template with a context."""


class InvalidActionsError(Exception):
    """The file cannot be used; the message is for its author."""


def is_relevant(context: Sequence[Mapping[str, str]] | None, tags: Mapping[str, str] | None) -> bool:
    """Return True if an action with this `context` is for a task with these tags; None: for the task group.

    One without a context that can be understood is for nobody.
    """
    if context is None:
        return False
    if tags is None:
        return not context
    return any(tag_set.items() <= tags.items() for tag_set in context)


def first_relevant(actions: Iterable[dict[str, Any]], tags: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """Return the relevant actions in their order: of each name the first."""
    first: dict[str, dict[str, Any]] = {}
    for action in actions:
        if is_relevant(action["context"], tags):
            first.setdefault(action["name"], action)
    return list(first.values())


def list_actions(document: bytes, nodes: int) -> list[dict[str, Any]]:
    """Return what people need to know of each action, and `broken`: why it cannot be used, None if it can.

    Raises InvalidActionsError.
    """
    _, actions = _read(document, nodes)
    names = ("name", "title", "description", "kind", "context", "schema", "hook", "broken")
    listed = [{name: action[name] for name in names} for action in actions]
    if len(json.dumps(listed)) > MAX_LISTED:
        raise InvalidActionsError(f"has more than {MAX_LISTED:,} characters of schemas and descriptions")
    return listed


def render_action(document: bytes, nodes: int, wanted: dict[str, Any], render: Render) -> dict[str, Any]:
    """Return the rendered action, or `rejected` or `failed` with the reason.

    `wanted` has the `name`, the `tags` of the task, the `input`, the `context` to render with, and the names of the
    service's `own` actions, of which one may have been meant. `rejected` is for
    whoever asked, `failed` for the author of the file. Raises InvalidActionsError.
    """
    variables, actions = _read(document, nodes)
    relevant = first_relevant(actions, wanted["tags"])
    action = next((action for action in relevant if action["name"] == wanted["name"]), None)
    if action is None:
        return {"rejected": _not_offered(wanted, relevant)}
    if action["broken"] is not None:
        return {"failed": action["broken"]}
    told, problem = _told(action, wanted["input"])
    if problem is not None:
        return {"rejected": problem}
    context = {**wanted["context"], "input": told, **variables}
    try:
        _check_input_size(told)
        rendered = render(action["template"], context)
        _check_rendered(rendered)
    except _UnusableError as error:
        return _unusable(action, str(error))
    return {"kind": action["kind"], "hook": action["hook"], "input": told, "rendered": rendered}


class _UnusableError(Exception):
    """One action of the file cannot be used; the message is for its author."""


def _check_input_size(told: Any) -> None:
    size = _characters(told)
    if size > MAX_INPUT:
        raise _UnusableError(f"its input has {size:,} characters with the defaults of its `schema`, {_most(MAX_INPUT)}")


def _check_rendered(rendered: Any) -> None:
    if not isinstance(rendered, dict):
        raise _UnusableError(f"it is rendered as {type(rendered).__name__}, and not as an object")
    if not _has_at_most(rendered, MAX_VALUES):
        raise _UnusableError(f"it is rendered as more than {MAX_VALUES:,} values")
    size = _characters(rendered)
    if size > MAX_RENDERED:
        raise _UnusableError(f"it is rendered as {size:,} characters, {_most(MAX_RENDERED)}")


def _unusable(action: dict[str, Any], why: str) -> dict[str, Any]:
    return {"failed": f"the tree's action {action['name']} cannot be used: {why}"}


def _characters(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _most(limit: int) -> str:
    return f"and {limit:,} at most are taken"


def _has_at_most(value: Any, count: int) -> bool:
    """Return True if a value, with all values in it, has at most `count`; it may stand in a list many times."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        count -= 1
        inside = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        if count < len(waiting) + len(inside):
            return False
        waiting.extend(inside)
    return True


def _not_offered(wanted: dict[str, Any], relevant: list[dict[str, Any]]) -> str:
    from service.contract.validation import closest  # noqa: PLC0415 - only this request of the child needs it

    name, names = wanted["name"], [action["name"] for action in relevant]
    meant = closest(name, [*names, *wanted["own"]])
    offered = f"it offers {', '.join(names[:50])}" if names else "it offers none"
    subject = "for a push" if wanted["tags"] is None else "for this task"
    return f"there is no action {name!r} {subject}{f' ({meant}?)' if meant else ''}: {offered}"


# --- the file ----------------------------------------------------------------------------------------------------


def _read(document: bytes, nodes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the variables, and the actions whose names are taken."""
    if len(document) - len(document.translate(None, _STRUCTURE)) > nodes:
        raise InvalidActionsError(f"has more than {nodes:,} values")
    try:
        content = parse(document)
    except InvalidJSONError as error:
        raise InvalidActionsError(f"is no JSON: {str(error).removeprefix('not JSON: ')}") from None
    if not isinstance(content, dict):
        raise InvalidActionsError("is no JSON object")
    version = content.get("version")
    if isinstance(version, bool) or version != 1:
        raise InvalidActionsError(f"has the version {str(version)[:100]}: only version 1 is understood")
    variables, actions = content.get("variables", {}), content.get("actions")
    if not isinstance(variables, dict):
        raise InvalidActionsError("has `variables` that are no object")
    if not isinstance(actions, list):
        raise InvalidActionsError("has no list of `actions`")
    if len(actions) > MAX_ACTIONS:
        raise InvalidActionsError(f"has {len(actions):,} actions: {MAX_ACTIONS:,} at most are taken")
    return variables, [_action(action) for action in actions if _has_name(action)]


def _has_name(action: Any) -> bool:
    return (
        isinstance(action, dict) and isinstance(action.get("name"), str) and _NAME.fullmatch(action["name"]) is not None
    )


def _action(action: dict[str, Any]) -> dict[str, Any]:
    kind = action.get("kind")
    title, description = (str(action.get(name) or "")[:MAX_TEXT] for name in ("title", "description"))
    entry: dict[str, Any] = {
        "name": action["name"],
        "title": title or action["name"],
        "description": description,
        "kind": kind if kind in {"hook", "task"} else None,
        "context": None,
        "schema": None,
        "hook": None,
        "template": action.get("hookPayload" if kind == "hook" else "task"),
        "broken": None,
    }
    try:
        entry["context"] = _context(action)
        if entry["kind"] is None:
            raise InvalidActionsError(f"its kind is {str(kind)[:100]!r}, and neither hook nor task")
        if kind == "hook":
            entry["hook"] = _hook(action)
        if not isinstance(entry["template"], dict):
            raise InvalidActionsError(f"its `{'hookPayload' if kind == 'hook' else 'task'}` is no object")
        if action.get("schema") is not None:
            _check_schema(action["schema"])
            entry["schema"] = action["schema"]
    except InvalidActionsError as error:
        entry["broken"] = _unusable(action, str(error))["failed"]
    return entry


def _context(action: dict[str, Any]) -> list[dict[str, str]]:
    context = action.get("context")
    if not isinstance(context, list) or not all(
        isinstance(tag_set, dict) and all(isinstance(value, str) for value in tag_set.values()) for tag_set in context
    ):
        raise InvalidActionsError("its `context` is no list of sets of tags")
    if len(context) > MAX_TAG_SETS:
        raise InvalidActionsError(f"its `context` has {len(context):,} sets of tags, {_most(MAX_TAG_SETS)}")
    return context


def _hook(action: dict[str, Any]) -> list[str]:
    group, hook = action.get("hookGroupId"), action.get("hookId")
    if not (isinstance(group, str) and _HOOK_GROUP.fullmatch(group)):
        raise InvalidActionsError(f"its hookGroupId is {str(group)[:100]!r}")
    if not (isinstance(hook, str) and _HOOK.fullmatch(hook)):
        raise InvalidActionsError(f"its hookId is {str(hook)[:100]!r}")
    return [group, hook]


# --- schemas -----------------------------------------------------------------------------------------------------


def _check_schema(schema: Any) -> None:
    """Raise InvalidActionsError for a schema that is none, or that refers to another document."""
    if not isinstance(schema, dict | bool):
        raise InvalidActionsError("its `schema` is no JSON Schema")
    for key, value in _members(schema):
        if key in {"$ref", "$dynamicRef", "$recursiveRef"} and isinstance(value, str) and not value.startswith("#"):
            raise InvalidActionsError(f"its `schema` refers to {value[:200]}, which is another document")
        patterns = [value] if key == "pattern" else list(value) if key == "patternProperties" else []
        for pattern in patterns:
            _check_pattern(pattern)
    _validator_of(schema)


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str):
        return  # the metaschema refuses it; or it is the name of a property
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        raise InvalidActionsError(f"its `schema` has the pattern {pattern[:200]!r}, which is not understood") from None


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each member of all objects in a value."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield from item.items()
        waiting.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())


def _validator_of(schema: Any) -> Any:
    """Return the validator of a schema: of its own draft if it names one, otherwise of draft 7."""
    from jsonschema import Draft7Validator, SchemaError, validators  # noqa: PLC0415 - large, and few requests need it
    from referencing import Registry  # noqa: PLC0415 - likewise

    draft = validators.validator_for(schema, default=Draft7Validator)
    try:
        draft.check_schema(schema)
    except SchemaError as error:
        place = "".join(f".{part}" for part in error.absolute_path)
        raise InvalidActionsError(f"its `schema` is no JSON Schema: schema{place}: {error.message[:500]}") from None
    return draft(schema, registry=Registry())  # which has no documents, and fetches none


def _told(action: dict[str, Any], given: Any) -> tuple[Any, str | None]:
    """Return the input with the schema's defaults; or the reason why it does not fit."""
    from referencing.exceptions import Unresolvable  # noqa: PLC0415 - few requests need it

    schema, name = action["schema"], action["name"]
    nothing = given is None or given == {}
    if schema is None:
        return None, None if nothing else f"input of {name}: it takes none, and {_shown(given)} is given"
    has_default = nothing and isinstance(schema, dict) and "default" in schema
    told = copy.deepcopy(schema["default"] if has_default else given)
    told = _with_defaults(schema, told, schema, 0)
    problems = []
    try:
        for error in _validator_of(schema).iter_errors(told):
            problems += _explain(error)
            if len(problems) >= MAX_PROBLEMS:
                break
    except Unresolvable as error:
        reason = f"its `schema` refers to {str(error.ref)[:200]}, which it does not have"
        raise InvalidActionsError(f"has an action {name} that cannot be used: {reason}") from None
    return told, f"input of {name}: {'; '.join(problems[:MAX_PROBLEMS])}" if problems else None


def _with_defaults(schema: Any, value: Any, root: Any, depth: int) -> Any:
    """Fill in the defaults of properties that are missing, also in objects and lists that are there."""
    schema = _resolved(schema, root)
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return value
    parts = schema.get("allOf")
    for part in parts if isinstance(parts, list) else ():
        value = _with_defaults(part, value, root, depth + 1)
    properties, items = schema.get("properties"), schema.get("items")
    if isinstance(value, dict) and isinstance(properties, dict):
        for name, declared in properties.items():
            of_property = _resolved(declared, root)
            if name not in value and isinstance(of_property, dict) and "default" in of_property:
                value[name] = copy.deepcopy(of_property["default"])
            if name in value:
                value[name] = _with_defaults(of_property, value[name], root, depth + 1)
    if isinstance(value, list) and isinstance(items, dict):
        return [_with_defaults(items, item, root, depth + 1) for item in value]
    return value


def _resolved(schema: Any, root: Any) -> Any:
    """Return what a local reference stands for; None if it stands for nothing."""
    for _ in range(MAX_DEPTH):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str):
            return schema
        schema = root
        for part in reference.removeprefix("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(name) if isinstance(schema, dict) else None
    return None


# --- errors of an input ------------------------------------------------------------------------------------------


_TYPES = {
    "string": "string",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
}
"""JSON Schema's names of types, with pydantic's."""

_LIMITS = {
    "minimum": ("greater_than_equal", "ge"),
    "exclusiveMinimum": ("greater_than", "gt"),
    "maximum": ("less_than_equal", "le"),
    "exclusiveMaximum": ("less_than", "lt"),
    "minLength": ("string_too_short", "min_length"),
    "maxLength": ("string_too_long", "max_length"),
    "minItems": ("too_short", "min_length"),
    "maxItems": ("too_long", "max_length"),
    "pattern": ("string_pattern_mismatch", "pattern"),
}
"""JSON Schema's keywords with a limit: pydantic's error, and its name of the limit."""


def _explain(error: Any) -> list[str]:
    """Return sentences about an error, in the words for errors of validation that the service has everywhere."""
    from service.contract.validation import explain  # noqa: PLC0415 - only this request of the child needs it

    keyword, limit, value = error.validator, error.validator_value, error.instance
    place = ("body", *error.absolute_path) if error.absolute_path else ()
    problem: dict[str, Any] = {"loc": place, "input": value}
    if keyword in {"anyOf", "oneOf"} and error.context:
        return [f"{_named(place)} fits none of its forms: {' or: '.join(_explain(error.context[0])[:1])}"]
    if keyword == "required" or (keyword == "additionalProperties" and limit is False):
        return _key_problems(error, place or ("body",))
    if keyword in {"enum", "const"}:
        options = limit if keyword == "enum" and isinstance(limit, list) else [limit]
        return [f"{_named(place)} is {_shown(value)}, and none of {', '.join(map(_shown, options[:20]))}"]
    if keyword == "type" and isinstance(limit, str) and limit in _TYPES:
        problem["type"] = f"{_TYPES[limit]}_type"
        return [explain(problem)]
    if keyword in _LIMITS:
        problem["type"], name = _LIMITS[keyword]
        problem["ctx"] = {name: limit, **({"field_type": "List"} if keyword.endswith("Items") else {})}
        return [explain(problem, quote=True)]
    return [f"{_named(place)} does not fit ({keyword}): {str(error.message)[:200]}"]


def _key_problems(error: Any, place: Sequence[Any]) -> list[str]:
    """Return sentences about properties that are missing or unknown."""
    from service.contract.validation import closest, explain  # noqa: PLC0415 - only this request of the child needs it

    value, known = error.instance, list(error.schema.get("properties", {}))
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in value]
        # jsonschema has an error for each
        missing = [name for name in missing if error.message.startswith(repr(name))] or missing[:1]
        return [explain({"type": "missing", "loc": (*place, name), "input": value}) for name in missing]
    unknown = [name for name in value if name not in known]
    guesses = [closest(name, known) for name in unknown]
    return [
        explain({"type": "extra_forbidden", "loc": (*place, name), "input": value}) + (f" ({guess}?)" if guess else "")
        for name, guess in zip(unknown, guesses, strict=True)
    ]


def _named(place: Sequence[Any]) -> str:
    from service.contract.validation import path_of  # noqa: PLC0415 - only this request of the child needs it

    return path_of(place) or "it"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:100]}…"
