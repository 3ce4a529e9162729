"""Client of Taskcluster's hooks service, which creates the tasks of in-tree actions."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import aiohttp
from taskcluster.aio import Hooks as Client

from service.clients.taskcluster import ScopesRefusal, answer_of, named, options_of, session_of
from service.errors import PermanentUpstreamError, Unavailable
from service.settings import TaskclusterSettings

MAX_PAGES = 20
"""Pages of fires that are read of one hook."""

CONNECTIONS = 20
"""Connections of one process."""


@dataclass(frozen=True)
class Fire:
    """A task that a hook created because somebody triggered it over the API."""

    task_id: str
    at: datetime


class Hooks(Protocol):
    """Calls that we send to the hooks service, each with the one scope that it needs."""

    async def trigger(self, group: str, hook: str, payload: dict[str, Any]) -> str | None:
        """Trigger a hook, and return the id of its task; None: it created none. The call is not idempotent.

        Raises PermanentUpstreamError if it was certainly refused, NotSentError if it was certainly not sent, and
        Unavailable, of which only the statuses 401 and 429 say that nothing was done.
        """

    async def last_fires(self, group: str, hook: str, since: datetime) -> list[Fire]:
        """Return the tasks that the hook created since then, because it was triggered over the API.

        Raises PermanentUpstreamError, a ScopesRefusal if we may not list them, and Unavailable.
        """


class TaskclusterHooks:
    """A client of the hooks service. It sends nothing twice."""

    def __init__(self, settings: TaskclusterSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def trigger(self, group: str, hook: str, payload: dict[str, Any]) -> str | None:
        scope = trigger_scope(group, hook)
        answer = await self._call(scope, lambda hooks: hooks.triggerHook(group, hook, payload))
        status = answer.get("status")
        task_id = answer.get("taskId") or (status.get("taskId") if isinstance(status, dict) else None)
        if task_id is None and not answer:
            return None
        if not isinstance(task_id, str):
            raise Unavailable("taskcluster", "the answer of hooks.triggerHook names no task")
        return task_id

    async def last_fires(self, group: str, hook: str, since: datetime) -> list[Fire]:
        fires: list[Fire] = []
        query: dict[str, str] = {}
        for _ in range(MAX_PAGES):
            try:
                answer = await self._call(
                    fires_scope(group, hook),
                    lambda hooks: hooks.listLastFires(group, hook, query=query),  # noqa: B023 - awaited before it changes
                )
            except PermanentUpstreamError as error:
                if error.status == 404:  # there is no such hook, or it was never fired
                    break
                raise
            entries = answer.get("lastFires")
            if not isinstance(entries, list):
                raise Unavailable("taskcluster", "the answer of hooks.listLastFires has no list of fires")
            fires += [fire for entry in entries if (fire := _fire(entry)) is not None and fire.at >= since]
            if not answer.get("continuationToken"):
                break
            query = {"continuationToken": str(answer["continuationToken"])}
        return fires

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _call(self, scope: str, call: Callable[[Client], Awaitable[Any]]) -> dict[str, Any]:
        """Make a call with only this scope. A ScopesRefusal names it."""
        if self._session is None:
            seconds = self._settings.timeout.total_seconds()
            self._session = session_of(self._settings.root, seconds, CONNECTIONS)
        options = options_of(self._settings)
        if options["credentials"]:
            options["authorizedScopes"] = [scope]
        client = Client(options, session=self._session)
        try:
            return await answer_of(lambda: call(client))
        except ScopesRefusal as refusal:
            if refusal.status == 403 and refusal.missing and scope not in refusal.missing:
                role = f"hook-id:{scope.partition(':trigger-hook:')[2]}"
                raise ScopesRefusal(f"the role {role} lacks {named(refusal.missing)}", 403, refusal.missing) from None
            reason = f"the service's Taskcluster client ({self._settings.client_id}) lacks {scope}"
            raise ScopesRefusal(f"{reason}: grant that to the client", 403, [scope]) from None


def trigger_scope(group: str, hook: str) -> str:
    """Return the scope that triggering a hook needs."""
    return f"hooks:trigger-hook:{group}/{hook}"


def fires_scope(group: str, hook: str) -> str:
    """Return the scope that listing the fires of a hook needs."""
    return f"hooks:list-last-fires:{group}/{hook}"


def _fire(entry: Any) -> Fire | None:
    """Return a fire over the API that created a task, None for any other."""
    if not isinstance(entry, dict) or entry.get("firedBy") != "triggerHook" or entry.get("result") != "success":
        return None
    try:
        return Fire(str(entry["taskId"]), datetime.fromisoformat(entry["taskCreateTime"]))
    except (KeyError, TypeError, ValueError):
        return None
