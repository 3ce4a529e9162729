"""`tc-treeherder tasks`, and the options that filter lists."""

from tests.service.commands.conftest import Pushed, Run


def test_a_task_shows_its_push_and_what_was_done_to_it(tc: Run, pushed: Pushed) -> None:
    task = f"try/{pushed.tasks[1]}"
    action = tc("actions", "run", "retrigger", "--task", task, "--wait", "--requester", "somebody", "--json").json
    (copy,) = [task["task_id"] for task in action["tasks"]]
    lines = tc("tasks", "show", "--", pushed.tasks[1]).out.splitlines()
    assert f"task    {pushed.tasks[1]}" in lines
    assert "name    test" in lines
    assert f"push    {pushed.good} of try, generation 0" in lines
    assert f"action  {action['id']}: retrigger by somebody, done" in lines
    assert f"copy    {copy}  test" in lines
    fields = tc("tasks", "show", "--json", "--", copy).json
    assert (fields["copy_of"], fields["made_by"]) == (pushed.tasks[1], action["id"])
    ran = tc("tasks", "show", "--", "CCCCCCCCQAyAAAAAAAAAAA")
    assert ran.code == 4
    assert "CCCCCCCCQAyAAAAAAAAAAA" in ran.err
    assert "'lint', which is no taskId (22 characters" in tc("tasks", "show", "lint").err
    listed = tc("actions", "list", "--requester", "somebody", "--task-id", pushed.tasks[1], "--json").json
    assert [listed_action["id"] for listed_action in listed] == [action["id"]]
    assert tc("actions", "list", "--requester", "nobody", "--json").json == []


def test_pushes_are_found_by_tip_and_pusher(tc: Run, pushed: Pushed) -> None:
    tip = tc("pushes", "show", "try", str(pushed.good), "--json").json["revision"]
    pushes = tc("pushes", "list", "--revision", tip, "--user", "dev@example.com", "--json").json
    assert [push["push_id"] for push in pushes] == [pushed.good]
    assert tc("pushes", "list", "--user", "nobody@example.com", "--json").json == []
