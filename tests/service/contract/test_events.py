"""Schemas of events: what each accepts, and that a reason never repeats the payload."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from service.contract.events import (
    MAX_FILES,
    MAX_HELD,
    Changeset,
    JobActionMessage,
    OversizedPush,
    PollNews,
    PushEvent,
    QueueReport,
    ShiftRequest,
)

NODE = "0123456789abcdef0123456789abcdef01234567"
UUID = "123e4567-e89b-42d3-a456-426614174000"
LISTED = {"repository": "mc", "repository_id": 1, "shift": 3, "generation": 0, "since": 100, "lastpushid": 101}
ENTRY: dict[str, Any] = {"id": 101, "user": "a@b.c", "date": 1.5, "changesets": [{"node": NODE}]}
PUSH = {**LISTED, "push": ENTRY}
MESSAGE = {
    "exchange": "exchange/x",
    "routing_key": "a.b",
    "body": "{}",
    "delivery": UUID,
    "channel": UUID,
    "redelivered": False,
    "stamp": 1.0,
}


def test_a_push_event_fills_in_what_is_optional() -> None:
    event = PushEvent.model_validate(PUSH)
    (changeset,) = event.push.changesets
    assert (changeset.branch, changeset.parents, changeset.files_count) == ("default", None, None)


def test_fields_of_a_newer_listener_are_ignored() -> None:
    assert PushEvent.model_validate({**PUSH, "newer": 1}) == PushEvent.model_validate(PUSH)


@pytest.mark.parametrize(
    ("schema", "valid", "changes"),
    [
        (PushEvent, PUSH, {"repository": "a b"}),
        (PushEvent, PUSH, {"repository": "a" * 51}),
        (PushEvent, PUSH, {"repository_id": 0}),
        (PushEvent, PUSH, {"since": "100"}),
        (PushEvent, PUSH, {"since": 2**31}),
        (PushEvent, PUSH, {"generation": True}),
        (PushEvent, PUSH, {"push": {**ENTRY, "date": -1}}),
        (PushEvent, PUSH, {"push": {**ENTRY, "changesets": [{"node": NODE.upper()}]}}),
        (OversizedPush, {**LISTED, "oversized": True, "push_id": 101, "reason": "x"}, {"oversized": False}),
        (Changeset, {"node": NODE}, {"files": ["f"] * (MAX_FILES + 1)}),
        (PollNews, {"repository_id": 1, "shift": 0, "outcome": "listed"}, {"outcome": "fine"}),
        (ShiftRequest, {"listener": UUID}, {"listener": "x"}),
        (ShiftRequest, {"listener": UUID}, {"polled": [[1, 2, 3.0]]}),
        (ShiftRequest, {"listener": UUID}, {"under_way": [[1, 2]] * (MAX_HELD + 1)}),
        (QueueReport, {"queue": "queue/u/x", "events": "tasks", "found": "new"}, {"found": "old"}),
        (JobActionMessage, MESSAGE, {"delivery": "x"}),
        (JobActionMessage, MESSAGE, {"stamp": float("nan")}),
    ],
)
def test_values_outside_the_schema_are_refused(
    schema: type[BaseModel], valid: dict[str, Any], changes: dict[str, Any]
) -> None:
    schema.model_validate(valid)
    with pytest.raises(ValidationError) as refused:
        schema.model_validate(valid | changes)
    assert refused.value.errors()[0]["loc"][0] == next(iter(changes))


def test_a_reason_does_not_repeat_the_payload() -> None:
    with pytest.raises(ValidationError) as refused:
        PushEvent.model_validate(PUSH | {"repository": "not for the log"})
    assert "not for the log" not in str(refused.value)
