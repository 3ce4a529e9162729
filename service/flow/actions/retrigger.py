"""The action `retrigger`: plan copies of a task and of its dependents, store the plan, and create the copies.

A failed task is copied with everything in its group that depends on it, as a new graph. Any other is copied alone. The
action may ask for several such copies (`times`); graphs then get a task group each.

    find_dependents     asks each task for its dependents, or reads the whole group
    choose_copies       leaves out tasks that could not run, and copies of tasks that are copied
    choose_group        the task group of the copies
    CopyDraft.build     new ids, new dates, and old ids replaced by new ones wherever they stand

Parts of the plan that are stored are created while the rest is still being built. It is stored in this order:

    the first copy      as soon as it is certain that others follow, while these are still being searched for
    the outline         which tasks are copied, and the definitions of the first of them; from here on nothing that
                        happens to the group changes the plan
    the definitions     of the others, part by part: after a crash they are built again from the tasks of the outline
"""

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from itertools import chain, islice
from typing import Protocol

import structlog
from pydantic import BaseModel, ConfigDict, Field

from service.clients.taskcluster import Definition, validate_definition
from service.clock import now
from service.engine.leases import Lease
from service.errors import PermanentUpstreamError
from service.flow.actions import notice
from service.flow.actions.copies import CopyDraft
from service.flow.actions.search import CopySearch, explain_refusals
from service.flow.tasks.action_kinds import ActionKind, Copy, Plan, register
from service.flow.tasks.create import MAX_REASON, PlanRefusedError, cancel_created, create_as_planned
from service.flow.tasks.definition import parse_expiries
from service.flow.tasks.ids import DeriveId, copy_ids
from service.flow.tasks.plan import mark_created, read_plan, store_definitions, store_plan
from service.flow.tasks.subject import ActionFailedError, ActionRejectedError, Subject, fetch_subject, find_repository
from service.services import Services
from service.store.models import Action, PlannedTask, Repository, State
from service.store.rows import new_row

log = structlog.get_logger()

FIRST_PART, PART = 50, 200
"""Copies whose definitions are built before the outline is stored, and in each part after that."""


class RetriggerInput(BaseModel):
    """The input of a retrigger."""

    model_config = ConfigDict(extra="forbid")

    times: int = Field(1, ge=1, le=100, strict=True, description="number of copies of the task")


class CopySource(Protocol):
    """Searches what an action copies. Its methods raise ActionRejectedError, ActionFailedError and Unavailable."""

    in_parts: bool
    """True if the definitions of a stored outline can be built again, from what it names alone."""

    async def first_copy(self, new_id: DeriveId) -> Copy | None:
        """Return the first copy if it is certain before the search is over. Called before `drafts`."""

    async def drafts(self, new_id: DeriveId, first: Definition | None) -> Sequence[CopyDraft]:
        """Return what is copied, each draft as a graph of its own. `first` is the first copy if it is stored."""


class TaskSource:
    """Searches what a retrigger of a task copies."""

    in_parts = True

    def __init__(self, services: Services, action: Action) -> None:
        self._services, self._action = services, action
        self._search: CopySearch | None = None

    async def first_copy(self, new_id: DeriveId) -> Copy | None:
        return await (await self._start(new_id)).first_copy()

    async def drafts(self, new_id: DeriveId, first: Definition | None) -> Sequence[CopyDraft]:
        draft = await (await self._start(new_id)).draft(first)
        return repeat_draft(draft, new_id, RetriggerInput(**self._action.input).times)

    async def _start(self, new_id: DeriveId) -> CopySearch:
        if self._search is None:
            action = self._action
            subject = await fetch_subject(self._services, action.project, action.task)
            action.failure_jobs = notice.failure_jobs(self._services, action, subject)
            self._search = CopySearch(self._services, subject, action.run_id, new_id, action.share)
        return self._search


def repeat_draft(draft: CopyDraft, new_id: DeriveId, times: int) -> list[CopyDraft]:
    """Return the draft and further ones like it, each with ids and, if it is a graph, a task group of its own."""
    drafts = [draft]
    own_group = next((old_id for old_id, copy in draft.new_ids.items() if copy == draft.group), None)
    for number in range(1, times):
        new_ids = {old_id: new_id(f"{old_id} {number}") for old_id in draft.new_ids}
        group = draft.group if own_group is None else new_ids[own_group]
        drafts.append(replace(draft, new_ids=new_ids, group=group, done=set()))
    return drafts


async def run(services: Services, lease: Lease[Action]) -> None:
    """Plan the copies that are not planned yet, and create those that do not exist yet."""
    await run_copies(services, lease, TaskSource)


async def run_copies(
    services: Services, lease: Lease[Action], source_of: Callable[[Services, Action], CopySource]
) -> None:
    """Plan the copies that a source finds and that are not planned yet, and create those that do not exist yet."""
    action = lease.item
    while action.refused is None:
        source = source_of(services, action)
        writer = PlanWriter(services, lease, await _stored_plan(services, action), source)
        try:
            await _carry_out(services, lease, writer)
            return
        except PlanRefusedError as error:
            if not await _replan_if_sealed(services, lease, writer.tasks):
                action.refused = str(error)
        except (ActionRejectedError, ActionFailedError) as error:
            if not writer.tasks:
                raise
            action.refused = str(error)  # created tasks of the plan are cancelled below
    await lease.commit(refused=action.refused)
    log.warning("retrigger-refused", action=action.id, subject=action.subject, why=action.refused)
    unrecorded, not_cancelled = await cancel_created(services, lease, await _stored_plan(services, action))
    reason = "; ".join([action.refused or "", *not_cancelled])[:MAX_REASON]
    await lease.finish(State.FAILED, reason, mark_created(unrecorded))


async def _stored_plan(services: Services, action: Action) -> list[PlannedTask]:
    return await read_plan(
        services.database, PlannedTask.action_id == action.id, PlannedTask.plan_attempt == action.plan_attempt
    )


async def _carry_out(services: Services, lease: Lease[Action], writer: "PlanWriter") -> None:
    action = lease.item
    repository = await find_repository(services, action.project)  # as it is now
    async with aclosing(writer.stored_parts()) as plan:
        created = await create_as_planned(services, lease, plan, scopes_of(repository))
    copies = len(writer.tasks)
    notices = []
    if services.publisher is not None:
        notices = [
            notice.retrigger_notice(action, root.copy_of or "", root.task_id, _group_of(root))
            for root in _roots(writer.tasks)
        ]
    await lease.finish(State.DONE, also=mark_created(created), notices=notices, rows=len(created))
    log.info("retriggered", action=action.id, subject=action.subject, copies=copies, requester=action.requester)


def _roots(tasks: Sequence[PlannedTask]) -> list[PlannedTask]:
    """Return the copies that depend on no other copy: those of the tasks that were to be retriggered."""
    ids = {task.task_id for task in tasks}
    return [task for task in tasks if task.definition and ids.isdisjoint(task.definition["dependencies"])]


def _group_of(task: PlannedTask) -> str:
    """Return the task group of a task whose definition is stored."""
    if task.definition is None:
        raise ValueError(f"the definition of {task.task_id} is not stored yet")
    return str(task.definition["taskGroupId"])


async def _replan_if_sealed(services: Services, lease: Lease[Action], planned: list[PlannedTask]) -> bool:
    """Plan a single copy anew, for a new group, if its group was sealed after it was planned; return True if so."""
    action, first = lease.item, planned[0]
    group = (first.definition or {})["taskGroupId"]
    replaceable = len(planned) == 1 and not first.created and group != first.task_id
    if not replaceable or services.settings.retrigger_group != "auto":
        return False
    try:
        if not await services.queue.group_sealed(group):
            return False
    except PermanentUpstreamError:
        return False  # then the copy fails for the reason it was refused for
    await lease.commit(plan_attempt=action.plan_attempt + 1, planned_at=None)
    action.plan_attempt, action.planned_at = action.plan_attempt + 1, None
    return True


def scopes_of(repository: Repository) -> list[str]:
    """Return `authorizedScopes`: those of the project, and that a copy may notify as its original. None of our own."""
    return [*repository.scopes, "queue:route:notify.*"]


# --- the stored plan ---------------------------------------------------------------------------------------------


class PlanWriter:
    """Builds and stores the plan of an action; `tasks` are the stored ones, in dependency order."""

    def __init__(self, services: Services, lease: Lease[Action], stored: list[PlannedTask], source: CopySource) -> None:
        self.tasks = stored
        self._services, self._lease, self._action, self._source = services, lease, lease.item, source
        self._new_id = copy_ids(services.secret, lease.item, lease.item.plan_attempt)

    async def stored_parts(self) -> AsyncGenerator[list[PlannedTask], None]:
        """Yield the plan part by part, each after it was stored.

        A task whose definition is not built yet is yielded without it, and later once more with it.
        """
        if self.tasks:
            yield list(self.tasks)
        if self._action.planned_at is not None:
            missing = [task for task in self.tasks if task.definition is None]
            if not missing:
                return
            copies = build_all(await self._restore_drafts(missing))
        else:
            if not self.tasks and (first := await self._source.first_copy(self._new_id)) is not None:
                self.tasks = self._rows([(first.old_id, first.new_id, first.name)])
                self.tasks[0].definition = first.definition
                await store_plan(self._lease, self.tasks, failure_jobs=self._action.failure_jobs)
                yield list(self.tasks)
            drafts = await self._source.drafts(self._new_id, self.tasks[0].definition if self.tasks else None)
            refuse_large(self._services, drafts)
            copies = build_all(drafts)
            first_part = FIRST_PART if self._source.in_parts else sum(len(draft.new_ids) for draft in drafts)
            yield await self._store_outline(drafts, await self._build_next(copies, first_part))
        while part := await self._build_next(copies, PART):
            yield await self._store_definitions(part)

    async def _build_next(self, copies: Iterator[Copy], count: int) -> list[Copy]:
        """Return the next copies, built in a thread because thousands take seconds."""
        return await self._services.compute(self._action.share, list, islice(copies, count))

    def _rows(self, copies: Iterable[tuple[str, str, str]], first: int = 0) -> list[PlannedTask]:
        """Return rows without definitions for copies, each given as (old id, new id, name)."""
        return [
            new_row(
                PlannedTask,
                task_id=new_id,
                action_id=self._action.id,
                copy_of=old_id,
                plan_attempt=self._action.plan_attempt,
                position=position,
                label="copy",
                name=name,
                definition=None,
            )
            for position, (old_id, new_id, name) in enumerate(copies, first)
        ]

    async def _store_outline(self, drafts: Sequence[CopyDraft], copies: list[Copy]) -> list[PlannedTask]:
        """Store which tasks are copied, and the first definitions. From now on, the plan does not change."""
        stored = len(self.tasks)
        names = [(old, new, draft.names[new]) for draft in drafts for old, new in draft.new_ids.items()]
        rows = self._rows(names[stored:], stored)
        definitions = {copy.new_id: copy.definition for copy in copies}
        for row in rows:
            row.definition = definitions.get(row.task_id)
        values = {
            "left_out": drafts[0].left_out,
            "notes": list(drafts[0].notes),
            "failure_jobs": self._action.failure_jobs,
            "planned_at": now(),
        }
        await store_plan(self._lease, rows, **values)
        for name, value in values.items():
            setattr(self._action, name, value)
        self._action.notes = drafts[0].notes  # the drafts append to it while they build definitions
        self.tasks = [*self.tasks, *rows]
        action = self._action
        log.info("retrigger-planned", action=action.id, subject=action.subject, copies=len(self.tasks))
        return rows

    async def _store_definitions(self, copies: list[Copy]) -> list[PlannedTask]:
        definitions = {copy.new_id: copy.definition for copy in copies}
        rows = [task for task in self.tasks if task.task_id in definitions]
        for row in rows:
            row.definition = definitions[row.task_id]
        await store_definitions(self._lease, rows, notes=list(self._action.notes))
        return rows

    async def _restore_drafts(self, missing: list[PlannedTask]) -> list[CopyDraft]:
        """Return the drafts of a stored outline, for definitions that a crash left out. Raises ActionFailedError."""
        originals = {task.copy_of for task in self.tasks if task.copy_of is not None}
        with explain_refusals(self._action.task):
            wanted = list(dict.fromkeys(task.copy_of for task in missing if task.copy_of is not None))
            old = await self._services.queue.tasks(wanted)
            definitions = {task_id: validate_definition(definition) for task_id, definition in old.items()}
            dependencies = {d for definition in old.values() for d in definition["dependencies"]}
            outside = dependencies - originals
            statuses = await self._services.queue.statuses(sorted(outside)) if outside else {}
        for task in missing:
            if task.copy_of not in definitions:
                raise ActionFailedError(
                    f"{task.name} ({task.copy_of}) has expired: Taskcluster no longer has its definition"
                )
        stored = {task.task_id: task.definition for task in self.tasks if task.definition is not None}
        expire = parse_expiries(statuses | stored)
        size = len(originals)  # each draft copies the same tasks
        graphs = [self.tasks[start : start + size] for start in range(0, len(self.tasks), size)]
        return [
            self._restore_draft(graph, definitions, set(statuses), expire)
            for graph in graphs
            if any(task.definition is None for task in graph)
        ]

    def _restore_draft(
        self,
        graph: list[PlannedTask],
        definitions: Mapping[str, Definition],
        existing: Collection[str],
        expire: dict[str, datetime],
    ) -> CopyDraft:
        new_ids = {task.copy_of: task.task_id for task in graph if task.copy_of is not None}
        lacking = {task.copy_of for task in graph if task.definition is None}
        of_graph = {task_id: definition for task_id, definition in definitions.items() if task_id in lacking}
        first, shared = self.tasks[0], _group_of(self.tasks[0])
        group = graph[0].task_id if shared == first.task_id else shared
        return CopyDraft(new_ids, of_graph, existing, expire, group, [], self._action.notes)


def build_all(drafts: Iterable[CopyDraft]) -> Iterator[Copy]:
    """Build the copies of drafts, one after the other. Raises ActionFailedError."""
    return chain.from_iterable(draft.build() for draft in drafts)


def refuse_large(services: Services, drafts: Sequence[CopyDraft]) -> None:
    """Raise ActionRejectedError if the plan would have more tasks than the setting `max_copies` allows."""
    copies, most = sum(len(draft.new_ids) for draft in drafts), services.settings.max_copies
    if copies > most:
        raise ActionRejectedError(
            f"the plan would have {copies:,} tasks, and the setting max_copies allows {most:,}: retrigger fewer tasks, "
            "or ask for fewer copies"
        )


# --- the plan ----------------------------------------------------------------------------------------------------


async def plan(services: Services, action: Action) -> Plan:
    """Return the copies that a retrigger of this task's run would make now."""
    return await plan_copies(services, await fetch_subject(services, action.project, action.task), action)


async def plan_copies(services: Services, subject: Subject, action: Action) -> Plan:
    """Return the copies that a retrigger of this subject would make now."""
    new_id = copy_ids(services.secret, action, 0)
    draft = await CopySearch(services, subject, action.run_id, new_id, action.share).draft()
    drafts = repeat_draft(draft, new_id, RetriggerInput(**action.input).times)
    return await plan_of(services, action, drafts)


async def plan_of(services: Services, action: Action, drafts: Sequence[CopyDraft]) -> Plan:
    """Return the plan of drafts, with all definitions. Raises ActionRejectedError and ActionFailedError."""
    refuse_large(services, drafts)
    copies: list[Copy] = await services.compute(action.share, list, build_all(drafts))
    return Plan(copies=copies, left_out=drafts[0].left_out, notes=drafts[0].notes)


register(
    ActionKind(
        "retrigger",
        "Create copies of a task, and of what depends on it if it failed.",
        run,
        plan,
        RetriggerInput,
        replaceable=True,
    )
)
