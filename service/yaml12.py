"""Parse YAML with the core schema of YAML 1.2, as js-yaml 4 does, with which other programs render the same templates.

PyYAML's own resolvers implement YAML 1.1 and are not used: `on`, `12:30`, `1_000` and dates are strings.
"""

import json
import math
import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

_TAG = "tag:yaml.org,2002:"
_MERGE, _INT, _FLOAT = f"{_TAG}merge", f"{_TAG}int", f"{_TAG}float"

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class EqualKeysError(ConstructorError):
    """A mapping has a key twice."""


class _Schema:
    """A mixin for a PyYAML loader, which constructs scalars by the core schema and refuses equal keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, "re.Pattern[str]"]]] = {}  # noqa: RUF012 - PyYAML's own way

    def flatten_mapping(self, node: Any) -> None:
        """Refuse equal keys, and merge `<<`. PyYAML calls this for each mapping before it constructs the mapping."""
        checked: set[int] = self.__dict__.setdefault("checked", set())
        if id(node) not in checked:
            checked.add(id(node))
            self._refuse_equal_keys(node)
        super().flatten_mapping(node)  # type: ignore[misc]  # of the loader that this is mixed into

    def _refuse_equal_keys(self, node: Any) -> None:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == _MERGE or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = key_text(self.construct_object(key_node))  # type: ignore[attr-defined]  # of the loader, too
            line = key_node.start_mark.line + 1
            if key in lines:
                reason = f"the key {key!r} is repeated, in lines {lines[key]} and {line}"
                raise EqualKeysError(None, None, reason, key_node.start_mark)
            lines[key] = line

    def construct_int(self, node: Any) -> int | float:
        text = str(node.value)
        sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.lstrip("+"))
        base = {"0x": 16, "0o": 8, "0b": 2}.get(digits[:2], 10)
        return as_number(sign * int(digits[2:] if base != 10 else digits, base))

    def construct_float(self, node: Any) -> int | float | str:
        text = str(node.value).lower()
        if text.endswith((".inf", ".nan")):
            return float(text.replace(".", ""))
        number = float(text)
        return as_number(number) if math.isfinite(number) else str(node.value)  # too large for a number: a string


def as_number(value: float) -> int | float:
    """Return a number as JavaScript represents it: with double precision, and as an integer if it is one."""
    try:
        number = float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    return int(number) if number.is_integer() and abs(number) < 1e21 else number


def key_text(key: Any) -> str:
    """Return the JSON key for a scalar key of a mapping."""
    return key if isinstance(key, str) else json.dumps(key)


def _loader(base: Any) -> Any:
    loader: Any = type("Loader", (_Schema, base), {"yaml_implicit_resolvers": {}})
    resolvers: list[tuple[str, str, str]] = [
        (f"{_TAG}null", r"~|null|Null|NULL|", "~nN\0"),
        (f"{_TAG}bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        (_INT, r"[-+]?(?:0b[01]+|0x[0-9a-fA-F]+|0o[0-7]+|[0-9]+)", "-+0123456789"),
        (
            _FLOAT,
            r"[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
            "-+.0123456789",
        ),
        (_MERGE, r"<<", "<"),
    ]
    for tag, pattern, first in resolvers:
        # PyYAML looks up the resolvers of an empty scalar by the empty string
        loader.add_implicit_resolver(tag, re.compile(rf"^(?:{pattern})$"), ["" if c == "\0" else c for c in first])
    loader.add_constructor(_INT, _Schema.construct_int)
    loader.add_constructor(_FLOAT, _Schema.construct_float)
    return loader


_Fast = _loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # libyaml, if it is available
_Full = _loader(yaml.SafeLoader)


def load(text: str) -> Any:
    """Parse one document. Raises yaml.YAMLError, or RecursionError if it is nested too deeply.

    A document with escaped surrogates, as JSON has for characters beyond 16 bits, is parsed without libyaml, which
    refuses them.
    """
    loader = _Full if _SURROGATE_ESCAPE.search(text) else _Fast
    return yaml.load(text, loader)  # noqa: S506 - subclasses of the safe loader


def compose(text: str) -> Any:
    """Return the root node of one document, whose nodes know their lines. Raises as `load` does."""
    return yaml.compose(text, _Full if _SURROGATE_ESCAPE.search(text) else _Fast)


def join_pairs(text: str) -> str:
    """Return `text` with surrogate pairs replaced by the characters that they encode."""
    return _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
