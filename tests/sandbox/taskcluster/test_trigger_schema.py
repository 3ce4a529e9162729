"""Errors of payloads, in the words that Ajv has for them."""

from typing import Any

import pytest

from sandbox.taskcluster.trigger_schema import check_schema, payload_errors


@pytest.mark.parametrize(
    ("schema", "value", "error"),
    [
        ({"required": ["a"]}, {}, "data/x must have required property 'a'"),
        ({"type": "string"}, 1, "data/x must be string"),
        ({"type": ["string", "null"]}, 1, "data/x must be string,null"),
        ({"enum": ["a"]}, "b", "data/x must be equal to one of the allowed values"),
        ({"const": None}, "b", "data/x must be equal to constant"),
        ({"pattern": "[^/]$"}, "b/", 'data/x must match pattern "[^/]$"'),
        ({"format": "email"}, "b", 'data/x must match format "email"'),
        ({"minimum": 1}, 0, "data/x must be >= 1"),
        ({"maximum": 1}, 2, "data/x must be <= 1"),
        ({"exclusiveMinimum": 1}, 1, "data/x must be > 1"),
        ({"exclusiveMaximum": 1}, 1, "data/x must be < 1"),
        ({"multipleOf": 2}, 1, "data/x must be multiple of 2"),
        ({"minLength": 2}, "b", "data/x must NOT have fewer than 2 characters"),
        ({"maxLength": 1}, "bb", "data/x must NOT have more than 1 characters"),
        ({"minItems": 1}, [], "data/x must NOT have fewer than 1 items"),
        ({"maxItems": 0}, [1], "data/x must NOT have more than 0 items"),
        ({"minProperties": 1}, {}, "data/x must NOT have fewer than 1 properties"),
        ({"maxProperties": 0}, {"a": 1}, "data/x must NOT have more than 0 properties"),
        ({"uniqueItems": True}, [1, 2, 1], "data/x must NOT have duplicate items (items ## 0 and 2 are identical)"),
        ({"contains": {"const": 1}}, [], "data/x must contain at least 1 valid item(s)"),
        ({"additionalProperties": False}, {"a": 1}, "data/x must NOT have additional properties"),
        ({"properties": {"a/b": {"type": "null"}}}, {"a/b": 1}, "data/x/a~1b must be null"),
        ({"items": {"type": "null"}}, [None, 1], "data/x/1 must be null"),
        ({"not": {}}, 1, "data/x must NOT be valid"),
        (
            {"anyOf": [{"type": "string"}, {"const": None}]},
            1,
            "data/x must be string; data/x must be equal to constant; data/x must match a schema in anyOf",
        ),
        ({"oneOf": [{}, {}]}, 1, "data/x must match exactly one schema in oneOf"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) and value else "",
)
def test_an_error_is_told_in_ajvs_words(schema: dict[str, Any], value: Any, error: str) -> None:
    whole = {"type": "object", "properties": {"x": schema}}
    assert payload_errors(whole, {"x": value}) == error


def test_all_errors_are_told_in_one_text() -> None:
    schema = {"required": ["a", "b"], "properties": {"c": {"type": "null"}}}
    assert payload_errors(schema, {"c": 1}) == (
        "data must have required property 'a'; data must have required property 'b'; data/c must be null"
    )


def test_a_valid_payload_has_none_and_gets_no_defaults() -> None:
    payload: dict[str, Any] = {}
    assert payload_errors({"properties": {"a": {"default": 1}}}, payload) is None
    assert payload == {}


def test_a_schema_is_checked() -> None:
    assert check_schema({"type": "object"}) is None
    assert "data/type" in (check_schema({"type": "objekt"}) or "")
