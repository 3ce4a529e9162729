"""Escaping of text from outside for a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.commands.text import escape_control, without_errno


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain é 😀", "plain é 😀"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("half \udce9", "half \\udce9"),
        ("\u202eabc\u202c", "\\u202eabc\\u202c"),
        ("\u2066\u2069", "\\u2066\\u2069"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("a\tb\nc", "a b c"),
    ],
)
def test_what_could_control_a_terminal_is_escaped(text: str, escaped: str) -> None:
    assert escape_control(text) == escaped


def test_line_ends_are_kept_if_lines_are_wanted() -> None:
    assert escape_control("a\nb\r\x1b", lines=True) == "a\nb\\r\\x1b"


@given(st.text(st.characters()))
def test_any_text_can_be_printed_afterwards(text: str) -> None:
    escaped = escape_control(text)
    escaped.encode()
    assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in escaped)
    assert escape_control(escaped) == escaped


def test_an_error_is_told_without_its_number() -> None:
    assert without_errno(OSError("[Errno -2] Name or service not known")) == "Name or service not known"
    assert without_errno(OSError("timed out [Errno 1] x")) == "timed out [Errno 1] x"
