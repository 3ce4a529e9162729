"""`tc-treeherder audit`."""

from tests.service.commands.conftest import Pretended, Run


def test_its_options_are_the_apis_filters(run: Run, pretend: Pretended) -> None:
    entry = {
        "id": 12,
        "at": "2026-01-15T12:30:00Z",
        "event": "repository-changed",
        "caller": "releng",
        "taskcluster": False,
        "origin": "api",
        "repository": "mc",
        "subject": None,
        "details": {"changes": {"enabled": [True, False]}},
    }
    pretend.json("/api/v1/audit", {"items": [entry], "next": None})
    options = ["--event", "repository-changed", "--caller", "releng", "-r", "mc", "--limit", "7"]
    ran = run("audit", *options, "--url", pretend.url)
    assert ran.code == 0, ran.err
    (path,) = [path for _, path, _ in pretend.asked]
    assert path == "/api/v1/audit?limit=7&event=repository-changed&caller=releng&repository=mc"
    ((*row,),) = ran.rows
    assert row[:1] == ["12"]
    assert row[3:7] == ["releng", "api", "repository-changed", "mc"]
    assert row[7:] == ['{"changes":', '{"enabled":', "[true,", "false]}}"]
    assert run("audit", "--json", "--url", pretend.url).json == [entry]


def test_nothing_is_said_to_be_nothing(run: Run, pretend: Pretended) -> None:
    pretend.json("/api/v1/audit", {"items": [], "next": None})
    assert "no entry matches" in run("audit", "--url", pretend.url).err
