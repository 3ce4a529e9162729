"""A push is ingested by hand: read from the pushlog, stored, and processed once."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import select

from sandbox.hg import NewChangeset
from sandbox.hg.faults import Fault
from service.clock import now
from service.contract.events import PushEvent
from service.contract.pushlog import trim_entry
from service.engine.registry import WORK
from service.errors import Unavailable
from service.flow.pushes import graph, ingest
from service.flow.tasks.action_kinds import Plan
from service.flow.tasks.subject import ActionRejectedError
from service.store.models import Action, PushStep, Repository, Source, State, StepKind
from tests.service.flow.graph_factory import action_on, carry_out, claim_work, read_notices, reload_action
from tests.service.flow.pushes.support import YML
from tests.service.harness import FlowHarness, node, open_harness, push_event

OLD = now() - timedelta(days=30)


@pytest.fixture
async def early(harness: FlowHarness) -> FlowHarness:
    """Prepare a repository whose cursor is behind its first three pushes, of which the second is a month old."""
    harness.hg.create("mc")
    for number, date in ((1, now()), (2, OLD), (3, now())):
        changeset = NewChangeset(message=f"Bug {number}", files={".taskcluster.yml": YML})
        harness.hg.push("mc", [changeset], user=f"dev{number}@example.com", date=int(date.timestamp()))
    await harness.add_repository(last_push_id=3)
    return harness


async def ask(harness: FlowHarness, push_id: int, **told: Any) -> Action:
    return await carry_out(harness, None, "ingest", push_id=push_id, input=told)


async def plan(harness: FlowHarness, push_id: int, **told: Any) -> Plan:
    about: dict[str, Any] = {"kind": "ingest", "project": "mc", "requester": "me", "source": Source.API, "lane": "x"}
    return await ingest.plan(harness.services, Action(**about, push_id=push_id, input=told))


async def make_graph(harness: FlowHarness) -> PushStep:
    await graph.run(harness.services, await harness.lease(StepKind.GRAPH))
    return await harness.step(StepKind.GRAPH)


async def test_a_push_from_before_the_cursor_is_stored_as_a_listener_would_store_it(early: FlowHarness) -> None:
    planned = await plan(early, 1)
    assert "push 1 by dev1@example.com" in planned.notes[0]
    assert planned.notes[1] == "it gets a graph"
    assert await early.pushes() == []
    action = await ask(early, 1)
    assert (action.state, action.error, action.generation) == ("done", None, 0)
    (push,) = await early.pushes()
    assert (push.push_id, push.user, push.any_age) == (1, "dev1@example.com", False)
    assert push.revision == push.nodes[-1] == push.changesets[-1]["node"]
    assert push.changesets[0]["desc"] == "Bug 1"
    async with early.database.reading() as session:
        repository = (await session.exec(select(Repository))).one()
        kinds = {step.kind for step in await session.exec(select(PushStep))}
    assert (repository.last_push_id, kinds) == (3, {StepKind.RESULTSET, StepKind.GRAPH})
    assert (await make_graph(early)).state == State.DONE
    assert len(early.tc.queue.tasks) > 0


async def test_it_is_stored_once(early: FlowHarness) -> None:
    assert (await ask(early, 1)).state == "done"
    again = await ask(early, 1)
    assert again.state == "nothing-to-do"
    assert "push 1 of mc is stored already: `tc-treeherder pushes retry mc 1`" in str(again.error)
    assert (await plan(early, 1)).nothing_to_do == "push 1 of mc is stored already"
    assert len(await early.pushes()) == 1


@pytest.mark.parametrize("first", ["listener", "ingest"])
async def test_what_a_listener_sees_at_the_same_time_is_stored_once(postgres_url: str, first: str) -> None:
    async with open_harness(postgres_url) as harness:
        harness.hg.create("mc")
        harness.hg.push("mc", [NewChangeset(message="Bug 1", files={".taskcluster.yml": YML})], user="me")
        await harness.add_repository()
        entry = trim_entry(1, await harness.services.hg.push(f"{harness.hg_url}/mc", 1))
        seen = PushEvent.model_validate({**push_event(1).model_dump(), "push": entry})
        action = await action_on(harness, None, "ingest", push_id=1)
        lease = await claim_work(harness)
        both = [harness.store(seen), WORK.run_of(lease.item)(harness.services, lease)]
        await asyncio.gather(*(both if first == "listener" else reversed(both)))
        assert (await reload_action(harness, action)).state in {"done", "nothing-to-do"}
        assert len(await harness.pushes()) == 1
        async with harness.database.reading() as session:
            assert len((await session.exec(select(PushStep))).all()) == 2


@pytest.mark.parametrize("any_age", [False, True])
async def test_the_age_limit_is_waived_if_the_caller_asks_for_that(early: FlowHarness, any_age: bool) -> None:
    planned = await plan(early, 2, any_age=any_age)
    assert planned.notes[1].startswith(
        "it gets a graph" if any_age else "no graph: the push is older than max_push_age"
    )
    assert (await ask(early, 2, any_age=any_age)).state == "done"
    step = await make_graph(early)
    assert step.state == (State.DONE if any_age else State.SKIPPED)
    if not any_age:
        assert (await ask(early, 2, any_age=True)).state == "done"  # of what is stored, too
        assert (await make_graph(early)).state == State.DONE
    assert len(await early.pushes()) == 1
    assert (await ask(early, 2, any_age=True)).state == "nothing-to-do"


async def test_a_push_that_got_no_graph_for_another_reason_gets_none(early: FlowHarness) -> None:
    async with early.database.writing() as session:
        (await session.exec(select(Repository))).one().graph = False
    await ask(early, 2)
    assert (await make_graph(early)).state == State.SKIPPED
    assert (await ask(early, 2, any_age=True)).state == "nothing-to-do"
    assert [push.any_age for push in await early.pushes()] == [False]


async def test_it_goes_on_after_a_crash_between_storing_and_ending(early: FlowHarness) -> None:
    action = await action_on(early, None, "ingest", push_id=1)
    lease = await claim_work(early)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "finish", _crash)
        with pytest.raises(ConnectionError):
            await ingest.run(early.services, lease)
    assert len(await early.pushes()) == 1
    lease.item = await reload_action(early, action)
    await ingest.run(early.services, lease)
    assert (await reload_action(early, action)).state == "done"
    assert len(await early.pushes()) == 1


async def _crash(*_: Any, **__: Any) -> None:
    raise ConnectionError("the database went away")


async def test_a_push_that_the_pushlog_does_not_have_is_rejected(early: FlowHarness) -> None:
    action = await ask(early, 99)
    assert (action.state, action.error) == ("rejected", f"the pushlog of {early.hg_url}/mc has no push 99")
    with pytest.raises(ActionRejectedError, match="has no push 99"):
        await plan(early, 99)
    assert (await carry_out(early, None, "ingest", push_id=1, project="nowhere")).state == "rejected"
    assert (await early.pushes(), await read_notices(early)) == ([], [])


@pytest.mark.parametrize("kind", ["status", "garbage", "truncated", "hangup"])
async def test_a_pushlog_that_does_not_answer_is_asked_again(early: FlowHarness, kind: Any) -> None:
    early.hg_faults.add(Fault(repository="mc", kind=kind, times=1))
    await action_on(early, None, "ingest", push_id=1)
    lease = await claim_work(early)
    with pytest.raises(Unavailable):
        await ingest.run(early.services, lease)
    assert await early.pushes() == []
    await ingest.run(early.services, lease)
    assert len(await early.pushes()) == 1


async def test_an_entry_that_is_not_understood_fails(early: FlowHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    async def odd(_url: str, _push_id: int) -> Any:
        return {"user": 7, "date": 1, "changesets": [{"node": "x"}]}

    monkeypatch.setattr(early.services.hg, "push", odd)
    action = await ask(early, 1)
    assert action.state == "failed"
    assert "the pushlog's entry of push 1 is not understood: push.user" in str(action.error)


async def test_a_push_that_is_known_with_another_tip_fails(early: FlowHarness) -> None:
    await early.store(push_event(1, changesets=[{"node": node("other"), "branch": "default"}]))
    action = await ask(early, 1)
    assert action.state == "failed"
    assert "the repository may have been reset" in str(action.error)


async def test_a_push_from_before_a_reset_is_recorded_only(early: FlowHarness) -> None:
    async with early.database.writing() as session:
        (await session.exec(select(Repository))).one().record_before = now() + timedelta(hours=1)
    action = await ask(early, 1)
    assert (action.state, action.notes) == (
        "done",
        ["it was pushed before the repository was reset, so it is recorded only"],
    )
    again = await ask(early, 1, any_age=True)
    assert again.state == "nothing-to-do"
    async with early.database.reading() as session:
        assert {step.state for step in await session.exec(select(PushStep))} == {State.SKIPPED}


@pytest.mark.parametrize(("push_id", "cursor"), [(3, 1), (2, 2)])
async def test_the_cursor_never_moves_over_a_push_that_was_not_stored(
    early: FlowHarness, push_id: int, cursor: int
) -> None:
    async with early.database.writing() as session:
        (await session.exec(select(Repository))).one().last_push_id = 1
    assert (await ask(early, push_id)).state == "done"
    async with early.database.reading() as session:
        assert (await session.exec(select(Repository))).one().last_push_id == cursor
