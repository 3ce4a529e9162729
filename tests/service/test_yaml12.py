"""Scalars, merges and equal keys as js-yaml 4 reads them."""

import math
from typing import Any

import pytest
import yaml

from service.yaml12 import EqualKeysError, as_number, join_pairs, load
from tests.published_schemas import read_published

SCALARS: list[tuple[str, Any]] = [
    *((word, word) for word in ("yes", "No", "ON", "Off", "y", "N", "fALSE", "nULL", "NaN", "inf")),
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("0", 0),
    ("-0", 0),
    ("+12", 12),
    ("007", 7),
    ("09", 9),
    ("0o10", 8),
    ("-0o10", -8),
    ("0O10", "0O10"),
    ("0o9", "0o9"),
    ("0xfF", 255),
    ("0x", "0x"),
    ("0b110", 6),
    ("0b2", "0b2"),
    ("2_500", "2_500"),
    ("_2", "_2"),
    ("1.25", 1.25),
    ("3.0", 3),
    ("7.", 7),
    (".25", 0.25),
    ("+.25", "+.25"),
    ("2e3", 2000),
    ("2E-1", 0.2),
    ("2e", "2e"),
    ("9e999", "9e999"),
    ("2_5.5", "2_5.5"),
    ("1.2.3", "1.2.3"),
    ("10:45", "10:45"),
    ("1:2:3", "1:2:3"),
    ("9007199254740995", 9007199254740996),
    ("1000000000000000000000", 1e21),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    ("2030-01-30", "2030-01-30"),
    ("2030-01-30T12:00:00Z", "2030-01-30T12:00:00Z"),
    ("2030-01-30 12:00:00 +1", "2030-01-30 12:00:00 +1"),
    ("'12'", "12"),
    ("!!str 12", "12"),
    ("!!int '12'", 12),
    ("!!float 12", 12),
    ("=", "="),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars(text: str, value: Any) -> None:
    read = load(f"key: {text}")["key"]
    assert read == value
    assert type(read) is type(value)


def test_not_a_number() -> None:
    assert math.isnan(load("key: .nan")["key"])


@pytest.mark.published
def test_the_published_scalars() -> None:
    for text, value in read_published("cases/yaml-scalars.json"):
        read = load(f"key: {text}")["key"]
        if isinstance(value, dict):
            assert str(read).replace("inf", "Infinity").replace("nan", "NaN") == value["number"]
        else:
            assert (read, type(read)) == (value, type(value)), text


def test_merges() -> None:
    text = "x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\none: {<<: *x, b: 3}\nboth: {<<: [*x, *y]}\nover: {a: 0, <<: *y}"
    read = load(text)
    assert read["one"] == {"a": 1, "b": 3}
    assert read["both"] == {"a": 1, "b": 1, "c": 2}
    assert read["over"] == {"a": 0, "b": 2, "c": 2}


def test_a_mapping_that_was_merged_before_it_was_read_has_no_equal_keys() -> None:
    text = "deep: {deeper: {deepest: &x {a: 1}, other: &y {<<: *x, a: 2}}}\nshallow: {<<: *y}"
    assert load(text)["shallow"] == {"a": 2}
    assert load(text)["deep"]["deeper"]["other"] == {"a": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' is repeated, in lines 1 and 3"),
        ("x:\n  - {1: a,\n     '1': b}", "the key '1' is repeated, in lines 2 and 3"),
        ("~: 1\nnull: 2", "the key 'null' is repeated, in lines 1 and 2"),
        ("x: &x {a: 1}\ny: {<<: *x, b: 1, b: 2}", "the key 'b' is repeated, in lines 2 and 2"),
        ('"a\\ud800": 1\n"a\\ud800": 2', "is repeated, in lines 1 and 2"),
    ],
)
def test_equal_keys_are_refused(text: str, words: str) -> None:
    with pytest.raises(EqualKeysError, match=words):
        load(text)


def test_surrogate_pairs_in_escapes_are_one_character() -> None:
    pair = '"\\ud83d\\ude00"'
    assert join_pairs(load(f"[{pair}]")[0]) == "\U0001f600"
    assert load(f"['{pair}']") == [pair], "no escapes between single quotes"
    assert join_pairs("\ud83d") == "\ud83d"
    assert join_pairs("\ud83d\ude00\ude00") == "\U0001f600\ude00"


@pytest.mark.parametrize("text", ["[", "a: b: c", "\x01", "--- a\n--- b", "!!python/object:x {}", "{[a]: b}"])
def test_what_is_no_yaml(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load(text)


def test_numbers_are_javascripts() -> None:
    assert as_number(10**400) == math.inf
    assert as_number(-(10**400)) == -math.inf
    assert (as_number(5.0), type(as_number(5.0))) == (5, int)
    assert type(as_number(1e21)) is float
