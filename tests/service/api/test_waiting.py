"""What waits in a lane: for which repository, and trying it now."""

from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import select

from service.api import waiting
from service.api.waiting import by_repository, list_pieces, try_now, work_table
from service.auth import Caller
from service.clock import now
from service.engine.registry import WORK
from service.errors import Problem
from service.store.models import (
    Action,
    AuditEntry,
    GroupCheck,
    JobReport,
    Notice,
    NoticeKind,
    PushStep,
    Source,
    State,
    Work,
)
from service.store.wakeups import Topic
from tests.service.api.test_reports import report
from tests.service.asgi import Api, push_event

CALLER = Caller("ann", (), on_page=True)
TASK = "fN1SbArXTPSVFNUvaOlinQ"


async def steps_of(api: Api, alias: str, number: int) -> None:
    await api.add(alias)
    url = f"https://hg.mozilla.org/{alias}"
    (verdict,) = await api.push(push_event(number, alias=alias, url=url))
    assert verdict["verdict"] == "accepted", verdict


def test_each_table_of_work_can_be_listed() -> None:
    assert {work_table(str(model.__tablename__)) for model in WORK.tables} == set(WORK.tables)
    with pytest.raises(Problem, match="there is no work 'x'"):
        work_table("x")


@pytest.mark.parametrize(
    ("item", "repository", "subject", "path"),
    [
        (report(1, lane="L", project="try"), "try", f"run 0 of {report(1).task_id}", ("tasks", report(1).task_id)),
        (
            Action(kind="cancel", project="try", task_id=TASK, requester="r", source=Source.API, lane="L"),
            "try",
            f"cancel of {TASK}",
            ("actions", "1"),
        ),
        (
            Action(kind="cancel-push", project="try", push_id=7, requester="r", source=Source.API, lane="L"),
            "try",
            "cancel-push of push 7",
            ("actions", "1"),
        ),
        (GroupCheck(task_group_id=TASK, lane="L"), "-", f"task group {TASK}", None),
    ],
)
async def test_a_piece_says_what_it_is(
    api: Api, item: Work, repository: str, subject: str, path: tuple[str, ...] | None
) -> None:
    async with api.database.writing() as session:
        session.add(type(item)(**{**item.model_dump(), "lane": "L"}))
    async with api.database.reading() as session:
        (piece,) = await list_pieces(session, type(item), "L")
        assert await list_pieces(session, type(item), "other") == []
    assert (piece.repository, piece.subject, piece.path) == (repository, subject, path)


async def test_steps_name_their_push_and_notices_their_target(api: Api) -> None:
    await steps_of(api, "mc", 101)
    async with api.database.writing() as session:
        step = (await session.exec(select(PushStep).where(PushStep.kind == "resultset"))).first()
        assert step is not None
        values: dict[str, Any] = {
            "kind": NoticeKind.JOB,
            "step_id": step.id,
            "target": "tc-treeherder",
            "key": "mc",
            "body": {},
        }
        session.add(Notice(**values, lane="L", share="mc/ann"))
    async with api.database.reading() as session:
        (piece,) = await list_pieces(session, PushStep, step.lane)
        (notice,) = await list_pieces(session, Notice, "L")
    assert (piece.repository, piece.subject) == ("mc", f"resultset {step.environment} of push 101")
    assert piece.path == ("pushes", "mc", "101")
    assert (notice.repository, notice.subject, notice.path) == ("mc", "notice to tc-treeherder", None)


async def test_repositories_are_counted_and_the_oldest_comes_first(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async with api.database.writing() as session:
        for number, project in enumerate(("new", "old", "old", "mid")):
            since = now() - timedelta(hours={"new": 1, "old": 3, "mid": 2}[project])
            session.add(report(number, project=project, lane="L", since=since))
        session.add(report(9, lane="L", state=State.DONE, due_at=None))
    async with api.database.reading() as session:
        pieces = await list_pieces(session, JobReport, "L")
    rows = by_repository(pieces)
    assert [(row.repository, row.count) for row in rows] == [("old", 2), ("mid", 1), ("new", 1)]
    monkeypatch.setattr(waiting, "MOST_PIECES", 2)
    async with api.database.reading() as session:
        assert [piece.repository for piece in await list_pieces(session, JobReport, "L")] == ["old", "old"]


async def test_what_waits_after_a_failure_is_tried_now_and_nothing_else(api: Api) -> None:
    later = now() + timedelta(minutes=5)
    async with api.database.writing() as session:
        session.add(report(0, lane="L", error="answers 503", due_at=later))
        session.add(report(1, lane="L", error=None, due_at=later))
        session.add(report(2, lane="L", error="answers 503", due_at=later, holder="another"))
        session.add(report(3, lane="other", error="answers 503", due_at=later))
        session.add(report(4, lane="L", error="refused", state=State.FAILED, due_at=None))
    woken = [api.database.wakeups.subscribe(topic) for topic in Topic]
    assert await try_now(api.services, CALLER, JobReport, "L") == 1
    assert all(event.is_set() for event in woken)
    async with api.database.reading() as session:
        due = {row.task_id: row.due_at for row in await session.exec(select(JobReport))}
        (entry,) = await session.exec(select(AuditEntry))
    assert [task_id for task_id, at in due.items() if at is not None and at <= now()] == [report(0).task_id]
    assert (entry.event, entry.caller, entry.subject, entry.origin) == ("waiting-tried", "ann", "L", "page")
    assert entry.details == {"work": "job_report", "pieces": 1}


async def test_where_nothing_waits_nothing_is_recorded(sqlite_api: Api) -> None:
    assert await try_now(sqlite_api.services, CALLER, JobReport, "L\0") == 0
    async with sqlite_api.database.reading() as session:
        assert list(await session.exec(select(AuditEntry))) == []
