"""`tc-treeherder pushes`."""

import json
import re
from typing import Any

import pytest

from tests.service.commands.conftest import Pretended, Pushed, Run
from tests.system.conftest import System

NO_TASKS: dict[str, Any] = {"tasks": [], "states": {}, "more": False, "problem": None}


def test_pushes_are_listed_newest_first(tc: Run, pushed: Pushed) -> None:
    ran = tc("pushes", "list", "--repository", "try", "--json")
    assert [push["push_id"] for push in ran.json] == [pushed.broken, pushed.good]
    broken, good = tc("pushes", "list", "-r", "try").out.splitlines()[1:]
    assert good.split()[:2] == ["try", str(pushed.good)]
    assert good.split()[3] == "dev@example.com"
    assert good.split()[-3:] == ["done", "done", "2"]
    assert "failed" in broken.split()
    assert ".taskcluster.yml" in broken
    assert tc("pushes", "list", "-r", "try", "--limit", "1", "--json").json == [ran.json[0]]


def test_pushes_of_a_state(tc: Run, pushed: Pushed) -> None:
    ran = tc("pushes", "list", "-r", "try", "--state", "failed", "--json")
    assert [push["push_id"] for push in ran.json] == [pushed.broken]
    ran = tc("pushes", "list", "-r", "try", "--user", "nobody@example.com")
    assert (ran.code, ran.out, ran.err) == (0, "", "no push matches\n")
    ran = tc("pushes", "list", "--state", "sideways")
    assert ran.code == 1
    assert "state" in ran.err


@pytest.mark.parametrize(
    "command", [["pushes", "list", "-r"], ["actions", "list", "-p"], ["repositories", "show"], ["pushes", "show"]]
)
def test_an_unknown_alias_is_an_error_that_names_those_that_there_are(
    tc: Run, pushed: Pushed, command: list[str]
) -> None:
    ran = tc(*command, "tri", *(["1"] if command == ["pushes", "show"] else []))
    assert (ran.code, ran.out) == (4, "")
    expected = "no repository 'tri' is monitored; did you mean try? `tc-treeherder repositories list` lists them: "
    assert expected in ran.err
    named = set(ran.err.partition(expected)[2].strip().split(", ")) - {"…"}
    assert named
    assert named <= {repository["alias"] for repository in tc("repositories", "list", "--json").json}


def test_what_a_worker_does_just_now_is_shown_as_working(run: Run, tc: Run, pushed: Pushed, pretend: Pretended) -> None:
    push = tc("pushes", "show", "try", str(pushed.good), "--json").json
    push["graph"] |= {"state": "pending", "working": True, "next_attempt_at": None, "at": None}
    push["resultsets"][0] |= {"state": "pending", "next_attempt_at": "2026-01-15T12:00:00Z", "at": None}
    pretend.answers["/api/v1/pushes/try/1"] = [(200, {"Content-Type": "application/json"}, json.dumps(push).encode())]
    pretend.json("/api/v1/pushes/try/1/tasks", NO_TASKS)
    lines = run("pushes", "show", "try", "1", "--url", pretend.url).out.splitlines()
    waiting, working = [line.split(maxsplit=2)[2] for line in lines if line.startswith("  next attempt")]
    assert (waiting, working) == ("2026-01-15 12:00:00Z", "working")


def test_a_long_list_is_followed_over_its_pages(tc: Run, pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.commands.client.PAGE", 1)
    assert [push["push_id"] for push in tc("pushes", "list", "-r", "try", "--json").json] == [
        pushed.broken,
        pushed.good,
    ]


def test_pushes_of_which_one_supersedes_the_other(run: Run, pretend: Pretended) -> None:
    graph: dict[str, Any] = {"state": "done", "working": False, "attempts": 1, "at": None, "reason": None}
    graph |= {"error_task": None, "error_task_refused": None, "tasks": [], "tasks_planned": 0, "next_attempt_at": None}
    for push_id, superseded_by, supersedes in ((7, 9, []), (8, 9, []), (9, None, [7, 8])):
        push = {"repository": "mc", "push_id": push_id, "generation": 0, "user": "me", "revision": None}
        push |= {"date": "2026-01-02T03:04:05Z", "noticed_at": "2026-01-02T03:04:05Z", "revision_hash": ""}
        push |= {"changesets_count": 0, "resultsets": []}
        own = {**graph, "superseded_by": superseded_by, "supersedes": supersedes}
        pretend.json(f"/api/v1/pushes/mc/{push_id}", {**push, "graph": own})
        pretend.json(f"/api/v1/pushes/mc/{push_id}/tasks", NO_TASKS)
        if push_id == 7:
            pretend.json("/api/v1/pushes", {"items": [{**push, "graph": own}], "next": None})
    earlier, _, newer = (run("pushes", "show", "mc", str(number), "--url", pretend.url).out for number in (7, 8, 9))
    assert "superseded     by push 9: what had not run yet was cancelled" in earlier.splitlines()
    assert "supersedes     push 7" in newer.splitlines()
    assert "               push 8" in newer.splitlines()
    assert "superseded by push 9" in run("pushes", "list", "--url", pretend.url).out


def test_a_push_is_shown_with_its_steps_and_tasks(tc: Run, pushed: Pushed) -> None:
    lines = tc("pushes", "show", "try", str(pushed.good)).out.splitlines()
    assert lines[0] == f"push                     {pushed.good} of try, generation 0"
    assert "graph                    done" in lines
    for task_id, name in zip(pushed.tasks, ("decision", "test"), strict=True):
        assert any(re.fullmatch(rf" +{task_id}  [a-z ]{{12}}  {name}", line) for line in lines)
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


def test_a_push_is_ingested(tc: Run, system: System) -> None:
    path, alias = "ingested", "ingested"
    assert system.hg.post("/repositories", json={"repository": path}).is_success
    changeset = {"message": "Bug 1", "files": {"a": "b"}}
    answers = [system.hg.post("/push", json={"repository": path, "changesets": [changeset]}) for _ in range(2)]
    first, last = (answer.json()["id"] for answer in answers)
    url = f"{system.stack.sandbox['hg']}/{path}"
    assert tc("repositories", "add", alias, url, "--level", "1", "--last-push-id", str(last)).code == 0
    about = ["pushes", "ingest", alias, str(first)]
    planned = tc(*about, "--plan")
    assert planned.code == 0, planned.err
    assert f"ingest of push {first} in {alias}; nothing is done" in planned.out
    assert "it gets a graph" in planned.out
    ran = tc(*about, "--any-age", "--wait", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["state"], ran.json["input"]) == ("done", {"any_age": True})
    assert tc("pushes", "show", alias, str(first), "--json").json["push_id"] == first
    assert tc(*about, "--wait", "--json").json["state"] == "nothing-to-do"
    unknown = tc("pushes", "ingest", alias, "99", "--wait")
    assert unknown.code == 1
    assert "has no push 99" in unknown.err


def test_a_revision_in_place_of_a_push_id_is_told_how_to_find_the_push(tc: Run) -> None:
    for given in ("1c523a745e03", "mine/3", "²"):
        ran = tc("pushes", "show", "try", given)
        assert ran.code == 2
        assert f"{given!r} is no push id" in ran.err
        assert "--revision" in ran.err


def test_the_tasks_of_a_push_have_states_and_copies(run: Run, pretend: Pretended) -> None:
    green: dict[str, Any] = {"task_id": "A" * 22, "name": "build", "planned": True, "state": "completed", "run_id": 0}
    green |= {"started": "2026-01-02T03:04:05Z", "ended": "2026-01-02T03:05:05Z", "copies": []}
    copy: dict[str, Any] = {"task_id": "C" * 22, "copy_of": "B" * 22, "name": "unit", "state": "completed"}
    copy |= {"action_id": 3, "requester": "sheriff@example.com"}
    red = {**green, "task_id": "B" * 22, "name": "unit", "state": "failed", "run_id": 1, "copies": [copy]}
    planned = {**green, "task_id": None, "name": "later", "state": None, "run_id": None, "started": None, "ended": None}
    unknown = {**planned, "task_id": "D" * 22, "name": "lint"}
    found = {"tasks": [green, red, planned, unknown], "states": {"completed": 1, "failed": 1}, "more": True}
    found["problem"] = "Taskcluster answers 503"
    pretend.json("/api/v1/pushes/mc/7/tasks", found)
    ran = run("pushes", "tasks", "mc", "7", "--url", pretend.url)
    assert [(row[0][0], row[1]) for row in ran.rows] == [
        ("B", "failed"),
        ("A", "completed"),
        ("(", "id"),
        ("D", "not"),
    ]
    assert f"{'C' * 22} completed" in ran.out
    assert "Taskcluster answers 503" in ran.err
    assert "the task group in Taskcluster has them all" in ran.err
    assert run("pushes", "tasks", "mc", "7", "--json", "--url", pretend.url).json == found

    graph: dict[str, Any] = {"state": "done", "working": False, "attempts": 1, "at": None, "reason": None}
    graph |= {"error_task": None, "error_task_refused": None, "next_attempt_at": None, "superseded_by": None}
    push = {"repository": "mc", "push_id": 7, "generation": 0, "user": "me", "revision": None, "resultsets": []}
    push |= {"date": "2026-01-02T03:04:05Z", "noticed_at": "2026-01-02T03:04:05Z", "revision_hash": ""}
    pretend.json("/api/v1/pushes/mc/7", {**push, "changesets_count": 0, "graph": {**graph, "supersedes": []}})
    lines = [
        line.split(maxsplit=1)[-1] for line in run("pushes", "show", "mc", "7", "--url", pretend.url).out.splitlines()
    ]
    assert "1 completed, 1 failed" in lines
    assert f"{'failed':12}  unit" in lines
    assert f"{'completed':12}  unit, a copy for sheriff@example.com" in lines
    assert f"{'not reported':12}  lint" in lines


def test_a_real_push_is_shown_with_the_states_of_its_tasks(tc: Run, pushed: Pushed) -> None:
    found = tc("pushes", "tasks", "try", str(pushed.good), "--json").json
    assert [task["task_id"] for task in found["tasks"]][:2] == pushed.tasks
    assert sum(found["states"].values()) == len(found["tasks"])
    shown = tc("pushes", "show", "try", str(pushed.good)).out
    assert f"{pushed.tasks[0]}  {found['tasks'][0]['state']}" in shown
    assert tc("pushes", "tasks", "try", str(pushed.broken)).err == "it has no tasks\n"


def test_a_push_is_shown_although_the_states_of_its_tasks_cannot_be_had(
    run: Run, tc: Run, pushed: Pushed, pretend: Pretended
) -> None:
    push = tc("pushes", "show", "try", str(pushed.good), "--json").json
    pretend.json("/api/v1/pushes/try/1", push)
    ran = run("pushes", "show", "try", "1", "--url", pretend.url)
    assert ran.code == 0
    assert "the states of its tasks are not known" in ran.err
    assert f"{pushed.tasks[0]}  created       decision" in ran.out
