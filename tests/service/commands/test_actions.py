"""`tc-treeherder actions`."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox.credentials import LEVEL, TRUST_DOMAIN
from service.commands.actions import complete_names
from service.flow.tasks.action_kinds import ACTIONS
from tests.service.commands.conftest import Pretended, Pushed, Run
from tests.system.conftest import System, graph_of

NOBODY = "AAAAAAAAQAyAAAAAAAAAAA"


def test_a_plan_shows_what_would_be_done_and_does_nothing(tc: Run, pushed: Pushed) -> None:
    before = tc("actions", "list", "--json").json
    ran = tc("actions", "run", "retrigger", "--task", f"try/{pushed.tasks[1]}", "--plan")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == f"plan    retrigger of {pushed.tasks[1]} in try; nothing is done"
    assert f"copies  {pushed.tasks[1]}  test" in lines
    document = tc("actions", "run", "retrigger", "--task", f"try/{pushed.tasks[1]}", "--plan", "--json").json
    assert document["state"] == "planned"
    assert [task["copy_of"] for task in document["tasks"]] == [pushed.tasks[1]]
    assert tc("actions", "list", "--json").json == before


def test_a_plan_that_would_be_rejected_is_1(tc: Run, pushed: Pushed) -> None:
    ran = tc("actions", "run", "cancel", "--task", f"elsewhere/{pushed.tasks[1]}", "--plan", "--json")
    assert ran.code == 1
    assert ran.json["state"] == "rejected"
    assert "it would be rejected" in ran.err


def test_a_retrigger_is_waited_for(tc: Run, pushed: Pushed) -> None:
    ran = tc("actions", "run", "retrigger", "--task", f"try/{pushed.tasks[1]}", "--wait", "--requester", "me", "--json")
    assert ran.code == 0, ran.err
    action = ran.json
    assert (action["state"], action["requester"], action["source"]) == ("done", "me", "api")
    assert [(task["copy_of"], task["created"]) for task in action["tasks"]] == [(pushed.tasks[1], True)]
    shown = tc("actions", "show", str(action["id"]))
    assert f"tasks      {action['tasks'][0]['task_id']}  created  test" in shown.out.splitlines()
    (row,) = [row for row in tc("actions", "list", "--project", "try").rows if row[0] == str(action["id"])]
    assert row[1:5] == ["retrigger", "try", pushed.tasks[1], "me"]
    assert row[-2:] == ["done", "1/1"]
    done = tc("actions", "list", "--state", "done", "--json").json
    assert action["id"] in {each["id"] for each in done}


def test_a_push_is_cancelled(tc: Run, system: System) -> None:
    alias = path = "cancelled"
    assert system.hg.post("/repositories", json={"repository": path}).is_success
    url = f"{system.stack.sandbox['hg']}/{path}"
    role = f"assume:repo:{system.stack.sandbox['hg'].removeprefix('http://')}/try:branch:default"
    options = ["--level", LEVEL, "--trust-domain", TRUST_DOMAIN, "--last-push-id", "0", "--scope", role]
    assert tc("repositories", "add", alias, url, *options).code == 0
    changeset = {"message": "Bug 1", "files": {".taskcluster.yml": graph_of(2, seconds=600)}}
    pushed = system.hg.post("/push", json={"repository": path, "user": "me", "changesets": [changeset]})
    push_id = pushed.json()["id"]

    def tasks() -> list[dict[str, str]]:
        answer = system.api.get(f"/pushes/{alias}/{push_id}")
        graph: dict[str, Any] = answer.json()["graph"] if answer.is_success else {"state": "pending"}
        return list(graph["tasks"]) if graph["state"] == "done" else []

    system.wait(lambda: len(tasks()) == 2)
    about = ["actions", "run", "cancel-push", "--push", f"{alias}/{push_id}"]
    planned = tc(*about, "--plan")
    assert planned.out.startswith(f"plan     cancel-push of push {push_id} in {alias}; nothing is done")
    assert any(line.split()[-1] == "t1" and "unscheduled" in line for line in planned.out.splitlines())
    assert {task["name"] for task in tc(*about, "--plan", "--json").json["cancels"]} == {"t0", "t1"}
    ran = tc(*about, "--wait")
    assert ran.code == 0, ran.err
    assert f"cancels    {tasks()[0]['task_id']}  t0" in ran.out.splitlines()
    (row,) = [row for row in tc("actions", "list").rows if row[1] == "cancel-push"]
    assert row[2:5] == [alias, "push", str(push_id)]
    assert row[-2:] == ["2", "cancelled"]
    assert tc(*about, "--plan").out.splitlines()[1].split() == ["state", "nothing-to-do"]


def test_the_same_key_is_the_same_action(tc: Run, pushed: Pushed) -> None:
    task = f"try/{pushed.tasks[0]}"
    arguments = ["actions", "run", "cancel", "--task", task, "--key", "only-once", "--wait", "--json"]
    first, second = tc(*arguments), tc(*arguments)
    assert first.code == second.code == 0
    assert first.json["id"] == second.json["id"]


def test_a_failed_action_is_1_and_says_why(tc: Run, pushed: Pushed) -> None:
    ran = tc("actions", "run", "retrigger", "--task", f"try/{NOBODY}", "--wait", "--json")
    assert ran.code == 1
    assert ran.json["state"] in {"failed", "rejected"}
    assert NOBODY in ran.err


def test_an_action_that_does_not_end_is_1(run: Run, pretend: Pretended) -> None:
    action = dict.fromkeys(("run_id", "reason", "done_at", "next_attempt_at", "in_tree"))
    lists: dict[str, object] = {"notes": [], "tasks": [], "left_out": [], "cancels": []}
    names = {"action": "cancel", "project": "mc", "task_id": NOBODY, "push": None, "requester": "me", "source": "api"}
    body = {
        "id": 7,
        "state": "received",
        "working": True,
        "received_at": "2026-01-02T03:04:05Z",
        **names,
        **action,
        **lists,
    }
    pretend.json("/api/v1/actions", body, 202)
    pretend.json("/api/v1/actions/7", body)
    ran = run(
        "actions", "run", "cancel", "--task", f"mc/{NOBODY}", "--wait", "--wait-seconds", "0.1", "--url", pretend.url
    )
    assert ran.code == 1
    assert "has not ended within 0.1 s" in ran.err
    lines = ran.out.splitlines()
    assert "received      2026-01-02 03:04:05Z" in lines
    assert "next attempt  working" in lines
    assert len(pretend.asked) >= 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["cancel"],
        ["cancel", "--task", NOBODY],
        ["cancel", "--task", f"/{NOBODY}"],
        ["cancel", "--push", "try/x"],
        ["cancel", "--push", "try/-1"],
        ["cancel", "--task", f"try/{NOBODY}", "--push", "try/1"],
        ["cancel", "--task", f"try/{NOBODY}", "--run-id", "-1"],
        ["cancel", "--task", f"try/{NOBODY}", "--times", "0"],
        ["cancel", "--task", f"try/{NOBODY}", "--input", "{"],
        ["cancel", "--task", f"try/{NOBODY}", "--input", "[1]", "--times", "2"],
        ["cancel", "--task", f"try/{NOBODY}", "--input", "NaN"],
        ["cancel", "--task", f"try/{NOBODY}", "--input", '"\\ud800"'],
        ["cancel", "--task", f"try/{NOBODY}", "--input", "[" * 100_000],
        ["cancel", "--task", f"try/{NOBODY}", "--input-file", "/nowhere"],
        ["cancel", "--task", f"try/{NOBODY}", "--input-file", __file__],
        ["cancel", "--task", f"try/{NOBODY}", "--input", "{}", "--input-file", "-"],
    ],
)
def test_used_wrongly(tc: Run, arguments: list[str]) -> None:
    assert tc("actions", "run", *arguments).code == 2


def test_an_action_that_nobody_offers_is_rejected(tc: Run, pushed: Pushed) -> None:
    ran = tc("actions", "run", "explode", "--task", f"try/{pushed.tasks[1]}", "--wait")
    assert ran.code == 1
    assert "the tree offers no action 'explode'" in ran.err
    ran = tc("actions", "run", "ex:plode", "--task", f"try/{NOBODY}")
    assert 'action "ex:plode" is no name of an action' in ran.err
    names = [kind["name"] for kind in tc("actions", "kinds", "--json").json]
    assert names == sorted(ACTIONS)
    assert [row[0] for row in tc("actions", "kinds").rows] == names


@pytest.mark.parametrize(
    ("given", "query"),
    [
        (["--push", "7"], "push=7"),
        (["--push", "try/7"], "project=try&push=7"),
        (["--push", "try/7", "--project", "try"], "project=try&push=7"),
        (["--push", "7", "--project", "try"], "project=try&push=7"),
    ],
)
def test_actions_on_a_push_are_listed(run: Run, pretend: Pretended, given: list[str], query: str) -> None:
    pretend.json("/api/v1/actions", {"items": [], "next": None})
    assert run("actions", "list", *given, "--url", pretend.url).code == 0
    assert pretend.asked[-1][1] == f"/api/v1/actions?limit=50&{query}"


@pytest.mark.parametrize("given", [["try/"], ["/7"], ["x"], ["-1"], ["try/x"], ["try/7", "--project", "mc"]])
def test_a_push_that_is_none_is_not_asked_for(run: Run, given: list[str]) -> None:
    ran = run("actions", "list", "--push", *given)
    assert (ran.code, "--push" in ran.err) == (2, True)


def test_a_mistyped_name_is_not_asked_for(run: Run, pretend: Pretended) -> None:
    pretend.json("/api/v1/actions/kinds", {"items": [{"name": "retrigger"}]})
    pretend.json(f"/api/v1/tasks/{NOBODY}/actions", OFFERED)
    pretend.json("/api/v1/actions", {"title": "No", "detail": "no"}, 422)

    def asked(*arguments: str) -> tuple[str, int]:
        pretend.asked.clear()
        ran = run("actions", "run", *arguments, "--task", f"try/{NOBODY}", "--url", pretend.url)
        return ran.err, sum(method == "POST" for method, *_ in pretend.asked)

    for name, meant in (("backfil", "backfill"), ("retriger", "retrigger")):
        error, posts = asked(name)
        assert f"there is no action '{name}' ({meant}?)" in error
        assert f"`tc-treeherder actions offered --task try/{NOBODY}`" in error
        assert posts == 0
    for name in ("backfill", "retrigger"):
        assert asked(name)[1] == 1
    assert asked("backfil", "--key", "k")[1] == 1  # it may have been offered when the key was used first
    del pretend.answers[f"/api/v1/tasks/{NOBODY}/actions"]
    assert asked("backfil")[1] == 1


def test_nothing_is_offered_without_a_file(tc: Run, pushed: Pushed) -> None:
    ran = tc("actions", "offered", "--task", f"try/{pushed.tasks[1]}")
    assert ran.code == 0
    assert "no actions: the decision task of task" in ran.out + ran.err


def test_an_input_that_the_action_does_not_take_is_told(tc: Run) -> None:
    ran = tc("actions", "run", "cancel", "--task", f"try/{NOBODY}", "--times", "2")
    assert ran.code == 1
    assert ran.err == "Invalid request: input of cancel: unknown key times\n"


def test_there_is_no_such_action(tc: Run) -> None:
    ran = tc("actions", "show", "4711")
    assert ran.code == 4
    assert "no action 4711" in ran.err


def offered(name: str, **more: Any) -> dict[str, Any]:
    values = {"title": name.title(), "description": "", "input": None, "allowed": True, "missing_scope": None}
    return {"name": name, **values, "broken": None, **more}


OFFERED = {
    "project": "try",
    "task_id": NOBODY,
    "push": None,
    "decision_task": NOBODY,
    "reason": None,
    "items": [
        offered("backfill", input={"type": "object", "properties": {"depth": {}, "times": {}}}),
        offered("rerun", allowed=False, missing_scope="tc-treeherder:action:rerun:try"),
        offered("broken", broken="its kind is 'x'", input=True),
    ],
}


def test_what_the_tree_offers_is_listed(tc: Run, pretend: Pretended) -> None:
    pretend.json(f"/api/v1/tasks/{NOBODY}/actions", OFFERED)
    pretend.json("/api/v1/pushes/try/7/actions", {**OFFERED, "items": [], "reason": "there is no file"})
    ran = tc("actions", "offered", "--task", f"try/{NOBODY}", "--url", pretend.url)
    assert [row[0] for row in ran.rows] == ["backfill", "rerun", "broken"]
    assert "depth, times" in ran.out
    assert "no: it needs tc-treeherder:action:rerun:try" in ran.out
    assert "its kind is 'x'" in ran.out
    assert pretend.asked[0][1].endswith("/actions?project=try")
    assert tc("actions", "offered", "--task", f"try/{NOBODY}", "--json", "--url", pretend.url).json == OFFERED
    ran = tc("actions", "offered", "--push", "try/7", "--url", pretend.url)
    assert "no actions: there is no file" in ran.out + ran.err


def test_names_are_completed_with_our_own_and_the_tree_s(pretend: Pretended) -> None:
    pretend.json("/api/v1/actions/kinds", {"items": [{"name": "retrigger"}, {"name": "cancel"}]})
    pretend.json(f"/api/v1/tasks/{NOBODY}/actions", OFFERED)

    def completed(incomplete: str, **given: Any) -> list[str]:
        context: Any = SimpleNamespace(params={"url": pretend.url, **given})
        return complete_names(context, incomplete)

    assert completed("") == ["cancel", "retrigger"]
    assert completed("re") == ["retrigger"]
    assert completed("re", task=f"try/{NOBODY}") == ["rerun", "retrigger"]
    assert completed("", task="nonsense") == []
    assert completed("", url="http://127.0.0.1:9") == []


def test_an_input_comes_from_a_file(tc: Run, pretend: Pretended, tmp_path: Path) -> None:
    pretend.json("/api/v1/actions/plan", {"title": "No", "detail": "no"}, 422)
    file = tmp_path / "input.json"
    file.write_text('{"depth": 3}')
    about = ["actions", "run", "backfill", "--task", f"try/{NOBODY}", "--plan", "--url", pretend.url]
    tc(*about, "--input-file", str(file))
    assert json.loads(pretend.asked[-1][2])["input"] == {"depth": 3}


def test_the_plan_of_the_tree_is_shown_with_payload_hook_and_missing_scopes(tc: Run, pretend: Pretended) -> None:
    scope = "in-tree:hook-action:project-x/hook"
    plan: dict[str, Any] = {
        "action": "backfill",
        "project": "try",
        "task_id": NOBODY,
        "run_id": None,
        "push": None,
        "input": {},
        "state": "failed",
        "reason": f"the decision task {NOBODY} lacks {scope}",
        **{key: [] for key in ("notes", "tasks", "cancels", "left_out")},
        "in_tree": {
            "decision_task": NOBODY,
            "hook": "project-x/hook",
            "input": {"depth": 9},
            "rendered": {"user": {"taskId": NOBODY}},
            "missing_scopes": [{"scope": scope, "holder": f"the decision task {NOBODY}"}],
        },
    }
    pretend.json("/api/v1/actions/plan", plan)
    ran = tc("actions", "run", "backfill", "--task", f"try/{NOBODY}", "--plan", "--url", pretend.url)
    assert ran.code == 1
    assert f"{scope}: the decision task {NOBODY} lacks it" in ran.out
    for words in ("project-x/hook", '{"depth": 9}', f'"taskId": "{NOBODY}"'):
        assert words in ran.out
    assert f"it would be failed: the decision task {NOBODY} lacks {scope}" in ran.err
