"""A task's definition: what may be in it, and what the queue makes of what is left out.

The rules are those of the queue's create-task-request schema; the tests hold this model against it.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SLUGID = r"^[A-Za-z0-9_-]{8}[Q-T][A-Za-z0-9_-][CGKOSWaeimquy26-][A-Za-z0-9_-]{10}[AQgw]$"

MAX_BODY = 10 * 1024 * 1024
"""The queue answers 500 to a larger body, and always will."""

MAX_SCOPES, MAX_SCOPE = 1_000, 4_096
"""Scopes of one task, and characters of one of them. The queue knows no limit; real tasks have some dozens."""

MAX_LIFE = timedelta(days=5)
"""From `created` to `deadline`."""

SHORTEST_LIFE = timedelta(hours=1)
"""A deadline is shortened to this at most, where a dependency expires before it."""

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,30})?(Z|[+-]\d\d:\d\d)", re.ASCII)
"""With fewer digits of a second than RFC 3339 has: dates are kept in caches, and one could be megabytes long."""

SlugId = Annotated[str, Field(pattern=SLUGID)]
DATES = ("created", "deadline", "expires")


class Metadata(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=255)
    description: str = Field(max_length=32_768)
    owner: str = Field(max_length=255)
    source: str = Field(max_length=4096, pattern=r"^(https?://|ssh://|git@)")


class TaskDefinition(BaseModel):
    """A definition as `createTask` takes it. Dates stay the texts they are: the queue compares them as such."""

    model_config = ConfigDict(extra="forbid", strict=True)

    taskQueueId: str | None = Field(None, pattern=r"^[a-zA-Z0-9-_]{1,38}/[a-z]([-a-z0-9]{0,36}[a-z0-9])?$")  # noqa: N815 - the queue's names
    provisionerId: str | None = Field(None, pattern=r"^[a-zA-Z0-9-_]{1,38}$")  # noqa: N815 - likewise
    workerType: str | None = Field(None, pattern=r"^[a-z]([-a-z0-9]{0,36}[a-z0-9])?$")  # noqa: N815 - likewise
    schedulerId: str = Field("-", pattern=r"^[a-zA-Z0-9-_]{1,38}$")  # noqa: N815 - likewise
    projectId: str = Field("none", min_length=1, max_length=500, pattern=r"^[a-zA-Z0-9._/-]*$")  # noqa: N815 - likewise
    taskGroupId: SlugId | None = None  # noqa: N815 - likewise
    dependencies: list[SlugId] = Field([], max_length=10_000)
    requires: Literal["all-completed", "all-resolved"] = "all-completed"
    routes: list[Annotated[str, Field(min_length=1, max_length=249)]] = Field([], max_length=64)
    priority: Literal["highest", "very-high", "high", "medium", "low", "very-low", "lowest"] = "lowest"
    retries: int = Field(5, ge=0, le=49)
    created: str
    deadline: str
    expires: str | None = None
    scopes: list[Annotated[str, Field(max_length=MAX_SCOPE, pattern=r"^[ -~]*$")]] = Field([], max_length=MAX_SCOPES)
    payload: dict[str, Any]
    metadata: Metadata
    tags: dict[str, Annotated[str, Field(max_length=4096)]] = {}
    extra: dict[str, Any] = {}

    @model_validator(mode="after")
    def _together(self) -> "TaskDefinition":
        nulls = [name for name in self.model_fields_set if getattr(self, name) is None]
        if nulls:
            raise ValueError(f"{', '.join(sorted(nulls))} is null: leave it out")
        if self.taskQueueId is None and not (self.provisionerId and self.workerType):
            raise ValueError("it needs taskQueueId, or provisionerId and workerType")
        if self.taskQueueId is not None:
            parts = zip(("provisionerId", "workerType"), self.taskQueueId.split("/"), strict=True)
            for name, part in parts:
                if getattr(self, name) not in {None, part}:
                    raise ValueError(f"{name} {getattr(self, name)} is not that of taskQueueId {self.taskQueueId}")
        if starred := [scope for scope in self.scopes if scope.endswith("**")]:
            raise ValueError(f"scope {starred[0]} ends in more than one *")
        for name in ("dependencies", "routes"):
            items = getattr(self, name)
            if len(set(items)) < len(items):
                raise ValueError(f"{name} names something twice")
        created, deadline = date(self.created), date(self.deadline)
        if not timedelta() <= deadline - created <= MAX_LIFE:
            raise ValueError(f"deadline {self.deadline} must be within 5 days after created {self.created}")
        if self.expires is not None and date(self.expires) < deadline:
            raise ValueError(f"expires {self.expires} is before deadline {self.deadline}")
        return self


@functools.lru_cache(maxsize=10_000)  # the tasks of a group have most of their dates in common
def date(text: str) -> datetime:
    """A date of a definition. Raises ValueError.

    Of the years 9998 and 9999 none is taken: what is moved on, or given a year more, would have no date then.
    """
    try:
        # RFC 3339, as the schema asks; fromisoformat alone takes more
        found = datetime.fromisoformat(text).astimezone(UTC) if _RFC3339.fullmatch(text) else None
    except (ValueError, OverflowError):
        found = None
    if found is None or found.year >= 9998:
        raise ValueError(f"{text!r} is no date-time such as 2030-01-31T00:00:00.000Z")
    return found


def stamp(at: datetime) -> str:
    """A date as Taskcluster writes it: milliseconds and Z."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def is_complete(definition: dict[str, Any]) -> bool:
    """Whether every key is there, as in what the queue gives back."""
    return definition.keys() >= TaskDefinition.model_fields.keys()


def complete(task_id: str, definition: dict[str, Any]) -> dict[str, Any]:
    """`definition` as the queue will store it, so that what stands there under our id can be compared with our plan.

    Raises pydantic's ValidationError.
    """
    task = TaskDefinition.model_validate(definition)
    left_out = set(TaskDefinition.model_fields) - task.model_fields_set
    whole = {**(task.model_dump(include=left_out, exclude_none=True) if left_out else {}), **definition}
    if task.taskQueueId is None:
        whole["taskQueueId"] = f"{task.provisionerId}/{task.workerType}"
    else:
        whole["provisionerId"], whole["workerType"] = task.taskQueueId.split("/", 1)
    whole.setdefault("taskGroupId", task_id)
    if task.expires is None:
        whole["expires"] = stamp(_year_after(date(task.deadline)))
    return whole


def _year_after(at: datetime) -> datetime:
    try:
        return at.replace(year=at.year + 1)
    except ValueError:  # the 29th of February; JavaScript's Date goes on to the 1st of March
        return at.replace(year=at.year + 1, month=3, day=1)


_PRIORITIES = ("highest", "very-high", "high", "medium", "low", "very-low", "lowest")


def needed_scopes(definition: Mapping[str, Any]) -> list[list[str]]:
    """Return what createTask needs for a complete definition: of each list any scope will do, the last is the least.

    The queue takes the scope of the task's priority or of any higher one.
    """
    priorities = _PRIORITIES[: _PRIORITIES.index(definition["priority"]) + 1]
    return [
        [f"queue:create-task:project:{definition['projectId']}"],
        [f"queue:scheduler-id:{definition['schedulerId']}"],
        [f"queue:create-task:{priority}:{definition['taskQueueId']}" for priority in priorities],
        *([f"queue:route:{route}"] for route in definition["routes"]),
        *([scope] for scope in definition["scopes"]),
    ]


AUTHORITY = ("schedulerId", "taskGroupId", "projectId", "taskQueueId", "routes", "scopes")
"""What a task may do, and who may act on it. Other keys of an earlier attempt's task may differ: dates, tags, ..."""


def authority_differences(plan: dict[str, Any], existing: dict[str, Any]) -> list[str]:
    """Return the keys that stand for authority in which an existing task is not the planned one."""
    return [key for key in AUTHORITY if _unordered(plan.get(key)) != _unordered(existing.get(key))]


def _unordered(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, list) else value


def _each_artifact(payload: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """`payload` with `change` made to each artifact; workers take them as a mapping by name, or as a list."""
    artifacts = payload.get("artifacts") if isinstance(payload, dict) else None
    if isinstance(artifacts, dict):
        changed: Any = {name: change(item) if isinstance(item, dict) else item for name, item in artifacts.items()}
    elif isinstance(artifacts, list):
        changed = [change(item) if isinstance(item, dict) else item for item in artifacts]
    else:
        return payload
    return {**payload, "artifacts": changed}


@functools.lru_cache(maxsize=10_000)  # likewise
def _moved(text: str, delta: timedelta) -> str:
    """A date moved by `delta`. Raises ValueError."""
    try:
        return stamp(date(text) + delta)
    except OverflowError:
        raise ValueError(f"{text} cannot be moved by {delta}: no calendar goes so far") from None


def move(definition: dict[str, Any], delta: timedelta) -> dict[str, Any]:
    """`definition` with all its dates moved by `delta`: created, deadline, expires and payload.artifacts.*.expires.

    Raises ValueError.
    """
    moved = dict(definition)
    for name in DATES:
        moved[name] = _moved(moved[name], delta)
    moved["payload"] = _each_artifact(moved["payload"], lambda artifact: _moved_artifact(artifact, delta))
    return moved


def expiries(known: Mapping[str, Mapping[str, Any]]) -> dict[str, datetime]:
    """When tasks expire, by their definitions or statuses; without those that do at no date that a calendar has."""
    found = {}
    for task_id, each in known.items():
        with suppress(ValueError):
            found[task_id] = date(each["expires"])
    return found


def shortened(
    definition: dict[str, Any], expire: Mapping[str, datetime], at: datetime
) -> tuple[dict[str, Any], str | None]:
    """`definition` with a deadline that none of its dependencies expires before, and the one that decided, if any did.

    The queue refuses any other. Raises ValueError when that leaves less than an hour.
    """
    soonest = min((d for d in definition["dependencies"] if d in expire), key=lambda d: expire[d], default=None)
    if soonest is None or expire[soonest] >= date(definition["deadline"]):
        return definition, None
    if expire[soonest] - at < SHORTEST_LIFE:
        raise ValueError(
            f"depends on {soonest}, which expires at {stamp(expire[soonest])}: too soon for a new task to run"
        )
    return {**definition, "deadline": stamp(expire[soonest])}, soonest


def _moved_artifact(artifact: dict[str, Any], delta: timedelta) -> dict[str, Any]:
    if not isinstance(artifact.get("expires"), str):
        return artifact
    try:
        return {**artifact, "expires": _moved(artifact["expires"], delta)}
    except ValueError:
        return artifact  # no date: the worker's business, as it was


def name_of(definition: Mapping[str, Any]) -> str:
    """What people call the task."""
    metadata = definition.get("metadata")
    return str(metadata.get("name", "nameless"))[:255] if isinstance(metadata, dict) else "nameless"


# --- the order of creation -------------------------------------------------------------------------------------------


class CircleError(ValueError):
    """Tasks that each wait for another of them: `circle`, in order. One alone depends on itself."""

    def __init__(self, circle: list[str]) -> None:
        super().__init__("tasks depend on each other in a circle, so none can be the first")
        self.circle = circle


def creation_order(definitions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return task ids so that each comes after its dependencies and, where these allow it, its group's first task.

    Once a task has been created, everybody can read its taskGroupId, and could create that task first. A task may
    depend on itself; the queue takes it, and it waits until somebody schedules it. Raises CircleError.
    """
    behind = {task_id: {"dependencies": needed_first(definition)} for task_id, definition in definitions.items()}
    try:
        return in_order(behind, but_itself=True)
    except CircleError:
        return in_order(definitions, but_itself=True)


def needed_first(definition: Mapping[str, Any]) -> list[str]:
    """Return the ids of the tasks that are created before this one, where they are in its plan."""
    return [*definition["dependencies"], definition["taskGroupId"]]


def in_order(definitions: Mapping[str, Mapping[str, Any]], *, but_itself: bool = False) -> list[str]:
    """Task ids so that each comes after its dependencies, otherwise as they stood. Raises CircleError.

    `but_itself`: a task may depend on itself; the queue takes it, and it waits until somebody schedules it.
    """
    waits: dict[str, int] = {}
    needed_by: dict[str, list[str]] = defaultdict(list)
    for task_id, definition in definitions.items():
        inside = [d for d in definition["dependencies"] if d in definitions and not (but_itself and d == task_id)]
        waits[task_id] = len(inside)
        for dependency in inside:
            needed_by[dependency].append(task_id)
    ready = [task_id for task_id, count in waits.items() if not count]
    for task_id in ready:  # grows meanwhile
        for following in needed_by[task_id]:
            waits[following] -= 1
            if not waits[following]:
                ready.append(following)
    if len(ready) < len(definitions):
        stuck = definitions.keys() - set(ready)
        trail: dict[str, None] = {}
        task_id = min(stuck)
        while task_id not in trail:
            trail[task_id] = None
            own = task_id if but_itself else None
            task_id = next(d for d in definitions[task_id]["dependencies"] if d in stuck and d != own)
        raise CircleError(list(trail)[list(trail).index(task_id) :])
    return ready
