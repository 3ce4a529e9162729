"""Check the payload of a triggered hook against the hook's `triggerSchema`, in the words of Ajv.

The real service validates with Ajv and answers its errors as one text (`ajv.errorsText`, separated by `; `). It fills
in no defaults, although its documentation says that it does.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import jsonschema
from jsonschema.exceptions import SchemaError, ValidationError

from sandbox.taskcluster.tasks import Json


def check_schema(schema: Any) -> str | None:
    """Return the error of an invalid JSON Schema, or None."""
    try:
        jsonschema.Draft7Validator.check_schema(schema)
    except SchemaError as error:
        return f"schema is invalid: {_located(error)}"
    return None


def payload_errors(schema: Json, payload: Json) -> str | None:
    """Return all errors of a payload in one text, or None if it is valid."""
    validator = jsonschema.Draft7Validator(schema, format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER)
    return "; ".join(_located(error) for error in _flatten(validator.iter_errors(payload))) or None


def _flatten(errors: Iterable[ValidationError]) -> Iterator[ValidationError]:
    """Yield the errors of alternatives before the error that none of them fits."""
    for error in errors:
        yield from _flatten(error.context or ())
        yield error


def _located(error: ValidationError | SchemaError) -> str:
    path = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in error.absolute_path)
    return f"data{path} {_words(error)}"


def _words(error: ValidationError | SchemaError) -> str:
    """Return Ajv's message; an error of a keyword that Ajv words in another way keeps Python's message."""
    keyword, limit = str(error.validator), cast(Any, error.validator_value)
    if keyword == "required":
        missing = next(name for name in limit if error.message.startswith(f"{name!r} "))  # only the message names it
        return f"must have required property '{missing}'"
    if keyword == "type":
        return f"must be {','.join(limit) if isinstance(limit, list) else limit}"
    if keyword == "uniqueItems":
        later, first = _duplicate(error.instance)
        return f"must NOT have duplicate items (items ## {first} and {later} are identical)"
    words = _WORDS.get(keyword)
    return error.message if words is None else words.format(limit)


_WORDS = {
    "additionalProperties": "must NOT have additional properties",
    "anyOf": "must match a schema in anyOf",
    "const": "must be equal to constant",
    "contains": "must contain at least 1 valid item(s)",
    "enum": "must be equal to one of the allowed values",
    "exclusiveMaximum": "must be < {}",
    "exclusiveMinimum": "must be > {}",
    "format": 'must match format "{}"',
    "maximum": "must be <= {}",
    "maxItems": "must NOT have more than {} items",
    "maxLength": "must NOT have more than {} characters",
    "maxProperties": "must NOT have more than {} properties",
    "minimum": "must be >= {}",
    "minItems": "must NOT have fewer than {} items",
    "minLength": "must NOT have fewer than {} characters",
    "minProperties": "must NOT have fewer than {} properties",
    "multipleOf": "must be multiple of {}",
    "not": "must NOT be valid",
    "oneOf": "must match exactly one schema in oneOf",
    "pattern": 'must match pattern "{}"',
}


def _duplicate(items: Any) -> tuple[int, int]:
    """Return the places of two equal items, the later one first."""
    return next((j, i) for j in range(len(items) - 1, 0, -1) for i in range(j - 1, -1, -1) if items[i] == items[j])
