"""The door: what strangers wrote is read here, and nothing behind it ever sees a lone surrogate, NUL or NaN.

PostgreSQL refuses all three, strict encoders the first, JSON the last; none of them may stop a push.
"""

import json
import math
import re
from typing import Any

from pydantic import ValidationError

MAX_PROBLEMS = 5
"""Problems told of one value: a list can have a million of them."""

MAX_NESTING = 100
"""Levels of objects and lists within each other, of JSON from outside."""

_UNSTORABLE = re.compile("[\ud800-\udfff\x00]")


class InvalidJSONError(ValueError):
    """Bytes that are no JSON; the message says where."""


def may_have_nul(raw: bytes) -> bool:
    """Return True if this JSON may hold a NUL, which pydantic's parser takes; lone surrogates and NaN it refuses."""
    return rb"\u0000" in raw


def escape_unstorable(text: str) -> str:
    r"""`text` with each lone surrogate and NUL written out as `\udce9`, `\u0000`."""
    return _UNSTORABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) if _UNSTORABLE.search(text) else text


def sanitize_json(value: Any, levels: int = 1_000) -> Any:
    """`value`, parsed JSON or YAML, with everything that a database or JSON refuses made visible.

    Raises NonsenseError when it has more than so many levels.
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
    """Parse JSON from outside. Raises NonsenseError."""
    try:
        return sanitize_json(json.loads(raw.decode()), MAX_NESTING)
    except (ValueError, RecursionError) as error:
        raise InvalidJSONError(f"not JSON: {escape_unstorable(str(error))}") from None


def problems_of(error: ValidationError) -> str:
    """What is wrong, and where: the first few problems, without what the value says."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_PROBLEMS]
    told = [(".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")) for each in first]
    return "; ".join(f"{where}: {what}" if where else what for where, what in told)


def reason_of(error: ValueError) -> str:
    """Why something from outside was not understood."""
    return f"not understood: {problems_of(error) if isinstance(error, ValidationError) else error}"


_BETWEEN = re.compile(r"[\s,:]*")


def raw_elements(raw: bytes, key: str) -> list[bytes]:
    """The bytes of each element of the list `key` of a JSON object, as they came: for dead letters.

    `raw` was parsed before, so it is an object whose `key` is a list.
    """
    text = raw.decode()
    scan = json.JSONDecoder().raw_decode

    def after(at: int) -> int:
        between = _BETWEEN.match(text, at)
        return between.end() if between else at

    found: list[bytes] = []
    at = after(text.index("{") + 1)
    while text[at] != "}":
        name, at = scan(text, at)
        at = after(at)
        if name != key or text[at] != "[":  # a key can come twice: the last one counts, and that is a list
            _, at = scan(text, at)
            at = after(at)
            continue
        found, at = [], after(at + 1)
        while text[at] != "]":
            start = at
            _, at = scan(text, at)
            found.append(text[start:at].encode())
            at = after(at)
        at = after(at + 1)
    return found
