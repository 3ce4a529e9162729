"""`tc-treeherder reports`."""

from tests.service.commands.conftest import Pretended, Run


def test_a_service_without_such_reports_says_so(tc: Run) -> None:
    assert "no job report matches" in tc("reports", "list", "--waiting-for-push").err
    assert tc("reports", "list", "--state", "failed", "--json").json == []
    assert tc("reports", "list", "--state", "rejected").code == 2


def test_its_options_are_the_apis_filters(run: Run, pretend: Pretended) -> None:
    report = {
        "task_id": "A" * 22,
        "run_id": 1,
        "environment": "tc-treeherder",
        "project": "mc",
        "revision": None,
        "revision_hash": "f" * 40,
        "stage": "running",
        "told": None,
        "state": "pending",
        "error": "its push is not there",
        "working": True,
        "next_attempt_at": None,
    }
    pretend.json("/api/v1/reports", {"items": [report], "next": None})
    options = ["--state", "pending", "--waiting-for-push", "--limit", "7"]
    ran = run("reports", "list", *options, "--url", pretend.url)
    assert ran.code == 0, ran.err
    (path,) = [path for _, path, _ in pretend.asked]
    assert path == "/api/v1/reports?limit=7&state=pending&waiting=push"
    ((*row,),) = ran.rows
    assert row[:7] == ["A" * 22, "1", "tc-treeherder", "mc", "f" * 40, "running", "nothing"]
    assert row[-6:] == ["working", "its", "push", "is", "not", "there"]
    ran = run("reports", "list", "--json", "--url", pretend.url)
    assert ran.json == [report]
