"""Gauges that are read from the database."""

import asyncio
import math
from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlmodel import update

from service.api import gauges
from service.api.gauges import MAX_LABELS
from service.clock import now
from service.flow.pushes.push import store
from service.store.database import Database
from service.store.models import GroupCheck, PulseQueue, PushStep, Repository, State
from tests.service import asgi
from tests.service.asgi import Api, running, settings_for
from tests.service.harness import add_repository, push_event
from tests.service.samples import sample


async def test_waiting_work_is_counted_by_lane_and_gone_when_done(database: Database) -> None:
    await add_repository(database, "mc")
    async with database.writing() as session:
        await store(session, settings_for("sqlite+aiosqlite:///unused"), [push_event(1), push_event(2)])
    lane = "graph hg.mozilla.org"
    assert await sample(database, "work_waiting", work="push_step", lane=lane) == 2
    at = now().timestamp()
    assert at - 60 < await sample(database, "work_oldest_timestamp_seconds", lane=lane) < at
    assert at - 60 < await sample(database, "last_good_poll_timestamp_seconds") < at
    async with database.writing() as session:
        await session.exec(update(PushStep).values(due_at=None, state=State.DONE))
    assert await sample(database, "work_waiting") == 0
    assert await sample(database, "work_oldest_timestamp_seconds") == 0, "there is none"


async def test_a_good_poll_of_no_repository_is_no_time(database: Database) -> None:
    """An alert for old polls must not fire before a repository is monitored."""
    assert math.isnan(await sample(database, "last_good_poll_timestamp_seconds"))


async def test_times_of_queues_and_polls_are_those_of_the_database(database: Database) -> None:
    await add_repository(database, "mc")
    polled, read = now() - timedelta(hours=3), now() - timedelta(hours=2)
    async with database.writing() as session:
        await session.exec(update(Repository).values(last_good_poll_at=polled))
        session.add(PulseQueue(name="q", events="tasks", seen_at=read))
    assert await sample(database, "last_good_poll_timestamp_seconds") == polled.timestamp()
    assert await sample(database, "pulse_queue_read_timestamp_seconds", queue="q") == read.timestamp()


async def test_labels_are_bounded_and_name_no_repository(api: Api) -> None:
    await api.add("top-secret-project")
    await api.push(asgi.push_event(101, alias="top-secret-project"))
    async with api.database.writing() as session:
        for number in range(3):
            lane = f"job tc-treeherder top-secret-project-{number}"
            session.add(GroupCheck(task_group_id="x", lane=lane, since=now() - timedelta(days=1 + number)))
        for number in range(MAX_LABELS + 10):
            session.add(
                GroupCheck(task_group_id="x", lane=f"lane {number} project", since=now() - timedelta(hours=number + 1))
            )
            queue = PulseQueue(name=f"queue {number}", events="tasks", seen_at=now() - timedelta(hours=number))
            session.add(queue)
    answer = await api.call("GET", "/metrics", token=None)
    assert answer.status_code == 200
    assert "top-secret-project" not in answer.text
    (waiting,) = [
        family for family in text_string_to_metric_families(answer.text) if family.name.endswith("work_waiting")
    ]
    checks = {s.labels["lane"]: s.value for s in waiting.samples if s.labels["work"] == "group_check"}
    assert len(checks) == MAX_LABELS + 1
    assert checks["others"] == 11
    assert checks["job tc-treeherder"] == 3
    assert f"lane {MAX_LABELS + 9}" in checks, "what waits longest is named"
    assert answer.text.count('pulse_queue_read_timestamp_seconds{queue="') == MAX_LABELS
    at = now().timestamp()
    assert at - 12 * 3600 < await sample(api.database, "work_oldest_timestamp_seconds", lane="others") <= at - 3600
    assert await sample(api.database, "work_oldest_timestamp_seconds", lane="job tc-treeherder") <= at - 3 * 86_400


async def test_one_request_computes_them_for_all_and_not_again_for_a_while(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = 0
    at_once = 0

    async def compute(_: Database) -> bytes:
        nonlocal computed, at_once
        computed, at_once = computed + 1, at_once + 1
        assert at_once == 1
        await asyncio.sleep(0.01)
        at_once -= 1
        return b"x"

    monkeypatch.setattr(gauges, "exposition", compute)
    for seconds, expected in ((600, 1), (0, 20)):
        computed = 0
        async with running(settings_for(sqlite_url, health_cache=seconds)) as api:
            answers = await asyncio.gather(*(api.call("GET", "/metrics", token=None) for _ in range(20)))
            assert {(answer.status_code, answer.content) for answer in answers} == {(200, b"x")}
        assert computed == expected
