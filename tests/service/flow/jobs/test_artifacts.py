"""Artifacts of ended runs: linked in time, or left out."""

import asyncio
import time

import pytest

from service.engine.reporter import Reporter
from service.store.models import State
from service.store.wakeups import Topic
from tests.service.flow.report_harness import ReportHarness
from tests.service.flow.single_treeherder import open_single_treeherder, until, upload


async def test_a_finished_run_is_posted_once_with_all_that_it_uploaded(harness: ReportHarness) -> None:
    task_id = harness.create()
    await harness.deliver_all()
    harness.claim(task_id)
    await harness.deliver_all()
    assert harness.links(task_id) == [], "a Treeherder may keep the first links that it is told, and no others"
    names = [f"public/{n:04}.txt" for n in range(1_200)]
    upload(harness, task_id, *names, "public/x/0001.txt", "public/test_info/mochitest_errorsummary.log")
    harness.tc.queue.report_failed(task_id, 0)
    await harness.deliver_all()
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
    assert {report.state for report in await harness.reports()} == {State.DONE}


async def test_a_colour_waits_for_links_no_longer_than_it_may(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, reports={"links_wait": 0.2}) as harness:
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
        assert await harness.dead_letters() == []


async def test_what_taskcluster_lists_in_time_is_linked(sqlite_url: str) -> None:
    """One run whose list is late takes nothing from the others."""
    async with open_single_treeherder(sqlite_url, reports={"links_wait": 1}) as harness:
        ids = [harness.create() for _ in range(3)]
        for task_id in ids:
            harness.claim(task_id)
            upload(harness, task_id, "public/a.txt")
            harness.tc.queue.report_completed(task_id, 0)
        harness.tc.faults.add("delay", "listArtifacts", seconds=30.0, times=1)
        await harness.deliver_all()
        texts = sorted(len(harness.links(task_id)) for task_id in ids)
        assert texts == [1, 2, 2]


async def test_while_taskcluster_is_slow_others_are_told(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, reports={"links_wait": 3, "batch": 1}) as harness:
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


async def test_lists_that_are_refused_cost_nothing_but_the_links(sqlite_harness: ReportHarness) -> None:
    sqlite_harness.tc.faults.add("before", "listArtifacts")
    task_id = sqlite_harness.create()
    sqlite_harness.end(task_id, "completed")
    await sqlite_harness.deliver_all()
    assert sqlite_harness.jobs() == {f"{task_id}/0": ("completed", "success")}
    assert await sqlite_harness.dead_letters() == []
    assert {report.state for report in await sqlite_harness.reports()} == {State.DONE}


async def test_of_any_number_of_artifacts_some_are_linked(
    harness: ReportHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task can upload a million artifacts; to read and post them all would delay all other jobs."""
    monkeypatch.setattr("service.flow.jobs.artifacts.MAX_LINKS", 1_100)
    task_id = harness.create()
    harness.claim(task_id)
    upload(harness, task_id, *(f"public/{n:04}.txt" for n in range(2_500)))
    harness.tc.queue.report_completed(task_id, 0)
    await harness.deliver_all()
    assert len(harness.links(task_id)) == 1 + 1_100
    assert harness.tc.journal.calls["listArtifacts"] == 2, "not the third page"


async def test_links_can_be_left_out(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, environment={"artifact_links": False}) as harness:
        harness.end(harness.create(), "completed")
        await harness.deliver_all()
        assert harness.tc.journal.calls["listArtifacts"] == 0
