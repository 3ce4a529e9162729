"""Errors of a push, shown by a task or by jobs."""

from typing import Any

import pytest
from sqlmodel import update

from service.clock import now
from service.errors import Unavailable
from service.flow.actions import notice
from service.flow.pushes.resultset import resultset_of
from service.store.models import Notice, PushStep, State
from tests.service.flow.graph_factory import claim_work
from tests.service.flow.pushes.support import YML, error_shown, pushed, run, stored_repository
from tests.service.harness import FlowHarness, open_harness


async def test_the_error_of_a_refused_plan_stands_beside_a_task_with_the_label_error(harness: FlowHarness) -> None:
    """as_slugid("error") is the template's to use."""
    await pushed(harness, YML)
    harness.tc.faults.add("before", "createTask", status=403, times=1)
    step = await run(harness)
    assert step.state == State.FAILED
    await error_shown(harness, step)
    assert len({task.task_id for task in await harness.planned()}) == 3


REAL_ROLE = [  # the shape of a real project's
    "queue:scheduler-id:gecko-level-3",
    "queue:create-task:highest:gecko-3/*",
    "queue:create-task:highest:built-in/*",
    "queue:create-task:project:none",
    "queue:route:tc-treeherder.v2.mc.*",
]


async def test_the_error_task_is_created_with_what_a_real_project_may_do(harness: FlowHarness) -> None:
    push = await pushed(harness, "version: 2", scopes=REAL_ROLE, level="3", trust_domain="gecko")
    step = await run(harness)
    definition = await error_shown(harness, step)
    assert definition["schedulerId"] == "gecko-level-3"
    assert definition["routes"] == [
        f"tc-treeherder.v2.mc.{push.revision}.{push.push_id}",
        "notify.email.dev@example.com.on-failed",
    ]
    assert step.error_task_refused is None


async def test_routes_that_the_role_lacks_are_left_out_of_the_error_task(harness: FlowHarness) -> None:
    await pushed(harness, "version: 2", scopes=REAL_ROLE[:4], level="3", trust_domain="gecko")
    step = await run(harness)
    definition = await error_shown(harness, step)
    assert definition["routes"] == ["notify.email.dev@example.com.on-failed"]
    assert "lack queue:route:tc-treeherder.v2.mc." in str(step.error_task_refused)
    (planned,) = await harness.planned()
    assert planned.definition == definition, "what was sent was committed before"


async def test_where_even_the_error_task_is_refused_a_job_shows_both_reasons(harness: FlowHarness) -> None:
    push = await pushed(harness, "version: 2", scopes=REAL_ROLE, level="3")  # of no trust domain
    harness.th.store.store_resultsets("mc", [resultset_of(push, await stored_repository(harness))])
    step = await run(harness)
    assert (step.state, step.error_task) == (State.FAILED, None)
    for words in ("version is 2", "no task could show this on the push", "queue:scheduler-id:tc-treeherder"):
        assert words in str(step.error)
    assert harness.tc.queue.tasks == {}
    await notice.run(harness.services, await claim_work(harness, Notice))
    (job,) = harness.th.store.jobs.values()
    assert (job.body["job_symbol"], job.body["result"]) == ("D", "exception")
    assert "version is 2" in str(job.body)


async def test_where_nothing_may_be_created_the_reason_stands_alone(harness: FlowHarness) -> None:
    await pushed(harness, "version: 2", scopes=["assume:nothing"])
    step = await run(harness)
    assert (step.state, step.error_task) == (State.FAILED, None)
    assert "version is 2" in str(step.error)
    assert harness.tc.queue.tasks == {}


@pytest.mark.parametrize("template", [{"$eval": "nothing"}, [], "x", {"metadata": 1}])
async def test_an_error_task_that_is_none_leaves_the_reason_alone(sqlite_url: str, template: Any) -> None:
    async with open_harness(
        sqlite_url, error_task={"$eval": "x"} if not isinstance(template, dict) else template
    ) as harness:
        await pushed(harness, "version: 2")
        step = await run(harness)
        assert (step.state, step.error_task) == (State.FAILED, None)
        assert "version is 2" in str(step.error)


async def test_an_error_task_goes_on_after_a_crash(harness: FlowHarness) -> None:
    await pushed(harness, "version: 2")
    harness.tc.faults.add("before", "createTask", status=500, times=1)
    with pytest.raises(Unavailable):
        await run(harness)
    (planned,) = await harness.planned()
    async with harness.database.writing() as session:
        await session.exec(update(PushStep).values(due_at=now()))
    step = await run(harness)
    assert (step.state, step.error_task) == (State.FAILED, planned.task_id)
    await error_shown(harness, step)
    assert len(harness.tc.queue.tasks) == 1
