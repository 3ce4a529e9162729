"""Check scopes: stars, roles and scope expressions.

Rules: https://docs.taskcluster.net/docs/manual/design/apis/hawk/scopes. A scope that ends in `*` satisfies everything
that begins with the part before the star. `assume:<role>` adds that role's scopes; a role id may end in `*`, too, and
then `<..>` in its scopes stands for what the star matched. An expression is a scope, `{"AllOf": [...]}` or
`{"AnyOf": [...]}`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Expression = str | dict[str, Any]
"""A scope, or `{"AllOf" | "AnyOf": [expressions]}`."""

Roles = Mapping[str, Sequence[str]]
"""Role id (without `assume:`) to the scopes that it brings."""

_VALID = re.compile(r"[ -~]*")
PARAMETER = "<..>"


def is_valid(scope: object) -> bool:
    """Return True if this is printable ASCII, as each scope must be."""
    return isinstance(scope, str) and _VALID.fullmatch(scope) is not None


class ScopeSet:
    """Scopes of a caller, indexed for fast checks."""

    def __init__(self, scopes: Iterable[str]) -> None:
        self.scopes = sorted(set(scopes))
        self._exact = frozenset(self.scopes)
        self._prefixes = tuple(scope[:-1] for scope in self.scopes if scope.endswith("*"))

    def satisfies(self, scope: str) -> bool:
        """Return True if the set contains the scope, or a star that covers it."""
        return scope in self._exact or scope.startswith(self._prefixes)

    def missing(self, expression: Expression) -> Expression | None:
        """Return the part of the expression that is not satisfied, in its own shape, or None."""
        if isinstance(expression, str):
            return None if self.satisfies(expression) else expression
        if "AllOf" in expression:
            unsatisfied = [lack for part in expression["AllOf"] if (lack := self.missing(part)) is not None]
            if not unsatisfied:
                return None
            return unsatisfied[0] if len(unsatisfied) == 1 else {"AllOf": unsatisfied}
        lacks = [self.missing(part) for part in expression["AnyOf"]]
        return None if None in lacks else {"AnyOf": lacks}

    def minimal(self) -> list[str]:
        """Return the sorted scopes without those that another one satisfies."""
        return [s for s in self.scopes if not any(s.startswith(p) and s != p + "*" for p in self._prefixes)]


def expand(scopes: Iterable[str], roles: Roles) -> ScopeSet:
    """Return the scopes with those of their roles, and of the roles of these, and so on."""
    expanded: set[str] = set()
    waiting = list(scopes)
    while waiting:
        scope = waiting.pop()
        if scope in expanded:
            continue
        expanded.add(scope)
        for role, role_scopes in roles.items():
            matched = _assumes(scope, f"assume:{role}")
            if matched is not None:
                waiting.extend(_fill(role_scope, matched) for role_scope in role_scopes)
    return ScopeSet(expanded)


def _assumes(scope: str, role: str) -> str | None:
    """Return what the role's star matches if the scope assumes the role ('' without a star), or None."""
    if role.endswith("*"):
        prefix = role[:-1]
        if scope.startswith(prefix):
            return scope[len(prefix) :]
        return "*" if scope.endswith("*") and prefix.startswith(scope[:-1]) else None
    if scope == role or (scope.endswith("*") and role.startswith(scope[:-1])):
        return ""
    return None


def _fill(scope: str, matched: str) -> str:
    if PARAMETER not in scope:
        return scope
    before, after = scope.split(PARAMETER, 1)
    return before + matched if matched.endswith("*") else before + matched + after
