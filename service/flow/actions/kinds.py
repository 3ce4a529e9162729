"""The actions that this service does. Each registers itself in its module; a new one is one module more.

What an action is called, what it needs to be asked for with, what it would do and how it is done stand together, so
that the API, the commands, the scopes and the metrics know of it at once.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from service.clients.taskcluster import Definition
from service.engine.leases import Lease
from service.engine.registry import WORK, WorkTable
from service.flow.actions.subject import ActionFailedError, ActionRejectedError, Subject
from service.services import Services
from service.store.models import Action, State


class NoInput(BaseModel):
    """The input of an action that takes none."""

    model_config = ConfigDict(extra="forbid")


@dataclass
class Copy:
    """A task that is to be made, and the one that it is a copy of."""

    old_id: str
    new_id: str
    name: str
    definition: Definition


@dataclass
class Plan:
    """What an action would do now: the copies in dependency order, what is left out and why, and what else to say.

    `nothing_to_do` says why it would do nothing at all.
    """

    copies: list[Copy] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    nothing_to_do: str | None = None


@dataclass(frozen=True)
class ActionKind:
    """An action that people can ask for.

    `run` carries out a stored action, and continues one that a process was killed in the middle of. `plan` returns
    what the action would do on its subject, and changes nothing; the action that it gets is never stored. Both may
    raise ActionRejectedError and ActionFailedError, and what a client raises.
    """

    name: str
    summary: str
    run: Callable[[Services, Lease[Action]], Awaitable[None]]
    plan: Callable[[Services, Subject, Action], Awaitable[Plan]]
    input: type[BaseModel] = NoInput

    @property
    def lane(self) -> str:
        """Return the lane of its work: each kind has slots of its own, so that a cancel never waits for copies."""
        return f"action {self.name}"

    def scope(self, project: str) -> str:
        """Return the scope that asks for this action on tasks of a project."""
        return scope_of(self.name, project)


ACTIONS: dict[str, ActionKind] = {}
"""All actions by their names."""


def scope_of(name: str, project: str) -> str:
    """Return the scope that the action of this name needs on tasks of a project."""
    return f"tc-treeherder:action:{name}:{project}"


def register(kind: ActionKind) -> None:
    """Add an action. Raises ValueError if there is one of its name."""
    WORK.add_kind(Action, kind.name, _ending(kind))
    ACTIONS[kind.name] = kind


def _ending(kind: ActionKind) -> Callable[[Services, Lease[Action]], Awaitable[None]]:
    """Return what carries out an action of this kind, and ends it when it is not to be done or cannot be."""

    async def run(services: Services, lease: Lease[Action]) -> None:
        try:
            await kind.run(services, lease)
        except ActionRejectedError as error:
            await lease.finish(State.REJECTED, str(error), failure_jobs=lease.item.failure_jobs)
        except ActionFailedError as error:
            await lease.finish(State.FAILED, str(error), failure_jobs=lease.item.failure_jobs)

    return run


def known_names() -> str:
    """Return the names of all actions, for a message."""
    return " and ".join(sorted(ACTIONS))


WORK.add_table(WorkTable(Action, "GET /api/v1/actions?state=received or planned says why"))
