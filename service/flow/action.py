"""A pressed button, or a call of our API, becomes a stored action; and what every action begins with.

A message may come again: under the same delivery key when a listener posts it once more, and as `redelivered` under
a new key when the listener's channel was lost before it could acknowledge. Nothing tells it from an equal press but
what listeners know, so that is asked for:

- Was the earlier one acknowledged? Then the broker does not bring it again, and what comes redelivered is another
  press. A listener says so as soon as the broker has confirmed it; until then we are unsure, for so long that it could
  (`acknowledged_within`) since it was stored, and since we were first asked.
- Is the channel still there that brought this one? Then nobody else was brought it, and what came redelivered on
  another is another press. If it is gone, this one may be late, and behind its own redelivery.

What we are unsure of is not stored. A listener whose channel is alive sends it again, and says so; one that has lost it
need not, for the broker brings it to somebody.
"""

import asyncio
import base64
import binascii
import re
import uuid
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlmodel import col, delete, select, update

from events import PulseMessage, Verdict
from service.clients.taskcluster import Definition, Status, known_definition, known_status
from service.database import Session, now
from service.door import NonsenseError, parse
from service.errors import Refusal
from service.flow.definition import SLUGID, name_of
from service.flow.routes import Route
from service.flow.routes import parse as parse_route
from service.models import Action, DeadLetter, Delivery, Repository, Source, State, share_of
from service.parts import Parts

log = structlog.get_logger()

KINDS = ("retrigger", "cancel")
"""The actions that this service does."""

KNOWN_PREFIXES = ("tc-treeherder", "tc-treeherder-stage")
"""Those of Mozilla's Treeherders, for a service that no environments are configured for."""

REDELIVERED_WITHIN = timedelta(hours=24)
"""How long after a message the broker may bring it again."""

_LOCKS = 0x7C7B
"""The first of the two numbers of our advisory locks on PostgreSQL; alembic/env.py takes another."""

_STRIPES = 256
"""Locks there are for all presses together: a transaction may need one for each event, and PostgreSQL's are few."""

_TAKE_LOCKS = text("SELECT pg_advisory_xact_lock(:space, stripe) FROM unnest(CAST(:stripes AS integer[])) AS stripe")


class RejectedError(Exception):
    """The action is not to be done; the message says why."""


class FailedError(Exception):
    """The action cannot be done; the message says why."""


# --- what came in ------------------------------------------------------------------------------------------------


def _job(guid: Any) -> tuple[str, int]:
    """taskId and runId of a `job_guid`."""
    name, _, run = guid.partition("/") if isinstance(guid, str) else ("", "", "")
    try:
        task = uuid.UUID(name)
    except ValueError:
        task = None
    if task is None or len(name) != 36 or not (run.isascii() and run.isdigit() and len(run) <= 4):
        raise ValueError(f"{str(guid)[:100]!r} is not <uuid>/<runId>, so it names no task")
    return base64.urlsafe_b64encode(task.bytes).decode().rstrip("="), int(run)


class JobAction(BaseModel):
    """A button pressed in Treeherder: its job-action-message schema, further fields allowed, any action taken."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)

    version: Literal[1]
    project: str = Field(max_length=1_000)
    job: Annotated[tuple[str, int], PlainValidator(_job)] = Field(alias="job_guid")
    action: str = Field(max_length=100)
    requester: str = Field(max_length=1_000)
    job_id: int | float | None = None


def pressed(message: PulseMessage) -> JobAction:
    """What a message says. Raises NonsenseError and pydantic's ValidationError."""
    if message.encoding == "base64":
        try:
            raw = base64.b64decode(message.body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise NonsenseError(f"not base64: {error}") from None
    else:
        raw = message.body.encode(errors="surrogatepass")
    return JobAction.model_validate(parse(raw))


def new_action(kind: str, project: str, task_id: str, run_id: int | None, requester: str, source: Source) -> Action:
    """An action that is to be done; one of an unknown kind is rejected from the start."""
    action = Action(
        kind=kind,
        project=project,
        task_id=task_id,
        run_id=run_id,
        requester=requester,
        source=source,
        lane=f"action {kind}" if kind in KINDS else "none",
        share=share_of(project, requester),
    )
    if kind not in KINDS:
        action.state, action.due_at, action.done_at = State.REJECTED, None, now()
        action.error = f"there is no action {kind!r} here: {' and '.join(KINDS)} are what this service does"
    return action


@dataclass
class Arrival:
    """A message, and what it says; or `reason`, why that cannot be understood, and the `payload` to keep."""

    message: PulseMessage
    press: JobAction | None
    reason: str = ""
    payload: bytes = b""


async def store(
    session: Session, arrivals: Sequence[Arrival], acknowledged_within: timedelta | None
) -> tuple[list[Verdict], list[Action]]:
    """Store what is new, in the caller's transaction: a verdict for each, and the actions that are to be done.

    `acknowledged_within` None: these are dead letters on their second way in, whose keys are known and which are
    acknowledged; there is nobody to be asked about them.
    """
    fresh = await _new_keys(session, [arrival.message.delivery for arrival in arrivals])
    if acknowledged_within is None:
        fresh = {arrival.message.delivery for arrival in arrivals}
    unsure: list[str] = []
    presses = [a.press for a in arrivals if a.press is not None and a.message.delivery in fresh]
    await _one_by_one(session, presses)
    equal = await _earlier(session, presses)
    verdicts: list[Verdict] = []
    actions: list[Action] = []
    for arrival in arrivals:
        message, press = arrival.message, arrival.press
        if message.delivery not in fresh:
            verdicts.append(Verdict(verdict="duplicate", reason="this delivery is known"))
            continue
        fresh.remove(message.delivery)  # the same key once more in this batch is a duplicate too
        if press is None:
            subject = f"{message.exchange} {message.routing_key}"
            session.add(DeadLetter(kind="job-action", subject=subject, reason=arrival.reason, payload=arrival.payload))
            verdicts.append(Verdict(verdict="rejected", reason=f"{arrival.reason}; kept as a dead letter"))
            continue
        action = new_action(press.action, press.project, *press.job, press.requester, Source.PULSE)
        others = [each for each in equal[_said(action)] if each.channel != message.channel]
        if any(each.id is None for each in others):
            await session.flush()
        known = _known(others, message, acknowledged_within)
        if isinstance(known, Verdict):
            unsure.append(message.delivery)
            verdicts.append(known)
            continue
        if known is not None:
            session.add(known)
            verdicts.append(Verdict(verdict="duplicate", reason=f"it came before, as action {known.id}"))
            log.info("action-redelivered", action=known.id, task_id=known.task_id)
            continue
        action.delivery, action.channel, action.ahead = message.delivery, message.channel, message.redelivered
        action.acknowledged = acknowledged_within is None
        session.add(action)
        equal[_said(action)].append(action)
        actions.append(action)
        rejected = action.state == State.REJECTED
        verdicts.append(Verdict(verdict="rejected" if rejected else "accepted", reason=action.error))
    if unsure:
        log.info("actions-unsure", actions=len(unsure), deliveries=unsure[:10])
        await session.exec(delete(Delivery).where(col(Delivery.key).in_(unsure)))
    return verdicts, [action for action in actions if action.state == State.PENDING]


async def _new_keys(session: Session, keys: Iterable[str]) -> set[str]:
    """Store the keys, and return those that were not there. Two that bring the same at once wait for each other."""
    insert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    rows = [{"key": key, "at": now()} for key in sorted(set(keys))]
    if not rows:
        return set()
    stored = await session.exec(insert(Delivery).values(rows).on_conflict_do_nothing().returning(col(Delivery.key)))
    return set(stored.scalars())


async def _one_by_one(session: Session, presses: Iterable[JobAction]) -> None:
    """Wait for every transaction that stores an equal press: what it has not committed yet, nobody else can see.

    SQLite has one writer, so there is nothing to wait for.
    """
    if session.get_bind().dialect.name != "postgresql":
        return
    names = {f"{each.project}/{each.job[0]}/{each.action}/{each.requester}" for each in presses}
    stripes = sorted({zlib.crc32(name.encode(errors="surrogatepass")) % _STRIPES for name in names})
    if stripes:  # sorted, so that two never wait in a circle
        connection = await session.connection()
        await connection.execute(_TAKE_LOCKS, {"space": _LOCKS, "stripes": stripes})


_Said = tuple[str, str, str, str, int | None]


def _said(action: Action) -> _Said:
    """What is the same in equal presses."""
    return action.task_id, action.kind, action.project, action.requester, action.run_id


async def _earlier(session: Session, presses: Sequence[JobAction]) -> defaultdict[_Said, list[Action]]:
    """Those of the last day that may be one of `presses` already, or that one of them may be late behind."""
    found: defaultdict[_Said, list[Action]] = defaultdict(list)
    if not presses:
        return found
    earlier = await session.exec(
        select(Action)
        .where(
            col(Action.task_id).in_({press.job[0] for press in presses}),
            Action.source == Source.PULSE,
            col(Action.received_at) > now() - REDELIVERED_WITHIN,
            col(Action.acknowledged).is_(False) | col(Action.ahead).is_(True),
        )
        .order_by(col(Action.id))  # as `acknowledged` does, so that two who lock them never wait in a circle
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    for action in earlier:
        found[_said(action)].append(action)
    return found


def _known(
    equal: Sequence[Action], message: PulseMessage, acknowledged_within: timedelta | None
) -> Action | Verdict | None:
    """The action that this message was made into already, under another delivery key; it is marked as matched.

    A verdict: that cannot be told yet. `equal`: those that say the same, and last came on another channel.
    """
    at = now()
    since = message.unsure_since or at.timestamp()
    after = max((each.id or 0 for each in equal if each.ahead), default=0)
    if message.redelivered and (earlier := [each for each in equal if not each.acknowledged]):
        # in the time before it was asked for, the service may have been away, or still storing it
        within = acknowledged_within or timedelta(0)
        asked = since <= (at - within).timestamp()
        overdue = [each for each in earlier if asked and each.delivered_at <= at - within]
        if not overdue:
            reason = f"it may be action {earlier[0].id} once more, of which an acknowledgement may still come"
            return Verdict(verdict="unsure", reason=reason, after=after, since=since)
        # of several the one that was brought again least often: what a lost channel had may come on two others
        known = min(overdue, key=lambda each: (each.redeliveries, each.id))
        known.delivery, known.channel, known.delivered_at = message.delivery, message.channel, at
        known.redeliveries += 1
        return known
    if after > message.alive_after and acknowledged_within is not None:
        reason = f"action {after} is equal and came redelivered: it may be this one, if this one's channel is gone"
        return Verdict(verdict="unsure", reason=reason, after=after, since=since)
    return None


async def acknowledged(session: Session, deliveries: Sequence[str]) -> int:
    """The broker does not bring these again. Returns how many actions that was not known of."""
    known = await session.exec(
        select(Action.id)
        .where(col(Action.delivery).in_(deliveries), col(Action.acknowledged).is_(False))
        .order_by(col(Action.id))  # as `_earlier` does
        .with_for_update()
    )
    ids = list(known)
    await session.exec(update(Action).where(col(Action.id).in_(ids)).values(acknowledged=True))
    return len(ids)


async def called(session: Session, action: Action, key: str, digest: str) -> Action | None:
    """Store an action that a program asks for under its own key; the earlier one's, when the key is known.

    None: the key is known, and was used for something else.
    """
    if await _new_keys(session, [key]):
        await session.exec(update(Delivery).where(col(Delivery.key) == key).values(digest=digest))
        action.delivery = key
        session.add(action)
        await session.flush()
        return action
    known = await session.get_one(Delivery, key)
    earlier = (await session.exec(select(Action).where(Action.delivery == key))).first()
    return earlier if known.digest == digest else None


# --- what every action begins with -------------------------------------------------------------------------------


@dataclass
class Subject:
    """What an action is about, as it stands now."""

    repository: Repository
    definition: Definition
    status: Status
    routes: list[tuple[str, Route]]  # prefix and what it says, of those that name the project

    @property
    def name(self) -> str:
        return name_of(self.definition)


async def repository_of(parts: Parts, project: str) -> Repository:
    """The monitored repository of that alias. Raises RejectedError."""
    async with parts.database.reading() as session:
        found = await session.exec(
            select(Repository).where(Repository.alias == project, col(Repository.deleted_at).is_(None))
        )
        repository = found.first()
    if repository is None:
        raise RejectedError(f"no repository {project!r} is monitored here: add it first")
    if not repository.enabled:
        raise RejectedError(f"the repository {project} is disabled: enable it first")
    return repository


async def subject_of(parts: Parts, project: str, task_id: str) -> Subject:
    """The task, fetched anew, for a message is only a hint. Raises RejectedError and FailedError."""
    repository = await repository_of(parts, project)
    if re.fullmatch(SLUGID, task_id) is None:
        raise RejectedError(f"there is no task {task_id} in Taskcluster: no taskId looks like this")
    try:
        definition, status = await asyncio.gather(parts.queue.task(task_id), parts.queue.status(task_id))
    except Refusal as refusal:
        raise FailedError(f"Taskcluster does not let us see task {task_id} ({refusal.status}): {refusal}") from None
    if definition is None or status is None:
        raise RejectedError(f"there is no task {task_id} in Taskcluster: it may have expired")
    definition, status = known_definition(definition), known_status(status)
    prefixes = tuple(parts.settings.environments) or KNOWN_PREFIXES
    named = [
        (prefix, found)
        for route in definition["routes"]
        for prefix in prefixes
        if (found := parse_route(prefix, route)) and found.full_project in {project, repository.route_project}
    ]
    if not named:
        raise RejectedError(
            f"none of the {' and '.join(prefixes)} routes of task {task_id} ({name_of(definition)}) names {project}: "
            "it is no task of that project"
        )
    return Subject(repository, definition, status, named)


def run_of(status: Status, run_id: int | None) -> dict[str, Any] | None:
    """The run that an action names, the latest when it names none; None when the task has never run.

    Raises RejectedError.
    """
    runs: list[dict[str, Any]] = status["runs"]
    if run_id is None or (not runs and run_id == 0):  # Treeherder shows a task that waits as run 0
        return runs[-1] if runs else None
    for run in runs:
        if run["runId"] == run_id:
            return run
    raise RejectedError(f"task {status['taskId']} has no run {run_id}: it has {len(runs)}")
