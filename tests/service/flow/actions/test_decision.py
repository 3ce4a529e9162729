"""The decision task of a task: by its group, its origin, or its push; never one of another project."""

from typing import Any

import pytest
from sqlmodel import select

from service.errors import Unavailable
from service.flow.actions.decision import decisions_of_push, decisions_of_task
from service.flow.tasks.subject import PushSubject, fetch_subject, find_repository
from service.store.models import Repository
from tests.service.flow.actions.in_tree_factory import (
    DECISION,
    add_decision,
    add_push,
    add_task,
    file_of,
    route,
    show_in_treeherder,
)
from tests.service.flow.actions.support import record_copies
from tests.service.flow.graph_factory import build, slug
from tests.service.harness import ENVIRONMENT, FlowHarness, node


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


# --- of a push without a graph of ours ----------------------------------------------------------------------------


@pytest.fixture
async def todays(monitored: FlowHarness) -> FlowHarness:
    """Let the Treeherder be one of today, which knows push 7 and its decision task."""
    show_in_treeherder(monitored, slug(DECISION))
    return monitored


async def of_push(harness: FlowHarness, *planned: str) -> list[str]:
    subject = PushSubject(await find_repository(harness.services, "mc"), await add_push(harness, *planned))
    return [decision.task_id for decision in await decisions_of_push(harness.services, subject)]


async def test_of_a_push_without_a_graph_of_ours_treeherder_is_asked(todays: FlowHarness) -> None:
    add_decision(todays, file_of())
    assert await of_push(todays) == [slug(DECISION)]
    assert await decided(todays, add_task(todays, group="gone")) == [slug(DECISION)]


async def test_of_a_task_of_a_push_that_is_not_stored_treeherder_is_asked(todays: FlowHarness) -> None:
    add_decision(todays, file_of())
    assert await decided(todays, add_task(todays, group="gone")) == [slug(DECISION)]
    without_revision = [f"tc-treeherder.mc.{node('hash')}"]
    assert await decided(todays, add_task(todays, "old", group="gone", routes=without_revision)) == []


async def test_what_is_known_here_is_not_asked_of_treeherder(todays: FlowHarness) -> None:
    add_decision(todays, file_of())
    add_decision(todays, file_of(), "ours")
    assert await decided(todays, add_task(todays, group="ours")) == [slug("ours")]
    assert await of_push(todays, "ours") == [slug("ours")]
    assert not todays.th.counters


@pytest.mark.parametrize(
    "change",
    [
        {"routes": [route(8)]},
        {"routes": [route(7, "mozilla-release")]},
        {"routes": []},
        {"state": "failed"},
        {"state": "running"},
        {"extra": {"action": {"name": "a"}}},
        {"tags": {"kind": "action-callback"}},
        {"taskGroupId": slug("other")},
    ],
)
async def test_what_treeherder_names_has_to_be_a_decision_task_of_this_push(todays: FlowHarness, change: Any) -> None:
    add_decision(todays, file_of(), **change)
    assert await of_push(todays) == []
    assert todays.th.counters["GET decisiontask 200"] == 1


async def test_what_treeherder_names_need_not_exist(todays: FlowHarness) -> None:
    assert await of_push(todays) == []


async def test_a_treeherder_that_shows_other_repositories_or_takes_resultsets_is_not_asked(todays: FlowHarness) -> None:
    add_decision(todays, file_of())
    async with todays.database.writing() as session:
        (await session.exec(select(Repository))).one().environments = []
    assert await of_push(todays) == []
    async with todays.database.writing() as session:
        (await session.exec(select(Repository))).one().environments = [ENVIRONMENT]
    subject = PushSubject(await find_repository(todays.services, "mc"), (await todays.pushes())[0])
    assert len(await decisions_of_push(todays.services, subject)) == 1
    todays.services.settings.environments[ENVIRONMENT].pushes = "rest"
    assert await decisions_of_push(todays.services, subject) == []


async def test_while_treeherder_is_away_nothing_is_said_not_to_exist(todays: FlowHarness) -> None:
    todays.th.behaviour.down = -1
    with pytest.raises(Unavailable, match="answers 503"):
        await of_push(todays)
