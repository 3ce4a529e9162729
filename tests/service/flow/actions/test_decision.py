"""The decision task of a task: by its group, its origin, or its push; never one of another project."""

from typing import Any

import pytest

from service.flow.actions.decision import decisions_of_push, decisions_of_task
from service.flow.tasks.subject import PushSubject, fetch_subject, find_repository
from tests.service.flow.actions.in_tree_factory import DECISION, add_decision, add_push, add_task, file_of, route
from tests.service.flow.actions.support import record_copies
from tests.service.flow.graph_factory import build, slug
from tests.service.harness import FlowHarness


async def decided(harness: FlowHarness, task_id: str) -> list[str]:
    subject = await fetch_subject(harness.services, "mc", task_id)
    return [decision.task_id for decision in await decisions_of_task(harness.services, subject)]


async def test_of_a_task_in_the_group_of_a_decision_task(monitored: FlowHarness) -> None:
    add_decision(monitored, file_of())
    assert await decided(monitored, add_task(monitored)) == [slug(DECISION)]
    assert await decided(monitored, slug(DECISION)) == [slug(DECISION)]


async def test_a_group_without_its_first_task_leads_to_the_push(monitored: FlowHarness) -> None:
    add_decision(monitored, file_of())
    task_id = add_task(monitored, group="gone")
    assert await decided(monitored, task_id) == []
    await add_push(monitored, DECISION)
    assert await decided(monitored, task_id) == [slug(DECISION)]


@pytest.mark.parametrize(
    "extra",
    [
        {"action": {"name": "a", "context": {"taskGroupId": slug(DECISION)}}, "parent": slug("other")},
        {"action": {"name": "a"}, "parent": slug(DECISION)},
        {"action": "a", "parent": slug(DECISION)},
    ],
)
async def test_of_an_action_task_with_a_group_of_its_own(monitored: FlowHarness, extra: Any) -> None:
    add_decision(monitored, file_of())
    action = add_decision(monitored, None, "action", extra=extra)
    assert await decided(monitored, action.task_id) == [slug(DECISION)]
    assert await decided(monitored, add_task(monitored, group="action")) == [slug(DECISION)]


async def test_of_a_cron_task_it_is_the_one_that_began_its_group(monitored: FlowHarness) -> None:
    add_decision(monitored, file_of())
    add_decision(monitored, file_of(), "cron", tags={"kind": "cron-task"})
    assert await decided(monitored, add_task(monitored, group="cron")) == [slug("cron")]


async def test_of_copies_it_is_that_of_the_original(monitored: FlowHarness) -> None:
    add_decision(monitored, file_of())
    add_task(monitored)
    build(monitored.tc.queue, {"copy": [], "next": []}, taskGroupId=slug("copy"), routes=[route(7)])
    await record_copies(monitored, {"copy": "test", "next": "other"})
    assert await decided(monitored, slug("next")) == [slug(DECISION)]
    assert await decided(monitored, slug("copy")) == [slug(DECISION)]


async def test_a_copy_of_a_decision_task_decides_itself(monitored: FlowHarness) -> None:
    add_decision(monitored, None, state="failed")
    add_decision(monitored, file_of(), "again")
    await record_copies(monitored, {"again": DECISION})
    assert await decided(monitored, add_task(monitored, group="again")) == [slug("again")]


async def test_an_origin_that_names_another_project_does_not_count(monitored: FlowHarness) -> None:
    add_decision(monitored, file_of(), "foreign", routes=[route(7, "mozilla-release")])
    action = add_decision(monitored, None, "action", extra={"action": {}, "parent": slug("foreign")})
    assert await decided(monitored, action.task_id) == []
    assert await decided(monitored, add_task(monitored, group="foreign")) == []


async def test_origins_that_go_in_a_circle_end(monitored: FlowHarness) -> None:
    for name, parent in (("one", "two"), ("two", "one")):
        add_decision(monitored, None, name, extra={"action": {}, "parent": slug(parent)})
    assert await decided(monitored, slug("one")) == []


async def test_of_a_push_the_newest_that_succeeded_comes_first(monitored: FlowHarness) -> None:
    for name, state in (("first", "completed"), (DECISION, "failed"), ("running", "running")):
        add_decision(monitored, file_of(), name, state=state)
    push = await add_push(monitored, DECISION, "first", "running")
    monitored.tc.clock.advance(60)
    add_decision(monitored, file_of(), "again")
    await record_copies(monitored, {"again": DECISION})
    subject = PushSubject(await find_repository(monitored.services, "mc"), push)
    decisions = await decisions_of_push(monitored.services, subject)
    assert [decision.task_id for decision in decisions] == [slug("again"), slug("first")]
    assert (decisions[0].run_id, decisions[0].ended) == (0, True)


async def test_a_push_without_tasks_has_none(monitored: FlowHarness) -> None:
    subject = PushSubject(await find_repository(monitored.services, "mc"), await add_push(monitored))
    assert await decisions_of_push(monitored.services, subject) == []
