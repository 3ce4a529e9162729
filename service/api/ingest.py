"""Batches of events: parse each event by itself, and store a dead letter of one that cannot be parsed, once."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from sqlmodel import col

from service.contract.events import Verdict
from service.contract.validation import NOT_UNDERSTOOD, reason_of
from service.errors import Problem
from service.sanitize import escape_unstorable, parse, raw_elements
from service.store.database import Session, insert_of
from service.store.models import DeadLetter

log = structlog.get_logger()

_CHANGES: dict[str, set[str]] = {
    "push-event": {"since", "lastpushid", "shift"},
    "task-event": set(),
    "job-action": set(),  # two equal presses are two
}
"""Fields that differ when the same event comes again: each poll lists a bad push, until the next one."""


T = TypeVar("T")


@dataclass
class Batch(Generic[T]):
    """The events of a request by their numbers: those that were parsed, and the reasons against the others."""

    kind: str
    raw: bytes  # the body of the request
    events: list[Any]
    parsed: dict[int, T]
    refused: dict[int, str]

    def letters(self) -> list[DeadLetter]:
        """Return a dead letter for each refused event."""
        payloads = raw_elements(self.raw, "events") if self.refused else []
        return [
            DeadLetter(
                kind=self.kind,
                subject=_subject(self.kind, self.events[number]),
                reason=reason,
                payload=payloads[number],
                digest=_digest(self.kind, payloads[number]),
            )
            for number, reason in self.refused.items()
        ]

    def verdicts(self, stored: Iterable[Verdict]) -> list[Verdict]:
        """Return a verdict for each event, in order; `stored` has those of the events that were parsed."""
        verdicts = dict(zip(self.parsed, stored, strict=True))
        for number, reason in self.refused.items():
            verdicts[number] = Verdict(verdict="rejected", reason=f"{reason}; kept as a dead letter")
        return [verdicts[number] for number in range(len(self.events))]


def parse_each(kind: str, raw: bytes, events: list[Any], parse_event: Callable[[Any], T]) -> Batch[T]:
    """Call `parse_event` for each event of a request; an event for which it raises ValueError is refused."""
    batch: Batch[T] = Batch(kind, raw, events, {}, {})
    for number, event in enumerate(events):
        try:
            batch.parsed[number] = parse_event(event)
        except ValueError as error:  # pydantic's is one
            batch.refused[number] = escape_unstorable(reason_of(error))
    return batch


async def store_letters(session: Session, letters: list[DeadLetter]) -> None:
    """Store the letters that are not stored yet, in the caller's transaction."""
    if not letters:
        return
    insert = insert_of(session.get_bind().dialect.name)
    # sorted, so that two batches with the same letters never wait in a circle
    rows = [letter.model_dump(exclude={"id"}) for letter in sorted(letters, key=lambda letter: letter.digest or "")]
    new = await session.exec(insert(DeadLetter).values(rows).on_conflict_do_nothing().returning(col(DeadLetter.digest)))
    stored = set(new.scalars())
    for letter in letters:
        if letter.digest in stored:
            log.warning("event-not-understood", subject=letter.subject, reason=letter.reason)


def _subject(kind: str, event: Any) -> str:
    if not isinstance(event, dict):
        return "an event that is no object"
    if kind == "push-event":
        push = event.get("push")
        push_id = push.get("id") if isinstance(push, dict) else None
        return f"push {_abbreviate(push_id, 20)} of {_abbreviate(event.get('repository'), 50)}"
    return f"{_abbreviate(event.get('exchange'), 100)}, {_abbreviate(event.get('routing_key'), 200)}"


def _abbreviate(value: Any, most: int) -> str:
    return "?" if value is None else str(value)[:most]


def _digest(kind: str, payload: bytes) -> str:
    event = json.loads(payload)  # as it came: two events may become equal when they are sanitized
    same = {name: event[name] for name in event.keys() - _CHANGES[kind]} if isinstance(event, dict) else event
    return hashlib.sha256(json.dumps([kind, same], sort_keys=True).encode()).hexdigest()


def parse_letter(parse_event: Callable[[Any], T], payload: bytes) -> T:
    """Return the event in the payload of a dead letter. Raises a Problem (422) if it still cannot be parsed."""
    try:
        return parse_event(parse(payload))
    except ValueError as error:  # pydantic's is one
        raise Problem(422, "Still not understood", reason_of(error).removeprefix(NOT_UNDERSTOOD)) from None
