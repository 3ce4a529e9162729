"""`tc-treeherder pulse-queues`."""

from typing import Any

from tests.service.commands.conftest import Pretended, Run


def test_queues_are_listed_with_what_became_of_them(run: Run, pretend: Pretended) -> None:
    queue: dict[str, Any] = {"name": "queue/me/tasks", "events": "tasks", "read": True, "deletions": 0}
    queue |= {"seen_at": "2026-01-15T12:30:00Z", "declared_at": "2026-01-15T09:00:00Z", "deleted_at": None}
    queue["messages_lost_since"] = None
    lost = {**queue, "name": "queue/me/pushes", "events": "pushes", "read": False, "deletions": 2}
    lost |= {"deleted_at": "2026-01-15T11:00:00Z", "messages_lost_since": "2026-01-15T10:00:00Z"}
    pretend.json("/api/v1/pulse-queues", {"items": [queue, lost], "next": None})
    good, bad = run("pulse-queues", "--url", pretend.url).rows
    assert good == ["queue/me/tasks", "tasks", "read", "2026-01-15", "12:30:00Z", "never", "-"]
    assert bad[:3] == ["queue/me/pushes", "pushes", "unread"]
    assert bad[5:] == ["2,", "last", "2026-01-15", "11:00:00Z", "2026-01-15", "10:00:00Z"]
    assert run("pulse-queues", "--json", "--url", pretend.url).json == [queue, lost]


def test_without_a_queue_it_says_what_declares_one(tc: Run) -> None:
    ran = tc("pulse-queues")
    assert (ran.code, ran.out) == (0, "")
    assert "tc-treeherder listen pulse" in ran.err
