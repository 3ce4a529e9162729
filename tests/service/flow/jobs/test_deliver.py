"""Delivery to a Treeherder that refuses, is away, throttles, or does not know the push; links; the shared budget."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pika
import pytest

from sandbox.treeherder.behaviour import SUBMISSION, Year
from service.engine.batches import End
from service.engine.reporter import Reporter
from service.flow.jobs.deliver import TreeherderDeliverer
from service.flow.jobs.run import job_guid
from service.store.models import JobReport, State
from service.store.wakeups import Topic
from tests.service.flow.jobs.report_factory import check_pulse
from tests.service.flow.report_harness import PREFIX, ReportHarness, open_report_harness, resultset, revision
from tests.service.flow.single_treeherder import OTHER, create_resultset, open_single_treeherder, own_push, upload
from tests.services import Amqp

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
        return len(await harness.dead_letters()) == 1

    await go_on_until(harness, buried)
    assert {f"{task_id}/0" for task_id in ids} - set(harness.jobs()) == {f"{ids[17]}/0"}
    (letter,) = await harness.dead_letters()
    assert letter.kind == "job-report"
    assert ids[17] in letter.subject
    assert bad in letter.reason, "the answer says which and why"
    (report,) = (report for report in await harness.reports() if report.task_id == ids[17])
    assert report.state == State.FAILED
    assert report.id == letter.report_id


async def test_several_bad_jobs_among_many(sqlite_harness: ReportHarness) -> None:
    ids = [sqlite_harness.create() for _ in range(60)]
    bad = {ids[n] for n in (0, 1, 29, 30, 59)}
    sqlite_harness.th[PREFIX].behaviour.refuse_jobs = frozenset(job_guid(task_id, 0) for task_id in bad)
    await sqlite_harness.deliver_all()
    assert set(sqlite_harness.jobs()) == {f"{task_id}/0" for task_id in set(ids) - bad}
    assert len(await sqlite_harness.dead_letters()) == len(bad)


async def test_bad_jobs_that_are_answered_500_do_not_keep_the_good_ones_back(sqlite_harness: ReportHarness) -> None:
    harness = sqlite_harness
    ids = [harness.create() for _ in range(64)]
    bad = {*ids[8:14], ids[20], ids[40], ids[63]}
    harness.th[PREFIX].behaviour.refuse_jobs = frozenset(job_guid(task_id, 0) for task_id in bad)
    harness.th[PREFIX].behaviour.bad_job_status = 500
    await harness.take_all()
    await harness.report(until_due=len(bad))
    assert set(harness.jobs()) == {f"{task_id}/0" for task_id in set(ids) - bad}
    assert await harness.dead_letters() == [], "none of them has been tried often enough"


async def test_a_later_event_of_a_buried_report_is_tried_again(sqlite_harness: ReportHarness) -> None:
    task_id = sqlite_harness.create()
    sqlite_harness.th[PREFIX].behaviour.refuse_jobs = frozenset({job_guid(task_id, 0)})
    await sqlite_harness.deliver_all()
    sqlite_harness.th[PREFIX].behaviour.refuse_jobs = frozenset()
    sqlite_harness.end(task_id, "completed")
    await sqlite_harness.deliver_all()
    assert sqlite_harness.jobs() == {f"{task_id}/0": ("completed", "success")}


@pytest.mark.parametrize("give_up", [9, 0])
async def test_a_report_that_a_bug_trips_over_stands_alone_and_is_given_up_in_the_end(
    sqlite_harness: ReportHarness, monkeypatch: pytest.MonkeyPatch, give_up: float
) -> None:
    harness = sqlite_harness
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
    assert set(harness.jobs()) == {f"{task_id}/0" for task_id in ids if task_id != ids[7]}
    assert [letter.reason.split(";")[0].split(": ", 1)[1] for letter in await harness.dead_letters()] == (
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
    await harness.deliver_all()
    assert harness.jobs() == {f"{task_id}/0": ("completed", "testfailed") for task_id in ids}
    assert await harness.dead_letters() == []


# --- pushes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", ["drop", "error"])
@pytest.mark.parametrize("year", SUBMISSION)
async def test_each_year_of_the_submission_shows_our_pushes_and_those_of_others(
    sqlite_harness: ReportHarness, year: Year, unknown: Any
) -> None:
    harness = sqlite_harness
    behaviour = harness.th[PREFIX].behaviour
    behaviour.year, behaviour.unknown_push = year, unknown
    tip, revision_hash = await own_push(harness)
    theirs = resultset("mc")["revision_hash"]
    routes = [f"v2.mc.{tip}.1", f"v2.mc.{tip}.", f"mc.{revision_hash}", f"v2.mc.{revision('mc')}", f"mc.{theirs}"]
    ids = [harness.create(routes=[f"{PREFIX}.{name}"]) for name in routes]
    await create_resultset(harness)
    await harness.deliver_all()
    for task_id in ids:
        harness.claim(task_id)
    await harness.deliver_all()
    assert harness.jobs() == {f"{task_id}/0": ("running", "unknown") for task_id in ids}
    for task_id in ids:
        upload(harness, task_id, "public/a.txt")
        harness.tc.queue.report_completed(task_id, 0)
    await harness.deliver_all()
    assert harness.jobs() == {f"{task_id}/0": ("completed", "success") for task_id in ids}
    assert harness.th[PREFIX].store.dropped_jobs == 0
    tips = {job.push.revision for job in harness.th[PREFIX].store.jobs.values()}
    assert tips == {tip, revision("mc")}
    for task_id in ids:
        assert [text for _, text in harness.links(task_id)] == [task_id, "a.txt"]


# --- links -----------------------------------------------------------------------------------------------------------


async def test_what_was_made_ready_while_treeherder_went_away_waits_for_it(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, reports={"batch": 1}) as harness:
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
        async with open_single_treeherder(sqlite_url, environment={"jobs": "pulse"}, pulse=pulse) as harness:
            task_id = harness.create(routes=[f"{PREFIX}.v2.mc.{OTHER}"])  # nobody is asked for its push
            harness.claim(task_id)
            upload(harness, task_id, "public/a.txt")
            harness.tc.queue.report_failed(task_id, 0)
            await harness.deliver_all()
            assert sum(harness.th[PREFIX].counters.values()) == 0
            assert {report.state for report in await harness.reports()} == {State.DONE}
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
    async with open_single_treeherder(sqlite_url, environment={"jobs": "pulse"}, pulse=pulse) as harness:
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
    async with open_single_treeherder(
        sqlite_url, environment={"jobs": "pulse"}, pulse=pulse, reports=reports
    ) as harness:
        harness.create(routes=[f"{PREFIX}.mc.{OTHER}"])
        await harness.deliver_all()
        (letter,) = await harness.dead_letters()
        assert f"this service has no push in mc with the hash {OTHER}" in letter.reason


async def test_a_broker_that_is_away_delays_and_loses_nothing(sqlite_url: str, unused_tcp_port: int) -> None:
    pulse = {"url": f"amqp://127.0.0.1:{unused_tcp_port}", "user": "x", "timeout": 0.5}
    async with open_single_treeherder(sqlite_url, environment={"jobs": "pulse"}, pulse=pulse) as harness:
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
    async with open_report_harness(sqlite_url, environment={"jobs": "off"}) as harness:
        harness.create()
        await harness.deliver_all()
        assert await harness.reports() == []
