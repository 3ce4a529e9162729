"""Actions and their plans, as the API shows and takes them."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from service.api.schemas.common import (
    EXAMPLE_COPY,
    EXAMPLE_TASK,
    Page,
    PushId,
    RunId,
    Schema,
    TaskId,
    Text,
    Working,
    example,
)
from service.contract.events import Alias
from service.contract.validation import closest, problems_of
from service.flow.actions.kinds import ACTIONS, SubjectKind, known_names
from service.store.models import Source


class ActionState(StrEnum):
    """The states of an action."""

    RECEIVED = "received"
    PLANNED = "planned"
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"
    NOTHING_TO_DO = "nothing-to-do"


def _known_action(name: str) -> str:
    if name not in ACTIONS:
        match = closest(name[:100], ACTIONS)
        suggestion = f" (did you mean {match}?)" if match else ""
        raise ValueError(f"there is no action {name[:100]!r}{suggestion}: this service does {known_names()}")
    return name


def _describe_inputs(schema: dict[str, Any]) -> None:
    """Describe the inputs of all actions: each has a schema of its own."""
    schemas = [kind.input.model_json_schema() for kind in ACTIONS.values()]
    inputs = [schema for number, schema in enumerate(schemas) if schema not in schemas[:number]]
    del schema["additionalProperties"]
    schema |= {"anyOf": inputs} if len(inputs) > 1 else {**inputs[0], **schema}


class ActionCreate(Schema):
    """An action to do on a task or a push. `GET /actions/kinds` lists the actions, each with the schema of its input.

    Give either `task_id` or `push`, as the action is about.
    """

    model_config = example(
        action="retrigger",
        project="mozilla-central",
        task_id=EXAMPLE_TASK,
        run_id=0,
        input={},
        requester="sheriff@example.com",
    )

    action: Annotated[str, AfterValidator(_known_action)] = Field(json_schema_extra={"enum": [*sorted(ACTIONS)]})
    project: Alias = Field(description="alias of the monitored repository; a route of the task must name it")
    task_id: TaskId | None = None
    push: PushId | None = Field(None, description="id in the pushlog; of the newest generation that has it")
    run_id: RunId | None = Field(None, description="of the task; null: the latest run")
    requester: Text | None = Field(None, description="on whose behalf; null: the caller")
    input: dict[str, Any] = Field(
        default_factory=dict, description="what the action is told", json_schema_extra=_describe_inputs
    )

    @model_validator(mode="after")
    def _one_subject(self) -> "ActionCreate":
        given = [name for name, value in (("task_id", self.task_id), ("push", self.push)) if value is not None]
        fields: dict[SubjectKind, str] = {"task": "task_id", "push": "push"}
        wanted = [name for subject, name in fields.items() if subject in ACTIONS[self.action].subjects]
        if len(given) != 1 or given[0] not in wanted:
            named = " and ".join(given) or "neither"
            raise ValueError(f"{self.action} needs {' or '.join(wanted)}, to say what it is about; {named} is given")
        if self.run_id is not None and self.task_id is None:
            raise ValueError("run_id is for a task: leave it out for a push")
        return self

    @model_validator(mode="after")
    def _fitting_input(self) -> "ActionCreate":
        model = ACTIONS[self.action].input
        try:
            fitting = model.model_validate(self.input)
        except ValidationError as error:
            raise ValueError(f"input of {self.action}: {problems_of(error, model, quote=True)}") from None
        self.input = fitting.model_dump(mode="json", exclude_defaults=True)
        return self


class ActionKindRead(Schema):
    """An action that can be asked for."""

    name: str
    summary: str = Field(description="what it does")
    scope: str = Field(description="what the caller needs; `<project>` stands for the project's alias")
    subjects: list[SubjectKind] = Field(description="what it can be asked for: a task, a push, or either")
    input: dict[str, Any] = Field(description="JSON Schema of the input")


class ActionKinds(Schema):
    """All actions that can be asked for."""

    items: list[ActionKindRead]


class MadeTask(Schema):
    """A copy: `task_id` of `copy_of`."""

    copy_of: str
    task_id: str | None = Field(description="null until it was created: nobody is to know the id before")
    name: str
    created: bool


class CancelledTask(Schema):
    """A task that an action on a push cancels; once the action has ended, one that it has cancelled."""

    task_id: str
    name: str


class LeftOut(Schema):
    """A task that was left out of the copies, or could not be cancelled."""

    task_id: str
    name: str
    reason: str


_SUMMARY: dict[str, Any] = {
    "action": "retrigger",
    "project": "mozilla-central",
    "task_id": EXAMPLE_TASK,
    "run_id": 0,
    "push": None,
    "generation": None,
    "input": {},
    "id": 17,
    "requester": "sheriff@example.com",
    "source": "api",
    "state": "done",
    "working": False,
    "reason": None,
    "notes": [],
    "tasks_planned": 1,
    "tasks_created": 1,
    "left_out_count": 0,
    "cancels_count": 0,
    "tasks": [
        {"copy_of": EXAMPLE_TASK, "task_id": EXAMPLE_COPY, "name": "test-linux64/opt-xpcshell-1", "created": True}
    ],
    "attempts": 1,
    "received_at": "2026-01-15T12:30:00Z",
    "planned_at": "2026-01-15T12:30:01Z",
    "done_at": "2026-01-15T12:30:02Z",
    "next_attempt_at": None,
}


class ActionSummary(Schema):
    """An action, as a list shows it."""

    model_config = example(**_SUMMARY)

    id: int
    action: str
    project: str
    task_id: str | None = Field(description="null: it is about a push")
    run_id: int | None
    push: int | None = Field(description="id in the pushlog; null: it is about a task")
    generation: int | None = Field(description="of the push; null: the push was not known when the action was stored")
    input: dict[str, Any]
    requester: str
    source: Source
    state: ActionState
    working: Working
    reason: str | None = Field(description="why it failed, was rejected or has nothing to do; or the last failure")
    notes: list[str] = Field(description="what else a person should know")
    tasks_planned: int
    tasks_created: int
    left_out_count: int
    cancels_count: int = Field(description="tasks that it cancels, or has cancelled if it has ended")
    tasks: list[MadeTask] = Field(description="the copies in dependency order; in a list of actions the first 20")
    attempts: int
    received_at: datetime
    planned_at: datetime | None
    done_at: datetime | None
    next_attempt_at: datetime | None


class ActionPage(Page[ActionSummary]):
    """A page of actions."""


class ListedDelivery(Schema):
    """A message that brought the press of a button, or may have brought it again."""

    received_at: datetime
    redelivered: bool
    acknowledged: bool = Field(description="a listener has reported that the broker will not bring it again")


class ActionRead(ActionSummary):
    """An action, with everything that is known of it."""

    model_config = example(
        **_SUMMARY,
        cancels=[],
        left_out=[],
        deliveries=[],
    )

    cancels: list[CancelledTask] = Field(description="of an action on a push")
    left_out: list[LeftOut]
    deliveries: list[ListedDelivery] = Field(description="the first hundred that are listed on it")


class PlannedCopy(Schema):
    """A copy that would be made. Its `task_id` is made up: an action that is really done derives others."""

    copy_of: str
    task_id: str
    name: str
    task_group_id: str
    created: str
    deadline: str
    expires: str
    dependencies: list[str]


class PlannedCancel(CancelledTask):
    """A task that would be cancelled."""

    state: str = Field(description="unscheduled, pending or running")


class ActionPlan(Schema):
    """Effect that an action would have now."""

    model_config = example(
        action="retrigger",
        project="mozilla-central",
        task_id=EXAMPLE_TASK,
        run_id=0,
        push=None,
        input={},
        state="planned",
        reason=None,
        notes=[],
        tasks=[
            {
                "copy_of": EXAMPLE_TASK,
                "task_id": EXAMPLE_COPY,
                "name": "test-linux64/opt-xpcshell-1",
                "task_group_id": "VhNn4z3pR1aF6m0kq1xW5w",
                "created": "2026-01-15T12:30:01.000Z",
                "deadline": "2026-01-16T12:30:01.000Z",
                "expires": "2026-02-12T12:30:01.000Z",
                "dependencies": [],
            }
        ],
        cancels=[],
        left_out=[],
    )

    action: str
    project: str
    task_id: str | None
    run_id: int | None
    push: int | None
    input: dict[str, Any]
    state: ActionState = Field(description="planned; or what the action would end as, and then `reason` says why")
    reason: str | None
    notes: list[str]
    tasks: list[PlannedCopy]
    cancels: list[PlannedCancel]
    left_out: list[LeftOut]
