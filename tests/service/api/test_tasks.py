"""Tell the push and action that a task belongs to; and the filters of pushes and actions."""

from typing import Any

import pytest
from sqlalchemy import event

from service.store.models import Action, JobReport, PlannedTask, Source, Stage, State
from tests.service.asgi import READER, Api, is_problem, node, push_event

OURS, COPY, OTHER, PLANNED = (letter * 21 + "A" for letter in "ABCD")


def planned(task_id: str, *, created: bool, **more: Any) -> PlannedTask:
    return PlannedTask(
        task_id=task_id, position=0, label="task", name=f"name of {task_id[0]}", definition={}, created=created, **more
    )


def report(task_id: str, run_id: int, **more: Any) -> JobReport:
    return JobReport(
        task_id=task_id,
        run_id=run_id,
        environment="tc-treeherder",
        project="mc",
        task_group_id=task_id,
        run={"state": "failed"},
        lane="job",
        **more,
    )


async def stored(api: Api) -> dict[str, int]:
    """Store a push with one task, a retrigger of it with one copy, and one copy that is not created yet."""
    await api.add()
    await api.push(push_event(101, user="dev@example.com"))
    async with api.database.writing() as session:
        (step, *_) = [step for step in await api.steps() if step.kind == "graph"]
        wanted: dict[str, Any] = {
            "kind": "retrigger",
            "project": "mc",
            "lane": "x",
            "source": Source.API,
            "state": State.DONE,
        }
        first = Action(task_id=OURS, requester="sheriff@example.com", **wanted)
        second = Action(task_id=OTHER, requester="reader", **wanted)
        session.add_all([first, second])
        await session.flush()
        session.add_all(
            [
                planned(OURS, created=True, step_id=step.id),
                planned(COPY, created=True, action_id=first.id, copy_of=OURS),
                planned(PLANNED, created=False, action_id=first.id, copy_of=OURS),
                report(OURS, 0, stage=Stage.FOLLOWED, delivered=3, state=State.DONE),
                report(OURS, 1, stage=Stage.RUNNING, delivered=1),
                report(PLANNED, 0, stage=Stage.PENDING),
            ]
        )
        return {"first": first.id or 0, "second": second.id or 0}


async def test_a_task_of_a_push_has_its_push_its_runs_its_actions_and_copies(api: Api) -> None:
    ids = await stored(api)
    answer = await api.get(f"/tasks/{OURS}", token=READER)
    assert answer.status_code == 200, answer.text
    task = answer.json()
    assert task["name"] == "name of A"
    assert task["push"] == {"repository": "mc", "push_id": 101, "generation": 0, "revision": node(101)}
    assert (task["made_by"], task["copy_of"]) == (None, None)
    assert [(run["run_id"], run["stage"], run["result"], run["told"]) for run in task["runs"]] == [
        (1, "running", None, "pending"),
        (0, "resolved", "failed", "resolved"),
    ]
    assert [(each["id"], each["requester"], each["state"]) for each in task["actions"]] == [
        (ids["first"], "sheriff@example.com", "done")
    ]
    assert [copy["task_id"] for copy in task["copies"]] == [COPY]
    assert PLANNED not in answer.text


@pytest.mark.parametrize("path", [f"/tasks/{OURS}", "/actions", f"/actions?task_id={OURS}"])
async def test_what_was_left_out_is_not_read_where_it_is_not_shown(api: Api, path: str) -> None:
    """It can be large, of each action, and whoever writes task definitions chooses how large."""
    await stored(api)
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        statements.append(statement)

    engine = api.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        assert (await api.get(path)).status_code == 200
    finally:
        event.remove(engine, "before_cursor_execute", note)
    of_actions = [each for each in statements if "action.requester" in each.partition("FROM")[0]]
    assert of_actions
    columns = ", ".join(each.partition("FROM")[0] for each in of_actions).replace(
        "json_array_length(action.left_out)", ""
    )
    assert "action.left_out" not in columns
    assert "action.failure_jobs" not in columns


async def test_a_copy_names_its_action_and_its_original(api: Api) -> None:
    ids = await stored(api)
    task = (await api.get(f"/tasks/{COPY}")).json()
    assert (task["push"], task["made_by"], task["copy_of"]) == (None, ids["first"], OURS)


async def test_a_task_that_somebody_else_created_has_what_is_known_of_it(api: Api) -> None:
    ids = await stored(api)
    task = (await api.get(f"/tasks/{OTHER}")).json()
    assert (task["name"], task["push"]) == (None, None)
    assert [each["id"] for each in task["actions"]] == [ids["second"]]


async def test_an_id_is_unknown_until_its_task_is_created(api: Api) -> None:
    await stored(api)
    is_problem(await api.get(f"/tasks/{PLANNED}"), 404, "no push, action or report")
    unknown = await api.get(f"/tasks/{'E' * 21}A")
    planned_one = await api.get(f"/tasks/{PLANNED}")
    assert unknown.text.replace("E" * 21, "") == planned_one.text.replace("D" * 21, "")
    for odd in ("%00", "x", "%ff", "a" * 101):
        assert (await api.get(f"/tasks/{odd}")).status_code in {404, 422}
    is_problem(await api.get(f"/tasks/{OURS}", token=None), 401)


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({}, 2),
        ({"revision": node(101)}, 1),
        ({"revision": node(1)}, 0),
        ({"user": "dev@example.com"}, 1),
        ({"user": "dev"}, 0),
        ({"user": "dev@example.com", "revision": node(102)}, 0),
        ({"user": "dev@example.com", "repository": "mc", "state": "pending"}, 1),
        ({"user": "\0"}, 0),
    ],
)
async def test_pushes_are_found_by_tip_and_pusher(api: Api, query: dict[str, str], count: int) -> None:
    await api.add()
    await api.push(push_event(101, user="dev@example.com"), push_event(102))
    answer = await api.get("/pushes", params=query)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["items"]) == count


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"task_id": OURS}, 1),
        ({"task_id": COPY}, 0),
        ({"requester": "reader"}, 1),
        ({"requester": "reader", "task_id": OURS}, 0),
        ({"requester": "sheriff@example.com", "project": "mc", "state": "done"}, 1),
    ],
)
async def test_actions_are_found_by_task_and_requester(api: Api, query: dict[str, str], count: int) -> None:
    await stored(api)
    answer = await api.get("/actions", params=query)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["items"]) == count
