"""Build the context that a `.taskcluster.yml` is rendered with, and make a plan of the rendered tasks."""

import json
import re
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from service.clients.taskcluster import Definition
from service.clock import now
from service.contract.validation import problems_of
from service.engine.render import TemplateError
from service.flow.tasks.definition import (
    MAX_BODY,
    CycleError,
    TaskDefinition,
    complete,
    creation_order,
    format_date,
    name_of,
)
from service.settings import Settings
from service.slugids import replace_ids
from service.store.models import PlannedTask, Push, PushStep, Repository
from service.store.rows import new_row

FILE = ".taskcluster.yml"
_ADDRESS = re.compile(r"[!-?A-~]+@[!-?A-~]+")
MAX_ADDRESS = 254
"""Characters of a mail address."""

MAX_OWNER = 255
"""Characters of `metadata.owner`."""


def message_of(push: Push) -> str:
    """Return the message of the push's tip."""
    return (push.changesets[-1].get("desc") or "") if push.changesets else ""


def try_line(message: str) -> str:
    """Return `try:` and the rest of its line in the message, or one blank if there is none.

    Chain of trust renders the file with exactly this.
    """
    _, marker, rest = message.partition("try:")
    return marker + re.split(r"[\r\n\u2028\u2029]", rest, maxsplit=1)[0] if marker else " "


def context_of(settings: Settings, repository: Repository, push: Push) -> dict[str, Any]:
    """Return the context of a `.taskcluster.yml`, to which rendering adds `as_slugid` and `ownTaskId`."""
    return {
        "tasks_for": "hg-push",
        "push": {
            "owner": owner_of(settings, push),
            "revision": push.revision,
            "revision_hash": push.revision_hash,
            "base_revision": push.base_revision or "0" * 40,
            "comment": try_line(message_of(push)),
            "pushlog_id": push.push_id,
            "pushdate": int(push.date.timestamp()),
        },
        "repository": {
            "url": repository.url,
            "project": repository.alias,
            "level": repository.level,
            "type": "hg",
        },
        "now": format_date(now()),
        "taskcluster_root_url": settings.taskcluster.root,
    }


def owner_of(settings: Settings, push: Push) -> str:
    """Return the pushlog's user unchanged; if `owner_domain` is set, a bare user name becomes an address."""
    return f"{push.user}@{settings.owner_domain}" if settings.owner_domain and "@" not in push.user else push.user


def address_of(settings: Settings, push: Push) -> str | None:
    """Return the owner if it is an address of printable ASCII: any other would make the scope for it invalid."""
    owner = owner_of(settings, push)
    return owner if len(owner) <= MAX_ADDRESS and _ADDRESS.fullmatch(owner) else None


def scopes_of(settings: Settings, repository: Repository, push: Push) -> list[str]:
    """Return `authorizedScopes`: those of the project, and that its pusher may be notified by mail. None of our own."""
    address = address_of(settings, push)
    return repository.scopes if address is None else [*repository.scopes, f"queue:route:notify.email.{address}.*"]


def plan_of(rendered: list[Any], ids: Collection[str], step: PushStep) -> list[PlannedTask]:
    """Return rendered tasks as the queue completes them, in the order of creation.

    Each must have one of `ids`, which were derived for this attempt, because a task of any other id may be foreign.
    Raises TemplateError.
    """
    definitions: dict[str, Definition] = {}
    hidden = dict.fromkeys(ids, "(a task's id)")  # in names, which are shown before the task is created
    for number, task in enumerate(rendered, 1):
        where = f"{FILE}: task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("taskId"), str):
            raise TemplateError(f"{where} has no taskId: give it one, such as {{$eval: as_slugid('build')}}")
        task_id = task["taskId"]
        if task_id not in ids:
            raise TemplateError(
                f"{where} has the taskId {task_id[:100]!r}, which as_slugid and ownTaskId of this push did not return: "
                "use {$eval: as_slugid('a label')}"
            )
        if task_id in definitions:
            raise TemplateError(f"{where} has the taskId of an earlier task: give each a label of its own")
        try:
            definition = complete(task_id, {key: value for key, value in task.items() if key != "taskId"})
        except ValidationError as error:
            problems = problems_of(error, TaskDefinition, quote=True)
            text = f"{where} ({name_of(task)}) is no task definition: {problems}"
            raise TemplateError(replace_ids(text, hidden)) from None
        size = len(json.dumps(definition))
        if size > MAX_BODY:
            raise TemplateError(f"{where} ({name_of(task)}) is {size:,} bytes: Taskcluster takes {MAX_BODY:,} at most")
        definitions[task_id] = definition
    try:
        order = creation_order(definitions)
    except CycleError as error:
        names = ", ".join(name_of(definitions[task_id]) for task_id in error.cycle[:10])
        raise TemplateError(f"{FILE}: {error}: {names}") from None
    return [
        new_row(
            PlannedTask,
            task_id=task_id,
            step_id=step.id or 0,
            plan_attempt=step.plan_attempt,
            position=position,
            label="task",
            name=replace_ids(name_of(definitions[task_id]), hidden),
            definition=definitions[task_id],
        )
        for position, task_id in enumerate(order)
    ]
