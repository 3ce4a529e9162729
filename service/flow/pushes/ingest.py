"""The action `ingest`: read a push from the pushlog and store it, as if a listener had just seen it.

It is for pushes from before the cursor. The repository's row is locked while a push is stored, so a push is stored
once, whoever brings it. The steps that follow are those of any other push.
"""

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlmodel import col, select

from service.clock import now
from service.contract.events import PushEvent
from service.contract.pushlog import trim_entry
from service.contract.validation import problems_of
from service.engine import leases
from service.engine.leases import Lease
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.pushes.graph import reason_for_no_graph
from service.flow.pushes.push import push_of, store
from service.flow.tasks.action_kinds import ActionKind, Plan, register
from service.flow.tasks.subject import (
    ActionFailedError,
    ActionRejectedError,
    NothingToDoError,
    find_repository,
)
from service.services import Services
from service.settings import Settings
from service.store.database import Session
from service.store.models import Action, Push, PushStep, Repository, State, StepKind
from service.store.wakeups import Topic

log = structlog.get_logger()


class IngestInput(BaseModel):
    """The input of an ingest."""

    model_config = ConfigDict(extra="forbid")

    any_age: bool = Field(False, strict=True, description="create its graph even if it is older than max_push_age")


async def run(services: Services, lease: Lease[Action]) -> None:
    """Store the push, unless it is stored already."""
    action = lease.item
    if action.planned_at is not None:  # it was stored together with this time
        await lease.finish(State.DONE)
        return
    repository = await find_repository(services, action.project)
    event = await _read_event(services, repository, action)
    any_age = IngestInput(**action.input).any_age
    async with lease.writing(planned_at=now(), generation=repository.generation) as session:
        (verdict,), steps = await store(session, services.settings, [event], replayed=True)
        if verdict.verdict == "rejected":
            raise _rejection(verdict.reason or "it was rejected", repository, event)
        push = await _stored_push(session, repository, event.push.id)
        if verdict.verdict == "accepted":
            push.any_age = any_age
        elif not (any_age and await _waive_age(session, services.settings, repository, push)):
            raise NothingToDoError(
                f"push {event.push.id} of {repository.alias} is stored already: `tc-treeherder pushes retry "
                f"{repository.alias} {event.push.id}` does its failed steps again"
            )
    services.database.wakeups.wake(Topic.WORK)
    recorded_only = verdict.verdict == "accepted" and not steps
    notes = ["it was pushed before the repository was reset, so it is recorded only"] if recorded_only else []
    await lease.finish(State.DONE, notes=notes)
    log.info("push-ingested", repository=repository.alias, push=event.push.id, requester=action.requester)


async def _read_event(services: Services, repository: Repository, action: Action) -> PushEvent:
    """Read the push from the pushlog. Raises ActionRejectedError, ActionFailedError and Unavailable."""
    push_id = action.push_id or 0
    try:
        entry = await services.hg.push(repository.url, push_id)
    except PermanentUpstreamError as refusal:
        raise ActionFailedError(f"push {push_id} cannot be read: {refusal}") from None
    if entry is None:
        raise ActionRejectedError(f"the pushlog of {repository.url} has no push {push_id}")
    try:
        return PushEvent.model_validate(
            {
                "repository": repository.alias,
                "repository_id": repository.id,
                "shift": repository.shift,
                "generation": repository.generation,
                "since": max(push_id - 1, 0),
                "lastpushid": push_id,
                "push": trim_entry(push_id, entry),
            }
        )
    except ValidationError as error:
        reason = f"the pushlog's entry of push {push_id} is not understood: {problems_of(error)}"
        raise ActionFailedError(reason) from None


def _rejection(reason: str, repository: Repository, event: PushEvent) -> Exception:
    """Return the error for a push that was not stored. It is read again if the repository was reset meanwhile."""
    if reason.startswith("listed from generation"):
        return Unavailable("hg", f"{repository.alias} was reset while push {event.push.id} was read")
    return ActionFailedError(reason)


async def _stored_push(session: Session, repository: Repository, push_id: int) -> Push:
    query = select(Push).where(
        Push.repository_id == repository.id, Push.generation == repository.generation, Push.push_id == push_id
    )
    return (await session.exec(query)).one()


async def _waive_age(session: Session, settings: Settings, repository: Repository, push: Push) -> bool:
    """Have the graph of a stored push created that got none, if it gets one now whatever its age; return True if so."""
    query = select(PushStep).where(
        PushStep.push_id == push.id, PushStep.kind == StepKind.GRAPH, col(PushStep.state) == State.SKIPPED
    )
    step = (await session.exec(query.with_for_update())).first()
    push.any_age = True
    recorded_only = repository.record_before is not None and push.date <= repository.record_before
    if step is None or recorded_only or reason_for_no_graph(settings, repository, push) is not None:
        return False
    leases.requeue([step])
    return True


async def plan(services: Services, action: Action) -> Plan:
    """Return what would be stored, and why it would get no graph."""
    repository = await find_repository(services, action.project)
    event = await _read_event(services, repository, action)
    push = push_of(repository, event.push)
    push.any_age = IngestInput(**action.input).any_age
    query = select(Push.id).where(
        Push.repository_id == repository.id, Push.generation == repository.generation, Push.push_id == push.push_id
    )
    async with services.database.reading() as session:
        stored = (await session.exec(query)).first() is not None
    if stored and not push.any_age:
        return Plan(nothing_to_do=f"push {push.push_id} of {repository.alias} is stored already")
    reason = reason_for_no_graph(services.settings, repository, push)
    described = f"push {push.push_id} by {push.user} on {push.date:%F %R} UTC, {len(push.nodes)} changesets"
    return Plan(notes=[f"{described}, tip {push.revision}", f"no graph: {reason}" if reason else "it gets a graph"])


register(
    ActionKind(
        "ingest",
        "Read a push from the pushlog and store it, as if it had just been seen.",
        run,
        plan,
        IngestInput,
        subjects=frozenset({"push"}),
    )
)
