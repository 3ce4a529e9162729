"""Registry of the actions. Each action registers itself in its module.

Name, input, plan and execution of an action are registered together, so that the API, the commands, the scopes and the
metrics know of it at once.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from service.clients.taskcluster import Definition
from service.engine.leases import Lease
from service.engine.registry import WORK, WorkTable
from service.flow.tasks.subject import ActionFailedError, ActionRejectedError, NothingToDoError
from service.services import Services
from service.store.models import IN_TREE, Action, State, TreeActions, action_lane


class NoInput(BaseModel):
    """The input of an action that takes none."""

    model_config = ConfigDict(extra="forbid")


@dataclass
class Copy:
    """A task that is to be created, and the id of the task that it is a copy of."""

    old_id: str
    new_id: str
    name: str
    definition: Definition


@dataclass(frozen=True)
class Cancel:
    """A task that is to be cancelled."""

    task_id: str
    name: str
    state: str


@dataclass
class TreePlan:
    """The effect that an action of the tree would have now.

    `rendered` is the payload for the hook, or the definition of the task. `missing` are scopes that are needed, each
    with who lacks it.
    """

    decision_task: str
    hook: str | None
    told: Any
    rendered: dict[str, Any]
    missing: list[tuple[str, str]]


@dataclass
class Plan:
    """The effect that an action would have now: copies in dependency order, cancels, tasks left out, and notes.

    `nothing_to_do` is the reason why it would do nothing at all.
    """

    copies: list[Copy] = field(default_factory=list)
    cancels: list[Cancel] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    nothing_to_do: str | None = None
    tree: TreePlan | None = None


Run = Callable[[Services, Lease[Action]], Awaitable[None]]
"""Carries out a stored action, and ends its lease."""

SubjectKind = Literal["task", "push"]
"""Something that an action is about."""


@dataclass(frozen=True)
class ActionKind:
    """An action that people can ask for.

    `run` carries out a stored action, and continues one during which a process was killed. `plan` returns what the
    action would do, and changes nothing; the action that it gets is never stored. Both fetch what the action is about
    (`service.flow.tasks.subject`), and may raise its errors and those of clients.
    """

    name: str
    summary: str
    run: Run
    plan: Callable[[Services, Action], Awaitable[Plan]]
    input: type[BaseModel] = NoInput
    subjects: frozenset[SubjectKind] = frozenset({"task"})
    replaceable: bool = False
    """True if a repository may have an action of this name carried out by its tree instead."""

    @property
    def lane(self) -> str:
        """Return the lane of its work."""
        return action_lane(self.name)

    def scope(self, project: str) -> str:
        """Return the scope that a caller needs for this action on tasks and pushes of a project."""
        return scope_of(self.name, project)


ACTIONS: dict[str, ActionKind] = {}
"""All actions by their names."""


def scope_of(name: str, project: str) -> str:
    """Return the scope that the action of this name needs on tasks and pushes of a project."""
    return f"tc-treeherder:action:{name}:{project}"


def register(kind: ActionKind) -> None:
    """Add an action. Raises ValueError if there is one of its name."""
    register_internal(kind.name, kind.run)
    ACTIONS[kind.name] = kind


def register_internal(name: str, run: Run) -> None:
    """Add an action that nobody can ask for. Raises ValueError if there is one of its name."""
    WORK.add_kind(Action, name, _run_to_end(run))


def _run_to_end(run_action: Run) -> Run:
    """Return the function that carries out an action, and ends it if that raises why it cannot be done."""

    async def run(services: Services, lease: Lease[Action]) -> None:
        try:
            await run_action(services, lease)
        except NothingToDoError as error:
            await lease.finish(State.NOTHING_TO_DO, str(error))
        except ActionRejectedError as error:
            await lease.finish(State.REJECTED, str(error), failure_jobs=lease.item.failure_jobs)
        except ActionFailedError as error:
            await lease.finish(State.FAILED, str(error), failure_jobs=lease.item.failure_jobs)

    return run


def is_of_tree(name: str, carried_out_by: TreeActions) -> bool:
    """Return True if an action of this name is looked for in what the tree offers."""
    return name not in ACTIONS or (ACTIONS[name].replaceable and carried_out_by != TreeActions.COPIES)


def lane_of(name: str, *, in_tree: bool) -> str:
    """Return the lane of an action. Those of trees share one, for their names are strangers'."""
    return action_lane(IN_TREE if in_tree else name)


def pressable(name: str, allowed: Collection[str]) -> bool:
    """Return True if a press from Pulse, which is about a task, may name this action."""
    return name in allowed and (name not in ACTIONS or "task" in ACTIONS[name].subjects)


def known_names() -> str:
    """Return the names of all actions, for a message."""
    return listed_names(ACTIONS)


def listed_names(names: Collection[str]) -> str:
    """Return names for a message."""
    *first, last = sorted(names) or ["none"]
    return f"{', '.join(first)} and {last}" if first else last


WORK.add_table(WorkTable(Action, "`tc-treeherder actions list --state received`, or `planned`, says why"))
