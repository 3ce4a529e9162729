"""Facts of tasks: definitions that are missing, too large or not shown, and a Taskcluster that is away."""

import pytest

from service.clients import taskcluster
from service.engine.batches import End
from service.flow.jobs.deliver import TreeherderDeliverer
from service.flow.jobs.facts_lookup import NEGATIVE_CONFIRMATIONS
from service.store.models import State
from tests.service.flow.report_harness import PREFIX, ReportHarness
from tests.service.flow.single_treeherder import open_single_treeherder


@pytest.mark.parametrize("limit", ["MAX_MEMBERS", "MAX_ANSWER"])
async def test_a_task_that_is_too_large_to_be_read_hides_no_others(
    sqlite_harness: ReportHarness, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Its definition is answered with those of others, and takes the memory of all that it holds."""
    monkeypatch.setattr(taskcluster, limit, 20_000)
    ids = [sqlite_harness.create() for _ in range(5)]
    bomb = sqlite_harness.create(payload={"a": [{}] * 15_000})
    ids += [sqlite_harness.create() for _ in range(5)]
    await sqlite_harness.deliver_all()
    assert set(sqlite_harness.jobs()) == {f"{task_id}/0" for task_id in ids}
    (skipped,) = (report for report in await sqlite_harness.reports() if report.task_id == bomb)
    assert skipped.state == State.SKIPPED
    assert "its definition is too large: Taskcluster answers more than 20,000" in str(skipped.error)


async def test_a_platform_that_this_treeherder_does_not_know_is_skipped(sqlite_url: str) -> None:
    async with open_single_treeherder(sqlite_url, environment={"platforms": ["linux64"]}) as harness:
        task_id = harness.create()
        harness.create(extra={"treeherder": {"symbol": "B", "machine": {"platform": "amiga"}}})
        await harness.deliver_all()
        assert set(harness.jobs()) == {f"{task_id}/0"}
        (skipped,) = (report for report in await harness.reports() if report.state == State.SKIPPED)
        assert "amiga" in (skipped.error or "")


async def test_taskcluster_away_delays_and_loses_nothing(sqlite_harness: ReportHarness) -> None:
    sqlite_harness.tc.faults.add("before", "tasks", times=3)
    task_id = sqlite_harness.create()
    await sqlite_harness.deliver_all()
    assert sqlite_harness.jobs() == {f"{task_id}/0": ("pending", "unknown")}


async def test_a_task_that_is_not_there_yet_is_asked_for_again(sqlite_harness: ReportHarness) -> None:
    harness = sqlite_harness
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
