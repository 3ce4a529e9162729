"""Clients of Taskcluster are looked up again every few minutes, once for all who ask."""

import asyncio
from datetime import timedelta

import pytest

from service.clients.sign_in import Client
from service.clock import now
from service.errors import Problem, Unavailable
from service.web import clients
from service.web.clients import LOOK_AGAIN, MOST_STALE, PAUSE, Clients


class Answers:
    """A Taskcluster that answers this, and counts the calls."""

    def __init__(self) -> None:
        self.answer: Client | Exception | None = Client(("tc-treeherder:read",), now() + timedelta(hours=1))
        self.calls = 0

    def authorize_url(self, state: str, verifier: str) -> str:
        raise AssertionError

    async def redeem(self, code: str, verifier: str) -> str:
        raise AssertionError

    async def client(self, client_id: str) -> Client | None:
        self.calls += 1
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Time:
    at = 0.0

    def __call__(self) -> float:
        return self.at


async def test_an_answer_holds_for_minutes_and_no_longer() -> None:
    answers, time = Answers(), Time()
    known = Clients(answers, time)
    for _ in range(3):
        assert await known.scopes("c") == ("tc-treeherder:read",)
    assert answers.calls == 1
    answers.answer = None
    time.at += LOOK_AGAIN - 1
    assert await known.scopes("c") is not None
    time.at += 1
    assert await known.scopes("c") is None
    assert await known.scopes("c") is None
    assert answers.calls == 2


async def test_all_who_ask_at_a_time_share_one_call() -> None:
    answers = Answers()
    known = Clients(answers)
    assert len(set(await asyncio.gather(*(known.scopes("c") for _ in range(50))))) == 1
    assert answers.calls == 1
    await known.scopes("d")
    assert answers.calls == 2


async def test_while_taskcluster_is_away_the_last_answer_holds_for_a_while() -> None:
    answers, time = Answers(), Time()
    known = Clients(answers, time)
    answers.answer = Unavailable("taskcluster", "it is away")
    with pytest.raises(Problem, match="it is not known what c may do: it is away"):
        await known.scopes("c")
    answers.answer = Client(("tc-treeherder:read",), now() + timedelta(hours=1))
    await known.scopes("c")
    answers.answer, answers.calls = Unavailable("taskcluster", "it is away"), 0
    time.at = LOOK_AGAIN
    for _ in range(5):
        assert await known.scopes("c") is not None
    assert answers.calls == 1
    time.at += PAUSE
    await known.scopes("c")
    assert answers.calls == 2
    time.at = MOST_STALE
    with pytest.raises(Problem) as refused:
        await known.scopes("c")
    assert refused.value.status == 503


async def test_a_client_that_has_expired_may_nothing() -> None:
    answers = Answers()
    answers.answer = Client(("tc-treeherder:read",), now() - timedelta(seconds=1))
    assert await Clients(answers).scopes("c") is None


async def test_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "MOST_CLIENTS", 2)
    answers = Answers()
    known = Clients(answers)
    for client_id in ("a", "b", "c", "b", "c"):
        await known.scopes(client_id)
    assert answers.calls == 3
    await known.scopes("a")
    assert answers.calls == 4
