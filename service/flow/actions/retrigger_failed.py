"""The action `retrigger-failed`: copy all failed tasks of a push, and what depends on them, as one graph.

    collect_tasks      all tasks of the push, and the recorded copies of them; see `push_tasks`
    latest_of          of a task and its copies, the one that was made last counts
    _Failures          which of these have failed, and what depends on them
    choose_copies      as for a retrigger of a single task; what several failed tasks share is copied once

A dependent of a task that has been copied meanwhile names the latest copy of it. A decision task that failed is copied
alone, because its copy creates the other tasks anew.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from service.clients.taskcluster import Definition, validate_definition, validate_status
from service.engine.leases import Lease
from service.flow.actions import notice
from service.flow.actions.copies import BAD_ENDS, CopyDraft, choose_copies
from service.flow.actions.dependents import DependencySearch, cycle_error
from service.flow.actions.push_tasks import NO_ROUTE, PushTask, PushTasks, collect_tasks, graph_step
from service.flow.actions.retrigger import plan_of, run_copies
from service.flow.actions.search import MAX_LEFT_OUT, choose_group, explain_refusals
from service.flow.tasks.action_kinds import ActionKind, Copy, Plan, register
from service.flow.tasks.definition import CycleError, parse_expiries, sort_by_dependencies
from service.flow.tasks.ids import DeriveId, copy_ids
from service.flow.tasks.subject import ActionFailedError, NothingToDoError, PushSubject, find_push
from service.services import Services
from service.slugids import replace_ids
from service.store.models import Action

_NOT_COPIED_BESIDE_DECISION = "the decision task failed, and its copy creates the other tasks anew"


def latest_of(collected: PushTasks) -> dict[str, str | None]:
    """Return the latest copy of each task, or the task itself if it has none; None if that is still to be created."""
    root_of: dict[str, str] = {}
    latest: dict[str, str | None] = {task_id: task_id for task_id in collected.tasks}
    for copy in collected.copies:  # the oldest first, so that an original comes before its copies
        root = root_of[copy.task_id] = root_of.get(copy.copy_of, copy.copy_of)
        if copy.task_id in collected.tasks:
            latest[root] = copy.task_id
        elif copy.pending:
            latest[root] = None
    for task_id, root in root_of.items():
        if task_id in latest:
            latest[task_id] = latest[root]
    return latest


class _Failures:
    """The failed tasks of a push that count, and what depends on them."""

    def __init__(self, collected: PushTasks) -> None:
        self.tasks = collected.tasks
        self.latest = latest_of(collected)
        copies = {copy.task_id for copy in collected.copies}
        self.decisions = {
            task.task_id for task in self.tasks.values() if task.task_id == task.group and task.task_id not in copies
        }
        for copy in collected.copies:
            if copy.copy_of in self.decisions:
                self.decisions.add(copy.task_id)
        self.current = {task_id: task for task_id, task in self.tasks.items() if self.latest[task_id] == task_id}
        self.failed = [task for task in self.current.values() if task.state in BAD_ENDS and not task.cancelled]
        self.cancelled = sum(task.cancelled for task in self.current.values())
        self.without_route = [task for task in self.failed if not task.authorised]
        self.targets = {task.task_id: task for task in self.failed if task.authorised}

    def replaced(self, task: PushTask) -> dict[str, str]:
        """Return the latest copies of tasks that a task depends on, of those that have not completed."""
        new = {}
        for needed in task.dependencies:
            latest = self.latest.get(needed)
            if latest is not None and latest != needed and self.tasks[needed].state != "completed":
                new[needed] = latest
        return new

    def dependencies(self, task: PushTask) -> list[str]:
        """Return what a task depends on, with the latest copies in place of tasks that have not completed."""
        new = self.replaced(task)
        return [new.get(needed, needed) for needed in task.dependencies]

    def with_dependents(self) -> list[str]:
        """Return the failed tasks, and all current tasks that depend on one of them."""
        needed_by: dict[str, list[str]] = defaultdict(list)
        for task in self.current.values():
            for needed in self.dependencies(task):
                needed_by[needed].append(task.task_id)
        reached = dict.fromkeys(self.targets)
        level: Iterable[str] = list(reached)
        while level:
            following = [task for needed in level for task in needed_by.get(needed, ()) if task not in reached]
            level = dict.fromkeys(task_id for task_id in following if self.tasks[task_id].authorised)
            reached.update(dict.fromkeys(level))
        return list(reached)


class FailedSource:
    """Searches the failed tasks of a push."""

    in_parts = False
    """Dependencies of copies are chosen by what else is copied, so all definitions are stored together."""

    def __init__(self, services: Services, action: Action) -> None:
        self._services, self._action = services, action

    async def first_copy(self, _new_id: DeriveId) -> Copy | None:
        return None

    async def drafts(self, new_id: DeriveId, _first: Definition | None) -> Sequence[CopyDraft]:
        subject = await find_push(self._services, self._action)
        self._action.failure_jobs = notice.push_failure_jobs(self._services, self._action, subject)
        return await find_failed(self._services, subject, self._action.share, new_id)


async def find_failed(services: Services, subject: PushSubject, share: str, new_id: DeriveId) -> list[CopyDraft]:
    """Return the drafts of what is copied. Raises NothingToDoError if nothing has failed."""
    failures = _Failures(await collect_tasks(services, subject))
    left_out = [{**task.entry(), "reason": NO_ROUTE} for task in failures.without_route]
    notes: list[str] = []
    async with services.database.reading() as session:
        step = await graph_step(session, subject.push.id or 0)
    if step is not None and step.due_at is not None:
        notes.append("the task graph is still being created: retrigger again for what is created from now on")
    if failures.cancelled:
        notes.append(
            f"{failures.cancelled} tasks were cancelled, which is no failure: of these, only dependents are copied"
        )
    decisions = [task_id for task_id in failures.targets if task_id in failures.decisions]
    with explain_refusals(subject.name):
        if decisions:
            others = [task for task_id, task in failures.targets.items() if task_id not in failures.decisions]
            left_out += [{**task.entry(), "reason": _NOT_COPIED_BESIDE_DECISION} for task in others]
            drafts = await _draft_decisions(services, decisions, new_id)
        elif failures.targets:
            drafts = [await _draft_graph(services, failures, share, new_id, notes)]
        elif left_out:
            raise ActionFailedError(
                f"{len(left_out)} tasks of {subject.name} have failed, and none may be copied: {NO_ROUTE}"
            )
        else:
            raise NothingToDoError(f"no task of {subject.name} has failed")
    left_out += drafts[0].left_out
    if len(left_out) > MAX_LEFT_OUT:
        notes.append(f"{len(left_out)} tasks are left out; the first {MAX_LEFT_OUT} are listed")
    for draft in drafts:
        draft.left_out, draft.notes = left_out[:MAX_LEFT_OUT], notes
    return drafts


async def _draft_decisions(services: Services, decisions: list[str], new_id: DeriveId) -> list[CopyDraft]:
    """Return a draft for each decision task, whose copy begins a task group of its own."""
    definitions = await _definitions(services, decisions)
    needed = {d for definition in definitions.values() for d in definition["dependencies"]}
    statuses = await services.queue.statuses(sorted(needed)) if needed else {}
    expire = parse_expiries(definitions | statuses)
    return [
        CopyDraft({task_id: new_id(task_id)}, definitions, {*statuses}, expire, new_id(task_id), [], [])
        for task_id in definitions
    ]


async def _draft_graph(
    services: Services, failures: _Failures, share: str, new_id: DeriveId, notes: list[str]
) -> CopyDraft:
    candidates = failures.with_dependents()
    definitions = await _definitions(services, candidates)
    first = next(task_id for task_id in candidates if task_id in definitions)
    group, _ = Counter(failures.tasks[task_id].group for task_id in failures.targets).most_common(1)[0]
    search = DependencySearch(first, group, definitions[first])
    for task_id, stored in definitions.items():
        search.count_values(stored)
        new = failures.replaced(failures.tasks[task_id])
        definition = replace_ids(stored, new) if new else stored
        if definition["schedulerId"] == definitions[first]["schedulerId"]:
            search.definitions[task_id] = definition
        else:
            reason = f"its schedulerId is {definition['schedulerId']}, and all tasks of a group have the same one"
            search.leave_out(task_id, definition, reason)
    search.states = {task_id: task.state for task_id, task in failures.tasks.items()}
    try:
        order = sort_by_dependencies(search.definitions)
    except CycleError as error:
        raise cycle_error(search.definitions, error) from None
    needed = {d for definition in search.definitions.values() for d in definition["dependencies"]}
    statuses = {task_id: failures.tasks[task_id].status for task_id in needed if task_id in failures.tasks}
    unknown = needed - statuses.keys()
    if unknown:
        found = await services.queue.statuses(sorted(unknown))
        statuses |= {task_id: validate_status(status) for task_id, status in found.items()}
    statuses = {task_id: status for task_id, status in statuses.items() if task_id not in search.definitions}
    targets = failures.targets.keys() & search.definitions.keys()
    chosen = await services.compute(share, choose_copies, search, targets, order, {}, statuses, notes)
    new_ids = {task_id: new_id(task_id) for task_id in chosen}
    own_group = new_ids[next(iter(chosen))]
    copies_group = await choose_group(services, search, len(chosen), notes) or own_group
    expire = parse_expiries(search.definitions | statuses)
    existing = search.definitions.keys() | statuses.keys()
    return CopyDraft(new_ids, search.definitions, existing, expire, copies_group, [*search.skipped.values()], notes)


async def _definitions(services: Services, task_ids: list[str]) -> dict[str, Definition]:
    """Return the definitions of tasks, in this order, without those that have expired just now."""
    definitions = await services.queue.tasks(task_ids)
    return {task_id: validate_definition(definitions[task_id]) for task_id in task_ids if task_id in definitions}


async def run(services: Services, lease: Lease[Action]) -> None:
    """Plan the copies unless they are planned, and create those that do not exist yet."""
    await run_copies(services, lease, FailedSource)


async def plan(services: Services, action: Action) -> Plan:
    """Return the copies that would be made now."""
    drafts = await FailedSource(services, action).drafts(copy_ids(services.secret, action, 0), None)
    return await plan_of(services, action, drafts)


register(
    ActionKind(
        "retrigger-failed",
        "Create copies of all failed tasks of a push, and of what depends on them, as one graph.",
        run,
        plan,
        subjects=frozenset({"push"}),
    )
)
