"""Events that were not understood: each is kept once, with its original bytes, as a dead letter."""

import hashlib
import json
from typing import Any

import structlog
from sqlmodel import col

from service.contract.events import Verdict
from service.sanitize import raw_elements
from service.store.database import INSERT, Session
from service.store.models import DeadLetter

log = structlog.get_logger()

_CHANGES: dict[str, set[str]] = {
    "push-event": {"since", "lastpushid", "shift"},
    "task-event": set(),
    "job-action": set(),  # two equal presses are two
}
"""Fields in which an event differs when the same comes again: each poll lists a bad push, until the next one."""


def dead_letters(kind: str, raw: bytes, events: list[Any], refused: dict[int, str]) -> list[DeadLetter]:
    """Return a dead letter for each refused event, by its number; `raw` is the body of the request."""
    payloads = raw_elements(raw, "events") if refused else []
    return [
        DeadLetter(
            kind=kind,
            subject=_subject(kind, events[number]),
            reason=reason,
            payload=payloads[number],
            digest=_digest(kind, payloads[number]),
        )
        for number, reason in refused.items()
    ]


async def keep(session: Session, letters: list[DeadLetter]) -> None:
    """Store those that are not kept yet, in the caller's transaction."""
    if not letters:
        return
    insert = INSERT[session.get_bind().dialect.name]
    # sorted, so that two batches with the same letters never wait in a circle
    rows = [letter.model_dump(exclude={"id"}) for letter in sorted(letters, key=lambda letter: letter.digest or "")]
    new = await session.exec(insert(DeadLetter).values(rows).on_conflict_do_nothing().returning(col(DeadLetter.digest)))
    stored = set(new.scalars())
    for letter in letters:
        if letter.digest in stored:
            log.warning("event-not-understood", subject=letter.subject, reason=letter.reason)


def verdict(reason: str) -> Verdict:
    return Verdict(verdict="rejected", reason=f"{reason}; kept as a dead letter")


def _subject(kind: str, event: Any) -> str:
    if not isinstance(event, dict):
        return "an event that is no object"
    if kind == "push-event":
        push = event.get("push")
        push_id = push.get("id") if isinstance(push, dict) else None
        return f"{str(event.get('repository'))[:50]}, push {str(push_id)[:20]}"
    return f"{str(event.get('exchange'))[:100]}, {str(event.get('routing_key'))[:200]}"


def _digest(kind: str, payload: bytes) -> str:
    event = json.loads(payload)  # as it came: what was made storable may have become equal
    same = {name: event[name] for name in event.keys() - _CHANGES[kind]} if isinstance(event, dict) else event
    return hashlib.sha256(json.dumps([kind, same], sort_keys=True).encode()).hexdigest()
