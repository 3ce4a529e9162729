"""Sanitize input from outside, so that it contains no lone surrogates, NUL or NaN.

PostgreSQL refuses all three, strict encoders refuse lone surrogates, and JSON has no NaN. None of them may stop a push.
"""

import json
import math
import re
from typing import Any

MAX_NESTING = 100
"""Largest accepted nesting of objects and lists in JSON from outside."""

_UNSTORABLE = re.compile("[\ud800-\udfff\x00]")


class InvalidJSONError(ValueError):
    """Bytes that are not JSON. The message has the position."""


def may_have_nul(raw: bytes) -> bool:
    """Return True if this JSON may contain a NUL, which pydantic's parser accepts, unlike lone surrogates and NaN."""
    return rb"\u0000" in raw


def escape_unstorable(text: str) -> str:
    r"""Return `text` with each lone surrogate and NUL escaped, such as `\udce9` and `\u0000`."""
    return _UNSTORABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) if _UNSTORABLE.search(text) else text


def sanitize_json(value: Any, levels: int = 1_000) -> Any:
    """Return parsed JSON or YAML with everything escaped that a database or JSON would refuse.

    Raises InvalidJSONError if it has more than `levels` levels of objects and lists.
    """
    if isinstance(value, str):
        return escape_unstorable(value)
    if isinstance(value, list | dict) and not levels:
        raise InvalidJSONError("its objects and lists are nested too deeply")
    if isinstance(value, list):
        return [sanitize_json(item, levels - 1) for item in value]
    if isinstance(value, dict):
        return {escape_unstorable(str(key)): sanitize_json(item, levels - 1) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def parse(raw: bytes) -> Any:
    """Parse and sanitize JSON from outside. Raises InvalidJSONError."""
    try:
        return sanitize_json(json.loads(raw.decode()), MAX_NESTING)
    except RecursionError:  # its text differs between versions of Python
        raise InvalidJSONError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise InvalidJSONError(f"not JSON: {escape_unstorable(str(error))}") from None


_SEPARATORS = re.compile(r"[\s,:]*")


def raw_elements(raw: bytes, key: str) -> list[bytes]:
    """Return the original bytes of each element of the list `key` of a JSON object, for dead letters.

    `raw` was parsed before, so it is an object whose `key` is a list.
    """
    text = raw.decode()
    scan = json.JSONDecoder().raw_decode

    def skip_separators(position: int) -> int:
        separators = _SEPARATORS.match(text, position)
        return separators.end() if separators else position

    elements: list[bytes] = []
    position = skip_separators(text.index("{") + 1)
    while text[position] != "}":
        name, position = scan(text, position)
        position = skip_separators(position)
        if name != key or text[position] != "[":  # the last one counts if a key is repeated, and it is a list
            _, position = scan(text, position)
            position = skip_separators(position)
            continue
        elements, position = [], skip_separators(position + 1)
        while text[position] != "]":
            start = position
            _, position = scan(text, position)
            elements.append(text[start:position].encode())
            position = skip_separators(position)
        position = skip_separators(position + 1)
    return elements
