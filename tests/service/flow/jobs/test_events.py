"""Task events become reports become jobs, with the sandbox's queue and Treeherders."""

import asyncio
import json
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlmodel import col, delete, update

from sandbox.taskcluster import checks
from service.clock import now
from service.engine import leases
from service.flow.jobs import events, reconcile
from service.flow.jobs.events import TaskEvent
from service.flow.tasks.routes import parse_route
from service.metrics import REGISTRY
from service.store.models import (
    NOBODY,
    GroupCheck,
    JobReport,
    Stage,
    State,
    job_lane,
)
from tests.published_schemas import read_published
from tests.sandbox.taskcluster.models import SCHEMAS
from tests.service.flow.jobs.conftest import OpenHarness
from tests.service.flow.jobs.support import reconcile_now
from tests.service.flow.report_harness import (
    PREFIX,
    STAGE,
    ReportHarness,
    definition,
    open_report_harness,
    revision,
    route,
)


@pytest.fixture
def open_harness() -> OpenHarness:
    """Return what opens a harness with two Treeherders."""
    return open_report_harness


# --- the life of a task ----------------------------------------------------------------------------------------------


async def test_a_job_changes_colour_as_its_run_does(harness: ReportHarness) -> None:
    task_id = harness.create()
    await harness.deliver_all()
    assert harness.jobs() == {f"{task_id}/0": ("pending", "unknown")}
    harness.claim(task_id)
    await harness.deliver_all()
    assert harness.jobs() == {f"{task_id}/0": ("running", "unknown")}
    harness.tc.queue.report_completed(task_id, 0)
    await harness.deliver_all()
    assert harness.jobs() == harness.jobs(STAGE) == {f"{task_id}/0": ("completed", "success")}
    assert [report.state for report in await harness.reports()] == [State.DONE, State.DONE]
    assert harness.posts() == 3
    assert await harness.dead_letters() == []


async def test_a_life_that_is_over_before_it_was_told_is_told_once(harness: ReportHarness) -> None:
    task_id = harness.create()
    harness.end(task_id, "failed")
    await harness.deliver_all()
    assert harness.jobs() == {f"{task_id}/0": ("completed", "testfailed")}
    assert harness.posts() == 1
    assert harness.tc.journal.calls["tasks"] == 2, "the definition is fetched once for each Treeherder"


async def test_defined_and_pending_are_told_once(sqlite_harness: ReportHarness) -> None:
    before = sqlite_harness.create()
    sqlite_harness.create(dependencies=[before])
    defined = [message for message in sqlite_harness.messages if message.exchange.endswith("task-defined")]
    await sqlite_harness.take(defined)
    await sqlite_harness.report()
    assert set(sqlite_harness.jobs().values()) == {("pending", "unknown")}
    posts = sqlite_harness.posts()
    await sqlite_harness.deliver_all()
    assert sqlite_harness.posts() == posts
    assert len(sqlite_harness.jobs()) == 2


def canceled_before_it_ran(harness: ReportHarness) -> None:
    first = harness.create()
    harness.tc.queue.cancel_task(harness.create(dependencies=[first]))


def canceled_while_pending(harness: ReportHarness) -> None:
    harness.tc.queue.cancel_task(harness.create())


def canceled_while_running(harness: ReportHarness) -> None:
    task_id = harness.create()
    harness.claim(task_id)
    harness.tc.queue.cancel_task(task_id)


def past_its_deadline_before_it_ran(harness: ReportHarness) -> None:
    first = harness.create()
    harness.create(dependencies=[first])
    harness.end(first, "failed")
    harness.tc.advance(3 * 86_400)


def past_its_deadline_while_running(harness: ReportHarness) -> None:
    harness.claim(harness.create(retries=0))
    harness.tc.advance(3 * 86_400)


def retried_by_the_queue(harness: ReportHarness) -> None:
    task_id = harness.create()
    harness.end(task_id, "worker-shutdown")
    harness.end(task_id, "completed")


def retried_by_the_task(harness: ReportHarness) -> None:
    task_id = harness.create()
    harness.end(task_id, "intermittent-task")
    harness.end(task_id, "failed")


def out_of_retries(harness: ReportHarness) -> None:
    task_id = harness.create(retries=1)
    for _ in range(2):
        harness.end(task_id, "worker-shutdown")


def rerun(harness: ReportHarness) -> None:
    task_id = harness.create()
    harness.end(task_id, "failed")
    harness.tc.queue.rerun_task(task_id)
    harness.end(task_id, "completed")


def rerun_twice(harness: ReportHarness) -> None:
    rerun(harness)
    (task_id,) = harness.tc.queue.tasks
    harness.tc.queue.rerun_task(task_id)
    harness.claim(task_id)


LIVES: list[Callable[[ReportHarness], None]] = [
    canceled_before_it_ran,
    canceled_while_pending,
    canceled_while_running,
    past_its_deadline_before_it_ran,
    past_its_deadline_while_running,
    retried_by_the_queue,
    retried_by_the_task,
    out_of_retries,
    rerun,
    rerun_twice,
]


@pytest.mark.parametrize("life", LIVES)
async def test_lives(sqlite_harness: ReportHarness, life: Callable[[ReportHarness], None]) -> None:
    life(sqlite_harness)
    await sqlite_harness.deliver_all()
    assert sqlite_harness.jobs() == sqlite_harness.jobs(STAGE) == sqlite_harness.expected_jobs()


@pytest.mark.parametrize("reason", checks.REPORTED_REASONS)
async def test_every_exception_that_a_worker_can_report(sqlite_harness: ReportHarness, reason: str) -> None:
    task_id = sqlite_harness.create(retries=0)
    sqlite_harness.end(task_id, reason)
    await sqlite_harness.deliver_all()
    assert sqlite_harness.jobs() == sqlite_harness.expected_jobs() == {f"{task_id}/0": ("completed", "exception")}


@pytest.mark.parametrize("first", ["task-exception", "task-pending"])
async def test_a_retry_is_told_once_whichever_message_tells_of_it_first(
    sqlite_harness: ReportHarness, first: str
) -> None:
    task_id = sqlite_harness.create()
    sqlite_harness.claim(task_id)
    await sqlite_harness.deliver_all()
    sqlite_harness.tc.queue.report_exception(task_id, 0, {"reason": "worker-shutdown"})
    messages = sorted(sqlite_harness.messages, key=lambda message: not message.exchange.endswith(first))
    sqlite_harness.messages.clear()
    for message in messages:
        await sqlite_harness.take([message])
        await sqlite_harness.report()
        assert sqlite_harness.jobs()[f"{task_id}/0"] == ("completed", "retry")
    assert sqlite_harness.jobs() == sqlite_harness.expected_jobs()
    (job,) = (job for job in sqlite_harness.th[PREFIX].store.jobs.values() if job.body["job_guid"].endswith("/0"))
    assert [result for _, _, result, _ in job.history] == ["unknown", "retry"]


async def test_a_failure_that_was_told_before_its_rerun_stays_and_is_not_sent_again(harness: ReportHarness) -> None:
    task_id = harness.create()
    harness.end(task_id, "failed")
    await harness.deliver_all()
    harness.tc.queue.rerun_task(task_id)
    harness.end(task_id, "completed")
    await harness.deliver_all()
    assert harness.jobs() == {f"{task_id}/0": ("completed", "testfailed"), f"{task_id}/1": ("completed", "success")}
    histories = [job.history for job in harness.th[PREFIX].store.jobs.values()]
    assert all(outcome != "ignored" for history in histories for _, _, _, outcome in history)
    assert {(report.run_id, report.version) for report in await harness.reports()} == {(0, 1), (1, 1)}


# --- what is late, comes twice, or never -----------------------------------------------------------------------------


async def test_what_comes_late_is_dropped(harness: ReportHarness) -> None:
    task_id = harness.create()
    harness.end(task_id, "completed")
    messages = list(harness.messages)
    for message in reversed(messages):
        await harness.take([message])
    await harness.report()
    versions = [report.version for report in await harness.reports()]
    assert versions == [1, 1]
    await harness.take(messages)
    assert await harness.unfinished() == 0
    assert harness.jobs() == {f"{task_id}/0": ("completed", "success")}


async def test_an_event_that_comes_while_its_report_is_posted_is_posted_too(harness: ReportHarness) -> None:
    task_id = harness.create()
    await harness.take_all()
    for state in harness.th.values():
        state.behaviour.delay = 0.2
    harness.claim(task_id)
    harness.tc.queue.report_completed(task_id, 0)

    async def later() -> None:
        await asyncio.sleep(0.1)
        await harness.take_all()

    await asyncio.gather(harness.report(), later())
    await harness.report()
    assert harness.jobs() == harness.jobs(STAGE) == {f"{task_id}/0": ("completed", "success")}
    assert [report.version for report in await harness.reports()] == [2, 2]


ACTS = st.lists(
    st.sampled_from(["completed", "failed", "worker-shutdown", "intermittent-task", "malformed-payload", "rerun"]),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=ACTS, seed=st.integers(), cancel=st.booleans(), drop=st.booleans(), halves=st.integers(1, 3))
async def test_the_final_jobs_are_the_same_whatever_order_the_messages_come_in(
    sqlite_harness: ReportHarness, acts: list[str], seed: int, cancel: bool, drop: bool, halves: int
) -> None:
    harness, chance = sqlite_harness, random.Random(seed)
    await forget(harness)
    task_id = harness.create(retries=2)
    for act in acts:
        if act == "rerun":
            harness.tc.queue.rerun_task(task_id)
        elif harness.tc.queue.tasks[task_id].state == "pending":
            harness.end(task_id, act)
    if cancel:
        harness.tc.queue.cancel_task(task_id)
    messages = harness.messages + chance.choices(harness.messages, k=len(harness.messages))
    chance.shuffle(messages)
    if drop:
        # of a task of which nothing was ever heard, only the list of its group can tell
        del messages[chance.randint(0, len(messages)) :]
    harness.messages.clear()
    size = max(1, len(messages) // halves)
    for start in range(0, len(messages), size):
        await harness.take(messages[start : start + size])  # nothing is told in between: nothing is immutable yet
    if drop:
        async with harness.database.writing() as session:
            await reconcile.request_full_check(session)
            session.add(GroupCheck(task_group_id=task_id, lane="task-groups"))
        await reconcile_now(harness)
    await harness.report()
    assert harness.jobs() == harness.jobs(STAGE) == harness.expected_jobs()


async def forget(harness: ReportHarness) -> None:
    """Begin anew; the pushes stay."""
    harness.messages.clear()
    harness.tc.clear()
    for state in harness.th.values():
        state.store.jobs.clear()
    async with harness.database.writing() as session:
        await session.exec(delete(JobReport))
        await session.exec(delete(GroupCheck))


async def test_a_push_that_arrives_leaves_alone_what_is_being_tried(harness: ReportHarness) -> None:
    ids = [harness.create() for _ in range(3)]
    await harness.take_all()
    later = now() + timedelta(seconds=15)
    states: list[dict[str, Any]] = [{"error": "no push", "holder": "pod-1/x"}, {"error": "no push"}, {"error": None}]
    async with harness.database.writing() as session:
        for task_id, values in zip(ids, states, strict=True):
            of_task = update(JobReport).where(col(JobReport.task_id) == task_id)
            await session.exec(of_task.values(due_at=later, **values))
    await harness.database.commit(
        lambda connection: connection.execute(*leases.due_now(JobReport, job_lane(PREFIX, "mc"))), NOBODY
    )
    due = {r.task_id: r.due_at for r in await harness.reports() if r.environment == PREFIX and r.due_at is not None}
    assert [due[task_id] < later for task_id in ids] == [False, True, False]
    assert {r.due_at for r in await harness.reports() if r.environment == STAGE} == {later}


# --- what cannot be shown --------------------------------------------------------------------------------------------


async def test_a_task_without_a_treeherder_section_is_skipped_with_the_reason(harness: ReportHarness) -> None:
    harness.create(extra={})
    harness.create(extra={"treeherder": {"symbol": "B", "collection": {"opt": True, "debug": True}}})
    await harness.deliver_all()
    reports = await harness.reports()
    assert {report.state for report in reports} == {State.SKIPPED}
    assert {("no extra" in (report.error or ""), "debug, opt" in (report.error or "")) for report in reports} == {
        (True, False),
        (False, True),
    }
    assert harness.jobs() == {}
    assert await harness.dead_letters() == []


async def test_skipped_stays_skipped(sqlite_harness: ReportHarness) -> None:
    task_id = sqlite_harness.create(extra={})
    await sqlite_harness.deliver_all()
    sqlite_harness.end(task_id, "completed")
    await sqlite_harness.deliver_all()
    assert {(report.state, report.stage) for report in await sqlite_harness.reports()} == {
        (State.SKIPPED, Stage.PENDING)
    }


DISAGREE = [
    [f"{PREFIX}.mc.{'a' * 40}", f"{PREFIX}.mc.{'b' * 40}"],
    [f"{PREFIX}.v2.mc.{'a' * 40}", f"{PREFIX}.v2.mc.{'b' * 40}"],
    [f"{PREFIX}.v2.mc.{'a' * 40}", f"{PREFIX}.v2.try.{'a' * 40}"],
    [f"{PREFIX}.v2.mc.{'a' * 40}", f"{PREFIX}.try.{'b' * 40}"],
]


@pytest.mark.parametrize("routes", DISAGREE)
async def test_routes_of_one_prefix_that_disagree_are_refused_and_the_other_prefix_goes_on(
    sqlite_harness: ReportHarness, routes: list[str]
) -> None:
    task_id = sqlite_harness.create(routes=[*routes, route(STAGE)])
    await sqlite_harness.deliver_all()
    assert sqlite_harness.jobs() == {}
    assert sqlite_harness.jobs(STAGE) == {f"{task_id}/0": ("pending", "unknown")}
    (refused,) = (report for report in await sqlite_harness.reports() if report.environment == PREFIX)
    assert str(refused.state) == "skipped"
    assert "disagree" in (refused.error or "")
    assert routes[0] in (refused.error or "")


async def test_a_route_of_another_form_is_skipped_with_the_reason(sqlite_harness: ReportHarness) -> None:
    sqlite_harness.create(routes=[f"{PREFIX}.mc.tip"])
    await sqlite_harness.deliver_all()
    (report,) = await sqlite_harness.reports()
    assert report.state == State.SKIPPED
    assert f"{PREFIX}.mc.tip" in (report.error or "")


def counted(environment: str) -> float:
    return REGISTRY.get_sample_value("tc_treeherder_unusable_tasks_total", {"environment": environment}) or 0.0


async def test_a_collection_of_two_is_refused_and_counted_and_the_report_says_why(
    sqlite_harness: ReportHarness,
) -> None:
    harness = sqlite_harness
    before = counted(PREFIX), counted(STAGE)
    both = {"treeherder": {"symbol": "B", "collection": {"opt": True, "debug": True}}}
    task_id = harness.create(extra=both)
    one = harness.create(extra={"treeherder": {"symbol": "B", "collection": {"opt": False, "debug": True}}})
    await harness.deliver_all()
    for task in (task_id, one):
        harness.claim(task)
    await harness.deliver_all()
    assert set(harness.jobs()) == {f"{one}/0"}
    refused = [report for report in await harness.reports() if report.task_id == task_id]
    assert {report.state for report in refused} == {State.SKIPPED}
    assert {report.error for report in refused} == {
        "its extra.treeherder is not usable: collection has 2 true keys (debug, opt): it may have one"
    }
    assert (counted(PREFIX), counted(STAGE)) == (before[0] + 1, before[1] + 1), "once a task and Treeherder"
    assert await harness.dead_letters() == []


async def test_a_route_whose_push_id_is_empty_is_understood(sqlite_harness: ReportHarness) -> None:
    """Some in-tree schedulers write it so; with and without the id it is the same push."""
    harness = sqlite_harness
    empty = f"{PREFIX}.v2.mc.{revision()}."
    ids = [harness.create(routes=routes) for routes in ([empty], [empty, f"{empty}7"])]
    await harness.deliver_all()
    assert set(harness.jobs()) == {f"{task_id}/0" for task_id in ids}


async def test_two_routes_that_say_the_same_agree(sqlite_harness: ReportHarness) -> None:
    routes = [route(), f"{PREFIX}.v2.me/mc.{revision()}.8"]
    task_id = sqlite_harness.create(routes=routes)
    await sqlite_harness.deliver_all()
    assert sqlite_harness.jobs() == {f"{task_id}/0": ("pending", "unknown")}


async def test_routes_of_nobody_are_no_reports(sqlite_harness: ReportHarness) -> None:
    sqlite_harness.create(routes=["index.x", "tc-treeherder-other.v2.mc." + "a" * 40])
    verdicts = await sqlite_harness.take(sqlite_harness.messages)
    assert {verdict.verdict for verdict in verdicts} == {"rejected"}
    assert await sqlite_harness.reports() == []


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.published
def test_our_models_know_what_the_schemas_say() -> None:
    know_what_the_schemas_say(lambda name: SCHEMAS[f"queue/v1/{name}"])


@pytest.mark.published
def test_our_models_know_what_the_published_schemas_say() -> None:
    know_what_the_schemas_say(lambda name: read_published(f"taskcluster/schemas/queue/v1/{name}"))


def know_what_the_schemas_say(read: Callable[[str], Any]) -> None:
    status = read("task-status.json")
    run = status["properties"]["runs"]["items"]
    assert {field.alias for field in events.TaskRun.model_fields.values()} <= set(run["properties"])
    assert {field.alias for field in events.TaskStatus.model_fields.values()} <= set(status["required"])
    required = {field.alias for field in events.TaskRun.model_fields.values() if field.is_required()}
    assert required <= set(run["required"])
    assert schema_enum(events.TaskRun, "state") == set(run["properties"]["state"]["enum"])
    assert schema_enum(events.TaskStatus, "state") == set(status["properties"]["state"]["enum"])
    for name in ("defined", "pending", "running", "completed", "failed", "exception"):
        message = read(f"task-{name}-message.json")
        assert "status" in message["required"]


def schema_enum(model: Any, name: str) -> set[str]:
    return set(model.model_json_schema()["properties"][name]["enum"])


MESSAGE: dict[str, Any] = {
    "exchange": "",
    "routing_key": "",
    "cc": [],
    "encoding": "utf-8",
}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "{}",
        '{"status": {}}',
        '{"status": ' + "[" * 10_000 + "]" * 10_000 + "}",
        '{"status": NaN}',
        "\ud800",
    ],
)
def test_bodies_that_are_nonsense_are_not_understood(body: str) -> None:
    with pytest.raises(ValidationError, match="body"):
        TaskEvent.model_validate({**MESSAGE, "body": body})


async def test_values_that_no_database_takes_are_not_understood(sqlite_harness: ReportHarness) -> None:
    sqlite_harness.claim(sqlite_harness.create())
    message = sqlite_harness.messages[-1].payload
    for name, value in (("workerId", "a\0b"), ("reasonResolved", "\ud800"), ("workerId", "x" * 201)):
        strange = json.loads(json.dumps(message))
        strange["status"]["runs"][0][name] = value
        with pytest.raises(ValidationError, match=r"status\.runs|surrogate|unicode|JSON"):
            TaskEvent.model_validate({**MESSAGE, "body": json.dumps(strange)})


def test_a_definition_of_the_tests_has_routes_that_are_ours() -> None:
    assert all(
        parse_route(prefix, route_text)
        for prefix, route_text in zip((PREFIX, STAGE), definition()["routes"], strict=True)
    )
