"""Which queues are read, and what waits."""

from datetime import timedelta

import pytest

from service.api import watch
from service.api.health import UNREAD
from service.api.watch import list_pulse_queues, list_waiting
from service.auth import LOCAL
from service.clock import now
from service.store.models import Action, PulseQueue, PushStep, Source, State
from tests.service.asgi import Api, push_event
from tests.service.harness import sent_statements


async def test_a_queue_is_read_if_a_listener_said_so_lately(api: Api) -> None:
    async with api.database.writing() as session:
        session.add(PulseQueue(name="new", events="tasks"))
        session.add(PulseQueue(name="old", events="tasks", seen_at=now() - UNREAD * 2, deleted_at=now(), deletions=2))
    async with api.database.reading() as session:
        page = await list_pulse_queues(session, LOCAL)
    queues = [(queue.name, queue.read, queue.deletions) for queue in page.items]
    assert queues == [("new", True, 0), ("old", False, 2)]
    answer = await api.get("/pulse-queues")
    assert [queue["name"] for queue in answer.json()["items"]] == ["new", "old"]


async def test_what_waits_is_told_by_lane_the_oldest_first(api: Api) -> None:
    async with api.database.reading() as session:
        assert await list_waiting(session) == []
    await api.add()
    await api.push(push_event(101, user="dev@example.com"), push_event(102))
    async with api.database.writing() as session:
        for step in await api.steps():
            step.since = now() - timedelta(hours=step.id or 0)
            if step.kind == "graph" and step.id and step.id > 3:
                step.error, step.attempts, step.since = "Taskcluster answers 503", 4, now() - timedelta(days=1)
                step.due_at = now() + timedelta(minutes=5)
            await session.merge(step)
    async with api.database.reading() as session:
        lanes = await list_waiting(session)
    assert len(lanes) == 3
    assert [lane.count for lane in lanes] == [2, 2, 2]
    assert lanes[0].oldest.path == ("pushes", "mc", "102")
    graph = lanes[0].oldest.item
    assert isinstance(graph, PushStep)
    assert (graph.attempts, graph.error) == (4, "Taskcluster answers 503")
    assert graph.next_attempt_at is not None
    assert graph.next_attempt_at > now()
    assert lanes[1].oldest.item.since <= lanes[2].oldest.item.since
    await api.end_steps(State.DONE)
    async with api.database.reading() as session:
        assert await list_waiting(session) == []


async def test_a_lane_is_counted_up_to_a_bound(sqlite_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await sqlite_api.add()
    await sqlite_api.push(push_event(101), push_event(102))
    monkeypatch.setattr(watch, "MOST_COUNTED", 1)
    async with sqlite_api.database.reading() as session:
        assert {lane.count for lane in await list_waiting(session)} == {1}


async def test_what_waits_is_read_without_what_can_be_large(api: Api) -> None:
    await api.add()
    async with api.database.writing() as session:
        session.add(Action(kind="cancel", project="mc", task_id="T", requester="r", source=Source.API, lane="x"))
    with sent_statements(api.database) as sent:
        async with api.database.reading() as session:
            (lane,) = await list_waiting(session)
    assert lane.oldest.path == ("actions", "1")
    assert not [statement for statement in sent if "action.input" in statement or "action.cancels" in statement]
