"""Properties of the tables, and the dead letters and notices of failed work."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import SQLModel, col, select

from service.api.schemas.dead_letters import LetterKind
from service.clock import now
from service.engine.registry import WORK
from service.flow.pushes import graph  # noqa: F401 - importing any of the flow registers all of it
from service.store import models
from service.store.database import Database
from service.store.models import (
    Action,
    DeadLetter,
    GroupCheck,
    JobReport,
    Notice,
    NoticeKind,
    Push,
    PushStep,
    Repository,
    Secret,
    Source,
    Stage,
    StepKind,
    job_lane,
    share_of,
    work_tables,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def action(**more: object) -> Action:
    values = {"id": 7, "kind": "cancel", "project": "mc", "task_id": "T", "requester": "me", "lane": "taskcluster"}
    return Action.model_validate({**values, "source": Source.API, **more})


def test_each_table_of_work_is_registered() -> None:
    tables = {table for table in work_tables() if table.__module__ == models.__name__}
    assert tables == {PushStep, Action, Notice, JobReport, GroupCheck} == set(WORK.tables)


def test_each_table_of_work_has_the_indexes_of_work() -> None:
    for table in work_tables():
        name = str(table.__tablename__)
        indexes = {index.name for index in SQLModel.metadata.tables[name].indexes}
        assert indexes >= {f"ix_{name}_{suffix}" for suffix in ("due", "turn", "oldest", "holder", "ended")}


def test_a_shift_ends_when_the_repository_is_due_and_only_if_a_listener_has_it() -> None:
    repository = Repository(alias="mc", url="https://x/mc", host="x", level="1", last_push_id=0, due_at=NOON)
    assert repository.shift_ends_at is None
    repository.holder = "listener"
    assert repository.shift_ends_at == NOON


def test_the_next_attempt_is_not_before_the_work_was_due() -> None:
    """Work that a person retries is due long ago, so that it is done first."""
    step = PushStep(push_id=1, kind=StepKind.GRAPH, lane="graph x", since=NOON, due_at=NOON + timedelta(minutes=1))
    assert step.next_attempt_at == NOON + timedelta(minutes=1)
    step.due_at = NOON - timedelta(days=365)
    assert step.next_attempt_at == NOON
    step.due_at = None
    assert step.next_attempt_at is None


def test_work_that_is_held_has_no_next_attempt_until_its_lease_has_ended() -> None:
    step = PushStep(push_id=1, kind=StepKind.GRAPH, lane="graph x", holder="me", due_at=now() + timedelta(minutes=1))
    assert (step.working, step.next_attempt_at) == (True, None)
    step.due_at = now() - timedelta(seconds=1)
    assert (step.working, step.next_attempt_at) == (False, step.since)
    step.holder, step.due_at = None, now() + timedelta(minutes=1)
    assert (step.working, step.next_attempt_at) == (False, step.due_at)


def test_each_kind_of_work_names_upstream_and_repository_in_its_dead_letter() -> None:
    push = Push(
        repository_id=1, generation=0, push_id=43210, user="dev@x", date=NOON, revision=None, revision_hash="f",
        changesets=[], nodes=[],
    )  # fmt: skip
    repository = Repository(alias="mc", url="https://hg/mc", host="hg", level="1", last_push_id=0)
    share = share_of("mc", "dev@x")
    report = JobReport(
        id=3,
        task_id="T",
        run_id=1,
        environment="th",
        project="mc",
        task_group_id="G",
        stage=Stage.RUNNING,
        run={},
        lane=job_lane("th", "mc"),
    )
    letters = [
        PushStep(id=1, push_id=9, kind=StepKind.GRAPH, lane="graph hg").dead_letter("why", (push, repository)),
        PushStep(id=1, push_id=9, kind=StepKind.RESULTSET, lane="resultset th", share=share).dead_letter("why"),
        action().dead_letter("why"),
        Notice(
            id=2, kind=NoticeKind.PULSE, action_id=7, target="v1/x", key="k", body={}, lane="pulse", share=share
        ).dead_letter("y"),
        Notice(id=4, kind=NoticeKind.JOB, step_id=1, target="th", key="mc", body={}, lane="job").dead_letter("y"),
        report.dead_letter("why"),
        GroupCheck(task_group_id="G", lane="taskcluster").dead_letter("why"),
    ]
    assert [(letter.kind, letter.subject) for letter in letters] == [
        ("graph", "push 43210 of mc, graph (hg)"),
        ("resultset", "a push of dev@x to mc, resultset (th)"),
        ("action", "cancel of T in mc (taskcluster)"),
        ("notice", "action 7 in mc, told to v1/x"),
        ("notice", "a failed push in mc, told to th"),
        ("job-report", "run 1 of T in mc, for th"),
        ("group-check", "task group G (taskcluster)"),
    ]
    assert {letter.kind for letter in letters} <= set(LetterKind)
    assert set(WORK.replays) | set(StepKind) <= set(LetterKind)
    assert [letter.step_id for letter in letters] == [1, 1, None, None, None, None, None]
    assert [letter.action_id for letter in letters] == [None, None, 7, None, None, None, None]
    assert [letter.notice_id for letter in letters] == [None, None, None, 2, 4, None, None]
    assert [letter.report_id for letter in letters] == [None, None, None, None, None, 3, None]
    assert letters[-1].payload == b"G"


def test_a_failed_action_is_shown_on_each_push_that_its_task_names() -> None:
    jobs = [
        {"environment": "th", "project": "mc", "entry": {"a": 1}},
        {"environment": "s", "project": "x", "entry": {}},
    ]
    notices = action(failure_jobs=jobs, share=share_of("mc", "me")).failure_notices()
    assert [(notice.target, notice.key, notice.lane, notice.body) for notice in notices] == [
        ("th", "mc", "failure th", {"a": 1}),
        ("s", "x", "failure s", {}),
    ]
    assert {(notice.kind, notice.action_id, notice.share) for notice in notices} == {(NoticeKind.JOB, 7, "mc/me")}
    assert PushStep(push_id=1, kind=StepKind.GRAPH, lane="x").failure_notices() == []


def test_a_secret_is_not_printed() -> None:
    secret = Secret(name="ids", value=b"do not print this")
    assert (repr(secret), str(secret)) == ("Secret(ids)", "Secret(ids)")


async def test_work_that_is_stored_without_a_due_time_is_finished(database: Database) -> None:
    """Without a default of the column, which would replace the None and make the work due."""
    async with database.writing() as session:
        session.add(GroupCheck(task_group_id="finished", lane="x", due_at=None))
        session.add(GroupCheck(task_group_id="due", lane="x"))
    async with database.reading() as session:
        due = (await session.exec(select(GroupCheck.task_group_id).where(col(GroupCheck.due_at) <= now()))).all()
    assert due == ["due"]


async def test_the_digest_of_a_dead_letter_is_unique_but_may_be_missing(database: Database) -> None:
    async with database.writing() as session:
        session.add_all([DeadLetter(kind="x", subject="", reason="", digest=digest) for digest in ("a", None, None)])
    with pytest.raises(Exception, match=r"(?i)unique"):
        async with database.writing() as session:
            session.add(DeadLetter(kind="x", subject="", reason="", digest="a"))
