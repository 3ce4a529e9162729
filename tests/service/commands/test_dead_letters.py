"""`tc-treeherder dead-letters`. All share one service: each test has a kind of its own."""

import asyncio
import json
from collections.abc import Callable

import pytest
from sqlmodel import select

from service.store.database import Database
from service.store.models import DeadLetter, Repository
from tests.service.asgi import push_event
from tests.service.commands.conftest import Pretended, Run
from tests.system.conftest import System

Bury = Callable[..., list[int]]


@pytest.fixture
def bury(system: System) -> Bury:
    """Return a function that stores a dead letter for each payload, and returns their ids."""

    def write(kind: str, *payloads: bytes | None) -> list[int]:
        async def run() -> list[int]:
            database = Database(system.stack.environment["TC_TREEHERDER_DATABASE_URL"])
            letters = [
                DeadLetter(kind=kind, subject="x", reason="an old release", payload=payload) for payload in payloads
            ]
            async with database.writing() as session:
                session.add_all(letters)
                await session.flush()
                ids = [letter.id or 0 for letter in letters]
            await database.close()
            return ids

        return asyncio.run(run())

    return write


def test_they_are_listed_and_shown(tc: Run, bury: Bury) -> None:
    first, second = bury("notice", b'{"a": 1}', b"two\x1b[2J")
    assert [letter["id"] for letter in tc("dead-letters", "list", "--kind", "notice", "--json").json] == [second, first]
    assert tc("dead-letters", "list", "--kind", "notice", "--limit", "1", "--json").json[0]["id"] == second
    row = tc("dead-letters", "list", "--kind", "notice").rows[1]
    assert row[:2] == [str(first), "notice"]
    assert row[-3:] == ["an", "old", "release"]
    assert tc("dead-letters", "show", str(first), "--json").json["payload"] == '{"a": 1}'
    fields = tc("dead-letters", "show", str(second)).out
    assert "payload      two\\x1b[2J" in fields.splitlines()
    assert tc("dead-letters", "list", "--kind", "announcement").err == "no dead letters\n"


@pytest.mark.parametrize("command", [["list"], ["replay", "--all"], ["drop", "--all", "--yes"]])
def test_an_unknown_kind_is_an_error(tc: Run, command: list[str]) -> None:
    ran = tc("dead-letters", *command, "--kind", "push-events")
    assert (ran.code, ran.out) == (1, "")
    assert 'kind "push-events" is none of push-event, job-action, ' in ran.err
    assert "(push-event?)" in ran.err


def test_there_is_no_such_letter(tc: Run) -> None:
    for command, *more in (["show"], ["replay"], ["drop", "--yes"]):
        ran = tc("dead-letters", command, "4711", *more)
        assert ran.code == 4, command
        assert "4711" in ran.err


def row_of(system: System, alias: str) -> int:
    """Return the row id of a repository, which events carry and nobody is shown."""

    async def run() -> int:
        database = Database(system.stack.environment["TC_TREEHERDER_DATABASE_URL"])
        async with database.reading() as session:
            row = (await session.exec(select(Repository.id).where(Repository.alias == alias))).one()
        await database.close()
        return row or 0

    return asyncio.run(run())


def test_what_is_replayed_is_taken_in(system: System, tc: Run, bury: Bury) -> None:
    tc(
        "repositories",
        "add",
        "replay",
        f"{system.stack.sandbox['hg']}/replay",
        "--last-push-id",
        "100",
        "--disabled",
        "--level",
        "1",
    )
    event = push_event(101, alias="replay", repository_id=row_of(system, "replay"))
    (letter,) = bury("push-event", json.dumps(event).encode())
    ran = tc("dead-letters", "replay", str(letter))
    assert (ran.code, ran.out) == (0, "replayed 1 of 1\n"), ran.err
    assert tc("pushes", "show", "replay", "101").code == 0
    assert tc("dead-letters", "show", str(letter)).code == 4


def test_it_goes_on_after_one_that_is_refused(tc: Run, bury: Bury) -> None:
    ids = bury("job-action", b"nonsense", b"more of it")
    ran = tc("dead-letters", "replay", "--all", "--kind", "job-action", "--json")
    assert ran.code == 1
    assert ran.json["replayed"] == []
    assert [letter["id"] for letter in ran.json["failed"]] == ids
    assert "2 of 2 could not be replayed" in ran.err
    ran = tc("dead-letters", "replay", str(ids[0]))
    assert ran.code == 1
    assert f"{ids[0]}: Still not understood: not JSON: " in ran.err
    assert ran.out == "replayed 0 of 1\n"


def test_dropping_all_needs_a_yes(tc: Run, bury: Bury) -> None:
    ids = bury("group-check", None, None, None)
    ran = tc("dead-letters", "drop", "--all", "--kind", "group-check")
    assert ran.code == 2
    assert "would drop 3 dead letters" in ran.err
    ran = tc("dead-letters", "drop", str(ids[1]))
    assert (ran.code, "would drop 1 dead letter, " in ran.err) == (2, True)
    ran = tc("dead-letters", "drop", str(ids[1]), "--json", "--yes")
    assert (ran.code, ran.json) == (0, {"dropped": [ids[1]], "failed": []})
    ran = tc("dead-letters", "drop", "--all", "--kind", "group-check", "--yes", "--json")
    assert ran.json["dropped"] == [ids[0], ids[2]]
    assert tc("dead-letters", "list", "--kind", "group-check", "--json").json == []


@pytest.mark.parametrize("arguments", [[], ["1", "--all"], ["1", "--kind", "x"], ["0"], ["x"]])
def test_used_wrongly(tc: Run, arguments: list[str]) -> None:
    assert tc("dead-letters", "replay", *arguments).code == 2
    assert tc("dead-letters", "drop", *arguments).code == 2


def test_when_the_service_goes_away_it_says_what_was_done(run: Run, pretend: Pretended) -> None:
    pretend.answers["/api/v1/dead-letters/1"] = [(204, {}, b"")]
    ran = run("dead-letters", "drop", "1", "2", "3", "--yes", "--json", "--url", pretend.url)
    assert ran.code == 3
    assert ran.json == {"dropped": [1], "failed": []}
    assert len(pretend.asked) == 2
