"""Copies: which dependents are left out, and how definitions differ from those of their originals."""

import json
import re
from datetime import timedelta

from sqlmodel import select

from service.clock import now
from service.flow.actions import retrigger
from service.flow.actions.copies import MAX_NOTES
from service.flow.tasks.definition import format_date
from service.store.models import PlannedTask, Repository
from tests.service.flow.actions.support import existing_task, open_monitored, store_whole_plan
from tests.service.flow.graph_factory import (
    GROUP,
    WORKER,
    action_on,
    build,
    carry_out,
    claim_work,
    definition_of,
    end,
    parse_moment,
    read_copies,
    reload_action,
    slug,
)
from tests.service.harness import FlowHarness


async def test_the_scheduler_stays_though_it_is_called_like_a_task(monitored: FlowHarness) -> None:
    build(monitored.tc.queue, {"group": [], "a": [], "b": ["a"]}, schedulerId=slug("a"))
    end(monitored.tc.queue, "a")
    copy_ids = await read_copies(monitored, await carry_out(monitored, slug("a")))
    assert {existing_task(monitored, copy_id)["schedulerId"] for copy_id in copy_ids.values()} == {slug("a")}


async def test_an_earlier_copy_of_a_task_in_the_plan_is_not_copied_again(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    # b is unscheduled, so it is copied alone, and its copy still depends on a
    single = await read_copies(monitored, await carry_out(monitored, slug("b")))
    again = await read_copies(monitored, await carry_out(monitored, single["b"]))  # a copy of the copy
    end(queue, "a")
    action = await carry_out(monitored, slug("a"))
    assert list(await read_copies(monitored, action)) == ["a", "b"]
    assert {entry["task_id"] for entry in action.left_out} == {single["b"], again["b"]}
    assert all("earlier copy" in entry["reason"] for entry in action.left_out)


async def test_the_copy_of_a_task_that_is_not_in_the_plan_is_copied(sqlite_url: str) -> None:
    async with open_monitored(sqlite_url, retrigger_group="same") as harness:
        queue = harness.tc.queue
        build(queue, {"group": [], "a": [], "x": [], "b": ["a", "x"], "c": ["b"]})
        end(queue, "x")
        earlier = await read_copies(harness, await carry_out(harness, slug("x")))
        queue.claim_task(earlier["x"], 0, WORKER)
        queue.report_completed(earlier["x"], 0)
        end(queue, "a")
        action = await carry_out(harness, slug("a"))
        async with harness.database.reading() as session:
            rows = await session.exec(select(PlannedTask.copy_of).where(PlannedTask.action_id == action.id))
            assert set(rows) == {slug("a"), earlier["b"], earlier["c"]}
        reasons = {entry["task_id"]: entry["reason"] for entry in action.left_out}
        assert reasons == {
            slug("b"): f"it needs {slug('x')}, which is failed and not copied",
            slug("c"): "it depends only on tasks that are left out",
        }


async def test_what_could_never_run_is_left_out(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "x": [], "b": ["a", "x"], "after": ["b"], "c": ["a"], "both": ["b", "c"]})
    queue.create_task(slug("any"), definition_of("any", ["a", "x"], requires="all-resolved"))
    end(queue, "a")
    end(queue, "x", "exception")
    action = await carry_out(monitored, slug("a"))
    assert set(await read_copies(monitored, action)) == {"a", "any", "c"}
    reasons = {entry["name"]: entry["reason"] for entry in action.left_out}
    assert set(reasons) == {"b", "after", "both"}
    assert slug("x") in reasons["b"]
    assert "exception" in reasons["b"]
    assert "left out" in reasons["after"]
    assert f"needs {slug('b')}, which is left out" in reasons["both"]


async def test_that_the_copy_itself_waits_for_a_failed_task_is_said(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": [], "b": ["a"]})
    end(queue, "a")
    action = await carry_out(monitored, slug("b"))
    copy_ids = await read_copies(monitored, action)
    assert queue.find(copy_ids["b"]).state == "unscheduled"
    assert slug("a") in action.notes[0]


async def test_no_more_than_a_few_such_notes_are_made(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    names = [f"t{n}" for n in range(30)]
    build(queue, {"group": [], **dict.fromkeys(names, ()), "b": names})
    for name in names:
        queue.cancel_task(slug(name))
    assert len((await carry_out(monitored, slug("b"))).notes) == MAX_NOTES


async def test_only_ids_and_dates_of_a_copy_differ(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    a, b = slug("a"), slug("b")
    past = now() - timedelta(hours=5)
    queue.clock.advance(-5 * 3600)
    payload = {
        "numbers": [1, 2.5, -0.0, 1e300, True, False, None],
        "url": f"https://queue/v1/task/{a}/runs/0/artifacts/public/x?and={b}#{a}",
        "glued": f"x{a}y-{b}_{a}{b}",
        a: {f"by-{b}": [a, None, {b: 0}]},
        "own": b,
        "group": GROUP,
        "near": a[:-1],
        "hash": "0123456789abcdef" * 4,
        "empty": ["", {}, []],
        "artifacts": {"public/x": {"type": "file", "path": "/x", "expires": format_date(past + timedelta(days=2))}},
    }
    old = definition_of(
        "b",
        ["a"],
        created=format_date(past),
        deadline=format_date(past + timedelta(days=1)),
        expires=format_date(past + timedelta(days=3)),
        payload=payload,
        extra={"parent": GROUP, "upstream": {a: b}},
        routes=[f"tc-treeherder.v2.mc.{'ab' * 20}.1", f"index.by-task.{b}"],
        tags={"for": a},
        scopes=[],
    )
    queue.create_task(slug("b"), old)
    queue.clock.reset()
    old = queue.task(b)
    end(queue, "a")
    repository = {"scopes": ["queue:create-task:*", "queue:scheduler-id:*", "queue:route:*"]}
    async with monitored.database.writing() as session:
        (await session.get_one(Repository, 1)).scopes = repository["scopes"]
    copy_ids = await read_copies(monitored, await carry_out(monitored, a))
    assert list(copy_ids) == ["a", "b"]
    copy = existing_task(monitored, copy_ids["b"])
    back = json.loads(json.dumps(copy).replace(copy_ids["a"], a).replace(copy_ids["b"], b))
    for name in ("created", "deadline", "expires", "taskGroupId"):
        back.pop(name), old.pop(name)
    assert re.search(f"{a}|{b}", json.dumps(copy)) is None
    back["payload"]["artifacts"], old["payload"] = None, {**old["payload"], "artifacts": None}
    assert back == old
    assert copy["payload"]["group"] == GROUP
    assert copy["taskGroupId"] == copy_ids["a"]
    assert timedelta() <= now() - parse_moment(copy["created"]) < timedelta(minutes=1)
    assert parse_moment(copy["deadline"]) - parse_moment(copy["created"]) == timedelta(days=1)
    assert parse_moment(copy["expires"]) - parse_moment(copy["created"]) == timedelta(days=3)
    artifact = parse_moment(copy["payload"]["artifacts"]["public/x"]["expires"])
    assert artifact - parse_moment(copy["created"]) == timedelta(days=2)


async def test_a_dependency_that_expires_soon_shortens_the_deadline(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    soon = format_date(now() + timedelta(hours=25))
    queue.create_task(slug("group"), definition_of("group"))
    queue.create_task(slug("short"), definition_of("short", expires=soon))
    early = now() - timedelta(hours=23)
    queue.clock.advance(-23 * 3600)
    dates = {"created": format_date(early), "deadline": format_date(early + timedelta(hours=47))}
    queue.create_task(slug("a"), definition_of("a", ["short"], **dates))
    queue.clock.reset()
    action = await carry_out(monitored, slug("a"))
    assert (action.state, action.error) == ("done", None)
    copy_ids = await read_copies(monitored, action)
    assert existing_task(monitored, copy_ids["a"])["deadline"] == soon
    assert any(slug("short") in note for note in action.notes)


async def test_a_dependency_that_expires_within_the_hour_fails_the_action(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    queue.create_task(slug("group"), definition_of("group"))
    at = now()
    soon = {"deadline": format_date(at + timedelta(minutes=20)), "expires": format_date(at + timedelta(minutes=50))}
    queue.create_task(slug("short"), definition_of("short", **soon))
    queue.create_task(slug("a"), definition_of("a", ["short"], deadline=format_date(at + timedelta(minutes=40))))
    queue.clock.advance(30 * 60)  # what the copy's deadline is counted from is our own clock
    task = queue.find(slug("a"))
    task.definition = {**task.definition, "deadline": format_date(at + timedelta(hours=3))}
    action = await carry_out(monitored, slug("a"))
    assert action.state == "failed"
    assert slug("short") in str(action.error)
    assert "expires" in str(action.error)
    assert len(queue.tasks) == 3


async def test_dates_that_no_calendar_has_fail_the_action_or_stay_in_artifacts(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": []})
    last = "9999-12-31T23:59:59.000Z"
    artifacts = {"artifacts": {"public/x": {"expires": last}, "public/y": {"expires": "never"}}}
    past = {"created": format_date(now() - timedelta(minutes=10))}
    queue.create_task(slug("artifact"), definition_of("artifact", payload=artifacts, **past))
    queue.create_task(slug("task"), definition_of("task", **past))
    task = queue.find(slug("task"))
    task.definition = {**task.definition, "expires": last}
    copy_ids = await read_copies(monitored, await carry_out(monitored, slug("artifact")))
    assert existing_task(monitored, copy_ids["artifact"])["payload"] == artifacts
    action = await carry_out(monitored, slug("task"))
    assert action.state == "failed"
    assert last in str(action.error)


async def test_a_definition_from_before_some_fields_were_known_is_completed(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "a": []})
    task = queue.find(slug("a"))
    task.definition = {k: v for k, v in task.definition.items() if k not in {"tags", "retries"}}
    action = await action_on(monitored, slug("a"))
    (planned,) = await store_whole_plan(monitored, lease := await claim_work(monitored))
    assert planned.definition is not None
    assert (planned.definition["tags"], planned.definition["retries"]) == ({}, 5)
    await retrigger.run(monitored.services, lease)
    assert (await reload_action(monitored, action)).state == "done"


async def test_a_dependency_that_has_expired_fails_the_action(monitored: FlowHarness) -> None:
    queue = monitored.tc.queue
    build(queue, {"group": [], "gone": [], "a": ["gone"]})
    del queue.tasks[slug("gone")]
    action = await carry_out(monitored, slug("a"))
    assert action.state == "failed"
    assert slug("gone") in str(action.error)
