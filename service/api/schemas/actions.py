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
    storable_json,
)
from service.contract.events import Alias, check_indexed
from service.contract.validation import named_pattern, problems_of
from service.engine.render_actions import ACTION_NAME
from service.flow.tasks.action_kinds import ACTIONS, SubjectKind, known_names
from service.store.models import Source


class ActionState(StrEnum):
    """The states of an action."""

    RECEIVED = "received"
    PLANNED = "planned"
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"
    NOTHING_TO_DO = "nothing-to-do"


_NAME = named_pattern(
    ACTION_NAME,
    "name of an action (1 to 100 of A-Z a-z 0-9 _ . -): one of `actions kinds`, or one that the tree offers",
)


def _describe_inputs(schema: dict[str, Any]) -> None:
    """Describe the inputs of all actions: each has a schema of its own."""
    schemas = [kind.input.model_json_schema() for kind in ACTIONS.values()]
    inputs = [schema for number, schema in enumerate(schemas) if schema not in schemas[:number]]
    schema |= {"anyOf": [*inputs, {"title": "InputOfTree", "description": "any JSON, by the tree's own schema"}]}


Input = Annotated[Any, AfterValidator(lambda told: {} if told is None else storable_json(told))]


class ActionCreate(Schema):
    """An action to do on a task or a push. `GET /actions/kinds` lists our own, each with the schema of its input.

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

    action: str = Field(
        pattern=_NAME,
        description=f"{known_names()} are what this service does; any other name is one that the tree offers: "
        "`GET /tasks/{task_id}/actions` and `GET /pushes/{alias}/{push_id}/actions` list those",
    )
    project: Alias = Field(description="alias of the monitored repository; a route of the task must name it")
    task_id: TaskId | None = None
    push: PushId | None = Field(None, description="id in the pushlog; of the newest generation that has it")
    run_id: RunId | None = Field(None, description="of the task; null: the latest run")
    requester: Annotated[Text, AfterValidator(check_indexed)] | None = Field(
        None, description="on whose behalf; null: the caller"
    )
    input: Input = Field(
        default_factory=dict,
        description="what the action is told; null is as an empty object: nothing",
        json_schema_extra=_describe_inputs,
    )

    @model_validator(mode="after")
    def _one_subject(self) -> "ActionCreate":
        given = [name for name, value in (("task_id", self.task_id), ("push", self.push)) if value is not None]
        fields: dict[SubjectKind, str] = {"task": "task_id", "push": "push"}
        subjects = ACTIONS[self.action].subjects if self.action in ACTIONS else fields
        wanted = [name for subject, name in fields.items() if subject in subjects]
        if len(given) != 1 or given[0] not in wanted:
            named = " and ".join(given) or "neither"
            raise ValueError(f"{self.action} needs {' or '.join(wanted)}, to say what it is about; {named} is given")
        if self.run_id is not None and self.task_id is None:
            raise ValueError("run_id is for a task: leave it out for a push")
        return self

    def fit_input(self) -> None:
        """Check the input of one of our own actions, and leave out what is its default. Raises ValueError.

        It is no validator: whether our action or the tree's of that name is meant, the repository says.
        """
        model = ACTIONS[self.action].input
        try:
            fitting = model.model_validate(self.input)
        except ValidationError as error:
            raise ValueError(f"input of {self.action}: {problems_of(error, model, quote=True)}") from None
        self.input = fitting.model_dump(mode="json", exclude_defaults=True)


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
    """A copy: `task_id` of `copy_of`; or the task of an in-tree action."""

    copy_of: str | None = Field(description="null: it is no copy, but the task of an in-tree action")
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


class ActionTask(Schema):
    """What the tree does for an in-tree action."""

    decision_task: str | None = Field(description="the decision task that offers it; null: it was not looked up yet")
    hook: str | None = Field(description="`<hookGroupId>/<hookId>`; null: its task is created without a hook")
    triggered_at: datetime | None = Field(description="stored before the hook was triggered, which is not done twice")
    task_id: str | None = Field(description="the action task; null: it was not created yet")
    state: str | None = Field(description="of the action task, as it was seen last; `expired` if it is gone")


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
    "in_tree": None,
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
    input: Any = Field(description="what it is told; in a list of actions null if that has more than 4,000 characters")
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
    in_tree: ActionTask | None = Field(description="of an action that the tree carries out; null: this service does")
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


class MissingScope(Schema):
    """A scope that is missing, and whose it would have to be."""

    scope: str
    holder: str = Field(description="the decision task, or the service's Taskcluster client")


class PlannedInTree(Schema):
    """What the tree would do for an in-tree action."""

    decision_task: str
    hook: str | None = Field(description="the hook that would be triggered; null: a task would be created")
    input: Any = Field(description="the input with its defaults; null: it takes none")
    rendered: dict[str, Any] = Field(description="the payload for the hook, or the definition of the task")
    missing_scopes: list[MissingScope] = Field(description="what would keep it from being done; the first counts")


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
        in_tree=None,
    )

    action: str
    project: str
    task_id: str | None
    run_id: int | None
    push: int | None
    input: Any
    state: ActionState = Field(description="planned; or what the action would end as, and then `reason` says why")
    reason: str | None
    notes: list[str]
    tasks: list[PlannedCopy]
    cancels: list[PlannedCancel]
    left_out: list[LeftOut]
    in_tree: PlannedInTree | None = Field(None, description="of an action that the tree carries out")
