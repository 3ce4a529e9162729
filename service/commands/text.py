"""Escape text from outside for a terminal, and shorten that of Python's errors."""

import re


def escape_control(text: str, *, lines: bool = False) -> str:
    """Return `text` with control characters and lone surrogates escaped; with `lines`, line ends are kept."""
    return "".join(c if _is_safe(c) or (lines and c == "\n") else _escape(c) for c in text)


def without_errno(error: Exception) -> str:
    """Return the text of an error without the number that Python puts before it, such as `[Errno 111]`."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error))


def _is_safe(c: str) -> bool:
    # marks of the writing direction can make a line read as a different one
    direction = "\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069"
    return not (c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" or direction or c in "\u2028\u2029")


def _escape(c: str) -> str:
    return " " if c in "\n\t" else c.encode("unicode_escape").decode()
