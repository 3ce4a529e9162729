"""Storage of pushlog entries as pushes, on both databases."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func
from sqlmodel import col, select, update

from sandbox.treeherder.store import check_resultset
from service.clock import now
from service.contract.events import Changeset, OversizedPush, PushEvent, Verdict
from service.flow.pushes.push import base_revision, revision_hash, store
from service.flow.pushes.resultset import resultset_of
from service.settings import Settings, load
from service.store.database import Database
from service.store.models import DeadLetter, Push, PushStep, Repository, State
from tests.published_schemas import read_published
from tests.pushlog_examples import TEN
from tests.service.harness import add_repository, node, push_event, sent_statements

ENVIRONMENTS = {
    "tc-treeherder": {"url": "https://th.example.com", "client_id": "a", "secret": "b"},
    "tc-treeherder-stage": {"url": "https://stage.example.com", "client_id": "a", "secret": "b"},
    "quiet": {"url": "https://quiet.example.com", "pushes": "off"},
}


@pytest.fixture
def settings() -> Settings:
    return load(environments=ENVIRONMENTS)


async def take(database: Database, settings: Settings, *events: PushEvent | OversizedPush) -> list[Verdict]:
    async with database.writing() as session:
        verdicts, _ = await store(session, settings, list(events))
    return verdicts


async def repository(database: Database, alias: str = "mc") -> Repository:
    async with database.reading() as session:
        return (await session.exec(select(Repository).where(Repository.alias == alias))).one()


async def pushes(database: Database) -> list[Push]:
    async with database.reading() as session:
        return list(await session.exec(select(Push).order_by(col(Push.id))))


async def steps(database: Database) -> list[PushStep]:
    async with database.reading() as session:
        return list(await session.exec(select(PushStep).order_by(col(PushStep.id))))


async def letters(database: Database) -> list[DeadLetter]:
    async with database.reading() as session:
        return list(await session.exec(select(DeadLetter)))


async def change(database: Database, **values: Any) -> None:
    async with database.writing() as session:
        await session.exec(update(Repository).values(**values))


def oversized(push_id: int, since: int = 0, **more: Any) -> OversizedPush:
    head = {"repository": "mc", "repository_id": 1, "shift": 0, "generation": 0, "since": since}
    values = {**head, "lastpushid": push_id, "push_id": push_id, **more}
    return OversizedPush.model_validate({"oversized": True, "reason": "40 MB", **values})


def changesets(*names: object) -> list[dict[str, Any]]:
    return [{"node": node(name), "branch": "default"} for name in names]


# The hash


def test_revision_hash_of_one() -> None:
    (one,) = [Changeset(node=node(1), branch="default")]
    assert revision_hash([one]) == hashlib.sha1(f"{node(1)}default".encode(), usedforsecurity=False).hexdigest()


@given(st.lists(st.tuples(st.integers(), st.text(st.characters(exclude_categories=["Cs"]), max_size=9)), max_size=9))
def test_revision_hash_is_over_node_and_branch_in_order(named: list[tuple[int, str]]) -> None:
    pushed = [Changeset(node=node(name), branch=branch) for name, branch in named]
    joined = "".join(node(name) + branch for name, branch in named)
    assert revision_hash(pushed) == hashlib.sha1(joined.encode(), usedforsecurity=False).hexdigest()
    assert base_revision(pushed) is None
    if pushed[::-1] != pushed:
        assert revision_hash(pushed[::-1]) != revision_hash(pushed)


async def test_ten_pushes(database: Database, settings: Settings) -> None:
    await become_resultsets(database, settings, TEN)


@pytest.mark.published
async def test_ten_real_pushes(database: Database, settings: Settings) -> None:
    await become_resultsets(database, settings, read_published("hg/json-pushes-ten-full.json"))


async def become_resultsets(database: Database, settings: Settings, recorded: dict[str, Any]) -> None:
    """Store ten pushes; the stand-in's rules for resultsets check the hash anew."""
    last = recorded["lastpushid"]
    await add_repository(database, "mc", last_push_id=last - 10)
    events = [
        PushEvent.model_validate(
            {
                "repository": "mc",
                "repository_id": 1,
                "shift": 0,
                "generation": 0,
                "since": last - 10,
                "lastpushid": last,
                "push": {"id": int(push_id), **entry},
            }
        )
        for push_id, entry in sorted(recorded["pushes"].items(), key=lambda item: int(item[0]))
    ]
    assert [verdict.verdict for verdict in await take(database, settings, *events)] == ["accepted"] * 10
    stored = await pushes(database)
    monitored = await repository(database)
    assert monitored.last_push_id == last
    assert monitored.last_changeset == recorded["pushes"][str(last)]["changesets"][-1]["node"]
    for push in stored:
        entry = recorded["pushes"][str(push.push_id)]
        assert push.user == entry["user"]
        assert push.date == datetime.fromtimestamp(entry["date"], UTC)
        assert push.nodes == [changeset["node"] for changeset in entry["changesets"]]
        assert push.revision == push.nodes[-1]
        check_resultset("it", "mc", resultset_of(push, monitored))


# What is stored


async def test_a_new_push(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc", last_push_id=6)
    before = now()
    (verdict,) = await take(database, settings, push_event(7, since=6))
    assert verdict == Verdict(verdict="accepted", repository="mc", cursor=7, shift=0)
    (push,) = await pushes(database)
    assert (push.push_id, push.generation, push.user) == (7, 0, "dev@example.com")
    assert push.revision == node("mc 7")
    assert push.changesets[0]["desc"] == "Bug 7 - a change"
    assert push.noticed_at >= before
    monitored = await repository(database)
    assert (monitored.last_push_id, monitored.last_changeset) == (7, node("mc 7"))
    assert monitored.last_push_at is not None
    assert monitored.last_push_at >= before


async def test_its_steps(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc")
    await take(database, settings, push_event(1))
    stored_steps = await steps(database)
    assert [(step.kind, step.environment) for step in stored_steps] == [
        ("graph", ""),
        ("resultset", "tc-treeherder"),
        ("resultset", "tc-treeherder-stage"),
    ]
    assert len({step.lane for step in stored_steps}) == 3
    for step in stored_steps:
        assert (step.state, step.attempts, step.fencing_token, step.error, step.done_at) == (
            State.PENDING,
            0,
            0,
            None,
            None,
        )
        assert step.due_at is not None
        assert step.due_at <= now()


@pytest.mark.parametrize(
    ("chosen", "prefixes"), [(["tc-treeherder-stage", "gone"], ["tc-treeherder-stage"]), ([], []), (["quiet"], [])]
)
async def test_only_the_repositorys_environments(
    sqlite: Database, settings: Settings, chosen: list[str], prefixes: list[str]
) -> None:
    await add_repository(sqlite, "mc", environments=chosen)
    await take(sqlite, settings, push_event(1))
    assert [step.environment for step in await steps(sqlite) if step.kind == "resultset"] == prefixes


async def test_with_pulse_a_push_is_announced(sqlite: Database) -> None:
    await add_repository(sqlite, "mc")
    await take(sqlite, load(pulse={"url": "amqp://127.0.0.1:9/%2F"}), push_event(1))
    assert [step.kind for step in await steps(sqlite)] == ["graph", "announcement"]


async def test_a_large_push_keeps_the_last_200_in_full(sqlite: Database, settings: Settings) -> None:
    await add_repository(sqlite, "mc")
    many: list[dict[str, Any]] = [
        {"node": node(n), "branch": "b", **({} if n < 4800 else {"desc": f"d{n}"})} for n in range(5_000)
    ]
    many[0]["parents"] = [node("base"), node("other")]
    await take(sqlite, settings, push_event(1, changesets=many))
    (push,) = await pushes(sqlite)
    assert len(push.nodes) == 5_000
    assert [changeset["desc"] for changeset in push.changesets] == [f"d{n}" for n in range(4_800, 5_000)]
    assert push.revision_hash == revision_hash([Changeset.model_validate(changeset) for changeset in many])
    assert push.base_revision == node("base")


async def test_a_push_without_changesets(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc")
    (verdict,) = await take(database, settings, push_event(1, changesets=[]))
    assert verdict.verdict == "accepted"
    (push,) = await pushes(database)
    assert (push.revision, push.nodes, push.changesets) == (None, [], [])
    assert (await repository(database)).last_changeset is None


async def test_the_same_again_is_a_duplicate(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc")
    first = await take(database, settings, push_event(1), push_event(1), push_event(2))
    assert [verdict.verdict for verdict in first] == ["accepted", "duplicate", "accepted"]
    again = await take(database, settings, push_event(1), push_event(2))
    assert [verdict.verdict for verdict in again] == ["duplicate", "duplicate"]
    assert {verdict.cursor for verdict in first + again} == {2}
    assert len(await pushes(database)) == 2
    assert len(await steps(database)) == 6
    assert (await repository(database)).reset_suspicions == 0


async def test_at_the_same_time_it_is_stored_once(database: Database, settings: Settings) -> None:
    """Two listeners, or a repeat that comes while the first is still under way."""
    for alias in ("mc", "try"):
        await add_repository(database, alias)
    batches = [
        [push_event(n, alias=alias, repository_id=number) for alias, number in order for n in (1, 2, 3)]
        for order in ((("mc", 1), ("try", 2)), (("try", 2), ("mc", 1))) * 4
    ]
    async with asyncio.timeout(20):
        verdicts = await asyncio.gather(*(take(database, settings, *batch) for batch in batches))
    assert sum(item.verdict == "accepted" for batch in verdicts for item in batch) == 6
    assert sum(item.verdict == "duplicate" for batch in verdicts for item in batch) == 8 * 6 - 6
    assert len(await pushes(database)) == 6


async def test_no_such_repository(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc")
    await add_repository(database, "gone", deleted_at=now())
    events = [push_event(1, alias=alias, repository_id=n) for alias, n in (("try", 3), ("gone", 2), ("mc", 1))]
    verdicts = await take(database, settings, *events)
    assert [verdict.verdict for verdict in verdicts] == ["rejected", "rejected", "accepted"]
    assert verdicts[0].reason == "no repository try is monitored: add it first"
    assert (verdicts[0].repository, verdicts[0].cursor) == (None, None)
    assert len(await pushes(database)) == 1


@pytest.mark.parametrize("generation", [0, 2])
async def test_another_generation_is_rejected(database: Database, settings: Settings, generation: int) -> None:
    await add_repository(database, "mc", generation=1)
    (verdict,) = await take(database, settings, push_event(1, generation=generation))
    assert verdict.verdict == "rejected"
    assert verdict.reason == f"listed from generation {generation}, mc is at 1: list again"
    assert verdict.cursor == 0
    assert await pushes(database) == []


@pytest.mark.parametrize("shift", [3, 5])
async def test_another_shift_is_rejected(database: Database, settings: Settings, shift: int) -> None:
    await add_repository(database, "mc", shift=4)
    (verdict,) = await take(database, settings, push_event(1, shift=shift))
    assert verdict.verdict == "rejected"
    assert verdict.reason == f"listed in shift {shift} of mc, which has ended: list again"
    assert (verdict.repository, verdict.cursor, verdict.shift) == ("mc", 0, 4)
    (verdict,) = await take(database, settings, oversized(1, shift=shift))
    assert verdict.verdict == "rejected"
    assert await pushes(database) == []
    assert await letters(database) == []


async def test_what_is_replayed_may_be_of_an_old_shift(sqlite: Database, settings: Settings) -> None:
    await add_repository(sqlite, "mc", shift=4)
    async with sqlite.writing() as session:
        ((verdict,), _) = await store(session, settings, [push_event(1, shift=2)], replayed=True)
    assert verdict.verdict == "accepted"


async def test_the_row_counts_and_not_the_alias(sqlite: Database, settings: Settings) -> None:
    """An alias may have gone to another repository."""
    await add_repository(sqlite, "old")
    await add_repository(sqlite, "mc")
    (verdict,) = await take(sqlite, settings, push_event(1, alias="mc", repository_id=1))
    assert verdict.repository == "old"
    assert [push.repository_id for push in await pushes(sqlite)] == [1]


async def test_the_same_id_in_another_generation_is_another_push(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc")
    await take(database, settings, push_event(1))
    await change(database, generation=1, last_push_id=0, last_changeset=None)
    (verdict,) = await take(database, settings, push_event(1, generation=1, changesets=changesets("new")))
    assert verdict.verdict == "accepted"
    assert [(push.generation, push.revision) for push in await pushes(database)] == [
        (0, node("mc 1")),
        (1, node("new")),
    ]


# The cursor


@pytest.mark.parametrize(
    ("cursor", "since", "push_id", "after"),
    [
        (5, 5, 6, 6),
        (5, 4, 6, 6),
        (5, 0, 6, 6),
        (5, 6, 7, 5),  # by another way: 6 was not listed
        (5, 5, 9, 9),  # ids can have gaps
        (5, 3, 4, 5),
        (5, 3, 5, 5),
    ],
)
async def test_the_cursor_moves_only_for_what_was_listed_from_it(
    sqlite: Database, settings: Settings, cursor: int, since: int, push_id: int, after: int
) -> None:
    await add_repository(sqlite, "mc", last_push_id=cursor, last_changeset=node("old"))
    (verdict,) = await take(sqlite, settings, push_event(push_id, since=since))
    assert (verdict.verdict, verdict.cursor) == ("accepted", after), "a push of this generation is always stored"
    monitored = await repository(sqlite)
    assert monitored.last_push_id == after
    assert monitored.last_changeset == (node("old") if after == cursor else node(f"mc {push_id}"))


async def test_a_push_that_came_by_another_way_skips_nothing(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc", last_push_id=5)
    assert (await take(database, settings, push_event(9, since=8)))[0].cursor == 5
    listed = await take(database, settings, *(push_event(n, since=5) for n in (6, 7, 8, 9)))
    assert [verdict.verdict for verdict in listed] == ["accepted"] * 3 + ["duplicate"]
    assert listed[0].cursor == 9
    assert (await repository(database)).last_changeset == node("mc 9")


async def test_verdicts_tell_the_cursor_after_the_batch(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc")
    verdicts = await take(database, settings, *(push_event(n) for n in range(1, 6)))
    assert {verdict.cursor for verdict in verdicts} == {5}


# Signs of a reset


async def test_another_revision_is_a_sign_of_a_reset_and_no_duplicate(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc")
    await take(database, settings, push_event(1), push_event(2))
    (verdict,) = await take(database, settings, push_event(2, changesets=changesets("other")))
    assert verdict.verdict == "rejected"
    assert verdict.reason == f"push 2 is known with revision {node('mc 2')}: the repository may have been reset"
    monitored = await repository(database)
    assert (monitored.reset_suspicions, monitored.generation, monitored.last_push_id) == (1, 0, 2)
    assert monitored.reset_suspected_at is not None
    assert [push.revision for push in await pushes(database)] == [node("mc 1"), node("mc 2")]


@pytest.mark.parametrize("left", [[], ["a"], ["b"], ["a", "b", "c"]])
async def test_what_a_strip_or_an_amend_left_of_a_push_is_none(
    database: Database, settings: Settings, left: list[str]
) -> None:
    await add_repository(database, "mc")
    await take(database, settings, push_event(1, changesets=changesets("a", "b")))
    (verdict,) = await take(database, settings, push_event(1, changesets=changesets(*left)))
    assert verdict.verdict == "duplicate"
    assert (await repository(database)).reset_suspicions == 0
    assert (await pushes(database))[0].nodes == [node("a"), node("b")]


async def test_pushes_from_before_a_reset_are_only_recorded(database: Database, settings: Settings) -> None:
    at = datetime(2024, 6, 1, tzinfo=UTC)
    await add_repository(database, "mc", record_before=at)
    dates = [at - timedelta(days=1), at, at + timedelta(seconds=1)]
    await take(database, settings, *(push_event(n, date=date) for n, date in enumerate(dates, 1)))
    assert len(await pushes(database)) == 3
    stored_steps = await steps(database)
    assert [step.state for step in stored_steps] == [State.SKIPPED] * 6 + [State.PENDING] * 3
    for step in stored_steps[:6]:
        assert step.due_at is None, "it would be done all the same"
        assert step.done_at is not None
        assert step.error == "pushed before the repository was reset: recorded only"
    async with database.writing() as session:
        _, todo = await store(session, settings, [push_event(4, date=dates[0])])
    assert todo == []


# Too large to send


async def test_one_that_is_too_large_is_a_dead_letter_and_the_cursor_goes_on(
    database: Database, settings: Settings
) -> None:
    await add_repository(database, "mc")
    verdicts = await take(database, settings, push_event(1), oversized(2), push_event(3))
    assert [verdict.verdict for verdict in verdicts] == ["accepted"] * 3
    assert verdicts[1].reason == "kept as a dead letter: too large"
    monitored = await repository(database)
    assert monitored.last_push_id == 3
    (letter,) = await letters(database)
    assert (letter.kind, letter.subject, letter.reason) == ("push-event", "push 2 of mc", "40 MB")
    assert json.loads(letter.payload or b"")["push_id"] == 2
    assert len(await pushes(database)) == 2


async def test_it_is_one_dead_letter_however_often_it_comes(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc")
    for expected in ("accepted", "duplicate"):
        (verdict,) = await take(database, settings, oversized(2))
        assert verdict.verdict == expected
    assert len(await letters(database)) == 1
    assert (await repository(database)).last_changeset is None


async def test_of_another_generation_it_is_rejected(sqlite: Database, settings: Settings) -> None:
    await add_repository(sqlite, "mc", generation=3)
    (verdict,) = await take(sqlite, settings, oversized(2))
    assert verdict.verdict == "rejected"
    assert await letters(sqlite) == []


# Many


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # where a statement is a round trip
async def test_many_at_once_cost_hardly_more_statements_than_two(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc")
    few, many = [push_event(n) for n in (1, 2)], [push_event(n) for n in range(3, 403)]
    with sent_statements(database) as for_few:
        await take(database, settings, *few)
    with sent_statements(database) as for_many:
        verdicts = await take(database, settings, *many)
    assert {verdict.verdict for verdict in verdicts} == {"accepted"}
    async with database.reading() as session:
        assert (await session.exec(select(func.count()).select_from(PushStep))).one() == 402 * 3
    assert len(for_many) <= len(for_few) + 6, (for_few, for_many)  # lists of values go in parts


async def test_all_or_nothing(database: Database, settings: Settings) -> None:
    await add_repository(database, "mc")

    async def broken() -> None:
        async with database.writing() as session:
            await store(session, settings, [push_event(1)])
            raise KeyError

    with pytest.raises(KeyError):
        await broken()
    assert await pushes(database) == []
    assert (await repository(database)).last_push_id == 0
