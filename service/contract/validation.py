"""Explain pydantic's errors to people: which value is wrong, why, and what was probably meant.

Settings, requests, events and task definitions all use these texts. A value is quoted only where the caller says that
it may be read, and never if its field is a secret, or if it is a URL that may contain a password.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError

MAX_PROBLEMS = 5
"""Problems of one value that a message names: a list can have a million of them."""

MAX_QUOTED = 100
"""Characters of a quoted value, and of a key that a text names."""

SHORT = 4
"""Characters of a name of which one may be wrong, though little of it is left."""

Location = Sequence[str | int]

_PATTERNS: dict[str, str] = {}


def named_pattern(pattern: str, meaning: str) -> str:
    """Return `pattern`, of which errors will say `meaning` instead, such as `taskId (22 characters of A-Z …)`."""
    _PATTERNS[pattern] = meaning
    return pattern


def problems_of(error: ValidationError, model: Any = None, *, quote: bool = False) -> str:
    """Return the text of the first `MAX_PROBLEMS` problems; `explain` describes the arguments."""
    return "; ".join(explain(problem, model, quote=quote) for problem in root_causes(error)[:MAX_PROBLEMS])


NOT_UNDERSTOOD = "not understood: "
"""How the reason begins why an event was not understood."""


def reason_of(error: ValueError) -> str:
    """Return the reason why input from outside is invalid, without its values."""
    return f"{NOT_UNDERSTOOD}{problems_of(error) if isinstance(error, ValidationError) else error}"


def root_causes(error: ValidationError) -> list[Any]:
    """Return the problems without those that only follow from others: a default that another wrong value prevents."""
    return [it for it in error.errors(include_url=False) if it["type"] != "default_factory_not_called"]


def explain(problem: Any, model: Any = None, *, quote: bool = False) -> str:
    """Return the text of one of pydantic's problems.

    `model` is the type that was validated, if it is known; it has the names that an unknown key may stand for. With
    `quote`, the text has the value, unless that may be a secret.
    """
    text = _key_problem(problem, model) or _own_message(problem) or _size_problem(problem)
    if text is not None:
        return text
    location, context = problem["loc"], problem.get("ctx", {})
    # what is no URL at all may be the password that belongs beside it
    quote = quote and not problem["type"].startswith("url_") and not may_be_secret(model, location)
    value = _quoted(problem["input"]) if quote else None
    named = _place(problem) if value is None else f"{_place(problem)} {value}"
    return f"{named} {_complaint(problem['type'], context, problem['input'], quoted=value is not None)}"


def _place(problem: Any) -> str:
    return path_of(problem["loc"]) or "it"


def _key_problem(problem: Any, model: Any) -> str | None:
    """Return the text about a key that is missing or unknown."""
    location = problem["loc"]
    if problem["type"] == "missing":
        return f"{_place(problem)} is missing"
    if problem["type"] != "extra_forbidden":
        return None
    match = closest(str(location[-1]), keys_at(model, _within_part(location)[:-1]))
    return f"unknown key {_place(problem)}" + (f" ({match}?)" if match else "")


def _own_message(problem: Any) -> str | None:
    """Return the message of one of our own validators, or of a parser of JSON."""
    place, error = _place(problem), problem.get("ctx", {}).get("error")
    if problem["type"] == "json_invalid":  # FastAPI gives the position as a part of the place
        position = "".join(f" at character {part}" for part in problem["loc"] if isinstance(part, int))
        return f"the body is no JSON: {error}{position}"
    if problem["type"] not in {"value_error", "assertion_error"}:
        return None
    return str(error) if place in {"it", "the body"} else f"{place}: {error}"


def beginning_of(body: bytes, length: int = MAX_QUOTED) -> str:
    """Return the beginning of an answer that is not what was expected, as a quoted text."""
    return json.dumps(body[:length].decode(errors="replace"), ensure_ascii=False)


def path_of(location: Location) -> str:
    """Return the position of a value, such as `tokens[0].value`. Of a request, the part that it is in is left out."""
    if list(location) == ["body"]:
        return "the body"
    parts = _within_part(location)
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_shorten(part)}" for part in parts).removeprefix(".")


def _shorten(key: str) -> str:
    return key if len(key) <= MAX_QUOTED else f"{key[:MAX_QUOTED]}…"


def _within_part(location: Location) -> Location:
    """Return the position within the part of a request, such as its body, if it begins with one."""
    in_request = len(location) > 1 and location[0] in {"body", "query", "path", "header"}
    return location[1:] if in_request else location


def closest(name: str, names: Collection[str]) -> str | None:
    """Return the one of `names` that was probably meant, whether written like_this, likeThis or like-this."""
    if len(name) > MAX_QUOTED:  # to compare a text of megabytes takes seconds
        return None
    plain = {re.sub(r"[_-]", "", known).lower(): known for known in names}
    likeness = 0.6 if len(name) <= SHORT else 0.7  # one wrong letter of three is a typing error, and four of twelve not
    matches = difflib.get_close_matches(re.sub(r"[_-]", "", name).lower(), plain, 1, likeness)
    return plain[matches[0]] if matches else None


def _size_problem(problem: Any) -> str | None:
    """Return the text about a text or list that is too short or too long."""
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    if kind not in {"string_too_short", "string_too_long", "too_short", "too_long"}:
        return None
    length = context.get("actual_length") or (len(value) if isinstance(value, str | list | dict) else None)
    unit = "item" if context.get("field_type") in {"List", "Tuple", "Set", "Frozenset", "Dictionary"} else "character"
    count = f"{length or 0:,} {unit}{'' if length == 1 else 's'}"
    if kind.endswith("short"):
        least = context["min_length"]
        return f"{_place(problem)} has {count}, at least {least:,} {'is' if least == 1 else 'are'} needed"
    count = count if length else f"too many {unit}s"
    return f"{_place(problem)} has {count}, at most {context['max_length']:,} are allowed"


def _complaint(kind: str, context: dict[str, Any], value: Any, *, quoted: bool) -> str:
    """Return what is wrong with a value; `quoted`: the text names the value before."""
    if (limit := _limit_text(kind, context)) is not None:
        return f"is {limit}"
    if (options := _options(kind, context)) is not None:
        match = closest(str(value), options)
        return f"is none of {', '.join(options)}" + (f" ({match}?)" if match else "")
    noun = _noun(kind, context)
    if quoted or not kind.endswith("_type"):
        return f"is no {noun}" + (": put it in quotes" if kind == "string_type" else "")
    return f"is {_type_name(value)}, and must be {'an' if noun[0] in 'aeio' else 'a'} {noun}"


def _limit_text(kind: str, context: dict[str, Any]) -> str | None:
    match kind:
        case "greater_than_equal":
            return f"too small: it must be at least {_number(context['ge'])}"
        case "greater_than":
            return f"too small: it must be more than {_number(context['gt'])}"
        case "less_than_equal":
            return f"too large: it must be at most {_number(context['le'])}"
        case "less_than":
            return f"too large: it must be less than {_number(context['lt'])}"
    return None


def _number(limit: Any) -> str:
    if isinstance(limit, float) and limit.is_integer():
        return str(int(limit))
    return str(limit).replace("datetime.timedelta(0)", "0 s")  # pydantic has the text of a duration


def _options(kind: str, context: dict[str, Any]) -> list[str] | None:
    if kind not in {"literal_error", "enum"}:
        return None
    # pydantic has them as a text: 'a', 'b' or 'c'; names and numbers
    return [text or number for text, number in re.findall(r"'([^']*)'|(\b(?!or\b)[\w.-]+)", context["expected"])]


_NOUNS = {
    "string": "text",
    "int": "whole number",
    "float": "number",
    "finite_number": "finite number",
    "bool": "truth value: true or false",
    "list": "list ([…])",
    "tuple": "list ([…])",
    "set": "list ([…])",
    "dict": "object ({…})",
    "model": "object ({…})",
    "model_attributes": "object ({…})",
    "time_delta": "duration: give seconds, such as 5, or ISO 8601, such as PT5S",
    "url": "URL with http or https, such as https://example.com",
    "date": "date, such as 2030-01-31",
    "datetime": "date-time, such as 2030-01-31T00:00:00Z",
}
"""The words for a type, by the beginning of pydantic's names of its errors."""


def _noun(kind: str, context: dict[str, Any]) -> str:
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        return _PATTERNS.get(pattern, f"text of the form {pattern}")
    stem = re.sub(r"_(type|parsing|scheme|from_float|parsing_size|unicode|too_long|syntax_violation)$", "", kind)
    return _NOUNS.get(stem, f"valid value ({kind})")


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "true or false"), (int | float, "a number"), (str | bytes, "a text")):
        if isinstance(value, kind):
            return name
    return "a list" if isinstance(value, list | tuple) else "an object" if isinstance(value, dict) else "something else"


def _quoted(value: Any) -> str | None:
    """Return a text, number or truth value as JSON has it; None: it is longer or something else, or has a password."""
    if not isinstance(value, str | int | float):
        return None
    if isinstance(value, str) and (len(value) > MAX_QUOTED or ("://" in value and set(value) & set("@?#"))):
        return None
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_QUOTED + 2 else None


# --- the type of what is at a place


def keys_at(model: Any, location: Location) -> list[str]:
    """Return the keys that the object at this place may have; none if they are not known."""
    return [key for kind in _types_at(model, location) for key, _ in _fields_of(kind)]


def may_be_secret(model: Any, location: Location) -> bool:
    """Return True if the value at this place can contain a secret, or if its type is not known in a model with one."""
    if not _any_secret(model):
        return False
    kinds = list(_types_at(model, location))
    return not kinds or any(map(_any_secret, kinds))


def _types_at(kind: Any, location: Location) -> Iterator[Any]:
    for plain in _alternatives(kind):
        if not location:
            yield plain
            continue
        part, rest = location[0], location[1:]
        arguments = get_args(plain)
        for key, inner in _fields_of(plain):
            if key == part:
                yield from _types_at(inner, rest)
        if get_origin(plain) is dict:
            yield from _types_at(arguments[1], rest)
        elif get_origin(plain) in {list, tuple, set} and isinstance(part, int):
            yield from _types_at(arguments[min(part, len(arguments) - 1)], rest)


def _alternatives(kind: Any) -> Iterator[Any]:
    """Yield the members of a union, without None; of an annotated type, the type."""
    if hasattr(kind, "__metadata__"):
        yield from _alternatives(kind.__origin__)
    elif get_origin(kind) in {Union, UnionType}:
        for member in get_args(kind):
            yield from _alternatives(member)
    elif kind is not NoneType:
        yield kind


def _fields_of(kind: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield field.alias or name, field.annotation


def _any_secret(kind: Any) -> bool:
    """Return True if a value of this type can contain a secret."""
    kinds = [kind]
    for inner in kinds:  # which grows meanwhile
        if inner is SecretStr:
            return True
        found = (*get_args(inner), *(field for _, field in _fields_of(inner)))
        kinds += [it for it in found if it not in kinds]
    return False
