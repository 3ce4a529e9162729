"""Forms of schemas that strangers wrote, and inputs of what somebody entered."""

from typing import Any

import pytest

from service.errors import Problem
from service.web.forms import MAX_DEPTH, MOST_CHOICES, MOST_FIELDS, Field, form_of, input_of

BACKFILL = {
    "type": "object",
    "title": "Backfill",
    "properties": {
        "depth": {
            "type": "integer",
            "default": 9,
            "minimum": 1,
            "maximum": 25,
            "title": "Depth",
            "description": "how far",
        },
        "inclusive": {"type": "boolean", "default": False},
        "times": {"type": "number"},
        "path": {"type": "string"},
        "mode": {"enum": ["fast", "slow", 3]},
        "labels": {"type": "array", "items": {"type": "string"}, "default": ["a", "b"]},
        "where": {"type": "object", "properties": {"host": {"type": "string"}}, "required": ["host"]},
        "requests": {"type": "array", "items": {"type": "object"}},
        "either": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    },
    "required": ["path"],
}


def test_each_simple_kind_has_a_field_and_anything_else_is_yaml() -> None:
    form = form_of(BACKFILL)
    assert form is not None
    assert {each.key: each.kind for each in form.fields} == {
        "depth": "integer", "inclusive": "boolean", "times": "number", "path": "text", "mode": "choice",
        "labels": "lines", "where": "object", "requests": "yaml", "either": "yaml",
    }  # fmt: skip
    depth, inclusive, *_ = form.fields
    assert (depth.label, depth.help, depth.value, depth.least, depth.most) == ("Depth", "how far", "9", 1, 25)
    assert (inclusive.value, inclusive.choices[1]) == ("1", ("no", False))
    assert form.fields[5].value == "a\nb"
    assert [each.key for each in form.fields if each.required] == ["path"]


def entered(**fields: str) -> Any:
    form = form_of(BACKFILL)
    assert form is not None
    names = {each.key: each.name for each in form.fields}
    names["host"] = form.fields[6].fields[0].name
    return input_of(form, {names[key]: text for key, text in fields.items()})


def test_what_is_entered_becomes_the_input() -> None:
    assert entered(
        depth=" 5 ", inclusive="0", times="1.5", path="x y", mode="2", labels="one\r\n two \n\n", host="h",
        requests="- tasks: [a]\n  times: 2", either="7",
    ) == {
        "depth": 5, "inclusive": True, "times": 1.5, "path": "x y", "mode": 3, "labels": ["one", "two"],
        "where": {"host": "h"}, "requests": [{"tasks": ["a"], "times": 2}], "either": 7,
    }  # fmt: skip


def test_what_is_left_empty_is_left_out_unless_it_is_needed() -> None:
    assert entered() == {"path": ""}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"depth": "many"}, "Depth: 'many' is no integer"),
        ({"times": "x" * 500}, "is no number"),
        ({"mode": "3"}, "mode: '3' is no choice"),
        ({"mode": "-1"}, "is no choice"),
        ({"inclusive": "²"}, "is no boolean"),
        ({"either": "[1"}, "either is no YAML"),
        ({"either": "!!python/object/apply:os.system [x]"}, "is no YAML"),
        ({"either": "a: &a [1]\nb: *a"}, "`*` is not taken"),
        ({"either": "[" * 10_000}, "at most 50 levels"),
        ({"either": ".nan"}, "is no YAML that JSON could say"),
        ({"times": "nan"}, "is no number"),
        ({"depth": "9" * 9_999}, "is no integer"),
        ({"depth": "9" * 4_000}, "is no integer"),
        ({"either": "x" * 30_000}, "at most 20,000 characters"),
        ({"either": "x" * 15_000, "requests": "y" * 15_000}, "at most 20,000 characters of YAML in all of the form"),
        ({"either": '!!int ""'}, "is no YAML"),
        ({"either": "!!bool maybe"}, "is no YAML"),
        ({"either": "!!timestamp today"}, "is no YAML"),
    ],
)
def test_nonsense_names_the_field(fields: dict[str, str], words: str) -> None:
    with pytest.raises(Problem) as refused:
        entered(**fields)
    assert refused.value.status == 422
    assert words in refused.value.detail


def test_a_schema_without_fields_is_entered_as_yaml() -> None:
    for schema in (True, {}, {"$ref": "#/definitions/x"}, {"type": "object", "properties": {}}, {"type": ["object"]}):
        form = form_of(schema)
        assert form is not None
        assert form.kind == "yaml"
        assert input_of(form, {"in": "a: {b: 1}"}) == {"a": {"b": 1}}
        assert input_of(form, {"in": ""}) == {}
        assert input_of(form, {"in": "[1]"}) == [1]
    assert form_of(None) is None
    assert input_of(None, {"in": "x"}) == {}


def test_what_is_entered_as_yaml_is_what_json_says() -> None:
    assert entered(either="{1: a, 2.5: b, null: c}")["either"] == {"1": "a", "2.5": "b", "null": "c"}
    # by YAML 1.2, as in a .taskcluster.yml
    assert entered(either="[on, no, 2026-01-15, 1_000]")["either"] == ["on", "no", "2026-01-15", "1_000"]


def test_a_default_that_is_entered_as_yaml_is_shown_unless_it_is_large() -> None:
    small, large = {"a": ["1e3", "0o14", 1, True, None, "on"]}, [1] * 100_000
    form = form_of({"type": "object", "properties": {"small": {"default": small}, "large": {"default": large}}})
    assert form is not None
    assert [bool(each.value) for each in form.fields] == [True, False]
    assert input_of(form, {"in.0": form.fields[0].value}) == {"small": small}
    many = form_of({"type": "object", "properties": {f"p{n}": {"default": ["x" * 999]} for n in range(50)}})
    assert many is not None
    assert sum(each.value != "" for each in many.fields) == 9


def count(field: Field) -> int:
    return 1 + sum(count(each) for each in field.fields)


def depth(field: Field) -> int:
    return 1 + max((depth(each) for each in field.fields), default=0)


def test_no_schema_makes_a_form_without_bounds() -> None:
    wide = form_of({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5_000)}})
    assert wide is not None
    assert (wide.kind, count(wide)) == ("yaml", 1)  # and not a form without some of them
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(200):
        nested = {"type": "object", "properties": {"a": nested, "b": nested}}
    deep = form_of(nested)
    assert deep is not None
    assert depth(deep) <= MAX_DEPTH + 1
    assert count(deep) <= MOST_FIELDS + 1
    stacked: dict[str, Any] = {"type": "string"}
    for _ in range(MAX_DEPTH):
        stacked = {"type": "object", "properties": {f"p{n}": stacked for n in range(MOST_FIELDS - 1)}}
    high = form_of(stacked)
    assert high is not None
    assert count(high) <= MOST_FIELDS + 1
    many = form_of({"type": "object", "properties": {"e": {"enum": list(range(9_999))}}})
    assert many is not None
    assert many.fields[0].kind == "yaml"
    enums = {f"e{n}": {"enum": list(range(100))} for n in range(50)}
    choosing = form_of({"type": "object", "properties": enums})
    assert choosing is not None
    assert sum(len(each.choices) for each in choosing.fields) == MOST_CHOICES


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": 7, "b": None, "c": [], "d": True}},
        {"type": "object", "properties": {"a": {"title": 7, "description": [], "type": "integer", "minimum": "x"}}},
        {"type": "object", "properties": {"a": {"enum": [{}]}}, "required": "a"},
        {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}, "default": 7}}},
        {"type": "object", "properties": {"a": {"type": "boolean", "default": 1}}},
        {"type": "object", "properties": []},
        {"type": "object", "properties": {"a": {}}, "required": [{}, ["a"], "a"]},
    ],
)
def test_a_strange_schema_is_no_error(schema: Any) -> None:
    form = form_of(schema)
    assert form is not None
    assert isinstance(input_of(form, {}), dict)
