"""Scopes that satisfy each other, and the scopes of roles."""

import pytest

from sandbox.taskcluster.scopes import ScopeSet, expand, is_valid


@pytest.mark.parametrize(
    ("held", "required", "satisfied"),
    [
        ("queue:cancel", "queue:cancel", True),
        ("queue:cancel", "queue:cancel-task", False),
        ("queue:cancel*", "queue:cancel-task", True),
        ("queue:cancel*", "queue:cancel", True),
        ("queue:cancel*", "queue:cance", False),
        ("queue:*", "queue:*", True),
        ("queue:cancel", "queue:*", False),
        ("*", "anything", True),
        ("queue:*:x", "queue:y:x", False),
    ],
)
def test_a_star_at_the_end_satisfies_all_that_begins_like_it(held: str, required: str, satisfied: bool) -> None:
    assert ScopeSet([held]).satisfies(required) is satisfied


def test_what_is_missing_of_an_expression_keeps_its_shape() -> None:
    held = ScopeSet(["a", "c"])
    assert held.missing({"AllOf": ["a", {"AnyOf": ["b", "c"]}]}) is None
    assert held.missing({"AllOf": ["a", "b"]}) == "b"
    assert held.missing({"AllOf": ["b", {"AnyOf": ["d", {"AllOf": ["a", "e"]}]}]}) == {
        "AllOf": ["b", {"AnyOf": ["d", "e"]}]
    }


def test_an_empty_any_of_is_satisfied_by_nobody() -> None:
    assert ScopeSet(["*"]).missing({"AnyOf": []}) == {"AnyOf": []}


@pytest.mark.parametrize(
    ("scope", "brings"),
    [
        ("assume:repo:hg.mozilla.org/try:branch:default", {"try"}),
        ("assume:repo:hg.mozilla.org/try:*", {"try"}),
        ("assume:repo:hg.mozilla.org/*", {"try", "level-3"}),
        ("assume:repo:hg.mozilla.org/projects/x", {"level-3"}),
        ("assume:repo:github.com/x", set()),
        ("assume:*", {"try", "level-3"}),
        ("assume:repo:hg.mozilla.org/try", set()),
    ],
)
def test_roles_end_in_a_star_and_so_may_the_scopes_that_assume_them(scope: str, brings: set[str]) -> None:
    roles = {"repo:hg.mozilla.org/try:*": ["try"], "repo:hg.mozilla.org/projects/*": ["level-3"]}
    assert set(expand([scope], roles).scopes) - {scope} == brings


def test_roles_bring_the_scopes_of_the_roles_that_they_assume_even_in_a_circle() -> None:
    roles = {"a": ["assume:b", "x"], "b": ["assume:a", "y"]}
    assert expand(["assume:a"], roles).scopes == ["assume:a", "assume:b", "x", "y"]


@pytest.mark.parametrize(
    ("scope", "brought"),
    [("assume:repo:hg.mozilla.org/try", "route:try/x"), ("assume:repo:hg.mozilla.org/t*", "route:t*")],
)
def test_the_parameter_of_a_role_is_what_its_star_stands_for(scope: str, brought: str) -> None:
    assert brought in expand([scope], {"repo:hg.mozilla.org/*": ["route:<..>/x"]}).scopes


def test_the_minimal_form_leaves_out_what_a_star_covers() -> None:
    assert ScopeSet(["a*", "ab", "ab*", "c", "*x"]).minimal() == ["*x", "a*", "c"]


@pytest.mark.parametrize(("scope", "valid"), [("a b~", True), ("", True), ("ä", False), ("a\n", False), (1, False)])
def test_scopes_are_printable_ascii(scope: object, valid: bool) -> None:
    assert is_valid(scope) is valid
