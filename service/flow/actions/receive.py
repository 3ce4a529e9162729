"""Store pressed buttons and calls of the API as actions, once for each press however often it is delivered.

A press makes no action of its own in three cases:

    not understood      it becomes a dead letter of kind `job-action` (`service.api.ingest`)
    known key           a listener posted the delivery before: "this delivery is known"
    not another press   it may be a redelivery of an equal press, so it is listed on that press's action: "it came
                        before, as action N". `count_presses` counts how many presses equal deliveries stand for

`store` decides the last two. Its verdict, and the row in the table `delivery`, say which.

Every other press makes an action. It creates no copy if the action's kind is unknown (`new_action`), or for the reason
that `GET /api/v1/actions/{id}` shows as its `error`, `left_out` or `notes`: see `subject`, `search` and `copies`.

A message may come again: under the same delivery key if a listener posts it once more, and as `redelivered` under a
new key if the listener's channel was lost before the broker had the acknowledgement. Which redelivered message is
which of several equal originals cannot be known, but the number of presses can be counted.

Listeners report which acknowledgements the broker has confirmed. Until then a delivery may come again. A press that can
only be counted after such a report is carried out then. All deliveries are kept, each on one action.
"""

import base64
import binascii
import hashlib
import heapq
import json
import uuid
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Annotated, Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from sqlalchemy import text
from sqlmodel import col, select

from service.clock import now
from service.contract.events import Indexed, JobActionMessage, PulseMessage, Verdict
from service.flow.tasks.action_kinds import is_of_tree, lane_of, listed_names, pressable
from service.sanitize import InvalidJSONError, parse
from service.store.database import Session
from service.store.models import (
    PULSE_ACTIONS,
    REDELIVERED_WITHIN,
    UNSETTLED,
    Action,
    AuditEntry,
    AuditEvent,
    Delivery,
    Origin,
    Repository,
    Source,
    State,
    TreeActions,
    share_of,
)

log = structlog.get_logger()

CLOCK_SKEW = 300.0
"""Seconds by which a listener's clock may be wrong: the service takes no signature that is older or newer."""

_LOCKS = 0x7C7B
"""First of the two numbers of these advisory locks on PostgreSQL; alembic/env.py uses another."""

_STRIPES = 256
"""Number of locks for all presses: a transaction may need one for each event, and PostgreSQL has few."""

_TAKE_LOCKS = text("SELECT pg_advisory_xact_lock(:space, stripe) FROM unnest(CAST(:stripes AS integer[])) AS stripe")


def _parse_job_guid(guid: Any) -> tuple[str, int]:
    """Return the taskId and runId of a `job_guid`. Raises ValueError."""
    name, _, run = guid.partition("/") if isinstance(guid, str) else ("", "", "")
    try:
        task = uuid.UUID(name)
    except ValueError:
        task = None
    if task is None or len(name) != 36 or not (run.isascii() and run.isdigit() and len(run) <= 4):
        raise ValueError(f"{str(guid)[:100]!r} is not <uuid>/<runId>, so it names no task")
    return base64.urlsafe_b64encode(task.bytes).decode().rstrip("="), int(run)


class JobAction(BaseModel):
    """A button pressed in Treeherder, by its job-action-message schema, with any action and any further fields."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)

    version: Literal[1]
    project: Indexed
    job: Annotated[tuple[str, int], PlainValidator(_parse_job_guid)] = Field(alias="job_guid")
    action: str = Field(max_length=100)
    requester: Indexed
    job_id: int | float | None = None


def parse_press(message: PulseMessage) -> JobAction:
    """Parse the press in a message. Raises InvalidJSONError and pydantic's ValidationError."""
    if message.encoding == "base64":
        try:
            raw = base64.b64decode(message.body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidJSONError(f"not base64: {error}") from None
    else:
        raw = message.body.encode(errors="surrogatepass")
    return JobAction.model_validate(parse(raw))


@dataclass(frozen=True)
class Rules:
    """What a repository says of its actions; the defaults are for one that is not monitored."""

    actions: TreeActions = TreeActions.COPIES
    pulse_actions: Sequence[str] = PULSE_ACTIONS


async def load_rules(session: Session, projects: Iterable[str]) -> defaultdict[str, Rules]:
    """Return the rules of monitored repositories, by alias."""
    query = select(Repository.alias, Repository.actions, Repository.pulse_actions)
    live = query.where(col(Repository.alias).in_(set(projects)), col(Repository.deleted_at).is_(None))
    rules: defaultdict[str, Rules] = defaultdict(Rules)
    for alias, actions, pulse_actions in await session.exec(live):
        rules[alias] = Rules(TreeActions(actions), pulse_actions)
    return rules


def new_action(
    kind: str,
    project: str,
    task_id: str | None,
    run_id: int | None,
    requester: str,
    source: Source,
    push_id: int | None = None,
    rules: Rules = Rules(),
) -> Action:
    """Return an action that is to be done; one that a press may not name is rejected at once if it comes from Pulse."""
    rejected = source == Source.PULSE and not pressable(kind, rules.pulse_actions)
    in_tree = not rejected and is_of_tree(kind, rules.actions)
    action = Action(
        kind=kind,
        project=project,
        task_id=task_id,
        run_id=run_id,
        push_id=push_id,
        requester=requester,
        source=source,
        in_tree=in_tree,
        lane="none" if rejected else lane_of(kind, in_tree=in_tree),
        share=share_of(project, requester),
    )
    if rejected:
        action.state, action.due_at, action.done_at = State.REJECTED, None, now()
        allowed = listed_names(rules.pulse_actions)
        action.error = f"there is no action {kind!r} for a button: {project} takes {allowed} (its pulse_actions)"
    return action


@dataclass
class Arrival:
    """A message, and the press that it carries."""

    message: JobActionMessage
    press: JobAction

    @cached_property
    def identity(self) -> str:
        """Return a hash of the values that equal presses have in common."""
        values = [*self.press.job, self.press.action, self.press.project, self.press.requester]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def delivery(self) -> Delivery:
        """Return a row for the message, not listed on an action yet."""
        columns = self.message.model_dump(include={"channel", "redelivered", "stamp"})
        return Delivery(key=self.message.delivery, digest=self.identity, made_action=False, **columns)


async def store(
    session: Session, arrivals: Sequence[Arrival], acknowledged: Collection[str] = ()
) -> tuple[list[Verdict], list[Action]]:
    """Store new deliveries in the caller's transaction; return a verdict for each, and the actions that are to be done.

    `acknowledged` are deliveries that the broker is certain not to bring again. An equal delivery may thereby turn
    out to be another press: then it makes an action here, too. The module's docstring lists what makes no action.
    """
    acknowledged = set(acknowledged)
    reported = await session.exec(
        select(Delivery.digest).where(col(Delivery.key).in_(acknowledged), col(Delivery.acknowledged).is_(False))
    )
    identities = {*filter(None, reported), *(arrival.identity for arrival in arrivals)}
    await _lock(session, identities)
    groups = await _load_unsettled(session, identities)
    # never fewer than counted before, because old deliveries leave the groups
    counted_before = {
        identity: max(count_presses(group), sum(delivery.made_action for delivery in group))
        for identity, group in groups.items()
    }
    for delivery in chain.from_iterable(groups.values()):
        delivery.acknowledged = delivery.acknowledged or delivery.key in acknowledged
    arrived = {arrival.message.delivery: arrival for arrival in arrivals}
    stored = set(await session.exec(select(Delivery.key).where(col(Delivery.key).in_(arrived))))
    new = {key: arrival.delivery() for key, arrival in arrived.items() if key not in stored}
    for delivery in new.values():
        groups[delivery.digest or ""].append(delivery)

    to_make: list[Delivery] = []
    for identity, group in groups.items():
        new_presses = count_presses(group) - counted_before.get(identity, 0)
        spare = [delivery for delivery in group if not delivery.made_action]
        # deliveries without an action come first, and of these the ones that are certainly not redelivered
        spare.sort(key=lambda delivery: (delivery.action_id is not None, delivery.redelivered))
        to_make += spare[: max(new_presses, 0)]
    actions = await _make_actions(session, to_make, arrived)
    for group in groups.values():
        _list_others(group)
    session.add_all(new.values())
    verdicts = list(_verdicts(arrivals, new, actions))
    return verdicts, [action for action in actions.values() if action.state == State.PENDING]


async def _lock(session: Session, names: Iterable[str]) -> None:
    """Lock `names` until the end of the transaction: uncommitted deliveries of another one could not be seen.

    SQLite has one writer, so it needs no lock.
    """
    if session.get_bind().dialect.name != "postgresql":
        return
    stripes = sorted({zlib.crc32(name.encode()) % _STRIPES for name in names})
    if stripes:  # sorted, so that two transactions cannot deadlock
        connection = await session.connection()
        await connection.execute(_TAKE_LOCKS, {"space": _LOCKS, "stripes": stripes})


async def _load_unsettled(session: Session, identities: Collection[str]) -> defaultdict[str, list[Delivery]]:
    """Return deliveries by identity, without those that are certainly the only one of their press and made its action.

    These are few, however often a button is pressed: those of the last moments, and those of lost channels.
    """
    groups: defaultdict[str, list[Delivery]] = defaultdict(list)
    deliveries = await session.exec(
        select(Delivery)
        .where(col(Delivery.digest).in_(identities), text(UNSETTLED), col(Delivery.at) > now() - REDELIVERED_WITHIN)
        .order_by(col(Delivery.stamp))
    )
    for delivery in deliveries:
        groups[delivery.digest or ""].append(delivery)
    return groups


def may_come_again_as(earlier: Delivery, later: Delivery) -> bool:
    """Return True if both deliveries may be of the same message."""
    in_time = earlier.stamp - 2 * CLOCK_SKEW < later.stamp
    return later.redelivered and not earlier.acknowledged and earlier.channel != later.channel and in_time


def count_presses(deliveries: Collection[Delivery]) -> int:
    """Return the smallest number of presses that can have led to these equal deliveries.

    It is the number of deliveries minus the largest one-to-one matching of deliveries that `may_come_again_as` each
    other. By König's theorem, the number of pairs in that matching is the number of ends minus the size of the largest
    set of ends without a pair among them. In the order of time, a pair is an `earlier` end before a `later` end on
    another channel. So such a set consists of later ends, up to some time; then of both kinds on one channel, up to
    another time; then of earlier ends.
    """
    ends = [(d.stamp, False, d.channel) for d in deliveries if d.redelivered]
    ends += [(d.stamp - 2 * CLOCK_SKEW, True, d.channel) for d in deliveries if not d.acknowledged]
    later_ends = largest = 0
    on_channel: defaultdict[str, int] = defaultdict(int)
    for _, is_earlier, channel in sorted(ends):
        on_channel[channel] = max(on_channel[channel], later_ends) + 1
        later_ends += not is_earlier
        largest = max(largest + is_earlier, later_ends, on_channel[channel])
    return len(deliveries) - (len(ends) - largest)


async def _make_actions(
    session: Session, deliveries: Sequence[Delivery], arrived: Mapping[str, Arrival]
) -> dict[str, Action]:
    """Make an action of each delivery, and return them by its key; one listed on another action repeats that action."""
    ids = {delivery.action_id for delivery in deliveries} - {None}
    listed_on = {action.id: action for action in await session.exec(select(Action).where(col(Action.id).in_(ids)))}
    presses = [arrived[delivery.key].press for delivery in deliveries if delivery.action_id is None]
    projects = {press.project for press in presses} | {action.project for action in listed_on.values()}
    rules = await load_rules(session, projects) if deliveries else defaultdict(Rules)
    actions: dict[str, Action] = {}
    for delivery in deliveries:
        if delivery.action_id is None:
            press = arrived[delivery.key].press
            of_press = (press.action, press.project, *press.job, press.requester, Source.PULSE)
            action = new_action(*of_press, rules=rules[press.project])
        else:
            same = listed_on[delivery.action_id]
            of_same = (same.kind, same.project, same.task_id, same.run_id, same.requester, Source.PULSE)
            action = new_action(*of_same, rules=rules[same.project])
            log.info("press-counted-late", delivery=delivery.key, listed_on=same.id, task_id=same.task_id)
        actions[delivery.key] = action
    session.add_all(actions.values())
    await session.flush()
    session.add_all(_audit_entry(action) for action in actions.values())
    for delivery in deliveries:
        delivery.action_id, delivery.made_action = actions[delivery.key].id, True
    return actions


def _audit_entry(action: Action) -> AuditEntry:
    return AuditEntry(
        event=AuditEvent.ACTION_ASKED.value,
        caller=action.requester,
        origin=Origin.PULSE,
        repository=action.project,
        subject=f"{action.kind} of {action.subject}",
        details={"action": action.id, "kind": action.kind},
    )


def _list_others(group: Sequence[Delivery]) -> None:
    """List each delivery without an action on one that it may belong to, of several on the one with fewest."""
    listed = [delivery for delivery in group if delivery.action_id is not None]
    deliveries = Counter(delivery.action_id or 0 for delivery in listed)
    alike: defaultdict[tuple[str, bool], list[Delivery]] = defaultdict(list)  # of one batch, so times do not matter
    for delivery in [delivery for delivery in group if delivery.action_id is None]:
        alike[delivery.channel, delivery.redelivered].append(delivery)
    for others in alike.values():
        one = others[0]
        same = {d.action_id or 0 for d in listed if may_come_again_as(d, one) or may_come_again_as(one, d)}
        fewest = [(deliveries[action_id], action_id) for action_id in same or deliveries]
        heapq.heapify(fewest)
        for delivery in others:
            count, delivery.action_id = fewest[0]
            deliveries[delivery.action_id] += 1
            heapq.heapreplace(fewest, (count + 1, delivery.action_id))


def _verdicts(arrivals: Iterable[Arrival], new: dict[str, Delivery], actions: dict[str, Action]) -> Iterator[Verdict]:
    for arrival in arrivals:
        delivery = new.pop(arrival.message.delivery, None)  # a key that occurs twice in this batch is a duplicate too
        if delivery is None:
            yield Verdict(verdict="duplicate", reason="this delivery is known")
        elif delivery.made_action:
            action = actions[delivery.key]
            rejected = action.state == State.REJECTED
            yield Verdict(verdict="rejected" if rejected else "accepted", reason=action.error)
        else:
            yield Verdict(verdict="duplicate", reason=f"it came before, as action {delivery.action_id}")


async def store_idempotent(session: Session, action: Action, key: str, digest: str) -> Action | None:
    """Store an action under the idempotency key of a program; return the earlier action if the key is known.

    Returns None if the key was used for something else before, by `digest`.
    """
    await _lock(session, [key])
    delivery = await session.get(Delivery, key)
    if delivery is not None:
        return await session.get(Action, delivery.action_id) if delivery.digest == digest else None
    session.add(action)
    await session.flush()
    session.add(Delivery(key=key, digest=digest, action_id=action.id, acknowledged=True))
    return action
