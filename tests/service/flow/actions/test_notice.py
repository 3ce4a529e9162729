"""Notices of actions: jobs that show failures, and announcements, neither of which delays an action."""

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlmodel import select
from structlog.testing import capture_logs

from sandbox.treeherder.behaviour import SUBMISSION, Year
from sandbox.treeherder.store import Repository as Project
from sandbox.treeherder.store import Store
from service.clock import now
from service.engine.budget import jobs_budget, refilled
from service.engine.leases import Lease
from service.engine.registry import WORK
from service.engine.reporter import EnvironmentReporter
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.actions import notice
from service.flow.jobs.deliver import TreeherderDeliverer
from service.store.models import Action, Notice, PushStep, State, StepKind
from tests.service.flow.graph_factory import (
    build,
    carry_out,
    claim_work,
    definition_of,
    end,
    read_copies,
    read_notices,
    reload_action,
    slug,
)
from tests.service.harness import ENVIRONMENT, FlowHarness, node, open_harness, push_event


@dataclass
class Broker:
    """A publisher that records messages, or fails."""

    away: bool = False
    refuses: bool = False
    published: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    async def publish(
        self, exchange: str, routing_key: str, message: dict[str, Any], *, mandatory: bool = False
    ) -> None:
        assert not mandatory, "nobody has to listen"
        if self.away:
            raise Unavailable("pulse", "the broker is away")
        if self.refuses:
            raise PermanentUpstreamError("pulse", "too large", 400)
        self.published.append((exchange, routing_key, message))


@pytest.fixture
async def pushed(harness: FlowHarness) -> FlowHarness:
    """Prepare a push in Treeherder, and tasks of it that depend on themselves, so that no retrigger is possible."""
    await harness.add_repository()
    await harness.store(push_event(1))
    lease = await harness.lease(StepKind.RESULTSET)
    await WORK.run_of(lease.item)(harness.services, lease)
    (push,) = await harness.pushes()
    build(harness.tc.queue, {"group": []})
    routes = [f"tc-treeherder.v2.mc.{push.revision}.1"]
    harness.tc.queue.create_task(slug("self"), definition_of("self", ["self"], routes=routes))
    v1 = [f"tc-treeherder.mc.{push.revision_hash}"]
    harness.tc.queue.create_task(slug("v1"), definition_of("v1", ["v1"], routes=v1))
    return harness


async def send_notice(harness: FlowHarness) -> Lease[Notice]:
    lease = await claim_work(harness, Notice)
    await notice.run(harness.services, lease)
    return lease


@pytest.mark.parametrize("year", SUBMISSION)
@pytest.mark.parametrize("name", ["self", "v1"])
async def test_a_rejected_retrigger_is_a_job_on_the_push_with_the_reason(
    pushed: FlowHarness, name: str, year: Year
) -> None:
    pushed.th.behaviour.year = year
    action = await carry_out(pushed, slug(name))
    assert action.state == "rejected"
    await send_notice(pushed)
    (told_of,) = await read_notices(pushed)
    assert (told_of.state, told_of.error) == ("done", None)
    (job,) = pushed.th.store.jobs.values()
    assert job.push.revision == node("mc 1")
    assert (job.body["state"], job.body["result"]) == ("completed", "exception")
    assert str(action.error).startswith(job.body["reason"].removeprefix("retrigger failed: "))
    assert str(action.error) in job.body["artifacts"][0]["blob"]
    assert job.body["name"] == f"retrigger: {name}"
    assert job.body["job_symbol"] == name
    assert job.body["build_platform"]["platform"] == "linux64"
    assert job.body["who"] == "sheriff@example.com"


@pytest.mark.parametrize(
    ("section", "shown"),
    [
        (
            {
                "symbol": 7,
                "groupSymbol": "tc",
                "groupName": "Executed",
                "productName": "firefox",
                "tier": 2,
                "collection": {"opt": False, "debug": True},
                "machine": {"platform": "linux64", "os": "linux"},
                "build": {"platform": "android", "architecture": "arm"},
            },
            ["7", "tc", "Executed", "firefox", 2, {"debug": True}, "android", "linux64"],
        ),
        (
            {"symbol": "x", "labels": ["debug", "fission"]},
            ["x", "?", "unknown", "unknown", 1, {"debug": True, "fission": True}, "test", "test"],
        ),
        ({"symbol": []}, ["?", "?", "unknown", "unknown", 1, {"opt": True}, "test", "test"]),
        (None, ["?", "?", "unknown", "unknown", 1, {"opt": True}, "test", "test"]),
    ],
)
async def test_it_stands_beside_the_job_of_the_task(pushed: FlowHarness, section: Any, shown: list[Any]) -> None:
    routes = [f"tc-treeherder.v2.mc.{node('mc 1')}.1", "index.x"]
    definition = definition_of("bad", routes=routes, extra={} if section is None else {"treeherder": section})
    pushed.tc.queue.create_task(slug("bad"), definition)
    action = await carry_out(pushed, slug("bad"))
    (shown_at,) = action.failure_jobs
    job = shown_at["entry"]["job"]
    names = ["job_symbol", "group_symbol", "group_name", "product_name", "tier", "option_collection"]
    platforms = [job[kind]["platform"] for kind in ("build_platform", "machine_platform")]
    assert [job[name] for name in names] + platforms == shown


async def test_a_failed_retrigger_is_shown_and_a_done_one_is_not(pushed: FlowHarness) -> None:
    queue = pushed.tc.queue
    build(queue, {"good": []}, routes=[f"tc-treeherder.v2.mc.{node('mc 1')}.1"])
    routes = [f"tc-treeherder.v2.mc.{node('mc 1')}.1", "index.x"]
    queue.create_task(slug("bad"), definition_of("bad", routes=routes))
    assert (await carry_out(pushed, slug("good"))).state == "done"
    assert await read_notices(pushed) == []
    action = await carry_out(pushed, slug("bad"))
    assert action.state == "failed"
    await send_notice(pushed)
    (job,) = pushed.th.store.jobs.values()
    assert "queue:route:index.x" in job.body["artifacts"][0]["blob"]


async def test_a_treeherder_that_is_away_hears_of_it_later_and_once(pushed: FlowHarness) -> None:
    await carry_out(pushed, slug("self"))
    pushed.th.behaviour.fail_after = 1
    lease = await claim_work(pushed, Notice)
    with pytest.raises(Unavailable):
        await notice.run(pushed.services, lease)
    await notice.run(pushed.services, lease)
    (job,) = pushed.th.store.jobs.values()
    assert [line[3] for line in job.history] == ["stored", "ignored"]
    assert (await read_notices(pushed))[0].state == "done"


async def test_a_push_that_is_not_known_yet_is_waited_for(pushed: FlowHarness) -> None:
    routes = [f"tc-treeherder.mc.{'ef' * 20}"]
    pushed.tc.queue.create_task(slug("unknown"), definition_of("unknown", ["unknown"], routes=routes))
    await carry_out(pushed, slug("unknown"))
    lease = await claim_work(pushed, Notice)
    with pytest.raises(Unavailable, match="ef" * 20):
        await notice.run(pushed.services, lease)


@pytest.mark.parametrize("name", ["self", "v1"])
async def test_no_job_is_posted_before_its_push_for_a_200_alone_proves_nothing(pushed: FlowHarness, name: str) -> None:
    pushed.th.behaviour.unknown_push = "drop"
    await carry_out(pushed, slug(name))
    store, pushed.th.store = pushed.th.store, Store([Project("mc")])
    lease = await claim_work(pushed, Notice)
    with pytest.raises(Unavailable, match=node("mc 1")):
        await notice.run(pushed.services, lease)
    assert pushed.th.counters["jobs received"] == 0
    pushed.th.store = store
    await notice.run(pushed.services, lease)
    assert len(pushed.th.store.jobs) == 1


async def test_a_job_that_is_refused_for_good_becomes_a_dead_letter(pushed: FlowHarness) -> None:
    await carry_out(pushed, slug("self"))
    (before,) = await read_notices(pushed)
    pushed.th.behaviour.refuse_jobs = frozenset({before.body["job"]["job_guid"]})
    with capture_logs() as logs:
        await send_notice(pushed)
    (after,) = await read_notices(pushed)
    (letter,) = await pushed.letters()
    assert (letter.kind, letter.notice_id, after.state, after.due_at) == ("notice", after.id, "failed", None)
    assert "400" in letter.reason
    assert letter.reason == after.error
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["work-buried"]


async def test_a_failure_takes_a_request_of_the_budget_that_reports_have(pushed: FlowHarness) -> None:
    name, rate = jobs_budget(pushed.settings.environments[ENVIRONMENT], pushed.settings.reports.links_wait)
    deliverer = TreeherderDeliverer(pushed.services, ENVIRONMENT)
    assert name == EnvironmentReporter(pushed.services, ENVIRONMENT, deliverer).budget

    async def left(tokens: float | None = None, blocked: datetime | None = None) -> float:
        async with pushed.database.writing() as session:
            bucket = await refilled(session, name, now(), rate)
            bucket.tokens = bucket.tokens if tokens is None else tokens
            bucket.blocked_until = blocked
            return bucket.tokens

    await carry_out(pushed, slug("self"))
    lease = await claim_work(pushed, Notice)
    await left(blocked=now() + timedelta(minutes=5))
    with pytest.raises(Unavailable) as away:
        await notice.run(pushed.services, lease)
    assert away.value.retry_after is not None
    assert away.value.retry_after > timedelta(minutes=4)
    await left(-100 * rate)
    with pytest.raises(Unavailable, match="no request with jobs is left"):
        await notice.run(pushed.services, lease)
    assert not pushed.th.store.jobs
    await left(1 - rate / 5)  # a fifth of a second until the next
    began = time.monotonic()
    await notice.run(pushed.services, lease)
    assert time.monotonic() - began > 0.1
    assert await left() < 1
    assert len(pushed.th.store.jobs) == 1


async def test_where_jobs_are_off_nothing_is_shown(sqlite_url: str) -> None:
    off = {"environments": {ENVIRONMENT: {"url": "http://127.0.0.1:9", "pushes": "off"}}}
    async with open_harness(sqlite_url, **off) as harness:
        await harness.add_repository()
        build(harness.tc.queue, {"group": [], "self": ["self"]})
        assert (await carry_out(harness, slug("self"))).state == "rejected"
        assert await read_notices(harness) == []


async def test_a_buried_action_is_shown_and_one_taken_up_again_no_longer(pushed: FlowHarness) -> None:
    await carry_out(pushed, slug("self"))
    (before,) = await read_notices(pushed)
    async with pushed.database.writing() as session:
        action = await session.get_one(Action, before.action_id)
        action.state, action.due_at, action.since = State.PENDING, before.since, before.since.replace(year=2020)
        action.attempts = 99
    lease = await claim_work(pushed)
    await lease.retry("Taskcluster is away")
    action = await reload_action(pushed, lease.item)
    assert action.state == "failed"
    assert len(await read_notices(pushed)) == 2
    letters = await pushed.letters()
    assert [(letter.kind, letter.action_id) for letter in letters] == [("action", action.id)]
    async with pushed.database.writing() as session:
        (await session.get_one(Action, action.id)).state = State.PENDING
    await send_notice(pushed)
    assert (await read_notices(pushed))[0].state == "skipped"
    assert not pushed.th.store.jobs


# --- on Pulse ----------------------------------------------------------------------------------------------------


async def test_a_retrigger_is_announced_on_pulse_once_it_is_done(harness: FlowHarness) -> None:
    await harness.add_repository()
    build(harness.tc.queue, {"group": [], "a": [], "b": ["a"]})
    end(harness.tc.queue, "a")
    harness.services.publisher = broker = Broker(away=True)
    action = await carry_out(harness, slug("a"))
    assert action.state == "done", "the announcement holds nothing up"
    lease = await claim_work(harness, Notice)
    with pytest.raises(Unavailable):
        await notice.run(harness.services, lease)
    broker.away = False
    await notice.run(harness.services, lease)
    copy_ids = await read_copies(harness, action)
    message = {
        "requester": "sheriff@example.com",
        "taskGroupId": copy_ids["a"],
        "taskId": slug("a"),
        "newTaskId": copy_ids["a"],
    }
    assert broker.published == [("v1/retrigger", slug("a"), message)]
    assert (await read_notices(harness))[0].state == "done"


async def test_an_announcement_that_the_broker_refuses_for_good_becomes_a_dead_letter(harness: FlowHarness) -> None:
    await harness.add_repository()
    build(harness.tc.queue, {"a": []})
    harness.services.publisher = Broker(refuses=True)
    await carry_out(harness, slug("a"))
    await send_notice(harness)
    assert [(letter.kind, letter.reason) for letter in await harness.letters()] == [("notice", "too large")]


async def test_a_push_is_announced_on_pulse(sqlite_url: str) -> None:
    async with open_harness(sqlite_url, pulse={"url": "amqp://127.0.0.1:1/"}) as harness:
        real, harness.services.publisher = harness.services.publisher, Broker()
        repository = await harness.add_repository()
        await harness.store(push_event(7))
        lease = await harness.lease(StepKind.ANNOUNCEMENT)
        await WORK.run_of(lease.item)(harness.services, lease)
        ((exchange, key, message),) = harness.services.publisher.published
        harness.services.publisher = real
        (push,) = await harness.pushes()
        assert (exchange, key) == ("v1/pushes", "mc")
        assert message == {
            "id": 7,
            "url": repository.url,
            "alias": "mc",
            "date": int(push.date.timestamp()),
            "user": "dev@example.com",
            "changesets": push.changesets,
        }
        assert (await harness.step(StepKind.ANNOUNCEMENT)).state == "done"


async def test_a_push_that_cannot_be_published_any_more_is_skipped(sqlite_url: str) -> None:
    async with open_harness(sqlite_url, pulse={"url": "amqp://127.0.0.1:1/"}) as harness:
        real, harness.services.publisher = harness.services.publisher, None
        await harness.add_repository()
        await harness.store(push_event(7))
        lease = await harness.lease(StepKind.ANNOUNCEMENT)
        await WORK.run_of(lease.item)(harness.services, lease)
        harness.services.publisher = real
        step = await harness.step(StepKind.ANNOUNCEMENT)
        assert (step.state, "pulse.url" in str(step.error)) == ("skipped", True)


async def test_without_publishing_a_push_has_no_such_step(harness: FlowHarness) -> None:
    await harness.add_repository()
    await harness.store(push_event(7))
    async with harness.database.reading() as session:
        kinds = set(await session.exec(select(PushStep.kind)))
    assert kinds == {StepKind.RESULTSET, StepKind.GRAPH}


async def test_the_files_of_a_huge_push_are_left_out(sqlite_url: str) -> None:
    async with open_harness(sqlite_url, pulse={"url": "amqp://127.0.0.1:1/"}) as harness:
        real, harness.services.publisher = harness.services.publisher, Broker()
        await harness.add_repository()
        files = ["f" * 2000] * 600
        await harness.store(push_event(7, changesets=[{"node": node("x"), "branch": "default", "files": files}]))
        lease = await harness.lease(StepKind.ANNOUNCEMENT)
        await WORK.run_of(lease.item)(harness.services, lease)
        ((_, _, message),) = harness.services.publisher.published
        harness.services.publisher = real
        assert message["changesets"] == [{"node": node("x"), "branch": "default"}]
