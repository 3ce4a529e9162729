import pytest

from service.flow.tasks.routes import Route, parse_route

A, B = "a1" * 20, "b2" * 20


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (f"tc-treeherder.autoland.{A}", Route("autoland", revision_hash=A)),
        (f"tc-treeherder.v2.autoland.{A}", Route("autoland", revision=A)),
        (f"tc-treeherder.v2.autoland.{A}.", Route("autoland", revision=A)),
        (f"tc-treeherder.v2.autoland.{A}.88565", Route("autoland", revision=A)),
        (f"tc-treeherder.v2.mozilla/bugzilla.{A}.7", Route("bugzilla", revision=A, user="mozilla")),
        (f"tc-treeherder.v2.mozilla/pdf.js.{A}.7", Route("pdf.js", revision=A, user="mozilla")),
        (f"tc-treeherder.v2.{A}.{B}", Route(A, revision=B)),
        (f"tc-treeherder.v2.{A}", None),  # no project of that name, but a v2 route without one
        (f"tc-treeherder-stage.autoland.{A}", None),
        (f"tc-treeherderx.autoland.{A}", None),
        (f"index.tc-treeherder.autoland.{A}", None),
        ("tc-treeherder", None),
        ("tc-treeherder.", None),
        ("tc-treeherder.autoland", None),
        ("tc-treeherder.autoland.tip", None),
        (f"tc-treeherder..{A}", None),
        (f"tc-treeherder.v2..{A}", None),
        (f"tc-treeherder.v2.a/b/c.{A}", None),
        (f"tc-treeherder.v2.autoland.{A}.x", None),
        (f"tc-treeherder.v2.autoland.{A}.1.2", None),
        (f"tc-treeherder.v2.autoland.{A.upper()}", None),
        (f"tc-treeherder.v2.autoland.{A}\n", None),
    ],
)
def test_routes(route: str, said: Route | None) -> None:
    assert parse_route("tc-treeherder", route) == said
