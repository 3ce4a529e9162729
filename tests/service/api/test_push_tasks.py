"""States and copies of the tasks of a graph."""

from datetime import UTC, datetime
from typing import Any

import pytest

from service.api.push_tasks import copies_of, task_states
from service.store.models import Stage, State
from tests.service.api.test_tasks import COPY, OTHER, OURS, PLANNED, report, stored
from tests.service.asgi import Api


async def test_the_newest_run_tells_the_state_and_no_unknown_task_has_one(api: Api) -> None:
    await stored(api)
    async with api.database.reading() as session:
        states = await task_states(session, [OURS, COPY, OTHER])
        assert await task_states(session, []) == {}
    assert list(states) == [OURS]
    assert (states[OURS].run_id, states[OURS].state, states[OURS].task_group_id) == (1, "running", OURS)


@pytest.mark.parametrize(
    ("run", "state"),
    [
        ({"state": "completed", "started": 1_700_000_000, "resolved": 1_700_000_060}, "completed"),
        ({"state": "failed"}, "failed"),
        ({"state": "exception", "reason": "canceled"}, "canceled"),
        ({"state": "exception"}, "exception"),
        ({}, "exception"),
    ],
)
async def test_an_ended_run_tells_how_it_ended(sqlite_api: Api, run: dict[str, Any], state: str) -> None:
    ended = report(OURS, 0, stage=Stage.RESOLVED, state=State.DONE)
    ended.run = run
    async with sqlite_api.database.writing() as session:
        session.add(ended)
    async with sqlite_api.database.reading() as session:
        told = (await task_states(session, [OURS]))[OURS]
    assert told.state == state
    expected = datetime.fromtimestamp(1_700_000_060, UTC) if "resolved" in run else None
    assert told.ended == expected


async def test_copies_name_who_asked_and_none_that_is_not_created(api: Api) -> None:
    ids = await stored(api)
    async with api.database.reading() as session:
        copies = await copies_of(session, [OURS, OTHER])
        assert await copies_of(session, []) == {}
    assert list(copies) == [OURS]
    (copy,) = copies[OURS]
    assert (copy.task_id, copy.action_id, copy.requester) == (COPY, ids["first"], "sheriff@example.com")
    assert copy.task_id != PLANNED
