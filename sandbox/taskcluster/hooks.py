"""Answer the methods of Taskcluster's hooks service, in memory, with its own refusals.

Follows the reference `hooks/v1/api.json` and the service's source. Hooks are defined by `define`: `/__control__/hooks`
and the sandbox do that, where a deployment has ci-admin. A hook creates its tasks with the scopes of its role
`hook-id:<hookGroupId>/<hookId>`, and fires only when it is triggered: schedules, tokens and Pulse are left out.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import jsone

from sandbox.taskcluster import checks
from sandbox.taskcluster.auth import Caller, require_scopes
from sandbox.taskcluster.clock import DAY, HOUR, iso
from sandbox.taskcluster.errors import ApiError, footer
from sandbox.taskcluster.pages import paged_from
from sandbox.taskcluster.queue import Queue
from sandbox.taskcluster.tasks import Json, new_slugid
from sandbox.taskcluster.trigger_schema import check_schema, payload_errors

HOOKS_CLIENT = "static/taskcluster/hooks"
"""The client as which the service creates tasks, with a hook's role only."""

TRIGGERED = "triggerHook"
MONTH = 30 * DAY


@dataclass
class Hook:
    """A hook, and when it was fired: `fires` in the form of `list-lastFires-response.json`, the newest first."""

    definition: Json
    fires: list[Json] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return `<hookGroupId>/<hookId>`, as scopes and roles have it."""
        return f"{self.definition['hookGroupId']}/{self.definition['hookId']}"


class Hooks:
    """All hooks."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._hooks: dict[tuple[str, str], Hook] = {}

    def clear(self) -> None:
        """Forget which hooks have fired; the hooks stay."""
        for hook in self._hooks.values():
            hook.fires.clear()

    def define(self, group_id: str, hook_id: str, request: Json) -> Json:
        """Add a hook, or replace its definition, and return it; `request` is a `create-hook-request.json`."""
        checks.check_parameters({"hookGroupId": group_id, "hookId": hook_id})
        checks.CREATE_HOOK.check(request)
        definition = {
            "schedule": [],
            "bindings": [],
            "triggerSchema": {"type": "object", "additionalProperties": False},
            **request,
            "metadata": {"emailOnError": True, **request["metadata"]},
            "hookGroupId": group_id,
            "hookId": hook_id,
        }
        if error := check_schema(definition["triggerSchema"]):
            raise ApiError("InputError", f"triggerSchema is not a valid JSON schema: {error}")
        old = self._hooks.get((group_id, hook_id))
        self._hooks[group_id, hook_id] = Hook(definition, old.fires if old else [])
        return definition

    def remove(self, group_id: str, hook_id: str) -> None:
        """Remove a hook, if there is one."""
        self._hooks.pop((group_id, hook_id), None)

    def describe(self) -> list[Json]:
        """Return each hook with its fires, for tests and demos."""
        return [{"hook": hook.definition, "lastFires": hook.fires} for hook in self._hooks.values()]

    def list_last_fires(
        self,
        group_id: str,
        hook_id: str,
        caller: Caller | None = None,
        token: str | None = None,
        limit: str | None = None,
    ) -> Json:
        """Answer `listLastFires` with one page, the newest first; raise the 404 for a hook that never fired, too."""
        require_scopes(caller, f"hooks:list-last-fires:{group_id}/{hook_id}")
        hook = self._hooks.get((group_id, hook_id))
        page, continuation = paged_from(hook.fires if hook else [], token, limit)
        if not page:
            raise ApiError("ResourceNotFound", "No such hook or never fired")
        return {"lastFires": [{**fire, "taskState": self._task_state(fire["taskId"])} for fire in page], **continuation}

    def trigger(self, group_id: str, hook_id: str, payload: Any, caller: Caller | None = None) -> Json:
        """Answer `triggerHook`: create the task of the hook; `{}` if its template renders to nothing."""
        require_scopes(caller, f"hooks:trigger-hook:{group_id}/{hook_id}")
        if not isinstance(payload, dict):
            checks.reject("hooks/v1/trigger-hook.json", ["data must be object"])
        hook = self._find(group_id, hook_id)
        if errors := payload_errors(hook.definition["triggerSchema"], payload):
            raise ApiError("InputError", errors)
        task_id = payload.get("taskId") or new_slugid()
        if not isinstance(task_id, str) or not checks.SLUG.fullmatch(task_id):
            raise ApiError("InputError", f"Invalid taskId format: {task_id}")
        context = {"firedBy": TRIGGERED, "payload": payload}
        if caller is not None and caller.client_id is not None:
            context["clientId"] = caller.client_id
        return self._fire(hook, task_id, context)

    def _find(self, group_id: str, hook_id: str) -> Hook:
        hook = self._hooks.get((group_id, hook_id))
        if hook is None:
            raise ApiError("ResourceNotFound", "No such hook")
        return hook

    def _task_state(self, task_id: str) -> str:
        task = self._queue.tasks.get(task_id)
        return task.state if task is not None and task.runs else "unknown"

    def _fire(self, hook: Hook, task_id: str, context: Json) -> Json:
        """Render the template and create the task; record the fire, be it a success or an error."""
        now = self._queue.clock.now()
        try:
            task = jsone.render(hook.definition["task"], {**context, "now": iso(now), "taskId": task_id})
        except Exception as error:  # noqa: BLE001 - whatever the template makes JSON-e raise is the answer
            self._record(hook, task_id, now, f"{type(error).__name__}: {error}")
            raise ApiError("InputError", f"While firing hook:\n\n{type(error).__name__}: {error}") from None
        if not task:
            return {}
        try:
            self._queue.create_task(task_id, _complete(task, task_id, now), self._hooks_caller(hook))
        except ApiError as error:
            self._record(hook, task_id, now, self._created_error(error, task_id))
            raise self._explain(hook, error) from None
        self._record(hook, task_id, now, "")
        return {"taskId": task_id, "status": {"taskId": task_id}}

    def _hooks_caller(self, hook: Hook) -> Caller:
        scopes = self._queue.auth.expand([f"assume:hook-id:{hook.name}", "assume:anonymous"])
        return Caller(HOOKS_CLIENT, scopes, self._queue.clock.now() + HOUR)

    def _record(self, hook: Hook, task_id: str, now: int, error: str) -> None:
        fire = {
            "hookGroupId": hook.definition["hookGroupId"],
            "hookId": hook.definition["hookId"],
            "taskId": task_id,
            "firedBy": TRIGGERED,
            "taskCreateTime": iso(now),
            "result": "error" if error else "success",
            "error": error,
        }
        hook.fires.insert(0, fire)

    def _answer(self, error: ApiError) -> str:
        """Return the message that createTask answers, with its footer."""
        return error.message + footer("createTask", error.code, error.status, iso(self._queue.clock.now()))

    def _created_error(self, error: ApiError, task_id: str) -> str:
        body = {"code": error.code, "message": self._answer(error), "requestInfo": {"method": "createTask"}}
        url = f"/api/queue/v1/task/{task_id}"
        told = {
            "message": self._answer(error),
            "code": error.code,
            "statusCode": error.status,
            "url": url,
            "body": body,
        }
        return json.dumps(told, indent=2)

    def _explain(self, hook: Hook, error: ApiError) -> ApiError:
        """Return the answer to a trigger whose createTask was answered with this error."""
        if error.code == "InsufficientScopes":
            return ApiError(
                "InsufficientScopes",
                f"The role `hook-id:{hook.name}` does not have sufficient scopes to create the task:\n\n"
                f"{self._answer(error)}",
            )
        return ApiError("InputError", f"While calling createTask: {error.code}\n\n{self._answer(error)}")


def _complete(task: Any, task_id: str, now: int) -> Json:
    """Return the rendered task with the dates and the group that the hooks service adds."""
    defaults = {
        "created": iso(now),
        "deadline": iso(now + DAY),
        "expires": iso(now + MONTH),
        "taskGroupId": task_id,
    }
    return {**task, **{name: value for name, value in defaults.items() if not task.get(name)}}
