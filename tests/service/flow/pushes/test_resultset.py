"""Resultsets: their form, and the step that posts or announces them."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlmodel import update

from sandbox.treeherder.store import check_resultset
from service.clock import now
from service.contract.events import PushEvent
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.pushes import resultset
from service.flow.pushes.push import revision_hash
from service.flow.pushes.resultset import resultset_of
from service.store.models import Push, PushStep, Repository, State, StepKind
from tests.published_schemas import read_published
from tests.pushlog_examples import TEN
from tests.service.harness import ENVIRONMENT, FlowHarness, node, open_harness, push_event
from tests.services import Amqp

REPOSITORY = Repository(alias="mc", url="https://hg.mozilla.org/integration/mc", host="h", level="1", last_push_id=0)


def make_push(event: PushEvent) -> Push:
    """Return the row that `push.store` makes."""
    entry = event.push
    return Push(
        repository_id=1,
        generation=0,
        push_id=entry.id,
        user=entry.user,
        date=datetime.fromtimestamp(entry.date, UTC),
        revision=entry.changesets[-1].node if entry.changesets else None,
        revision_hash=revision_hash(entry.changesets),
        changesets=[changeset.model_dump(exclude_none=True) for changeset in entry.changesets[-200:]],
        nodes=[changeset.node for changeset in entry.changesets],
    )


def test_the_form() -> None:
    push = make_push(push_event(7, date=1_700_000_000.9))
    assert resultset_of(push, REPOSITORY) == {
        "revision": node("mc 7"),
        "revision_hash": push.revision_hash,
        "push_timestamp": 1_700_000_000,
        "author": "dev@example.com",
        "type": "push",
        "active_status": "active",
        "revisions": [
            {
                "revision": node("mc 7"),
                "author": "Dev <dev@example.com>",
                "comment": "Bug 7 - a change",
                "files": ["a.txt"],
                "branch": "default",
                "repository": "mc",
            }
        ],
    }


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
entries = st.fixed_dictionaries(
    {
        "user": texts.filter(bool).map(lambda text: text * 5),
        "date": st.floats(1, 4_000_000_000),
        "changesets": st.lists(
            st.fixed_dictionaries(
                {"node": st.integers().map(node), "branch": texts.filter(bool)},
                optional={
                    "author": st.none() | texts.filter(bool),
                    "desc": st.none() | texts,
                    "files": st.none() | st.lists(texts.filter(bool), max_size=3),
                },
            ),
            min_size=1,
            max_size=4,
        ),
    }
)


@settings(max_examples=30, deadline=None)
@given(entries)
def test_always_as_treeherder_takes_it(entry: dict[str, Any]) -> None:
    built = resultset_of(make_push(push_event(1, **entry)), REPOSITORY)
    check_resultset("it", "mc", json.loads(json.dumps(built)))


def test_ten_pushes_in_order() -> None:
    in_order(TEN)


@pytest.mark.published
def test_ten_real_pushes_in_order() -> None:
    in_order(read_published("hg/json-pushes-ten-full.json"))


def in_order(answer: dict[str, Any]) -> None:
    for push_id, entry in answer["pushes"].items():
        built = resultset_of(make_push(push_event(int(push_id), **entry)), REPOSITORY)
        check_resultset("it", "mc", built)
        assert [shown["revision"] for shown in built["revisions"]] == [
            changeset["node"] for changeset in entry["changesets"]
        ]
        assert built["revision"] == entry["changesets"][-1]["node"]
        assert [shown["comment"] for shown in built["revisions"]] == [
            changeset["desc"] for changeset in entry["changesets"]
        ]


def test_a_large_push_has_its_last_200_and_the_hash_of_all() -> None:
    many = [{"node": node(n), "branch": "default", "desc": str(n)} for n in range(2_000)]
    push = make_push(push_event(1, changesets=many))
    built = resultset_of(push, REPOSITORY)
    assert [shown["comment"] for shown in built["revisions"]] == [str(n) for n in range(1_800, 2_000)]
    assert built["revision"] == node(1_999)
    assert built["revision_hash"] == push.revision_hash


def test_a_long_author_is_cut() -> None:
    built = resultset_of(make_push(push_event(1, user="\u00e4" * 151)), REPOSITORY)
    assert built["author"] == "\u00e4" * 150


def test_what_is_not_known_of_a_changeset() -> None:
    built = resultset_of(make_push(push_event(1, changesets=[{"node": node(1), "branch": "b"}])), REPOSITORY)
    (revision,) = built["revisions"]
    assert (revision["author"], revision["comment"], revision["files"]) == ("dev@example.com", "", [])


# The step


async def pushed(harness: FlowHarness, **entry: Any) -> None:
    await harness.add_repository()
    await harness.store(push_event(1, **entry))


async def run(harness: FlowHarness) -> PushStep:
    await resultset.run(harness.services, await harness.lease(StepKind.RESULTSET))
    return await harness.step(StepKind.RESULTSET)


async def test_it_is_posted(harness: FlowHarness) -> None:
    await pushed(harness)
    step = await run(harness)
    assert (step.state, step.error, step.due_at) == (State.DONE, None, None)
    (stored,) = harness.th.store.pushes
    assert stored.revision == node("mc 1")
    assert harness.th.counters == {"POST resultset 200": 1}


async def test_again_is_the_same_resultset(harness: FlowHarness) -> None:
    await pushed(harness)
    harness.th.behaviour.fail_after = 1
    with pytest.raises(Unavailable):
        await run(harness)
    async with harness.database.writing() as session:
        await session.exec(update(PushStep).values(due_at=now()))
    assert (await run(harness)).state == State.DONE
    assert len(harness.th.store.pushes) == 1


async def test_without_changesets_it_is_skipped(harness: FlowHarness) -> None:
    await pushed(harness, changesets=[])
    step = await run(harness)
    assert (step.state, step.error) == (State.SKIPPED, "no changesets are left of this push")
    assert not harness.th.counters


async def test_what_is_refused_for_good_is_failed_with_the_reason(harness: FlowHarness) -> None:
    await pushed(harness)

    class Refusing:
        async def post_resultset(self, *_: Any) -> None:
            raise PermanentUpstreamError("treeherder", "https://th answers 400: bad\0 field", 400)

    harness.services.treeherders = {ENVIRONMENT: Refusing()}  # type: ignore[dict-item]  # the one call that is built
    step = await run(harness)
    assert (step.state, step.error) == (State.FAILED, "https://th answers 400: bad\\u0000 field")


@pytest.mark.parametrize("pushes", ["off", None])
async def test_an_environment_that_takes_none_any_more(harness: FlowHarness, pushes: str | None) -> None:
    await pushed(harness)
    if pushes is None:
        del harness.settings.environments[ENVIRONMENT]
    else:
        harness.settings.environments[ENVIRONMENT].pushes = "off"
    step = await run(harness)
    assert step.state == State.SKIPPED
    assert f"environment {ENVIRONMENT} takes no pushes" in str(step.error)
    assert not harness.th.counters


class Heard:
    """A publisher that records messages."""

    def __init__(self, error: Exception | None = None) -> None:
        self.messages: list[tuple[str, str, dict[str, Any]]] = []
        self.error = error

    async def publish(
        self, exchange: str, routing_key: str, message: dict[str, Any], *, mandatory: bool = False
    ) -> None:
        if self.error:
            raise self.error
        assert mandatory == ("hgpushes/" in exchange), "a Treeherder has to listen, and nobody else"
        self.messages.append((exchange, routing_key, message))


PULSE = {
    "pulse": {"url": "amqp://127.0.0.1:9/%2F"},
    "environments": {ENVIRONMENT: {"url": "https://th.example.com", "pushes": "pulse"}},
}


async def test_for_one_that_listens_on_pulse_it_is_announced(sqlite_url: str) -> None:
    async with open_harness(sqlite_url, **PULSE) as harness:
        heard = Heard()
        publisher, harness.services.publisher = harness.services.publisher, heard
        await pushed(harness, date=now() - timedelta(minutes=1))
        assert (await run(harness)).state == State.DONE
        ((exchange, key, message),) = heard.messages
        assert (exchange, key) == ("hgpushes/v1", "mc")
        url = f"{harness.hg_url}/mc"
        (announced,) = message["payload"]["pushlog_pushes"]
        assert message["payload"]["heads"] == [node("mc 1")]
        assert message["payload"]["repo_url"] == url
        assert (announced["pushid"], announced["user"]) == (1, "dev@example.com")
        assert isinstance(announced["time"], int)
        assert announced["push_full_json_url"] == f"{url}/json-pushes?version=2&full=1&startID=0&endID=1"
        harness.services.publisher = publisher


async def test_a_broker_that_is_away_is_tried_again(sqlite_url: str) -> None:
    async with open_harness(sqlite_url, **PULSE) as harness:
        publisher, harness.services.publisher = harness.services.publisher, Heard(Unavailable("pulse", "away"))
        await pushed(harness)
        with pytest.raises(Unavailable, match="away"):
            await run(harness)
        assert (await harness.step(StepKind.RESULTSET)).state == State.PENDING
        harness.services.publisher = publisher


async def test_a_push_that_no_treeherder_listens_for_waits_until_one_does(sqlite_url: str, amqp: Amqp) -> None:
    exchange = amqp.exchange("hgpushes/v1")
    user = f"{amqp.user}/{amqp.name}"
    amqp.exchanges |= {f"exchange/{user}/{name}" for name in ("v1/pushes", "v1/retrigger")}
    environment = {"url": "https://th.example.com", "pushes": "pulse", "pushes_exchange": exchange}
    pulse = {"url": amqp.url, "user": user}
    async with open_harness(sqlite_url, pulse=pulse, environments={ENVIRONMENT: environment}) as harness:
        await pushed(harness)
        lease = await harness.lease(StepKind.RESULTSET)
        with pytest.raises(Unavailable, match=f"no queue is bound to {exchange}") as unheard:
            await resultset.run(harness.services, lease)
        await lease.retry(str(unheard.value), timedelta())  # as the worker does
        async with harness.database.writing() as session:
            await session.exec(update(PushStep).values(due_at=now()))
        step = await harness.step(StepKind.RESULTSET)
        assert (step.state, step.error) == (State.PENDING, str(unheard.value))
        with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
            channel = connection.channel()
            channel.exchange_declare(exchange, passive=True)  # as a Treeherder does
            channel.queue_declare(amqp.queue())
            channel.queue_bind(amqp.queue(), exchange, "#")
            assert (await run(harness)).state == State.DONE
            assert json.loads(channel.basic_get(amqp.queue())[2])["payload"]["heads"] == [node("mc 1")]


async def test_everybody_is_told_on_pulse(sqlite_url: str) -> None:
    async with open_harness(sqlite_url, **PULSE) as harness:
        heard = Heard()
        publisher, harness.services.publisher = harness.services.publisher, heard
        await pushed(harness)
        await resultset.announce(harness.services, await harness.lease(StepKind.ANNOUNCEMENT))
        assert (await harness.step(StepKind.ANNOUNCEMENT)).state == State.DONE
        ((exchange, key, message),) = heard.messages
        assert (exchange, key) == ("v1/pushes", "mc")
        assert (message["id"], message["alias"], message["user"]) == (1, "mc", "dev@example.com")
        assert message["changesets"][0]["files"] == ["a.txt"]
        harness.services.publisher = publisher


async def test_a_message_that_would_be_too_large_names_no_files(sqlite_url: str) -> None:
    async with open_harness(sqlite_url, **PULSE) as harness:
        heard = Heard()
        publisher, harness.services.publisher = harness.services.publisher, heard
        many = [{"node": node(n), "branch": "default", "desc": "d", "files": ["x" * 100] * 100} for n in range(150)]
        await pushed(harness, changesets=many)
        await resultset.announce(harness.services, await harness.lease(StepKind.ANNOUNCEMENT))
        ((_, _, message),) = heard.messages
        assert len(message["changesets"]) == 150
        assert "files" not in message["changesets"][0]
        harness.services.publisher = publisher
