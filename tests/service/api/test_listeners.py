"""Take what listeners say of their queues, and show it in the heartbeat."""

import asyncio
from datetime import timedelta
from typing import Any

from structlog.testing import capture_logs

from service.api.health import UNREAD
from service.clock import now
from service.store.models import PulseQueue
from tests.service.asgi import Api, is_problem

QUEUE = "queue/user/tc-treeherder/job-actions"


async def report(api: Api, found: str, queue: str = QUEUE, events: str = "job-actions") -> dict[str, Any]:
    answer = await api.signed("/listeners/report", {"queue": queue, "events": events, "found": found})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def row(api: Api, name: str = QUEUE) -> PulseQueue:
    async with api.database.reading() as session:
        return await session.get_one(PulseQueue, name)


async def age(api: Api, name: str = QUEUE, **ages: timedelta) -> None:
    async with api.database.writing() as session:
        queue = await session.get_one(PulseQueue, name)
        for column, old in ages.items():
            setattr(queue, column, now() - old)


async def warned(api: Api) -> str:
    """Return the text of the heartbeat's check of Pulse."""
    answer = (await api.client.get("/__heartbeat__")).json()
    (check,) = (check for check in answer["checks"] if check["name"] == "pulse")
    assert check["status"] == ("warning" if check["detail"] else "ok")
    return str(check["detail"])


async def test_a_queue_that_is_new_or_there_is_no_news(api: Api) -> None:
    assert await warned(api) == ""
    for found in ("new", "there", "there"):
        assert await report(api, found) == {"deleted": False, "messages_lost_since": None}
    assert (await row(api)).deletions == 0
    assert await warned(api) == ""


async def test_a_queue_that_was_known_and_is_new_was_deleted_while_nobody_read(api: Api) -> None:
    await report(api, "new")
    await age(api, declared_at=timedelta(hours=3), seen_at=timedelta(hours=2))
    seen = (await row(api)).seen_at
    with capture_logs() as logs:
        answer = await report(api, "new")
    assert answer == {"deleted": True, "messages_lost_since": str(seen)}
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["queue-deleted"]
    detail = await warned(api)
    assert f"{QUEUE} was found deleted" in detail
    assert f"its job-actions since {seen:%F %T}Z may be lost" in detail
    assert await report(api, "new") == answer, "the answer was lost, and it says so once more"
    assert (await row(api)).deletions == 1
    assert (await report(api, "there"))["deleted"] is False
    assert await warned(api) == detail
    await age(api, deleted_at=timedelta(days=1, minutes=1))
    assert await warned(api) == ""


async def test_what_a_listener_saw_deleted_counts_at_once(api: Api) -> None:
    await report(api, "new")
    assert (await report(api, "deleted"))["deleted"] is True
    assert (await report(api, "deleted"))["deleted"] is True, "another listener saw the same"
    assert (await row(api)).deletions == 1
    await age(api, deleted_at=timedelta(minutes=5))
    assert (await report(api, "deleted"))["deleted"] is True
    assert (await row(api)).deletions == 2


async def test_two_listeners_that_start_at_once_have_lost_nothing(api: Api) -> None:
    answers = await asyncio.gather(*(report(api, "new") for _ in range(5)))
    assert not any(answer["deleted"] for answer in answers)
    assert (await row(api)).deletions == 0


async def test_a_queue_that_nobody_reads_is_warned_of(api: Api) -> None:
    old = "queue/user/old/tasks"
    await report(api, "new", old, "tasks")
    await age(api, old, seen_at=UNREAD - timedelta(seconds=20))
    assert await warned(api) == ""
    await age(api, old, seen_at=UNREAD + timedelta(seconds=1))
    assert f"nobody has read {old} since" in await warned(api)
    await report(api, "new", "queue/user/renamed/tasks", "tasks")
    assert await warned(api) == ""
    await age(api, "queue/user/renamed/tasks", seen_at=timedelta(minutes=12))
    assert f"nobody has read {old} since" in await warned(api)
    for name in (old, "queue/user/renamed/tasks"):
        await age(api, name, seen_at=timedelta(days=8))
    assert await warned(api) == "", "given up long ago"


async def test_nonsense_and_strangers_are_refused(api: Api) -> None:
    bodies: list[Any] = [[], {}, {"queue": "q", "events": "x", "found": "there"}, {"queue": "q", "events": "tasks"}]
    for body in bodies:
        is_problem(await api.signed("/listeners/report", body), 422)
    is_problem(await api.post("/listeners/report", {"queue": "q", "events": "tasks", "found": "there"}), 401)
