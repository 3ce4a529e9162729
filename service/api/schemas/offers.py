"""The in-tree actions that a decision task offers, as the API shows them."""

from typing import Any

from pydantic import Field

from service.api.schemas.common import EXAMPLE_COPY, EXAMPLE_TASK, Schema, example


class OfferedAction(Schema):
    """An in-tree action that is relevant for the task or the push."""

    name: str = Field(description="what `POST /actions` takes as `action`")
    title: str
    description: str
    input: dict[str, Any] | bool | None = Field(description="JSON Schema of the input; null: it takes none")
    allowed: bool = Field(description="the caller has the scope that it needs")
    missing_scope: str | None = Field(description="the scope that the caller lacks")
    broken: str | None = Field(description="why it cannot be used, whoever asks; null: it can")


class OfferedActions(Schema):
    """The relevant in-tree actions, in the order of the decision task's `public/actions.json`."""

    model_config = example(
        project="mozilla-central",
        task_id=EXAMPLE_TASK,
        push=None,
        decision_task=EXAMPLE_COPY,
        reason=None,
        items=[
            {
                "name": "backfill",
                "title": "Backfill",
                "description": "Run the job on previous pushes.",
                "input": {"type": "object", "properties": {"depth": {"type": "integer", "default": 9}}},
                "allowed": False,
                "missing_scope": "tc-treeherder:action:backfill:mozilla-central",
                "broken": None,
            }
        ],
    )

    project: str
    task_id: str | None = Field(description="null: they are for a push")
    push: int | None = Field(description="id in the pushlog; null: they are for a task")
    decision_task: str | None = Field(description="the decision task that offers them")
    reason: str | None = Field(description="why there are none")
    items: list[OfferedAction]
