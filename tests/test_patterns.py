"""Every regular expression takes a time that grows with the length of the text, whatever a stranger writes."""

import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterator

import pytest

import listeners
import service

LENGTH = 100_000
"""Characters: in linear time some milliseconds, in quadratic time minutes, so that the time limit ends the test."""

CHARACTERS = ' a0@/.-_:%\\`"<>=,\n\u00e9'


def patterns() -> Iterator[tuple[str, "re.Pattern[str]", bool]]:
    """Find each compiled pattern of a module, and whether it is searched for, or only matched from the start."""
    names: list[str] = []
    for package in (service, listeners):
        names += [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    for name in names:
        if name in {"service.__main__", "service.engine.render_child"} or "_alembic" in name:
            continue
        module = importlib.import_module(name)
        for variable, value in vars(module).items():
            if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                searches = re.search(rf"\b{variable}\.(search|sub|finditer|findall|split)\b", inspect.getsource(module))
                yield f"{name}.{variable}", value, searches is not None


FOUND = {name: (pattern, searches) for name, pattern, searches in patterns()}


def test_the_patterns_are_found() -> None:
    assert {
        "service.slugids._RUN",
        "service.flow.tasks.routes._V2",
        "service.flow.pushes.template._ADDRESS",
    } <= FOUND.keys()
    assert FOUND["service.slugids._RUN"][1]
    assert not FOUND["service.flow.tasks.routes._V2"][1]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", FOUND)
def test_no_text_takes_long(name: str) -> None:
    pattern, searches = FOUND[name]
    for text in hostile_texts(pattern):
        for method in (pattern.match, pattern.fullmatch):
            method(text)
        if searches:
            sum(1 for _ in pattern.finditer(text))


def hostile_texts(pattern: "re.Pattern[str]") -> Iterator[str]:
    pairs = ["".join(pair) for pair in itertools.product(CHARACTERS[:6], repeat=2)]
    # what stands in the pattern as it is may have to come first
    for start in ["", *re.findall(r"[\w :`]{4,}", pattern.pattern)]:
        for piece in [*CHARACTERS, *pairs, "v2.", "a1" * 20, "a@b.", "AAAAAAAAQAAAAAAAAAAAAA"]:
            yield start + piece * (LENGTH // len(piece)) + "\0"


def test_the_expression_that_found_missing_scopes_would_be_seen() -> None:
    """It was quadratic in spaces: on this text it took minutes."""
    pattern = re.compile(r"missing the following scopes:\s*```\s*(.*?)\s*```", re.DOTALL)
    assert any(text.startswith("missing the following scopes:" + " " * 1000) for text in hostile_texts(pattern))
