"""Pushes with their steps, and a `.taskcluster.yml` that is tried, as the API shows and takes them."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from service.api.schemas.common import (
    EXAMPLE_NODE,
    EXAMPLE_TASK,
    Page,
    PushId,
    Schema,
    StepState,
    Working,
    example,
)


class ResultsetRead(Schema):
    """The resultset of a push in one environment."""

    environment: str
    state: StepState
    working: Working
    attempts: int
    error: str | None = Field(description="the last failure, or why it was skipped")
    at: datetime | None = Field(description="when it ended")
    next_attempt_at: datetime | None = None


class TaskRead(Schema):
    """A task of a graph."""

    task_id: str | None = Field(description="null until it was created: nobody is to know the id before")
    name: str
    created: bool


class GraphRead(Schema):
    """The task graph of a push."""

    state: StepState
    working: Working
    reason: str | None = Field(description="the last failure, or why there is no graph")
    attempts: int
    at: datetime | None
    next_attempt_at: datetime | None = None
    error_task: str | None = Field(description="the task that shows the reason on the push")
    error_task_refused: str | None = Field(description="what was left out of that task, or why there is none")
    superseded_by: int | None = Field(
        description="the newer push for which the tasks that had not run yet were cancelled"
    )
    supersedes: list[int] = Field(description="earlier pushes of which that was done for this one")
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


_SUMMARY: dict[str, Any] = {
    "repository": "mozilla-central",
    "push_id": 43210,
    "generation": 0,
    "user": "dev@example.com",
    "date": "2026-01-15T12:00:00Z",
    "revision": EXAMPLE_NODE,
    "revision_hash": "9b8c7d6e5f40312213049586877869e4a2b5c1f0",
    "noticed_at": "2026-01-15T12:00:02Z",
    "resultsets": [
        {
            "environment": "tc-treeherder",
            "state": "done",
            "working": False,
            "attempts": 1,
            "error": None,
            "at": "2026-01-15T12:00:03Z",
            "next_attempt_at": None,
        }
    ],
    "graph": {
        "state": "done",
        "working": False,
        "reason": None,
        "attempts": 1,
        "at": "2026-01-15T12:00:04Z",
        "next_attempt_at": None,
        "error_task": None,
        "error_task_refused": None,
        "superseded_by": None,
        "supersedes": [],
        "tasks_planned": 1,
        "tasks_created": 1,
        "tasks": [{"task_id": EXAMPLE_TASK, "name": "Decision task", "created": True}],
    },
}


class PushSummary(Schema):
    """A push, as a list shows it."""

    model_config = example(**_SUMMARY)

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
    """A push with its changesets and all tasks."""

    model_config = example(
        **_SUMMARY,
        changesets_count=1,
        changesets=[
            {
                "node": EXAMPLE_NODE,
                "branch": "default",
                "author": "Dev <dev@example.com>",
                "desc": "Bug 1 - a change",
                "parents": ["0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"],
                "files": ["README.md"],
                "files_count": 1,
            }
        ],
    )

    changesets_count: int
    changesets: list[ChangesetRead]


class CopyRead(Schema):
    """A copy that an action made of a task."""

    task_id: str
    copy_of: str
    name: str
    state: str | None = Field(description="as that of a task")
    action_id: int
    requester: str


class PushTaskRead(Schema):
    """A task of a push, as far as it is known."""

    task_id: str | None = Field(description="null until it was created")
    name: str
    planned: bool = Field(description="this service creates it; otherwise a task of the push did")
    state: str | None = Field(
        description="unscheduled, pending, running, completed, failed, or the reason of an exception, such as "
        "canceled; null: nobody told of it yet"
    )
    run_id: int | None = Field(description="the newest run; null: there is none yet")
    started: datetime | None
    ended: datetime | None
    copies: list[CopyRead] = Field(description="copies of copies, too, up to the fifth; of all tasks at most 1,000")


class PushTasksRead(Schema):
    """The tasks of a push."""

    model_config = example(
        tasks=[
            {
                "task_id": EXAMPLE_TASK,
                "name": "Decision task",
                "planned": True,
                "state": "completed",
                "run_id": 0,
                "started": "2026-01-15T12:00:05Z",
                "ended": "2026-01-15T12:01:30Z",
                "copies": [],
            }
        ],
        states={"completed": 1},
        more=False,
        problem=None,
    )

    tasks: list[PushTaskRead] = Field(description="those of the graph first, at most 1,000")
    states: dict[str, int] = Field(description="how many of these tasks are in each state that is known")
    more: bool = Field(description="the push has more tasks")
    problem: str | None = Field(description="why the queue does not tell all of it")


class RenderRequest(Schema):
    """A file to try. Of the push either its id, or a message and a user for one that never was."""

    file: str = Field(max_length=2 * 1024 * 1024, description="the text of a .taskcluster.yml")
    push_id: PushId | None = Field(None, description="a push that is known here; nothing is fetched")
    message: str = Field("", max_length=100_000, description="the message of the tip")
    user: str = Field("somebody@example.com", max_length=1_000, description="who pushes")


class RenderedTask(Schema):
    """A task that a file renders to."""

    task_id: str = Field(description="made up: no push will ever have it")
    name: str
    definition: dict[str, Any] = Field(description="as the queue would store it")
    missing_scopes: list[str] = Field(description="what createTask asks for and the project does not have")


class RenderResult(Schema):
    """Tasks that the file gives for the push. Nothing was created or stored."""

    error: str | None = Field(description="why the file cannot be used, and where in it")
    skipped: str | None = Field(description="why this push would get no graph, whatever the file says")
    scopes_unchecked: str | None = Field(description="why missing scopes could not be found out")
    tasks: list[RenderedTask] = Field(description="in the order in which they would be created")
