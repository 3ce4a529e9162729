"""Delivery to a Treeherder that refuses, is away, throttles, or does not know the push; links; the shared budget."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pika
import pytest
from sqlmodel import select, update

from sandbox.treeherder.behaviour import SUBMISSION, Year
from service.clients import taskcluster
from service.clock import now
from service.engine import leases
from service.engine.batches import End
from service.engine.budget import burst, jobs_budget
from service.engine.leases import Lease, claim
from service.engine.reporter import EnvironmentReporter, Reporter
from service.flow.jobs.deliver import TreeherderDeliverer
from service.flow.jobs.facts_lookup import NEGATIVE_CONFIRMATIONS
from service.flow.jobs.retries import MAX_LONE_FAILURES
from service.flow.jobs.run import job_guid
from service.flow.pushes.push import store
from service.flow.pushes.resultset import run as post_resultset
from service.settings import Environment
from service.store.models import Budget, JobReport, Push, PushStep, State, StepKind
from service.store.wakeups import Topic
from tests.service.flow.jobs.test_rest import check_pulse
from tests.service.flow.report_harness import PREFIX, STAGE, ReportHarness, newsroom, resultset, revision, route
from tests.service.harness import add_repository, node, push_event
from tests.services import Amqp


@asynccontextmanager
async def only_first(database_url: str, **more: Any) -> AsyncIterator[ReportHarness]:
    """A room in which the second Treeherder is none of ours."""
    async with newsroom(database_url, **more) as made:
        made.services.settings.environments[STAGE].jobs = "off"
        yield made


@pytest.fixture
async def harness(database_url: str) -> AsyncIterator[ReportHarness]:
    async with only_first(database_url) as made:
        yield made


@pytest.fixture
async def sqlite_room(sqlite_url: str) -> AsyncIterator[ReportHarness]:
    async with only_first(sqlite_url) as made:
        yield made


async def until(what: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110 - the stand-in tells nobody
            await asyncio.sleep(0.01)


# --- refusals --------------------------------------------------------------------------------------------------------


async def go_on_until(harness: ReportHarness, what: Callable[[], Awaitable[bool]]) -> None:
    """Further jobs come in all the while."""
    reporter = Reporter(harness.services)
    running = asyncio.create_task(reporter.run())
    async with asyncio.timeout(20):
        while not await what():
            harness.create()
            await harness.take_all()
            harness.database.wakeups.wake(Topic.REPORTS)
            await asyncio.sleep(0)
    reporter.stop()
    await running


@pytest.mark.parametrize("status", [400, 500])
async def test_one_job_that_is_always_refused_becomes_a_dead_letter_and_the_others_go_through(
    harness: ReportHarness, status: int
) -> None:
    ids = [harness.create() for _ in range(50)]
    bad = job_guid(ids[17], 0)
    harness.th[PREFIX].behaviour.refuse_jobs = frozenset({bad})
    harness.th[PREFIX].behaviour.bad_job_status = status  # type: ignore[assignment]  # a literal
    await harness.take_all()

    async def buried() -> bool:
        return len(await harness.letters()) == 1

    await go_on_until(harness, buried)
    assert {f"{task_id}/0" for task_id in ids} - set(harness.jobs()) == {f"{ids[17]}/0"}
    (letter,) = await harness.letters()
    assert letter.kind == "job-report"
    assert ids[17] in letter.subject
    assert bad in letter.reason, "the answer says which and why"
    (report,) = (each for each in await harness.reports() if each.task_id == ids[17])
    assert report.state == State.FAILED
    assert report.id == letter.report_id


@pytest.mark.parametrize("limit", ["MAX_MEMBERS", "MAX_ANSWER"])
async def test_a_task_that_is_too_large_to_be_read_hides_no_others(
    sqlite_room: ReportHarness, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Its definition is answered with those of others, and takes the memory of all that it holds."""
    monkeypatch.setattr(taskcluster, limit, 20_000)
    ids = [sqlite_room.create() for _ in range(5)]
    bomb = sqlite_room.create(payload={"a": [{}] * 15_000})
    ids += [sqlite_room.create() for _ in range(5)]
    await sqlite_room.told()
    assert set(sqlite_room.jobs()) == {f"{each}/0" for each in ids}
    (skipped,) = (each for each in await sqlite_room.reports() if each.task_id == bomb)
    assert skipped.state == State.SKIPPED
    assert "its definition is too large: Taskcluster answers more than 20,000" in str(skipped.error)


async def test_several_bad_jobs_among_many(sqlite_room: ReportHarness) -> None:
    ids = [sqlite_room.create() for _ in range(60)]
    bad = {ids[n] for n in (0, 1, 29, 30, 59)}
    sqlite_room.th[PREFIX].behaviour.refuse_jobs = frozenset(job_guid(each, 0) for each in bad)
    await sqlite_room.told()
    assert set(sqlite_room.jobs()) == {f"{each}/0" for each in set(ids) - bad}
    assert len(await sqlite_room.letters()) == len(bad)


async def test_bad_jobs_that_are_answered_500_do_not_keep_the_good_ones_back(sqlite_room: ReportHarness) -> None:
    harness = sqlite_room
    ids = [harness.create() for _ in range(64)]
    bad = {*ids[8:14], ids[20], ids[40], ids[63]}
    harness.th[PREFIX].behaviour.refuse_jobs = frozenset(job_guid(each, 0) for each in bad)
    harness.th[PREFIX].behaviour.bad_job_status = 500
    await harness.take_all()
    await harness.report(until_due=len(bad))
    assert set(harness.jobs()) == {f"{each}/0" for each in set(ids) - bad}
    assert await harness.letters() == [], "none of them has been tried often enough"


async def test_a_treeherder_that_is_ill_buries_nobody(sqlite_room: ReportHarness) -> None:
    harness = sqlite_room
    ids = [harness.create() for _ in range(16)]
    harness.th[PREFIX].behaviour.refuse_jobs = frozenset(job_guid(each, 0) for each in ids)
    harness.th[PREFIX].behaviour.bad_job_status = 500
    deliverer = TreeherderDeliverer(harness.services, PREFIX)
    await harness.take_all()
    deliverer.retries.record_accepted()
    for _ in range(MAX_LONE_FAILURES + 1):
        done = await deliverer.deliver(await harness.reports())
        assert {outcome.end for outcome in done.outcomes} == {End.LATER}
        assert len(done.outcomes) == 16
        assert done.pause is not None
        assert done.requests < 12


async def test_a_job_is_bad_only_when_others_are_taken_between_its_failures(sqlite_room: ReportHarness) -> None:
    harness = sqlite_room
    task_id = harness.create()
    harness.th[PREFIX].behaviour.refuse_jobs = frozenset({job_guid(task_id, 0)})
    harness.th[PREFIX].behaviour.bad_job_status = 500
    await harness.take_all()
    (bad,) = await harness.reports()
    bad.attempts = 50  # waited long for something else
    deliverer = TreeherderDeliverer(harness.services, PREFIX)

    async def ends(*reports: JobReport) -> list[End]:
        done = await deliverer.deliver(list(reports))
        return [outcome.end for outcome in done.outcomes if outcome.report is bad]

    for _ in range(9):
        assert await ends(bad) == [End.LATER], "nothing tells an ill Treeherder from a bad job"
    harness.create()
    await harness.take_all()
    good = next(each for each in await harness.reports() if each.id != bad.id)
    assert await ends(bad, good) == [End.LATER]
    assert await ends(bad) == [End.LATER]
    assert await ends(bad, good) == [End.LATER]
    assert await ends(bad, good) == [End.BURIED]


async def test_a_later_event_of_a_buried_report_is_tried_again(sqlite_room: ReportHarness) -> None:
    task_id = sqlite_room.create()
    sqlite_room.th[PREFIX].behaviour.refuse_jobs = frozenset({job_guid(task_id, 0)})
    await sqlite_room.told()
    sqlite_room.th[PREFIX].behaviour.refuse_jobs = frozenset()
    sqlite_room.end(task_id, "completed")
    await sqlite_room.told()
    assert sqlite_room.jobs() == {f"{task_id}/0": ("completed", "success")}


async def test_a_platform_that_this_treeherder_does_not_know_is_skipped(sqlite_url: str) -> None:
    async with only_first(sqlite_url, environment={"platforms": ["linux64"]}) as harness:
        known = harness.create()
        harness.create(extra={"treeherder": {"symbol": "B", "machine": {"platform": "amiga"}}})
        await harness.told()
        assert set(harness.jobs()) == {f"{known}/0"}
        (skipped,) = (each for each in await harness.reports() if each.state == State.SKIPPED)
        assert "amiga" in (skipped.error or "")


@pytest.mark.parametrize("give_up", [9, 0])
async def test_a_report_that_a_bug_trips_over_stands_alone_and_is_given_up_in_the_end(
    sqlite_room: ReportHarness, monkeypatch: pytest.MonkeyPatch, give_up: float
) -> None:
    harness = sqlite_room
    ids = [harness.create() for _ in range(20)]
    make = TreeherderDeliverer._build_job

    def trips(self: TreeherderDeliverer, report: JobReport, *more: Any) -> dict[str, Any]:
        if report.task_id == ids[7]:
            raise ZeroDivisionError
        return make(self, report, *more)

    monkeypatch.setattr(TreeherderDeliverer, "_build_job", trips)
    harness.services.settings.work.give_up = timedelta(seconds=give_up)
    await harness.take_all()
    await harness.report(until_due=1 if give_up else 0)
    assert set(harness.jobs()) == {f"{each}/0" for each in ids if each != ids[7]}
    assert [letter.reason.split(";")[0].split(": ", 1)[1] for letter in await harness.letters()] == (
        [] if give_up else ["internal error: ZeroDivisionError"]
    )


# --- away ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"down": 5}, {"down": 5, "down_how": "drop"}, {"too_many": 5}, {"fail_after": 3}])
async def test_a_treeherder_that_is_away_for_a_while(harness: ReportHarness, how: dict[str, Any]) -> None:
    behaviour = harness.th[PREFIX].behaviour
    for name, value in how.items():
        setattr(behaviour, name, value)
    ids = [harness.create() for _ in range(3)]
    for task_id in ids:
        harness.end(task_id, "failed")
    await harness.told()
    assert harness.jobs() == {f"{task_id}/0": ("completed", "testfailed") for task_id in ids}
    assert await harness.letters() == []


async def test_an_outage_costs_one_request_a_pause_however_much_waits(sqlite_url: str) -> None:
    async with only_first(sqlite_url, reports={"batch": 10, "max_pause": 0.3}) as harness:
        for _ in range(100):
            harness.create()
        harness.th[PREFIX].behaviour.down = -1
        await harness.take_all()
        reporter = Reporter(harness.services)
        running = asyncio.create_task(reporter.run())
        await asyncio.sleep(1.5)
        assert sum(harness.th[PREFIX].counters.values()) <= 14, harness.th[PREFIX].counters
        await until(lambda: sum(harness.th[PREFIX].counters.values()) >= 3)
        harness.th[PREFIX].behaviour.down = 0
        reporter.stop()
        await running
        await harness.report()
        assert len(harness.jobs()) == 100


async def test_retry_after_is_obeyed(sqlite_room: ReportHarness) -> None:
    harness = sqlite_room
    harness.th[PREFIX].behaviour.retry_after = True
    harness.th[PREFIX].behaviour.too_many = 1
    harness.create()
    await harness.take_all()
    reporter = Reporter(harness.services)
    running = asyncio.create_task(reporter.run())
    await asyncio.sleep(0.5)
    reporter.stop()
    await running
    assert harness.th[PREFIX].counters["POST jobs 429"] == 1
    (report,) = await harness.reports()
    assert report.due_at is not None
    assert report.due_at > now() + timedelta(seconds=55)
    async with harness.database.reading() as session:
        bucket = (await session.exec(select(Budget))).one()
    assert bucket.blocked_until is not None
    assert bucket.blocked_until > now() + timedelta(seconds=55)


async def test_taskcluster_away_delays_and_loses_nothing(sqlite_room: ReportHarness) -> None:
    sqlite_room.tc.faults.add("before", "tasks", times=3)
    task_id = sqlite_room.create()
    await sqlite_room.told()
    assert sqlite_room.jobs() == {f"{task_id}/0": ("pending", "unknown")}


async def test_given_up_after_a_day(sqlite_room: ReportHarness) -> None:
    sqlite_room.th[PREFIX].behaviour.down = -1
    sqlite_room.create()
    await sqlite_room.take_all()
    async with sqlite_room.database.writing() as session:
        await session.exec(update(JobReport).values(since=now() - timedelta(days=2)))
    sqlite_room.services.settings.reports.push_wait = timedelta(days=9)
    await sqlite_room.report()
    (letter,) = await sqlite_room.letters()
    assert "503" in letter.reason
    assert "given up" in letter.reason


# --- pushes ----------------------------------------------------------------------------------------------------------

OTHER = "c3" * 20


async def test_a_job_of_a_push_that_treeherder_does_not_know_waits_for_it(harness: ReportHarness) -> None:
    harness.th[PREFIX].behaviour.unknown_push = "drop"  # a 200 proves nothing
    task_id = harness.create(routes=[f"{PREFIX}.v2.mc.{OTHER}"])
    await harness.take_all()
    reporter = Reporter(harness.services)
    running = asyncio.create_task(reporter.run())
    async with asyncio.timeout(10):
        while f"no push {OTHER} of mc" not in ((await harness.reports())[0].error or ""):  # noqa: ASYNC110 - a row in a table
            await asyncio.sleep(0.01)
    assert harness.posts() == 0
    harness.th[PREFIX].store.store_resultsets("mc", [resultset("mc", OTHER)])
    await until(lambda: harness.jobs() == {f"{task_id}/0": ("pending", "unknown")})
    asked = harness.th[PREFIX].counters["GET resultset 200"]
    harness.end(task_id, "completed")
    await harness.take_all()
    await until(lambda: harness.jobs() == {f"{task_id}/0": ("completed", "success")})
    assert harness.th[PREFIX].counters["GET resultset 200"] == asked, "what is known is not asked again"
    reporter.stop()
    await running


async def test_after_an_hour_without_its_push_a_report_is_buried(sqlite_url: str) -> None:
    async with only_first(sqlite_url, reports={"push_wait": 0.3}) as harness:
        harness.create(routes=[f"{PREFIX}.v2.mc.{OTHER}"])
        await harness.told()
        (letter,) = await harness.letters()
        assert f"no push {OTHER} of mc" in letter.reason
        assert "0:00:00.3" in letter.reason


async def test_a_project_that_treeherder_does_not_know_is_buried_after_an_hour(sqlite_url: str) -> None:
    async with only_first(sqlite_url, reports={"push_wait": 0.3}) as harness:
        harness.create(routes=[f"{PREFIX}.v2.nowhere.{OTHER}"])
        fine = harness.create()
        await harness.told()
        (letter,) = await harness.letters()
        assert "No project with name nowhere" in letter.reason
        assert set(harness.jobs()) == {f"{fine}/0"}, "another project does not wait for it"


async def test_an_outage_does_not_count_for_the_hour(sqlite_url: str) -> None:
    async with only_first(sqlite_url, reports={"push_wait": 0.6, "max_pause": 0.05}) as harness:
        harness.create(routes=[f"{PREFIX}.v2.mc.{OTHER}"])
        await harness.take_all()
        async with harness.database.writing() as session:
            await session.exec(update(JobReport).values(since=now() - timedelta(hours=2)))
        harness.th[PREFIX].behaviour.down = -1
        reporter = Reporter(harness.services)
        running = asyncio.create_task(reporter.run())
        await asyncio.sleep(0.5)
        assert await harness.letters() == [], "nobody has said that there is no such push"
        harness.th[PREFIX].behaviour.down = 0
        await until(lambda: harness.th[PREFIX].counters["GET resultset 200"] > 0)
        await asyncio.sleep(0.1)
        assert await harness.letters() == [], "the hour has only begun"
        await asyncio.sleep(0.1)
        reporter.stop()
        await running
        await harness.report()
        (letter,) = await harness.letters()
        assert f"no push {OTHER} of mc" in letter.reason


async def test_another_outage_begins_the_hour_anew(sqlite_url: str) -> None:
    async with only_first(sqlite_url, reports={"max_pause": 0.01}) as harness:
        harness.create(routes=[f"{PREFIX}.v2.mc.{OTHER}"])
        await harness.take_all()
        for down, waits in ((0, True), (-1, False)):
            harness.th[PREFIX].behaviour.down = down
            reporter = Reporter(harness.services)
            running = asyncio.create_task(reporter.run())
            await until(lambda: sum(harness.th[PREFIX].counters.values()) > 0)
            await asyncio.sleep(0.1)
            reporter.stop()
            await running
            (report,) = await harness.reports()
            assert (report.no_push_since is not None) == waits
            harness.th[PREFIX].counters.clear()


async def test_a_push_that_we_are_about_to_create_is_not_given_up_after_an_hour(sqlite_url: str) -> None:
    async with only_first(sqlite_url, reports={"push_wait": 0}) as harness:
        tip, _ = await own_push(harness)
        task_id = harness.create(routes=[f"{PREFIX}.v2.mc.{tip}"])
        await harness.take_all()
        reporter = Reporter(harness.services)
        running = asyncio.create_task(reporter.run())
        await asyncio.sleep(0.3)
        assert await harness.letters() == []
        await create_resultset(harness)
        await until(lambda: bool(harness.jobs()))
        reporter.stop()
        await running
        assert set(harness.jobs()) == {f"{task_id}/0"}


async def own_push(harness: ReportHarness, alias: str = "mc") -> tuple[str, str]:
    """A push of ours whose resultset is not there yet: its revision and revision_hash."""
    await add_repository(harness.database, alias)
    async with harness.database.writing() as session:
        await store(session, harness.services.settings, [push_event(1, alias=alias)])
    async with harness.database.reading() as session:
        push = (await session.exec(select(Push))).one()
    return push.revision or "", push.revision_hash


async def create_resultset(harness: ReportHarness) -> None:
    async with harness.database.writing() as session:
        (step,) = await claim(session, PushStep, f"resultset {PREFIX}", 1, timedelta(seconds=30))
    assert step.kind == StepKind.RESULTSET
    await post_resultset(harness.services, Lease(harness.database, harness.services.settings.work, step))


@pytest.mark.parametrize("version", [1, 2])
async def test_a_job_of_our_own_push_waits_until_we_have_created_it(harness: ReportHarness, version: int) -> None:
    harness.services.settings.reports.max_pause = timedelta(hours=1)
    harness.services.settings.work.first_retry = harness.services.settings.work.max_retry = timedelta(hours=1)
    tip, revision_hash = await own_push(harness)
    assert tip == node("mc 1")
    task_id = harness.create(routes=[f"{PREFIX}.mc.{revision_hash}" if version == 1 else f"{PREFIX}.v2.mc.{tip}.1"])
    await harness.take_all()
    reporter = Reporter(harness.services)
    running = asyncio.create_task(reporter.run())
    async with asyncio.timeout(10):
        while "about to create it" not in ((await harness.reports())[0].error or ""):  # noqa: ASYNC110 - a row tells nobody
            await asyncio.sleep(0.01)
    assert harness.th[PREFIX].counters["GET resultset 200"] == 0, "nobody needs to be asked"
    await create_resultset(harness)
    # it was to be tried again in an hour; the resultset makes it due
    await until(lambda: bool(harness.jobs()))
    reporter.stop()
    await running
    assert harness.jobs() == {f"{task_id}/0": ("pending", "unknown")}


async def test_a_v1_route_of_a_push_of_others_is_found_by_its_hash(sqlite_room: ReportHarness) -> None:
    revision_hash = resultset("mc")["revision_hash"]
    task_id = sqlite_room.create(routes=[f"{PREFIX}.mc.{revision_hash}"])
    await sqlite_room.told()
    assert sqlite_room.jobs() == {f"{task_id}/0": ("pending", "unknown")}
    (job,) = sqlite_room.th[PREFIX].store.jobs.values()
    assert job.push.revision == revision("mc")


async def test_routes_that_disagree_about_our_own_push_are_refused(sqlite_room: ReportHarness) -> None:
    tip, revision_hash = await own_push(sqlite_room)
    sqlite_room.create(routes=[f"{PREFIX}.v2.mc.{tip}.1", f"{PREFIX}.mc.{'d' * 40}"])
    await create_resultset(sqlite_room)
    await sqlite_room.told()
    (report,) = await sqlite_room.reports()
    assert report.state == State.SKIPPED
    assert revision_hash in (report.error or "")


@pytest.mark.parametrize("unknown", ["drop", "error"])
@pytest.mark.parametrize("year", SUBMISSION)
async def test_each_year_of_the_submission_shows_our_pushes_and_those_of_others(
    sqlite_room: ReportHarness, year: Year, unknown: Any
) -> None:
    harness = sqlite_room
    behaviour = harness.th[PREFIX].behaviour
    behaviour.year, behaviour.unknown_push = year, unknown
    tip, revision_hash = await own_push(harness)
    theirs = resultset("mc")["revision_hash"]
    routes = [f"v2.mc.{tip}.1", f"v2.mc.{tip}.", f"mc.{revision_hash}", f"v2.mc.{revision('mc')}", f"mc.{theirs}"]
    ids = [harness.create(routes=[f"{PREFIX}.{each}"]) for each in routes]
    await create_resultset(harness)
    await harness.told()
    for task_id in ids:
        harness.claim(task_id)
    await harness.told()
    assert harness.jobs() == {f"{task_id}/0": ("running", "unknown") for task_id in ids}
    for task_id in ids:
        upload(harness, task_id, "public/a.txt")
        harness.tc.queue.report_completed(task_id, 0)
    await harness.told()
    assert harness.jobs() == {f"{task_id}/0": ("completed", "success") for task_id in ids}
    assert harness.th[PREFIX].store.dropped_jobs == 0
    tips = {job.push.revision for job in harness.th[PREFIX].store.jobs.values()}
    assert tips == {tip, revision("mc")}
    for task_id in ids:
        assert [text for _, text in harness.links(task_id)] == [task_id, "a.txt"]


# --- links -----------------------------------------------------------------------------------------------------------


def upload(harness: ReportHarness, task_id: str, *names: str) -> None:
    for name in names:
        harness.tc.artifacts.store(task_id, 0, name, b"x")


async def test_a_finished_run_is_posted_once_with_all_that_it_uploaded(harness: ReportHarness) -> None:
    task_id = harness.create()
    await harness.told()
    harness.claim(task_id)
    await harness.told()
    assert harness.links(task_id) == [], "a Treeherder may keep the first links that it is told, and no others"
    names = [f"public/{n:04}.txt" for n in range(1_200)]
    upload(harness, task_id, *names, "public/x/0001.txt", "public/test_info/mochitest_errorsummary.log")
    harness.tc.queue.report_failed(task_id, 0)
    await harness.told()
    links = harness.links(task_id)
    root = harness.services.settings.taskcluster.root
    assert links[0] == (f"{root}/tasks/{task_id}/runs/0", task_id)
    assert len(links) == 1 + 1_202, "all pages"
    assert "0001-2.txt" in [text for _, text in links]
    assert harness.tc.journal.calls["listArtifacts"] == 2
    assert harness.posts() == 3, "pending, running, and one that has it all"
    job = harness.job(task_id)
    assert [log["name"] for log in job["log_references"]] == ["builds-4h", "errorsummary_json"]
    assert job["log_references"][1]["url"].endswith(
        f"/{task_id}/runs/0/artifacts/public/test_info/mochitest_errorsummary.log"
    )
    assert (job["taskcluster_task_id"], job["taskcluster_retry_id"]) == (task_id, 0)
    assert {each.state for each in await harness.reports()} == {State.DONE}


async def test_a_colour_waits_for_links_no_longer_than_it_may(sqlite_url: str) -> None:
    async with only_first(sqlite_url, reports={"links_wait": 0.2}) as harness:
        ids = [harness.create() for _ in range(3)]
        for task_id in ids:
            harness.claim(task_id)
            upload(harness, task_id, "public/a.txt")
            harness.tc.queue.report_completed(task_id, 0)
        harness.tc.faults.add("delay", "listArtifacts", seconds=30.0)
        await harness.take_all()
        began = time.monotonic()
        await harness.report()
        assert 0.2 < time.monotonic() - began < 5
        assert harness.jobs() == {f"{task_id}/0": ("completed", "success") for task_id in ids}
        assert harness.posts() == 1
        assert [text for _, text in harness.links(ids[0])] == [ids[0]], "the link to the task is known"
        assert await harness.letters() == []


async def test_what_taskcluster_lists_in_time_is_linked(sqlite_url: str) -> None:
    """One run whose list is late takes nothing from the others."""
    async with only_first(sqlite_url, reports={"links_wait": 1}) as harness:
        ids = [harness.create() for _ in range(3)]
        for task_id in ids:
            harness.claim(task_id)
            upload(harness, task_id, "public/a.txt")
            harness.tc.queue.report_completed(task_id, 0)
        harness.tc.faults.add("delay", "listArtifacts", seconds=30.0, times=1)
        await harness.told()
        texts = sorted(len(harness.links(task_id)) for task_id in ids)
        assert texts == [1, 2, 2]


async def test_while_taskcluster_is_slow_others_are_told(sqlite_url: str) -> None:
    async with only_first(sqlite_url, reports={"links_wait": 3, "batch": 1}) as harness:
        slow = [harness.create() for _ in range(4)]
        for task_id in slow:
            harness.claim(task_id)
            harness.tc.queue.report_completed(task_id, 0)
        harness.tc.faults.add("delay", "listArtifacts", seconds=30.0)
        await harness.take_all()
        reporter = Reporter(harness.services)
        running = asyncio.create_task(reporter.run())
        await until(lambda: harness.tc.journal.calls["listArtifacts"] >= 4)
        began = time.monotonic()
        other = harness.create()
        await harness.take_all()
        harness.database.wakeups.wake(Topic.REPORTS)
        await until(lambda: f"{other}/0" in harness.jobs())
        assert time.monotonic() - began < 2
        assert set(harness.jobs()) == {f"{other}/0"}
        await until(lambda: len(harness.jobs()) == 5)
        reporter.stop()
        await running


async def test_lists_that_are_refused_cost_nothing_but_the_links(sqlite_room: ReportHarness) -> None:
    sqlite_room.tc.faults.add("before", "listArtifacts")
    task_id = sqlite_room.create()
    sqlite_room.end(task_id, "completed")
    await sqlite_room.told()
    assert sqlite_room.jobs() == {f"{task_id}/0": ("completed", "success")}
    assert await sqlite_room.letters() == []
    assert {each.state for each in await sqlite_room.reports()} == {State.DONE}


async def test_what_was_made_ready_while_treeherder_went_away_waits_for_it(sqlite_url: str) -> None:
    async with only_first(sqlite_url, reports={"batch": 1}) as harness:
        for _ in range(8):
            harness.end(harness.create(), "completed")
        harness.tc.faults.add("delay", "listArtifacts", seconds=0.3)
        await harness.take_all()
        deliverer = TreeherderDeliverer(harness.services, PREFIX)
        harness.th[PREFIX].behaviour.down = -1
        harness.th[PREFIX].behaviour.delay = 0.2
        batches = await asyncio.gather(*(deliverer.deliver([report]) for report in await harness.reports()))
        assert sum(harness.th[PREFIX].counters.values()) == harness.services.settings.reports.at_a_time
        ends = [outcome.end for done in batches for outcome in done.outcomes]
        assert ends == [End.LATER] * 8


async def test_a_task_that_is_not_there_yet_is_asked_for_again(sqlite_room: ReportHarness) -> None:
    harness = sqlite_room
    harness.create()
    await harness.take_all()
    (report,) = await harness.reports()
    task = harness.tc.queue.tasks.pop(report.task_id)
    deliverer = TreeherderDeliverer(harness.services, PREFIX)
    assert [outcome.end for outcome in (await deliverer.deliver([report])).outcomes] == [End.LATER]
    harness.tc.queue.tasks[report.task_id] = task
    assert [outcome.end for outcome in (await deliverer.deliver([report])).outcomes] == [End.DONE]
    del harness.tc.queue.tasks[report.task_id]
    other = TreeherderDeliverer(harness.services, PREFIX)
    ends = [(await other.deliver([report])).outcomes[0].end for _ in range(NEGATIVE_CONFIRMATIONS)]
    assert ends == [End.LATER] * (NEGATIVE_CONFIRMATIONS - 1) + [End.SKIPPED]


async def test_of_any_number_of_artifacts_some_are_linked(
    harness: ReportHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task can upload a million: to read, keep and post them all would hold up everybody's jobs."""
    monkeypatch.setattr("service.flow.jobs.artifacts.MAX_LINKS", 1_100)
    task_id = harness.create()
    harness.claim(task_id)
    upload(harness, task_id, *(f"public/{n:04}.txt" for n in range(2_500)))
    harness.tc.queue.report_completed(task_id, 0)
    await harness.told()
    assert len(harness.links(task_id)) == 1 + 1_100
    assert harness.tc.journal.calls["listArtifacts"] == 2, "not the third page"


async def test_links_can_be_left_out(sqlite_url: str) -> None:
    async with only_first(sqlite_url, environment={"artifact_links": False}) as harness:
        harness.end(harness.create(), "completed")
        await harness.told()
        assert harness.tc.journal.calls["listArtifacts"] == 0


# --- jobs: pulse, jobs: off ------------------------------------------------------------------------------------------


async def test_jobs_are_published_for_whoever_reads_them(sqlite_url: str, amqp: Amqp) -> None:
    user = f"{amqp.user}/{amqp.name}"
    exchange = f"exchange/{user}/v1/jobs"
    amqp.exchanges.add(exchange)
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange, "topic", durable=True)
        channel.queue_declare(amqp.queue())
        channel.queue_bind(amqp.queue(), exchange, f"{PREFIX}.mc._")
        pulse = {"url": amqp.url, "user": user}
        async with only_first(sqlite_url, environment={"jobs": "pulse"}, pulse=pulse) as harness:
            task_id = harness.create(routes=[f"{PREFIX}.v2.mc.{OTHER}"])  # nobody is asked for its push
            harness.claim(task_id)
            upload(harness, task_id, "public/a.txt")
            harness.tc.queue.report_failed(task_id, 0)
            await harness.told()
            assert sum(harness.th[PREFIX].counters.values()) == 0
            assert {each.state for each in await harness.reports()} == {State.DONE}
        messages = []
        while (body := channel.basic_get(amqp.queue(), auto_ack=True)[2]) is not None:
            messages.append(json.loads(body))
    (job,) = messages
    check_pulse(job)
    assert job["taskId"] == job_guid(task_id, 0)
    assert (job["state"], job["result"]) == ("completed", "fail")
    assert job["origin"] == {"kind": "hg.mozilla.org", "project": "mc", "revision": OTHER}
    assert job["logs"][0]["name"] == "live_backing_log"
    assert [link["linkText"] for link in job["jobInfo"]["links"]] == [task_id, "a.txt"]


async def test_a_job_that_no_queue_takes_waits_until_somebody_listens(sqlite_url: str, amqp: Amqp) -> None:
    user = f"{amqp.user}/{amqp.name}"
    amqp.exchanges |= {f"exchange/{user}/v1/{name}" for name in ("jobs", "pushes", "retrigger")}
    pulse = {"url": amqp.url, "user": user}
    async with only_first(sqlite_url, environment={"jobs": "pulse"}, pulse=pulse) as harness:
        harness.create()
        await harness.take_all()
        (report,) = await harness.reports()
        (outcome,) = (await TreeherderDeliverer(harness.services, PREFIX).deliver([report])).outcomes
        assert outcome.end == End.LATER
        assert f"no queue is bound to exchange/{user}/v1/jobs for '{PREFIX}.mc._'" in (outcome.reason or "")
        with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
            channel = connection.channel()
            channel.queue_declare(amqp.queue())
            channel.queue_bind(amqp.queue(), f"exchange/{user}/v1/jobs", "#")
        (outcome,) = (await TreeherderDeliverer(harness.services, PREFIX).deliver([report])).outcomes
        assert outcome.end == End.DONE


async def test_a_job_by_pulse_names_a_revision_and_never_a_hash(sqlite_url: str, unused_tcp_port: int) -> None:
    pulse = {"url": f"amqp://127.0.0.1:{unused_tcp_port}", "user": "x", "timeout": 0.5}
    reports = {"push_wait": 0}
    async with only_first(sqlite_url, environment={"jobs": "pulse"}, pulse=pulse, reports=reports) as harness:
        harness.create(routes=[f"{PREFIX}.mc.{OTHER}"])
        await harness.told()
        (letter,) = await harness.letters()
        assert f"this service has no push in mc with the hash {OTHER}" in letter.reason


async def test_a_broker_that_is_away_delays_and_loses_nothing(sqlite_url: str, unused_tcp_port: int) -> None:
    pulse = {"url": f"amqp://127.0.0.1:{unused_tcp_port}", "user": "x", "timeout": 0.5}
    async with only_first(sqlite_url, environment={"jobs": "pulse"}, pulse=pulse) as harness:
        harness.create()
        await harness.take_all()
        reporter = Reporter(harness.services)
        running = asyncio.create_task(reporter.run())
        await asyncio.sleep(0.5)
        reporter.stop()
        await running
        (report,) = await harness.reports()
        assert report.due_at is not None
        assert "pulse" in (report.error or "") or "v1/jobs" in (report.error or "")


async def test_a_treeherder_that_reads_the_exchanges_itself_is_told_nothing(sqlite_url: str) -> None:
    async with newsroom(sqlite_url, environment={"jobs": "off"}) as harness:
        harness.create()
        await harness.told()
        assert await harness.reports() == []


# --- budget and turns ------------------------------------------------------------------------------------------------


async def test_the_budget_holds_for_all_replicas_and_treeherder_never_throttles(database_url: str) -> None:
    limit = 60
    async with only_first(database_url, environment={"jobs_per_minute": limit}, reports={"batch": 2}) as harness:
        for _ in range(8):
            harness.create()
        await harness.take_all()
        began = time.monotonic()
        others = [Reporter(harness.services) for _ in range(2)]
        running = [asyncio.create_task(other.run()) for other in others]
        await harness.report()
        for other in others:
            other.stop()
        await asyncio.gather(*running)
        assert len(harness.jobs()) == 8
        assert harness.posts() == 4
        # one request is in the bucket, the others come at one a second
        assert time.monotonic() - began > 2.5


@pytest.mark.parametrize("limit", [100, 220, 1000])
@pytest.mark.parametrize("late", [0, 2, 10])
def test_the_rate_leaves_room_for_a_full_bucket_and_late_requests_at_the_start_of_a_minute(
    limit: int, late: int
) -> None:
    environment = Environment(
        url="https://th.example.com",
        client_id="me",
        secret="hush",
        jobs_per_minute=limit,
    )
    _, rate = jobs_budget(environment, timedelta(seconds=late))
    assert (60 + late) * rate + burst(rate) <= limit + 0.02


async def test_the_fullest_project_first_and_each_within_its_turn(sqlite_url: str) -> None:
    async with only_first(sqlite_url, reports={"turn": 1, "gather": 0.1}) as harness:
        desk = EnvironmentReporter(harness.services, PREFIX, TreeherderDeliverer(harness.services, PREFIX))
        small, large = f"job {PREFIX} try", f"job {PREFIX} mc"
        at = time.monotonic()
        desk._served = {small: at - 0.5, large: at - 0.5}
        assert desk._next({small: 1, large: 500})[0] == large
        desk._served[small] = at - 1.5
        assert desk._next({small: 1, large: 500})[0] == small
        desk._served = {small: at, large: at}
        lane, pause = desk._next({small: 1})
        assert lane is None
        assert 0 < pause <= 0.1
        assert desk._next({small: 1, large: 200})[0] == large, "a full batch does not wait"


async def test_projects_take_turns(sqlite_room: ReportHarness) -> None:
    sqlite_room.services.settings.reports.batch = 5
    for _ in range(20):
        sqlite_room.create()
    last = sqlite_room.create(routes=[route(PREFIX, "try")])
    await sqlite_room.told()
    assert sqlite_room.jobs()[f"{last}/0"] == ("pending", "unknown")
    assert len(sqlite_room.jobs()) == 21


# --- restarts --------------------------------------------------------------------------------------------------------


async def test_what_a_dead_holder_had_is_done_by_another(harness: ReportHarness) -> None:
    harness.services.settings.work.lease = timedelta(seconds=0.3)
    task_id = harness.create()
    await harness.take_all()
    async with harness.database.writing() as session:
        held = await leases.claim(session, JobReport, f"job {PREFIX} mc", 10, timedelta(seconds=0.3))
    assert len(held) == 1  # and its holder is never heard of again
    await harness.report()
    assert harness.jobs() == {f"{task_id}/0": ("pending", "unknown")}


async def test_stopping_gives_back_what_takes_too_long(sqlite_room: ReportHarness) -> None:
    sqlite_room.services.settings.work.drain = timedelta(seconds=0.1)
    sqlite_room.th[PREFIX].behaviour.delay = 2
    sqlite_room.create()
    await sqlite_room.take_all()
    reporter = Reporter(sqlite_room.services)
    running = asyncio.create_task(reporter.run())
    await asyncio.sleep(0.3)
    reporter.stop()
    async with asyncio.timeout(2):
        await running
    (report,) = await sqlite_room.reports()
    assert report.due_at is not None
    assert report.due_at <= now()
