"""The list of job reports."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text

from service.clock import now
from service.store.models import JobReport, Stage, State
from tests.service.asgi import READER, Api, is_problem, node


def report(number: int, **more: Any) -> JobReport:
    values: dict[str, Any] = {
        "task_id": f"{number:021d}A",
        "run_id": 0,
        "environment": "tc-treeherder",
        "project": "mc",
        "revision": node(number),
        "task_group_id": "G" * 22,
        "stage": Stage.RUNNING,
        "run": {},
        "lane": "job tc-treeherder mc",
    }
    return JobReport(**{**values, **more})


ENDED: dict[str, Any] = {"due_at": None, "stage": Stage.FOLLOWED}


async def stored(api: Api) -> list[int]:
    """One that waits, one that waits for its push, one of each end; their ids."""
    since = now() - timedelta(minutes=20)
    reports = [
        report(0),
        report(1, no_push_since=since, since=since, error="Treeherder does not know the push", attempts=4),
        report(2, state=State.DONE, delivered=Stage.RESOLVED, **ENDED),
        report(3, state=State.SKIPPED, error="no such task", **ENDED),
        report(4, state=State.FAILED, error="refused", **ENDED),
    ]
    async with api.database.writing() as session:
        session.add_all(reports)
    return [report.id or 0 for report in reports]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [4, 3, 2, 1, 0]),
        ("?state=pending", [1, 0]),
        ("?state=done", [2]),
        ("?state=skipped", [3]),
        ("?state=failed", [4]),
        ("?waiting=push", [1]),
        ("?waiting=push&state=pending", [1]),
        ("?waiting=push&state=failed", []),
    ],
)
async def test_they_are_found_by_state_and_by_what_they_wait_for(api: Api, query: str, expected: list[int]) -> None:
    ids = await stored(api)
    answer = await api.get(f"/reports{query}", token=READER)
    assert answer.status_code == 200, answer.text
    assert [each["id"] for each in answer.json()["items"]] == [ids[number] for number in expected]


async def test_a_report_says_what_it_is_about_and_since_when_it_waits(sqlite_api: Api) -> None:
    await stored(sqlite_api)
    ((waiting,), (done,)) = [
        (await sqlite_api.get(f"/reports?{query}")).json()["items"] for query in ("waiting=push", "state=done")
    ]
    expected = {
        "task_id": f"{1:021d}A",
        "run_id": 0,
        "environment": "tc-treeherder",
        "project": "mc",
        "revision": node(1),
        "revision_hash": None,
        "stage": "running",
        "told": None,
        "state": "pending",
        "error": "Treeherder does not know the push",
        "attempts": 4,
    }
    assert {name: waiting[name] for name in expected} == expected
    assert waiting["no_push_since"] == waiting["waiting_since"]
    assert waiting["next_attempt_at"] is not None
    assert (done["stage"], done["told"], done["waiting_since"]) == ("resolved", "resolved", None)


async def test_it_comes_in_pages(api: Api) -> None:
    ids = await stored(api)
    seen, after = [], None
    while True:
        page = (await api.get("/reports", params={"limit": 2, **({"after": after} if after else {})})).json()
        seen += [each["id"] for each in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert seen == ids[::-1]


@pytest.mark.parametrize("query", ["state=rejected", "state=", "waiting=task", "waiting=", "limit=0", "after=x"])
async def test_what_it_does_not_know_is_422(sqlite_api: Api, query: str) -> None:
    is_problem(await sqlite_api.get(f"/reports?{query}"), 422, query.partition("=")[0])


async def test_who_may_not_read_gets_nothing(sqlite_api: Api) -> None:
    is_problem(await sqlite_api.get("/reports", token=None), 401)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("state=failed", "ix_job_report_failed"),
        ("state=skipped", "ix_job_report_failed"),
        ("waiting=push", "ix_job_report_no_push"),
        ("state=pending", ""),
        ("", ""),
    ],
)
async def test_no_filter_reads_the_whole_table(api: Api, query: str, index: str) -> None:
    asked: list[tuple[str, Any]] = []
    event.listen(api.database.engine.sync_engine, "before_cursor_execute", lambda *a: asked.append((a[2], a[3])))
    assert (await api.get(f"/reports?{query}")).status_code == 200
    ((statement, values),) = [(statement, values) for statement, values in asked if "FROM job_report" in statement]
    explain = "EXPLAIN QUERY PLAN" if api.database.sqlite else "EXPLAIN"
    async with api.database.engine.connect() as connection:
        if not api.database.sqlite:
            await connection.execute(text("SET enable_seqscan = off"))
            await connection.execute(text("SET enable_bitmapscan = off"))
            await connection.execute(text("SET enable_sort = off"))
        plan = str((await connection.exec_driver_sql(f"{explain} {statement}", values)).all())
    assert "Seq Scan" not in plan
    assert "TEMP B-TREE" not in plan
    assert index in plan
