"""Sanitized input contains nothing unstorable, and dead letters keep the original bytes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlmodel import col, select

from service.sanitize import (
    InvalidJSONError,
    escape_unstorable,
    parse,
    raw_elements,
    sanitize_json,
)
from service.store.database import Database
from service.store.models import DeadLetter

# characters that json.dumps writes and strict encoders, PostgreSQL or JSON refuse are drawn often
texts = st.text(st.one_of(st.characters(exclude_categories=()), st.sampled_from('\0\ud800\udce9\udfff"\\[]{},:\x1f ')))
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def check_storable(value: Any) -> None:
    """Fail on anything that PostgreSQL's JSONB, strict UTF-8 or strict JSON refuse."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()

    def check(item: Any) -> None:
        if isinstance(item, str):
            assert "\0" not in item
        elif isinstance(item, list):
            for inner in item:
                check(inner)
        elif isinstance(item, dict):
            for key, inner in item.items():
                check(key)
                check(inner)

    check(value)


@given(anything)
def test_nothing_unstorable_passes(value: Any) -> None:
    check_storable(parse(json.dumps(value).encode()))
    check_storable(sanitize_json(value))


@given(texts)
def test_what_is_storable_is_left_alone(text: str) -> None:
    clean = escape_unstorable(text)
    assert escape_unstorable(clean) == clean
    if not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
        assert clean is text


def test_escapes_are_visible() -> None:
    assert escape_unstorable("latin-\udce9.txt\0") == "latin-\\udce9.txt\\u0000"
    assert parse(b'{"a\\u0000": [NaN, -Infinity, 1e999, "\\ud83d\\ude00", "\\ud83d"]}') == {
        "a\\u0000": ["nan", "-inf", "inf", "\U0001f600", "\\ud83d"]
    }


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a": 1} x', b'"\x00"', b"9" * 5_000]
)
def test_nonsense_is_named(raw: bytes) -> None:
    with pytest.raises(InvalidJSONError, match=r"^not JSON: ") as refused:
        parse(raw)
    check_storable(str(refused.value))


spaces = st.text(" \t\r\n", max_size=3)


@st.composite
def spelled(draw: st.DrawFn, value: Any) -> str:
    """Return a strategy for spellings of `value` in JSON: with odd whitespace, escapes, and repeated keys."""
    if isinstance(value, list):
        items = [draw(spelled(item)) for item in value]
        return "[" + (",".join(items) or draw(spaces)) + "]"
    if isinstance(value, dict):
        pairs = [f"{draw(spaces)}{json.dumps(key)}{draw(spaces)}:{draw(spelled(item))}" for key, item in value.items()]
        return "{" + (",".join(pairs + pairs[:1]) or draw(spaces)) + "}"
    word = json.dumps(value, ensure_ascii=draw(st.booleans()))
    try:
        word.encode()
    except UnicodeEncodeError:
        word = json.dumps(value)
    return draw(spaces) + word + draw(spaces)


@settings(max_examples=30)
@given(st.data(), st.lists(anything, max_size=5), st.dictionaries(texts, anything, max_size=3))
def test_originals_are_the_bytes_of_each_element(
    data: st.DataObject, events: list[Any], others: dict[str, Any]
) -> None:
    others.pop("events", None)
    spellings = [data.draw(spelled(event)) for event in events]
    before, after = [
        "".join(f"{json.dumps(key)}:{data.draw(spelled(value))}," for key, value in others.items()) for _ in range(2)
    ]
    listed = data.draw(spaces) + ("[" + ",".join(spellings) + "]") + data.draw(spaces)
    name = data.draw(st.sampled_from(['"events"', '"\\u0065vents"']))
    raw = f'{data.draw(spaces)}{{{before}{name}{data.draw(spaces)}:{listed},{after}"z":0}}{data.draw(spaces)}'.encode()
    elements = raw_elements(raw, "events")
    assert elements == [spelling.strip(" \t\r\n").encode() for spelling in spellings]
    assert [parse(element) for element in elements] == parse(raw)["events"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"events": [1], "events": [2, 3]}', [b"2", b"3"]),
        (b'{"events": 5, "events": [[1, "]"]]}', [b'[1, "]"]']),
        (b'{"events": "[", "events": ["\\"]", {"events": [7]}]}', [b'"\\"]"', b'{"events": [7]}']),
        (b'{"events": {"events": [1]}, "events": []}', []),
        (b'{"a": [1, 2], "events": [ -1.5e3 , true ] }', [b"-1.5e3", b"true"]),
    ],
)
def test_the_last_of_several_lists_counts(raw: bytes, expected: list[bytes]) -> None:
    assert raw_elements(raw, "events") == expected
    assert len(parse(raw)["events"]) == len(expected)


async def test_what_passed_can_be_stored(database: Database) -> None:
    ugly = parse(b'{"name": "\\ud800 \\u0000 NaN", "number": NaN, "more": ["\\udfff"]}')
    async with database.writing() as session:
        session.add(DeadLetter(kind="x", subject=ugly["name"], reason=str(ugly["number"]), payload=b"\x00\xff"))
    async with database.reading() as session:
        letter = (await session.exec(select(DeadLetter).where(col(DeadLetter.kind) == "x"))).one()
    assert (letter.subject, letter.reason, letter.payload) == ("\\ud800 \\u0000 NaN", "nan", b"\x00\xff")
