"""`tc-treeherder pushes`."""

import pytest

from tests.service.commands.conftest import Pushed, Run
from tests.system.conftest import System


def test_pushes_are_listed_newest_first(tc: Run, pushed: Pushed) -> None:
    ran = tc("pushes", "list", "--repository", "try", "--json")
    assert [push["push_id"] for push in ran.json] == [pushed.broken, pushed.good]
    broken, good = tc("pushes", "list", "-r", "try").out.splitlines()[1:]
    assert good.split()[:2] == ["try", str(pushed.good)]
    assert good.split()[3] == "dev@example.com"
    assert good.split()[-3:] == ["done", "created", "2"]
    assert "failed" in broken.split()
    assert ".taskcluster.yml" in broken
    assert tc("pushes", "list", "-r", "try", "--limit", "1", "--json").json == [ran.json[0]]


def test_pushes_of_a_state(tc: Run, pushed: Pushed) -> None:
    ran = tc("pushes", "list", "-r", "try", "--state", "failed", "--json")
    assert [push["push_id"] for push in ran.json] == [pushed.broken]
    ran = tc("pushes", "list", "-r", "nowhere")
    assert (ran.code, ran.out, ran.err) == (0, "", "no push matches\n")
    ran = tc("pushes", "list", "--state", "sideways")
    assert ran.code == 1
    assert "state" in ran.err


def test_a_long_list_is_followed_over_its_pages(tc: Run, pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.commands.client.PAGE", 1)
    assert [push["push_id"] for push in tc("pushes", "list", "-r", "try", "--json").json] == [
        pushed.broken,
        pushed.good,
    ]


def test_a_push_is_shown_with_its_steps_and_tasks(tc: Run, pushed: Pushed) -> None:
    lines = tc("pushes", "show", "try", str(pushed.good)).out.splitlines()
    assert lines[0] == f"push                     {pushed.good} of try, generation 0"
    assert "graph                    created" in lines
    assert f"tasks                    {pushed.tasks[0]}  created  decision" in lines
    assert f"                         {pushed.tasks[1]}  created  test" in lines
    document = tc("pushes", "show", "try", str(pushed.good), "--generation", "0", "--json").json
    assert [task["name"] for task in document["graph"]["tasks"]] == ["decision", "test"]
    broken = tc("pushes", "show", "try", str(pushed.broken)).out
    assert "error task " in broken
    assert "  reason " in broken


def test_there_is_no_such_push(tc: Run, pushed: Pushed) -> None:
    for command in ("show", "retry"):
        ran = tc("pushes", command, "try", "4711")
        assert ran.code == 4
        assert "no push 4711 of 'try'" in ran.err
    assert tc("pushes", "show", "try", str(pushed.good), "--generation", "5").code == 4
    assert tc("pushes", "show", "try", "x").code == 2


def test_failed_steps_are_done_again(system: System, tc: Run, pushed: Pushed) -> None:
    before = tc("pushes", "show", "try", str(pushed.broken), "--json").json["graph"]["error_task"]
    ran = tc("pushes", "retry", "try", str(pushed.broken), "--json")
    assert ran.code == 0, ran.err
    assert ran.json["graph"]["state"] == "pending"

    def failed_again() -> bool:
        graph = tc("pushes", "show", "try", str(pushed.broken), "--json").json["graph"]
        return bool(graph["state"] == "failed")

    system.wait(failed_again)
    assert before
    ran = tc("pushes", "retry", "try", str(pushed.good))
    assert ran.code == 1
    assert "nothing to retry" in ran.err
