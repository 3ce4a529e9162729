"""Task definitions: validate and complete them as the queue does, move their dates, sort them by dependencies.

The rules are those of the queue's create-task-request schema; the tests compare this model with it.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from service.contract.validation import named_pattern

SLUGID = named_pattern(
    r"^[A-Za-z0-9_-]{8}[Q-T][A-Za-z0-9_-][CGKOSWaeimquy26-][A-Za-z0-9_-]{10}[AQgw]$",
    "taskId (22 characters of A-Z a-z 0-9 _ -, such as fN1SbArXTPSVFNUvaOlinQ)",
)
_ID = named_pattern(r"^[a-zA-Z0-9-_]{1,38}$", "id (1 to 38 of A-Z a-z 0-9 _ -)")
_WORKER_TYPE = named_pattern(
    r"^[a-z]([-a-z0-9]{0,36}[a-z0-9])?$", "workerType (a lower-case letter, then up to 37 of a-z 0-9 -)"
)
_QUEUE_ID = named_pattern(
    r"^[a-zA-Z0-9-_]{1,38}/[a-z]([-a-z0-9]{0,36}[a-z0-9])?$", "taskQueueId (<provisionerId>/<workerType>)"
)
_PROJECT_ID = named_pattern(r"^[a-zA-Z0-9._/-]*$", "projectId (characters of A-Z a-z 0-9 . _ / -)")
_SOURCE = named_pattern(r"^(https?://|ssh://|git@)", "URL that begins with https://, http://, ssh:// or git@")
_SCOPE = named_pattern(r"^[ -~]*$", "scope (printable ASCII characters)")

MAX_BODY = 10 * 1024 * 1024
"""Bytes of the largest body that the queue takes; it answers 500 to a larger one, however often that is sent."""

MAX_SCOPES, MAX_SCOPE = 1_000, 4_096
"""Scopes of one task, and characters of one of them. The queue has no limit; real tasks have some dozens."""

MAX_LIFE = timedelta(days=5)
"""Longest time from `created` to `deadline` that the queue takes."""

SHORTEST_LIFE = timedelta(hours=1)
"""Shortest time that is left to a task whose deadline is shortened, because a dependency expires before it."""

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,30})?(Z|[+-]\d\d:\d\d)", re.ASCII)
"""With fewer digits of a second than RFC 3339 allows: dates are cached, and one could be megabytes long."""

SlugId = Annotated[str, Field(pattern=SLUGID)]
DATES = ("created", "deadline", "expires")


class Metadata(BaseModel):
    """The `metadata` of a definition."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=255)
    description: str = Field(max_length=32_768)
    owner: str = Field(max_length=255)
    source: str = Field(max_length=4096, pattern=_SOURCE)


class TaskDefinition(BaseModel):
    """A definition as `createTask` takes it. Dates stay texts, because the queue compares them as texts."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)

    task_queue_id: str | None = Field(None, pattern=_QUEUE_ID)
    provisioner_id: str | None = Field(None, pattern=_ID)
    worker_type: str | None = Field(None, pattern=_WORKER_TYPE)
    scheduler_id: str = Field("-", pattern=_ID)
    project_id: str = Field("none", min_length=1, max_length=500, pattern=_PROJECT_ID)
    task_group_id: SlugId | None = None
    dependencies: list[SlugId] = Field([], max_length=10_000)
    requires: Literal["all-completed", "all-resolved"] = "all-completed"
    routes: list[Annotated[str, Field(min_length=1, max_length=249)]] = Field([], max_length=64)
    priority: Literal["highest", "very-high", "high", "medium", "low", "very-low", "lowest"] = "lowest"
    retries: int = Field(5, ge=0, le=49)
    created: str
    deadline: str
    expires: str | None = None
    scopes: list[Annotated[str, Field(max_length=MAX_SCOPE, pattern=_SCOPE)]] = Field([], max_length=MAX_SCOPES)
    payload: dict[str, Any]
    metadata: Metadata
    tags: dict[str, Annotated[str, Field(max_length=4096)]] = {}
    extra: dict[str, Any] = {}

    @model_validator(mode="after")
    def _together(self) -> "TaskDefinition":
        nulls = [_alias(name) for name in self.model_fields_set if getattr(self, name) is None]
        if nulls:
            raise ValueError(f"{', '.join(sorted(nulls))} is null: leave it out")
        if self.task_queue_id is None and not (self.provisioner_id and self.worker_type):
            raise ValueError("it needs taskQueueId, or provisionerId and workerType")
        if self.task_queue_id is not None:
            parts = zip(("provisioner_id", "worker_type"), self.task_queue_id.split("/"), strict=True)
            for name, part in parts:
                if (value := getattr(self, name)) not in {None, part}:
                    raise ValueError(f"{_alias(name)} {value} is not that of taskQueueId {self.task_queue_id}")
        if starred := [scope for scope in self.scopes if scope.endswith("**")]:
            raise ValueError(f"scope {starred[0]} ends in more than one *")
        for name in ("dependencies", "routes"):
            items = getattr(self, name)
            if len(set(items)) < len(items):
                raise ValueError(f"{name} names something twice")
        created, deadline = parse_date(self.created), parse_date(self.deadline)
        if not timedelta() <= deadline - created <= MAX_LIFE:
            raise ValueError(f"deadline {self.deadline} must be within 5 days after created {self.created}")
        if self.expires is not None and parse_date(self.expires) < deadline:
            raise ValueError(f"expires {self.expires} is before deadline {self.deadline}")
        return self


def _alias(name: str) -> str:
    """Return the name that a field of TaskDefinition has in a definition."""
    return TaskDefinition.model_fields[name].alias or name


@functools.lru_cache(maxsize=1_000)  # the tasks of a group have most of their dates in common
def parse_date(text: str) -> datetime:
    """Parse a date of a definition. Raises ValueError.

    The years 9998 and 9999 are refused: such a date could not be moved, or be given another year.
    """
    try:
        # RFC 3339, as the schema asks; fromisoformat alone takes more
        parsed = datetime.fromisoformat(text).astimezone(UTC) if _RFC3339.fullmatch(text) else None
    except (ValueError, OverflowError):
        parsed = None
    if parsed is None or parsed.year >= 9998:
        raise ValueError(f"{text!r} is no date-time such as 2030-01-31T00:00:00.000Z")
    return parsed


def format_date(at: datetime) -> str:
    """Format a date as Taskcluster does, with milliseconds and Z."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def is_complete(definition: dict[str, Any]) -> bool:
    """Return True if the definition has every key, as one that comes from the queue."""
    return definition.keys() >= _KEYS


_KEYS = frozenset(map(_alias, TaskDefinition.model_fields))


def complete(task_id: str, definition: dict[str, Any]) -> dict[str, Any]:
    """Return `definition` as the queue will store it, so that an existing task can be compared with the plan.

    Raises pydantic's ValidationError.
    """
    task = TaskDefinition.model_validate(definition)
    left_out = set(TaskDefinition.model_fields) - task.model_fields_set
    defaults = task.model_dump(include=left_out, exclude_none=True, by_alias=True) if left_out else {}
    whole = {**defaults, **definition}
    if task.task_queue_id is None:
        whole["taskQueueId"] = f"{task.provisioner_id}/{task.worker_type}"
    else:
        whole["provisionerId"], whole["workerType"] = task.task_queue_id.split("/", 1)
    whole.setdefault("taskGroupId", task_id)
    if task.expires is None:
        whole["expires"] = format_date(_year_after(parse_date(task.deadline)))
    return whole


def _year_after(at: datetime) -> datetime:
    try:
        return at.replace(year=at.year + 1)
    except ValueError:  # the 29th of February; JavaScript's Date goes on to the 1st of March
        return at.replace(year=at.year + 1, month=3, day=1)


_PRIORITIES = ("highest", "very-high", "high", "medium", "low", "very-low", "lowest")


def needed_scopes(definition: Mapping[str, Any]) -> list[list[str]]:
    """Return the scopes that createTask needs for a complete definition, each as a list of alternatives.

    One scope of each list is enough; the last one grants least. The alternatives for the priority are the scopes of
    the task's priority and of any higher one.
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
"""Keys that say what a task may do and who may act on it. Others may differ in a task of an earlier attempt."""


def authority_differences(plan: dict[str, Any], existing: dict[str, Any]) -> list[str]:
    """Return the keys of `AUTHORITY` in which an existing task differs from the planned one."""
    return [key for key in AUTHORITY if _unordered(plan.get(key)) != _unordered(existing.get(key))]


def _unordered(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, list) else value


def _change_artifacts(payload: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return `payload` with `change` applied to each artifact; workers take them as a mapping by name, or as a list."""
    artifacts = payload.get("artifacts") if isinstance(payload, dict) else None
    if isinstance(artifacts, dict):
        changed: Any = {name: change(item) if isinstance(item, dict) else item for name, item in artifacts.items()}
    elif isinstance(artifacts, list):
        changed = [change(item) if isinstance(item, dict) else item for item in artifacts]
    else:
        return payload
    return {**payload, "artifacts": changed}


@functools.lru_cache(maxsize=1_000)
def _move_date(text: str, delta: timedelta) -> str:
    """Return a date moved by `delta`. Raises ValueError."""
    try:
        return format_date(parse_date(text) + delta)
    except OverflowError:
        raise ValueError(f"{text} cannot be moved by {delta}: no calendar goes so far") from None


def move_dates(definition: dict[str, Any], delta: timedelta) -> dict[str, Any]:
    """Return `definition` with its dates moved: created, deadline, expires and payload.artifacts.*.expires.

    Raises ValueError.
    """
    moved = dict(definition)
    for name in DATES:
        moved[name] = _move_date(moved[name], delta)
    moved["payload"] = _change_artifacts(moved["payload"], lambda artifact: _move_artifact(artifact, delta))
    return moved


def parse_expiries(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, datetime]:
    """Return when tasks expire, by their definitions or statuses; a task without a valid date is left out."""
    expiries = {}
    for task_id, task in tasks.items():
        with suppress(ValueError):
            expiries[task_id] = parse_date(task["expires"])
    return expiries


def shorten_deadline(
    definition: dict[str, Any], expire: Mapping[str, datetime], at: datetime
) -> tuple[dict[str, Any], str | None]:
    """Return `definition` with a deadline before which no dependency expires, and the dependency that shortened it.

    The queue refuses a later deadline. The second value is None if the deadline stays as it is. Raises ValueError if
    less than `SHORTEST_LIFE` is left.
    """
    soonest = min((d for d in definition["dependencies"] if d in expire), key=lambda d: expire[d], default=None)
    if soonest is None or expire[soonest] >= parse_date(definition["deadline"]):
        return definition, None
    if expire[soonest] - at < SHORTEST_LIFE:
        raise ValueError(
            f"depends on {soonest}, which expires at {format_date(expire[soonest])}: too soon for a new task to run"
        )
    return {**definition, "deadline": format_date(expire[soonest])}, soonest


def _move_artifact(artifact: dict[str, Any], delta: timedelta) -> dict[str, Any]:
    if not isinstance(artifact.get("expires"), str):
        return artifact
    try:
        return {**artifact, "expires": _move_date(artifact["expires"], delta)}
    except ValueError:
        return artifact  # no date: left to the worker, as it was


def name_of(definition: Mapping[str, Any]) -> str:
    """Return the name of the task, "nameless" if it has none."""
    metadata = definition.get("metadata")
    return str(metadata.get("name", "nameless"))[:255] if isinstance(metadata, dict) else "nameless"


# --- the order of creation -------------------------------------------------------------------------------------------


class CycleError(ValueError):
    """Tasks depend on each other in a `cycle`, which has their ids in order; a single one depends on itself."""

    def __init__(self, cycle: list[str]) -> None:
        super().__init__("tasks depend on each other in a cycle, so none can be the first")
        self.cycle = cycle


def creation_order(definitions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sort task ids so that each comes after its dependencies and, where these allow it, its group's first task.

    After a task is created, everybody can read its taskGroupId, and could create the task of that id first. A task
    may depend on itself: the queue takes it, and it waits until somebody schedules it. Raises CycleError.
    """
    prerequisites = {
        task_id: {"dependencies": prerequisites_of(definition)} for task_id, definition in definitions.items()
    }
    try:
        return sort_by_dependencies(prerequisites, allow_self=True)
    except CycleError:
        return sort_by_dependencies(definitions, allow_self=True)


def prerequisites_of(definition: Mapping[str, Any]) -> list[str]:
    """Return the ids of the tasks that are created before this one, if they are in its plan."""
    return [*definition["dependencies"], definition["taskGroupId"]]


def sort_by_dependencies(definitions: Mapping[str, Mapping[str, Any]], *, allow_self: bool = False) -> list[str]:
    """Sort task ids so that each comes after its dependencies, and keep their order otherwise. Raises CycleError.

    With `allow_self`, a task may depend on itself: the queue takes it, and it waits until somebody schedules it.
    """
    unmet: dict[str, int] = {}
    needed_by: dict[str, list[str]] = defaultdict(list)
    for task_id, definition in definitions.items():
        inside = [d for d in definition["dependencies"] if d in definitions and not (allow_self and d == task_id)]
        unmet[task_id] = len(inside)
        for dependency in inside:
            needed_by[dependency].append(task_id)
    ready = [task_id for task_id, count in unmet.items() if not count]
    for task_id in ready:  # the loop appends to it
        for following in needed_by[task_id]:
            unmet[following] -= 1
            if not unmet[following]:
                ready.append(following)
    if len(ready) < len(definitions):
        stuck = definitions.keys() - set(ready)
        trail: dict[str, None] = {}
        task_id = min(stuck)
        while task_id not in trail:
            trail[task_id] = None
            own = task_id if allow_self else None
            task_id = next(d for d in definitions[task_id]["dependencies"] if d in stuck and d != own)
        raise CycleError(list(trail)[list(trail).index(task_id) :])
    return ready
