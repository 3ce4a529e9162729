"""What goes over the API. Never a table model: those do not validate, and hold what is nobody's business."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from service.contract.events import Alias
from service.flow.actions.kinds import ACTIONS, known_names
from service.flow.tasks.definition import SLUGID
from service.sanitize import problems_of
from service.store.models import Source, Stage, State


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)


def _storable(text: str) -> str:
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("it holds a NUL or half of a surrogate pair, which cannot be stored")
    return text


Text = Annotated[str, Field(max_length=1_000), AfterValidator(_storable)]
Scope = Annotated[str, Field(min_length=1, max_length=1_000, pattern=r"^[ -~]+$")]

MAX_SCOPES_LENGTH = 2_000
"""Characters of all scopes of a repository: each call carries them in a header, of which 4,096 bytes are read."""


def _sendable(scopes: list[str]) -> list[str]:
    if (length := sum(len(scope) + 3 for scope in scopes)) > MAX_SCOPES_LENGTH:
        raise ValueError(
            f"{length:,} characters of scopes: at most {MAX_SCOPES_LENGTH:,} fit into a call. Put them into a role in "
            "Taskcluster, and name that: assume:<role>"
        )
    return scopes


Scopes = Annotated[list[Scope], Field(max_length=100), AfterValidator(_sendable)]
TrustDomain = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,30}$")]
RouteProject = Annotated[str, Field(pattern=r"^[^/\s]+/[^/\s]+$", max_length=100), AfterValidator(_storable)]
Level = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,50}$", description="1, 2, 3, or a name such as nss")]
Prefix = Annotated[str, Field(max_length=100), AfterValidator(_storable)]


def _number(value: Any) -> Any:
    """JSON's numbers alone, 1.0 among them: not a text or a boolean, which pydantic would turn into one."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("it must be a number")
    return value


Cursor = Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(_number)]
PushId = Annotated[int, Field(ge=0, le=2**31 - 1), BeforeValidator(_number)]
RunId = Annotated[int, Field(ge=0, le=1_000), BeforeValidator(_number)]
Bool = Annotated[bool, Field(strict=True)]

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """Some of a list. `next` goes into `after` for the following ones; null: there are no more.

    A page can be shorter than its limit, even empty, while there are more.
    """

    items: list[T]
    next: str | None = None


class RepositoryChange(Schema):
    """JSON Merge Patch: what is not named stays."""

    trust_domain: TrustDomain | None = Field(
        None, description="such as gecko: the scheduler of the project's tasks is <trust domain>-level-<level>"
    )
    route_project: RouteProject | None = Field(
        None, description="`user/project`: what the v2 routes of its tasks name, where that is not the alias"
    )
    scopes: Scopes | None = Field(None, description="null: assume:repo:<host>/<path>:branch:default")
    contains: Text | None = Field(None, description="a push gets a graph only if its tip's message contains this")
    graph: Bool = Field(True, description="create task graphs")
    environments: list[Prefix] | None = Field(None, description="route prefixes; null: all")
    enabled: Bool = Field(True, description="false: it is not polled")


class RepositoryPatch(RepositoryChange):
    level: Level = Field(default_factory=str)  # never read: only what is named is set, and null is no level

    @model_validator(mode="before")
    @classmethod
    def _immutable(cls, patch: Any) -> Any:
        named = sorted({"alias", "url", "last_push_id"} & patch.keys()) if isinstance(patch, dict) else []
        if named:
            raise ValueError(f"{', '.join(named)} cannot be changed: delete and add anew, or reset for the cursor")
        return patch


class RepositoryCreate(RepositoryChange):
    alias: Alias = Field(examples=["mozilla-central"])
    url: Text = Field(
        description="https; its host must be among allowed_hosts", examples=["https://hg.mozilla.org/mozilla-central"]
    )
    level: Level
    last_push_id: Cursor | None = Field(None, description="where to begin; null: at the pushlog's present end")


class RepositoryRead(Schema):
    alias: str
    url: str
    level: str
    trust_domain: str | None
    route_project: str | None
    scopes: list[str]
    contains: str | None
    graph: bool
    environments: list[str] | None
    enabled: bool
    last_push_id: int = Field(description="the cursor: the newest push that was taken in")
    last_changeset: str | None = Field(description="the tip of that push")
    generation: int = Field(description="goes up when the repository was reset")
    created_at: datetime
    shift_ends_at: datetime | None = Field(
        description="until then a listener polls it, which renews that every few seconds; null: nobody does just now"
    )
    last_polled_at: datetime | None = Field(description="as of the listener's last renewal, some seconds ago")
    last_good_poll_at: datetime | None = Field(description="likewise, of polls that went well")
    poll_error: str | None = Field(description="what was wrong with the last poll")
    poll_failures: int = Field(description="polls in a row that failed")
    reset_suspected_at: datetime | None


class RepositoryPage(Page[RepositoryRead]):
    """A page of repositories."""


class Reset(Schema):
    last_push_id: Cursor | None = Field(None, description="the new cursor; null: the pushlog's present end")


class ResultsetRead(Schema):
    environment: str
    state: State
    attempts: int
    error: str | None = Field(description="the last failure, or why it was skipped")
    at: datetime | None = Field(description="when it ended")
    next_attempt_at: datetime | None = None


class TaskRead(Schema):
    task_id: str | None = Field(description="null until it was created: nobody is to know the id before")
    name: str
    created: bool


class GraphRead(Schema):
    state: Literal["pending", "created", "skipped", "failed"]
    reason: str | None = Field(description="the last failure, or why there is no graph")
    attempts: int
    at: datetime | None
    next_attempt_at: datetime | None = None
    error_task: str | None = Field(description="the task that shows the reason on the push")
    error_task_refused: str | None = Field(description="what was left out of that task, or why there is none")
    tasks_planned: int
    tasks_created: int
    tasks: list[TaskRead] = Field(description="in the order of creation; in a list of pushes the first 20")


class ChangesetRead(BaseModel):
    """A changeset; only the last 200 of a push are kept in full."""

    node: str
    branch: str | None = None
    author: str | None = None
    desc: str | None = None
    parents: list[str] | None = None
    files: list[str] | None = None
    files_count: int | None = None


class PushSummary(Schema):
    repository: str
    push_id: int
    generation: int
    user: str
    date: datetime
    revision: str | None
    revision_hash: str
    noticed_at: datetime
    resultsets: list[ResultsetRead]
    graph: GraphRead | None


class PushPage(Page[PushSummary]):
    """A page of pushes."""


class PushRead(PushSummary):
    changesets_count: int
    changesets: list[ChangesetRead]


class DeadLetterSummary(Schema):
    id: int
    kind: str
    subject: str
    reason: str
    since: datetime
    payload_bytes: int | None = Field(description="size of the event as it came; null: it is work that was buried")


class DeadLetterRead(DeadLetterSummary):
    payload: str | None = Field(description="the event as it came, or its first MiB; what is no UTF-8 is escaped")


class DeadLetterPage(Page[DeadLetterSummary]):
    """A page of dead letters, without their payloads."""


class Check(BaseModel):
    name: str
    status: Literal["ok", "warning", "error"]
    detail: str = ""


class Heartbeat(BaseModel):
    status: Literal["ok", "warning", "error"]
    checks: list[Check]


class ActionState(StrEnum):
    RECEIVED = "received"
    PLANNED = "planned"
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"
    NOTHING_TO_DO = "nothing-to-do"


TaskId = Annotated[str, Field(pattern=SLUGID, description="a taskId: 22 characters, a slugid")]


def _known_action(name: str) -> str:
    if name not in ACTIONS:
        raise ValueError(f"there is no action {name[:100]!r} here: {known_names()} are what this service does")
    return name


def _describe_inputs(schema: dict[str, Any]) -> None:
    """Describe the inputs of all actions: each has a schema of its own."""
    schemas = [kind.input.model_json_schema() for kind in ACTIONS.values()]
    inputs = [each for number, each in enumerate(schemas) if each not in schemas[:number]]
    del schema["additionalProperties"]
    schema |= {"anyOf": inputs}


class ActionCreate(Schema):
    """An action to do on a task. `GET /actions/kinds` lists the actions, each with the schema of its input."""

    action: Annotated[str, AfterValidator(_known_action)] = Field(json_schema_extra={"enum": [*sorted(ACTIONS)]})
    project: Alias = Field(description="alias of the monitored repository; a route of the task must name it")
    task_id: TaskId
    run_id: RunId | None = Field(None, description="null: the latest run")
    requester: Text | None = Field(None, description="on whose behalf; null: the caller")
    input: dict[str, Any] = Field(
        default_factory=dict, description="what the action is told", json_schema_extra=_describe_inputs
    )

    @model_validator(mode="after")
    def _fitting_input(self) -> "ActionCreate":
        try:
            fitting = ACTIONS[self.action].input.model_validate(self.input)
        except ValidationError as error:
            raise ValueError(f"input of {self.action}: {problems_of(error)}") from None
        self.input = fitting.model_dump(mode="json", exclude_defaults=True)
        return self


class ActionKindRead(Schema):
    """An action that can be asked for."""

    name: str
    summary: str = Field(description="what it does")
    scope: str = Field(description="what the caller needs; `<project>` stands for the project's alias")
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


class RenderRequest(Schema):
    """A file to try. Of the push either its id, or a message and a user for one that never was."""

    file: str = Field(max_length=2 * 1024 * 1024, description="the text of a .taskcluster.yml")
    push_id: PushId | None = Field(None, description="a push that is known here; nothing is fetched")
    message: str = Field("", max_length=100_000, description="the message of the tip")
    user: str = Field("somebody@example.com", max_length=1_000, description="who pushes")


class RenderedTask(Schema):
    task_id: str = Field(description="made up: no push will ever have it")
    name: str
    definition: dict[str, Any] = Field(description="as the queue would store it")
    missing_scopes: list[str] = Field(description="what createTask asks for and the project does not have")


class RenderResult(Schema):
    """What the file makes of the push. Nothing was created or stored."""

    error: str | None = Field(description="why the file cannot be used, and where in it")
    skipped: str | None = Field(description="why this push would get no graph, whatever the file says")
    scopes_unchecked: str | None = Field(description="why missing scopes could not be found out")
    tasks: list[RenderedTask] = Field(description="in the order in which they would be created")


class LeftOut(Schema):
    task_id: str
    name: str
    reason: str


class ActionSummary(Schema):
    id: int
    action: str
    project: str
    task_id: str
    run_id: int | None
    input: dict[str, Any]
    requester: str
    source: Source
    state: ActionState
    reason: str | None = Field(description="why it failed, was rejected or has nothing to do; or the last failure")
    notes: list[str] = Field(description="what else a person should know")
    tasks_planned: int
    tasks_created: int
    left_out_count: int
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


class ActionPlan(Schema):
    action: str
    project: str
    task_id: str
    run_id: int | None
    input: dict[str, Any]
    state: ActionState = Field(description="planned; or what the action would end as, and then `reason` says why")
    reason: str | None
    notes: list[str]
    tasks: list[PlannedCopy]
    left_out: list[LeftOut]


class TaskPush(Schema):
    repository: str
    push_id: int
    generation: int
    revision: str | None


class TaskAction(Schema):
    id: int
    action: str
    project: str
    requester: str
    state: ActionState
    reason: str | None
    received_at: datetime


class RunStage(StrEnum):
    UNSCHEDULED = "unscheduled"
    PENDING = "pending"
    RUNNING = "running"
    RESOLVED = "resolved"

    @classmethod
    def of(cls, stage: int) -> "RunStage":
        """Return what this stage of a job report is called; a run that another one followed is resolved."""
        return list(cls)[min(stage, Stage.RESOLVED)]


class RunRead(Schema):
    """A run in one environment, and how far its report is."""

    run_id: int
    environment: str
    project: str
    stage: RunStage = Field(description="the newest that was heard of")
    told: RunStage | None = Field(description="what Treeherder was told last")
    state: State = Field(description="of the report")
    error: str | None
    last_event_at: datetime
    next_attempt_at: datetime | None


class ReportRead(RunRead):
    """What one Treeherder is to be told of one run."""

    id: int
    task_id: str
    revision: str | None = Field(description="of the push, as a v2 route names it")
    revision_hash: str | None = Field(description="of the push, as a v1 route names it")
    attempts: int
    waiting_since: datetime | None = Field(description="null: there is nothing more to tell")
    no_push_since: datetime | None = Field(description="since then Treeherder has not known the push")


class ReportPage(Page[ReportRead]):
    """A page of job reports."""


class TaskOwner(Schema):
    task_id: str
    name: str | None = Field(None, description="null: this service did not create it")
    push: TaskPush | None = Field(None, description="of whose graph it is")
    made_by: int | None = Field(None, description="the action that made it, a copy")
    copy_of: str | None = Field(None, description="of which task it is a copy")
    actions: list[TaskAction] = Field(description="on this task; the newest 100")
    copies: list[MadeTask] = Field(description="that these made; the newest 100")
    runs: list[RunRead] = Field(description="that were reported; the newest 100")
