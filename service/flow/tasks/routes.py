"""Task routes: `<prefix>.<project>.<revision_hash>` (v1) and `<prefix>.v2.<project>.<revision>[.<id>]`.

The prefix names the Treeherder. The project of a v2 route may be `user/project`: Treeherder knows it as `project`, but
it is another repository than the one that `project` alone names.
"""

import re
from dataclasses import dataclass

_V1 = re.compile(r"(?!v2\.)(?P<project>[^./]+)\.(?P<revision_hash>[0-9a-f]{40})")
_V2 = re.compile(r"v2\.(?:(?P<user>[^/]+)/)?(?P<project>[^/]+?)\.(?P<revision>[0-9a-f]{40})(?:\.[0-9]*)?")


@dataclass(frozen=True)
class Route:
    """The contents of a route: the project, and its push by revision (v2) or by revision_hash (v1)."""

    project: str
    revision: str | None = None
    revision_hash: str | None = None
    user: str | None = None

    @property
    def full_project(self) -> str:
        """Return the project as it stands in the route, with the user if there is one."""
        return self.project if self.user is None else f"{self.user}/{self.project}"


def parse_route(prefix: str, route: str) -> Route | None:
    """Parse a route of this prefix; return None for any other route, and for one of another form."""
    if not route.startswith(f"{prefix}."):
        return None
    rest = route[len(prefix) + 1 :]
    if match := _V2.fullmatch(rest) or _V1.fullmatch(rest):
        return Route(**match.groupdict())
    return None
