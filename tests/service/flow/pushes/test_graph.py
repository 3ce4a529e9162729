"""From a push to its task graph: whether it gets one, what the plan says, and what is shown when there is none."""

import asyncio
import json
import re
import threading
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import delete, select, update

from sandbox.hg.faults import Fault
from service.clock import now
from service.engine.leases import Lease, LeaseLostError, Storing, YieldedError
from service.engine.render import Rendered, Renderer
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.pushes import graph
from service.flow.pushes.graph import reason_for_no_graph
from service.flow.tasks import create, plan
from service.flow.tasks.definition import format_date
from service.flow.tasks.ids import graph_ids, slugid
from service.settings import Settings
from service.store.models import Action, PlannedTask, Push, PushStep, Repository, State, StepKind, Supersede
from tests.service.flow.pushes.support import (
    YML,
    described,
    error_shown,
    make_push,
    make_repository,
    pushed,
    run,
)
from tests.service.harness import SCOPES, FlowHarness, open_harness

# Whether it gets one


@pytest.mark.parametrize(
    ("repository", "push", "reason"),
    [
        ({}, make_push(), None),
        ({"graph": False}, make_push(), "graphs are off for mc"),
        ({}, make_push(0), "no changesets are left"),
        ({}, described("Bug 1 - fix DONTBUILD"), "DONTBUILD in the tip's message"),
        ({}, described("Bug 1 - dontbuild"), None),
        ({"contains": "try:"}, described("Bug 1"), "does not contain 'try:'"),
        ({"contains": "try:"}, described("try: -b do"), None),
        ({"contains": "try:"}, described(None), "does not contain 'try:'"),
        ({"contains": ""}, described(None), None),
        ({}, make_push(date=now() - timedelta(days=2, hours=23)), None),
        ({}, make_push(date=now() - timedelta(days=3, seconds=1)), r"the push is older than max_push_age \(3 days"),
        ({}, make_push(date=now() + timedelta(days=30)), None),
    ],
)
def test_the_reason_why_a_push_gets_no_graph(
    settings: Settings, repository: dict[str, Any], push: Push, reason: str | None
) -> None:
    actual = reason_for_no_graph(settings, make_repository(**repository), push)
    if reason is None:
        assert actual is None
    else:
        assert actual is not None
        assert re.search(reason, actual)


def test_only_the_tip_decides(settings: Settings) -> None:
    push = make_push(3)
    push.changesets[0]["desc"] = "DONTBUILD"
    assert reason_for_no_graph(settings, make_repository(), push) is None


@pytest.mark.parametrize(("mode", "made"), [("off", 0), ("pusher", 1), ("all", 1)])
async def test_a_graph_that_was_created_may_supersede_others(harness: FlowHarness, mode: str, made: int) -> None:
    push = await pushed(harness, supersede=Supersede(mode))
    step = await run(harness)
    assert step.state == State.DONE
    async with harness.database.reading() as session:
        actions = (await session.exec(select(Action))).all()
    assert len(actions) == made
    for action in actions:
        assert (action.kind, action.project, action.push_id, action.generation) == ("supersede", "mc", push.push_id, 0)
        assert (action.lane, action.share, action.source) == ("action supersede", step.share, "service")
        assert (action.requester, action.state) == (push.user, "pending")


async def test_a_push_without_a_graph_supersedes_nothing(harness: FlowHarness) -> None:
    await pushed(harness, supersede=Supersede.ALL, graph=False)
    assert (await run(harness)).state == State.SKIPPED
    async with harness.database.reading() as session:
        assert (await session.exec(select(Action))).all() == []


# What the template sees


# The plan


# The whole step


async def test_a_push_gets_its_graph(harness: FlowHarness) -> None:
    push = await pushed(harness)
    step = await run(harness)
    assert (step.state, step.error, step.error_task) == (State.DONE, None, None)
    plan = await harness.planned()
    assert [task.name for task in plan] == ["decision", "decision"]
    assert all(task.created for task in plan)
    async with harness.database.reading() as session:
        repository = (await session.exec(select(Repository))).one()
    derive = graph_ids(harness.services.secret, "tc-treeherder", repository, push, 0, "graph")
    assert [task.task_id for task in plan] == [derive("decision"), derive("error")]
    for planned in plan:
        assert harness.tc.queue.task(planned.task_id) == planned.definition
    assert harness.tc.queue.task(plan[0].task_id)["routes"] == [f"tc-treeherder.v2.mc.{push.revision}.{push.push_id}"]
    assert harness.tc.journal.calls == {"createTask": 2}


async def test_again_is_the_same_graph(harness: FlowHarness) -> None:
    """After a crash before the end was recorded, a stored plan is continued, and not rendered anew."""
    await pushed(harness)
    await run(harness)
    plan = [task.task_id for task in await harness.planned()]
    async with harness.database.writing() as session:
        await session.exec(update(PushStep).values(state=State.PENDING, due_at=now()))
        await session.exec(update(PlannedTask).values(created=False))
    harness.hg_faults.add(Fault(repository="mc", kind="status"))
    assert (await run(harness)).state == State.DONE
    assert [task.task_id for task in await harness.planned()] == plan
    assert len(harness.tc.queue.tasks) == 2


@pytest.mark.parametrize(
    ("repository", "message", "yml", "reason"),
    [
        ({"graph": False}, "Bug 1", YML, "graphs are off"),
        ({}, "Bug 1 DONTBUILD", YML, "DONTBUILD"),
        ({"contains": "try:"}, "Bug 1", YML, "does not contain 'try:'"),
        ({}, "Bug 1", None, r"no \.taskcluster\.yml at "),
    ],
)
async def test_a_push_that_gets_none_says_why(
    harness: FlowHarness, repository: dict[str, Any], message: str, yml: str | None, reason: str
) -> None:
    await pushed(harness, yml, message=message, **repository)
    step = await run(harness)
    assert step.state == State.SKIPPED
    assert re.search(reason, str(step.error))
    assert await harness.planned() == []
    assert harness.tc.journal.calls == {}


@pytest.mark.parametrize(
    ("yml", "why"),
    [
        ("version: 1\ntasks: [", ".taskcluster.yml not YAML"),
        ("version: 0", ".taskcluster.yml version is 0"),
        ("version: 1\ntasks: [{$eval: nothing}]", ".taskcluster.yml does not render"),
        ("version: 1\ntasks: [{}]", ".taskcluster.yml: task 1 has no taskId"),
        (b"version: 1 # \xff", ".taskcluster.yml is not UTF-8"),
        ("x" * 2_100_000, "is larger than 2,097,152 bytes"),
        (YML.replace("dependencies: [{$eval: ownTaskId}]", "dependencies: [VAD5PL3ZTaq4b8iuQOXxBA]"), "non-existing"),
        (YML.replace("routes: [", 'routes: ["secret.route", '), "queue:route:secret.route"),
        (YML.replace("prov/w", "prov/w\n    scopes: [root]"), "lack root"),
    ],
)
async def test_a_broken_template_is_shown_on_the_push(harness: FlowHarness, yml: str | bytes, why: str) -> None:
    push = await pushed(harness, yml)
    step = await run(harness)
    assert step.state == State.FAILED
    assert step.due_at is None
    assert why in str(step.error)
    definition = await error_shown(harness, step)
    assert definition["routes"][0] == f"tc-treeherder.v2.mc.{push.revision}.{push.push_id}"
    assert definition["scopes"] == []
    for planned in await harness.planned():
        if planned.label != "error" and planned.task_id in harness.tc.queue.tasks:
            assert harness.tc.queue.status(planned.task_id)["status"]["state"] == "exception"


USERS = ["", "Some Dev <dev@example.com>", "dev@example.com\n", "\u00e9", "u" * 500, "tab\there", "${x} {{y}}"]


@pytest.mark.parametrize("user", USERS)
async def test_no_name_of_a_user_makes_a_call_or_a_task_of_ours_invalid(harness: FlowHarness, user: str) -> None:
    await pushed(harness, "version: 2", user=user)
    step = await run(harness)
    assert "version is 2" in str(step.error)
    definition = await error_shown(harness, step)
    assert definition["metadata"]["owner"] == (user[:255] or "unknown")


async def test_a_template_without_tasks_says_so(harness: FlowHarness) -> None:
    await pushed(harness, "version: 1\ntasks: {$if: 'false', then: [], else: []}")
    step = await run(harness)
    assert (step.state, step.error) == (State.SKIPPED, ".taskcluster.yml: the template has no tasks for this push")


async def test_somebody_elses_task_in_a_template_is_not_touched(harness: FlowHarness) -> None:
    """The definition of a running task is public; a push that repeats it gets no control over the task."""
    victim = slugid(b"somebody", "build")
    definition = {
        "taskQueueId": "prov/w",
        "schedulerId": "test",
        "created": format_date(now()),
        "deadline": format_date(now() + timedelta(days=1)),
        "payload": {},
        "metadata": {"name": "build", "description": "d", "owner": "o", "source": "https://example.com"},
    }
    harness.tc.queue.create_task(victim, definition)
    stands = harness.tc.queue.task(victim)
    await pushed(harness, json.dumps({"version": 1, "tasks": [{"taskId": victim, **stands}]}))
    step = await run(harness)
    assert step.state == State.FAILED
    assert "which as_slugid and ownTaskId of this push did not return" in str(step.error)
    assert harness.tc.queue.status(victim)["status"]["state"] == "pending"
    assert harness.tc.queue.task(victim) == stands
    assert [task.label for task in await harness.planned()] == ["error"]
    assert harness.tc.journal.calls == {"createTask": 1}, "it was not even asked after"


NOW_IN_A_TAG = YML.replace("payload: {}", "tags: {pushed: '${now}'}\n    payload: {}")


async def test_a_backup_that_was_restored_adopts_what_the_lost_plan_made(harness: FlowHarness) -> None:
    """The new plan differs in a tag and in dates; the tasks of the lost plan are continued."""
    await pushed(harness, NOW_IN_A_TAG)
    await run(harness)
    before = {task_id: task.definition for task_id, task in harness.tc.queue.tasks.items()}
    async with harness.database.writing() as session:  # as it was when the push was stored
        await session.exec(delete(PlannedTask))
        await session.exec(update(PushStep).values(state=State.PENDING, due_at=now(), done_at=None))
    await asyncio.sleep(0.002)  # `now` has milliseconds
    harness.tc.journal.clear()
    step = await run(harness)
    assert (step.state, step.error) == (State.DONE, None)
    assert {task_id: task.definition for task_id, task in harness.tc.queue.tasks.items()} == before
    assert [(task.created, task.adopted) for task in await harness.planned()] == [(True, True)] * 2
    assert harness.tc.journal.calls["cancelTask"] == 0


async def test_a_refused_plan_cancels_what_it_made_and_nothing_that_it_found(harness: FlowHarness) -> None:
    await pushed(harness, NOW_IN_A_TAG.replace("dependencies: [", 'dependencies: ["VAD5PL3ZTaq4b8iuQOXxBA", '))
    async with harness.database.reading() as session:
        repository, push = (await session.exec(select(Repository))).one(), (await harness.pushes())[0]
    own = graph_ids(harness.services.secret, "tc-treeherder", repository, push, 0, "graph")("decision")
    body = {
        "taskQueueId": "prov/w",
        "schedulerId": "test",
        "created": format_date(now()),
        "deadline": format_date(now() + timedelta(days=1)),
        "routes": [f"tc-treeherder.v2.mc.{push.revision}.{push.push_id}"],
        "payload": {},
        "metadata": {"name": "d", "description": "d", "owner": "o", "source": "https://example.com"},
    }
    harness.tc.queue.create_task(own, body)
    step = await run(harness)
    assert step.state == State.FAILED
    assert "non-existing" in str(step.error)
    assert harness.tc.queue.status(own)["status"]["state"] == "pending"
    assert harness.tc.journal.calls["cancelTask"] == 0


async def test_no_id_is_told_before_its_task_was_created(harness: FlowHarness) -> None:
    """Taskcluster's own words quote the id: whoever reads it could create the task first."""
    await pushed(
        harness,
        YML.replace("payload: {}", "payload: {}\n    retries: 49").replace("prov/w", "prov/w\n    tags: {a: b}"),
    )
    harness.tc.faults.add("before", "createTask", status=409)
    harness.tc.faults.add("before", "cancelTask", status=409)
    lease = await harness.lease(StepKind.GRAPH)
    async with harness.database.reading() as session:
        repository, push = (await session.exec(select(Repository))).one(), (await harness.pushes())[0]
    ids = graph_ids(harness.services.secret, "tc-treeherder", repository, push, 0, "graph")
    real = harness.services.queue.create_task

    async def create_task(task_id: str, *arguments: Any) -> Any:
        try:
            return await real(task_id, *arguments)
        except PermanentUpstreamError as refusal:
            other = ids("error") if task_id == ids("decision") else task_id
            raise PermanentUpstreamError("taskcluster", f"taskId {task_id} (x{other}): {refusal}", 409) from None

    harness.services.queue.create_task = create_task  # type: ignore[method-assign,assignment]  # in the words of the real queue
    await graph.run(harness.services, lease)
    step = await harness.step(StepKind.GRAPH)
    assert "taskId (the id of decision)" in str(step.error)
    for planned in await harness.planned():
        assert planned.task_id not in str(step.error)


@pytest.mark.parametrize("scope", ["queue:create-task:project:none", "queue:route:tc-treeherder.*"])
async def test_a_scope_that_our_own_client_lacks_is_named_and_whose_it_is(sqlite_url: str, scope: str) -> None:
    """Taskcluster answers 401 to authorizedScopes that the client does not hold, and lists all that it does hold."""
    async with open_harness(sqlite_url) as harness:
        held = [scope_held for scope_held in SCOPES if scope_held not in {scope, "queue:create-task:project:*"}]
        held += ["queue:cancel-task:x/*", "auth:current-scopes", "secret-project:*", "queue:route:notify.email.*"]
        harness.tc.auth.add_client("tc-treeherder", "service-secret", held)
        await pushed(harness, scopes=[*held[:3], scope])
        step = await run(harness)
        assert (step.state, step.due_at) == (State.FAILED, None)
        assert f"the service's Taskcluster client (tc-treeherder) lacks {scope}: grant that to the client" in str(
            step.error
        )
        assert "secret-project" not in str(step.error)
        assert "credentials have" not in str(step.error)


@pytest.mark.parametrize("kind", ["status", "hangup"])
async def test_a_mercurial_that_is_away_is_asked_again(harness: FlowHarness, kind: Any) -> None:
    await pushed(harness)
    harness.hg_faults.add(Fault(repository="mc", kind=kind, times=1))
    with pytest.raises(Unavailable):
        await run(harness)
    assert await harness.planned() == []


async def test_a_push_that_a_mirror_does_not_have_yet_is_no_push_without_a_file(harness: FlowHarness) -> None:
    """A push that has just landed can be missing on one mirror for some seconds, which is another 404."""
    await pushed(harness)
    harness.hg_faults.add(Fault(repository="mc", kind="lag", upto=0, times=1))
    with pytest.raises(Unavailable):
        await run(harness)
    async with harness.database.writing() as session:
        await session.exec(update(PushStep).values(due_at=now()))
    assert (await run(harness)).state == State.DONE


async def test_a_large_plan_gives_way_to_that_of_another_pusher(
    harness: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "LARGE", 10)
    monkeypatch.setattr(create, "RECORD_TASKS", 1)
    monkeypatch.setattr(Rendered, "small", False)
    await pushed(harness)
    lease = await harness.lease(StepKind.GRAPH)
    real = harness.services.queue.create_task
    order: list[str] = []
    waiting: list[asyncio.Task[None]] = []

    async def wait_for_turn(share: str) -> None:
        async with harness.services.large_plans.use(share):
            order.append(share)

    async def create_task(*arguments: Any) -> Any:
        order.append("created")
        if not waiting:
            own = lease.item.share
            waiting.extend(asyncio.create_task(wait_for_turn(share)) for share in (own, own, "another"))
            await asyncio.sleep(0)
        return await real(*arguments)

    harness.services.queue.create_task = create_task  # type: ignore[method-assign,assignment]  # that tells when it is called
    with pytest.raises(YieldedError):
        await graph.run(harness.services, lease)
    await asyncio.gather(*waiting)
    assert order[:2] == ["created", "another"], "before those that its own pusher has waiting"
    assert [task.created for task in await harness.planned()] == [True, False]
    await lease.release()
    assert (await run(harness)).state == State.DONE
    assert len(harness.tc.queue.tasks) == 2


async def test_a_stored_plan_is_parsed_off_the_event_loop(
    harness: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pushed(harness)
    harness.tc.faults.add("before", "createTask", status=500, times=100)
    with pytest.raises(Unavailable):
        await run(harness)
    before = await harness.planned()
    step = await harness.step(StepKind.GRAPH)
    step.fencing_token = 2
    threads: list[int] = []
    real = json.loads

    def loads(text: str | bytes) -> Any:
        threads.append(threading.get_ident())
        return real(text)

    monkeypatch.setattr(plan, "CHUNK_TASKS", 1)
    monkeypatch.setattr(json, "loads", loads)
    async with AsyncExitStack() as stack:
        lease = Lease(harness.database, harness.settings.work, step)
        read = await graph._stored_plan(harness.services, lease, stack)
    monkeypatch.undo()
    assert [task.model_dump() for task in read] == [task.model_dump() for task in before]
    assert len(threads) == len(before) == 2
    assert threading.get_ident() not in threads


async def test_nobody_has_our_secret(harness: FlowHarness) -> None:
    """Neither the plan nor the error task holds a secret of ours."""
    await pushed(harness, "version: 1\ntasks: [{$eval: push}, {$eval: repository}]")
    step = await run(harness)
    definition = await error_shown(harness, step)
    for shown in (str(definition), str(step.error)):
        assert "service-secret" not in shown
        assert harness.services.secret.hex() not in shown


async def test_the_file_is_rendered_while_the_push_is_being_stored_and_nothing_is_created(
    harness: FlowHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pushed(harness)
    rendered, real = asyncio.Event(), Renderer.taskcluster_yml

    async def watched(*arguments: Any) -> Rendered:
        try:
            return await real(*arguments)
        finally:
            rendered.set()

    monkeypatch.setattr(Renderer, "taskcluster_yml", watched)
    storing = Storing()
    claimed = await harness.lease(StepKind.GRAPH)
    lease = Lease(harness.database, harness.settings.work, claimed.item, storing=storing)
    making = asyncio.create_task(graph.run(harness.services, lease))
    await asyncio.wait_for(rendered.wait(), 10)
    await asyncio.sleep(0.2)
    assert (await harness.planned(), harness.tc.journal.calls) == ([], {})
    storing.end(succeeded=True)
    await making
    assert harness.tc.journal.calls == {"createTask": 2}


async def test_a_push_that_could_not_be_stored_gets_no_graph(harness: FlowHarness) -> None:
    await pushed(harness)
    storing = Storing()
    claimed = await harness.lease(StepKind.GRAPH)
    storing.end(succeeded=False)
    with pytest.raises(LeaseLostError, match="could not be stored"):
        await graph.run(harness.services, Lease(harness.database, harness.settings.work, claimed.item, storing=storing))
    assert (await harness.planned(), harness.tc.journal.calls) == ([], {})
