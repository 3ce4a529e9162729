"""Client that fetches artifacts of runs: the queue says where one is, and another host has its bytes."""

import json
from typing import Protocol
from urllib.parse import quote

import mohawk
import taskcluster_urls
from taskcluster.aio import Queue as Client

from service.clients.http import Answer, AnswerTooLargeError, Http
from service.clients.taskcluster import ScopesRefusal, options_of
from service.errors import PermanentUpstreamError, Unavailable, wait_asked_for
from service.settings import TaskclusterSettings

MAX_REDIRECTS = 3
"""Redirects that are followed from the place that the queue names."""

_MAX_ANSWER = 64 * 1024
"""Bytes of the queue's own answer."""

_OURS = {"s3", "object"}
"""Storage types of which Taskcluster itself chooses the address. A `reference` leads wherever a task wants."""


class Artifacts(Protocol):
    """Artifacts of runs."""

    async def fetch(self, task_id: str, run_id: int, name: str, limit: int) -> bytes | None:
        """Return the artifact's content, None if there is none or it has expired.

        Raises Unavailable, and PermanentUpstreamError with status 413 if it has more than `limit` bytes.
        """


class TaskclusterArtifacts:
    """Artifacts by `getArtifact`. Taskcluster's client follows no redirect within limits, so the request is ours."""

    def __init__(self, settings: TaskclusterSettings) -> None:
        self._settings = settings
        self._http = Http("taskcluster")

    async def fetch(self, task_id: str, run_id: int, name: str, limit: int) -> bytes | None:
        path = f"/task/{quote(task_id, safe='')}/runs/{run_id}/artifacts/{quote(name, safe='')}"
        url = taskcluster_urls.api(self._settings.root, "queue", "v1", path)
        answer = await self._send(url, _MAX_ANSWER, self._signature(url))
        if answer.status == 404:
            return None
        if answer.status == 403:
            scope = f"queue:get-artifact:{name}"
            raise ScopesRefusal(
                f"the service's Taskcluster client lacks {scope}: grant that to the client", 403, [scope]
            )
        target = self._target(answer, name, task_id)
        for _ in range(MAX_REDIRECTS + 1):
            try:
                answer = await self._send(target, limit, {})
            except AnswerTooLargeError:
                raise PermanentUpstreamError(
                    "taskcluster", f"the artifact {name} of task {task_id} has more than {limit:,} bytes", 413
                ) from None
            if not answer.is_redirect:
                break
            target = self._checked(answer.headers["location"], name)
        if answer.status in {403, 404}:  # a storage answers so once it has deleted the file
            return None
        if answer.status != 200:
            raise _unavailable(answer, f"the storage of {name} answers {answer.status}")
        return answer.body

    async def close(self) -> None:
        await self._http.close()

    async def _send(self, url: str, limit: int, headers: dict[str, str]) -> Answer:
        seconds = self._settings.timeout.total_seconds()
        return await self._http.send("GET", url, seconds=seconds, limit=limit, headers=headers)

    def _signature(self, url: str) -> dict[str, str]:
        options = options_of(self._settings)
        if not options["credentials"]:
            return {}
        credentials = {
            "id": options["credentials"]["clientId"],
            "key": options["credentials"]["accessToken"],
            "algorithm": "sha256",
        }
        ext = Client(options, session=object()).makeHawkExt() or {}  # a session of its own would have to be closed
        sender = mohawk.Sender(credentials=credentials, ext=ext, url=url, method="GET", content="", content_type="")
        return {"Authorization": sender.request_header}

    def _target(self, answer: Answer, name: str, task_id: str) -> str:
        """Return the address that the queue's answer names. Raises Unavailable and PermanentUpstreamError."""
        if answer.status == 424:
            raise PermanentUpstreamError("taskcluster", f"the artifact {name} of task {task_id} is an error", 424)
        if not answer.is_redirect:
            raise _unavailable(answer, f"Taskcluster answers {answer.status} to getArtifact of {name}")
        try:
            kind = json.loads(answer.body).get("storageType")
        except (ValueError, AttributeError, RecursionError):
            kind = None
        if kind not in _OURS:
            reason = f"the artifact {name} of task {task_id} is stored as {str(kind)[:50]!r}, which is not fetched"
            raise PermanentUpstreamError("taskcluster", reason, 424)
        return self._checked(answer.headers["location"], name)

    def _checked(self, target: str, name: str) -> str:
        if not target.startswith(("https://", "http://") if self._settings.root.startswith("http://") else "https://"):
            raise PermanentUpstreamError(
                "taskcluster", f"the address of the artifact {name} does not begin with https://", 424
            )
        return target


def _unavailable(answer: Answer, reason: str) -> Unavailable:
    return Unavailable("taskcluster", reason, wait_asked_for(answer.headers), answer.status)
