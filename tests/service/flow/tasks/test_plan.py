"""The ids of planned tasks: hidden until their tasks are created, or revealed by earlier ones."""

from typing import Any

from service.flow.tasks.ids import slugid
from service.flow.tasks.plan import PlannedIds, mark_created
from service.store.models import PlannedTask


def planned(name: str, *dependencies: str, **payload: Any) -> PlannedTask:
    definition = {"taskGroupId": task_id("group"), "dependencies": list(map(task_id, dependencies)), "payload": payload}
    return PlannedTask(task_id=task_id(name), position=0, label="task", name=name, definition=definition)


def task_id(name: str) -> str:
    return slugid(b"k", name)


def test_the_ids_of_tasks_that_are_not_created_are_hidden() -> None:
    ids = PlannedIds()
    created, waiting = planned("a"), planned("b")
    ids.add([created, waiting])
    mark_created([created])
    text = f"{task_id('a')} before {task_id('b')}"
    assert ids.hide_ids(text) == f"{task_id('a')} before (the id of b)"


def test_created_tasks_are_recorded_in_one_statement() -> None:
    tasks = [planned("a"), planned("b")]
    tasks[1].adopted = True
    ((_, rows),) = mark_created(tasks)
    assert [(row["its_id"], row["was_adopted"]) for row in rows] == [(task_id("a"), False), (task_id("b"), True)]
    assert all(task.created for task in tasks)
    assert mark_created([]) == []


async def test_an_id_is_revealed_by_a_task_that_may_be_created_before_its_own() -> None:
    ids = PlannedIds()
    ids.add([planned("group"), planned("a", "group", later=task_id("c")), planned("b", "group", earlier=task_id("a"))])
    assert await ids.revealed() == {task_id("a")}, "b can be created before a"
    ids.add([planned("c", "a")])
    assert await ids.revealed() == {task_id("a"), task_id("c")}
