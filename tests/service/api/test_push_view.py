"""All tasks of a push: of its graph, of its decision task, and not twice those that are copies."""

from sqlmodel import select

from sandbox import taskcluster
from service.api.push_view import view_push
from service.api.pushes import get_push
from service.api.queue_look import QueueLooks
from service.auth import LOCAL
from service.store.models import Action, PlannedTask, Source, Stage
from tests.service.api.test_pushes import plan
from tests.service.api.test_tasks import report
from tests.service.asgi import Api, push_event
from tests.service.flow.graph_factory import Direct, build, slug


async def test_each_task_is_there_once_with_the_newest_state_that_anybody_told(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    queue = Direct(taskcluster.Taskcluster([], claim_wait=0).queue)
    looks = QueueLooks(lambda: queue)  # type: ignore[arg-type, return-value]  # it has the calls that are made
    decision = slug("decision")
    build(queue._queue, {"decision": (), "build": ["decision"], "copy": ["decision"]}, taskGroupId=decision)
    await plan(api, "decision", "later")
    async with api.database.writing() as session:
        first, later = (await session.exec(select(PlannedTask).order_by(PlannedTask.name))).all()
        first.task_id, later.created = decision, False
        action = Action(
            kind="retrigger", task_id=slug("build"), project="mc", lane="x", requester="a", source=Source.API
        )
        session.add(action)
        await session.flush()
        session.add(
            PlannedTask(
                task_id=slug("copy"), action_id=action.id, copy_of=slug("build"), position=0, label="copy", name="copy",
                definition=None, created=True,
            )
        )  # fmt: skip
        session.add(report(decision, 1, stage=Stage.RUNNING))  # the queue's own answer may be older
    async with api.database.reading() as session:
        push = await get_push("mc", 101, session, LOCAL)
    view = await view_push(api.database, looks, push)
    assert [(task.name, task.planned, task.state and task.state.state) for task in view.tasks] == [
        ("decision", True, "running"),
        ("later", True, None),
        ("build", False, "unscheduled"),
    ]
    assert [copy.task_id for copy in view.tasks[2].copies] == [slug("copy")]
    assert view.states[slug("copy")].state == "unscheduled"
    assert (view.groups, view.more, view.problem) == ([decision], False, None)
    await looks.close()


async def test_the_api_lists_tasks_with_states_and_copies(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    api.app.state.looks._queue = lambda: Direct(taskcluster.Taskcluster([], claim_wait=0).queue)
    await plan(api, "decision", "later")
    async with api.database.writing() as session:
        first, later = (await session.exec(select(PlannedTask).order_by(PlannedTask.name))).all()
        first.task_id, later.created = slug("decision"), False
        action = Action(
            kind="retrigger", task_id=slug("decision"), project="mc", lane="x", requester="a", source=Source.API
        )
        session.add(action)
        await session.flush()
        copies = [("copy", "decision"), ("again", "copy")]
        session.add_all(
            PlannedTask(
                task_id=slug(name), action_id=action.id, copy_of=slug(of), position=number, label=name, name=name,
                definition=None, created=True,
            )
            for number, (name, of) in enumerate(copies)
        )  # fmt: skip
        session.add(report(slug("decision"), 1, stage=Stage.RUNNING))
        session.add(report(slug("again"), 0, stage=Stage.PENDING))
    answer = await api.get("/pushes/mc/101/tasks")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["states"], found["more"], found["problem"]) == ({"running": 1}, False, None)
    decision, waiting = found["tasks"]
    assert (decision["name"], decision["state"], decision["run_id"], decision["planned"]) == (
        "decision", "running", 1, True,
    )  # fmt: skip
    assert [(copy["name"], copy["copy_of"], copy["state"], copy["requester"]) for copy in decision["copies"]] == [
        ("copy", slug("decision"), None, "a"),
        ("again", slug("copy"), "pending", "a"),
    ]
    assert (waiting["task_id"], waiting["state"], waiting["run_id"]) == (None, None, None)
    assert (await api.get("/pushes/mc/102/tasks")).status_code == 404
