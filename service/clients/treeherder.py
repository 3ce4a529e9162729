"""Client of Treeherder's REST API, signed with Hawk, and the message for a Treeherder that reads pushes from Pulse."""

import io
import json
import uuid
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import mohawk

from service.clients import hawk
from service.clients.http import AnswerTooLargeError, Http
from service.clock import now
from service.errors import PermanentUpstreamError, Unavailable, wait_asked_for
from service.settings import Environment

hawk.use_database_time()

_ACCEPT = {"Accept": "application/json; version=1.0"}

MAX_ANSWER = 8 * 1024 * 1024
"""Largest accepted answer, in bytes: answers are a list of one push, or a short message."""


class FoundPush(NamedTuple):
    """A push that a Treeherder has. Treeherders since 2017-08 may not tell its hash."""

    revision: str
    revision_hash: str | None


class Treeherder(Protocol):
    """Requests that we send to a Treeherder."""

    async def post_resultset(self, project: str, resultset: dict[str, Any]) -> None:
        """Store a resultset. The call is idempotent. Raises PermanentUpstreamError if it will never be accepted."""

    async def post_jobs(self, project: str, entries: list[dict[str, Any]]) -> None:
        """Store all of these jobs, or none. Raises PermanentUpstreamError if they will never be accepted together."""

    async def post_artifacts(self, project: str, artifacts: list[dict[str, Any]]) -> None:
        """Store artifacts of existing jobs, each with its `job_guid`. It is the only way to add them to completed jobs.

        Raises PermanentUpstreamError with status 404 if this Treeherder has no such call.
        """

    async def find_push(self, project: str, revision: str | None, revision_hash: str | None) -> FoundPush | None:
        """Return the push with that tip, or with that hash if `revision` is None; None if there is no such push."""

    async def decision_task(self, project: str, revision: str) -> str | None:
        """Return the id of a decision task of the push with that tip that succeeded; None if none is known there.

        What Treeherder says of a push, anybody can have made it say who may create tasks with the push's route.
        """


class RestTreeherder:
    """Client of one Treeherder's REST API."""

    def __init__(self, environment: Environment, http: Http) -> None:
        self._url = str(environment.url).rstrip("/")
        self._timeout = environment.timeout.total_seconds()
        self._http = http
        self._credentials: dict[str, str] | None = None  # one that reads Pulse is only asked, without credentials
        if environment.client_id is not None and environment.secret is not None:
            secret = environment.secret.get_secret_value()
            self._credentials = {"id": environment.client_id, "key": secret, "algorithm": "sha256"}

    async def post_resultset(self, project: str, resultset: dict[str, Any]) -> None:
        await self._post(self._project_url(project, "resultset"), [resultset])

    async def post_nothing(self, project: str) -> None:
        """Check the credentials with a signed, empty list of resultsets, which stores nothing.

        Treeherder's `store_push_data` (`store_result_set_data` in older releases) returns at once for an empty list.
        The request counts in the credential's limit of requests a minute.
        """
        await self._post(self._project_url(project, "resultset"), [])

    async def post_jobs(self, project: str, entries: list[dict[str, Any]]) -> None:
        await self._post(self._project_url(project, "jobs"), entries)

    async def post_artifacts(self, project: str, artifacts: list[dict[str, Any]]) -> None:
        try:
            await self._post(self._project_url(project, "artifact"), artifacts)
        except (Unavailable, PermanentUpstreamError) as error:
            if error.status in {404, 405}:  # not for an unknown project: it accepted the jobs
                raise PermanentUpstreamError("treeherder", str(error), 404) from None
            raise

    async def find_push(self, project: str, revision: str | None, revision_hash: str | None) -> FoundPush | None:
        query = {"revision": revision} if revision else {"revision_hash": revision_hash or ""}
        try:
            pushes = await self._list_pushes(self._project_url(project, "resultset"), query)
        except Unavailable as error:
            if error.status != 404 or not revision:
                raise
            try:  # a Treeherder that accepts no resultsets any more, or that has no such project
                pushes = await self._list_pushes(self._project_url(project, "push"), query)
            except Unavailable as push_error:
                if push_error.status != 404:
                    raise
                raise Unavailable("treeherder", f"{error}; {push_error}", status=404) from None
        if not revision:  # a Treeherder that does not know `revision_hash` lists its newest pushes
            pushes = [push for push in pushes if push.revision_hash == revision_hash]
        # other pushes can have the revision among their changesets
        same_tip = [push for push in pushes if push.revision == revision]
        return next(iter(same_tip or pushes), None)

    async def decision_task(self, project: str, revision: str) -> str | None:
        url = self._project_url(project, "push")
        try:
            answer = await self._get(url, {"revision": revision})
            pushes = answer.get("results") if isinstance(answer, dict) else None
            push = next(push for push in pushes or () if isinstance(push, dict) and push.get("revision") == revision)
            decisions = await self._get(f"{url}decisiontask/", {"push_ids": str(int(push["id"]))})
            task_id = decisions[str(push["id"])]["id"]
        except Unavailable as error:
            if error.status != 404:  # it has no such project or no decision task; or it is of a time without this call
                raise
            return None
        except (StopIteration, LookupError, TypeError, ValueError):
            return None
        return task_id if isinstance(task_id, str) else None

    async def _get(self, url: str, query: dict[str, str]) -> Any:
        """Return the JSON of an answer, None if it is none."""
        body = await self._send("GET", url, params=query, headers=_ACCEPT)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return None

    async def _list_pushes(self, url: str, query: dict[str, str]) -> list[FoundPush]:
        body = await self._send("GET", url, params=query, headers=_ACCEPT)
        try:
            pushes = json.loads(body)["results"]
            if not isinstance(pushes, list):
                raise TypeError(pushes)
            return [_parse_push(push, query.get("revision")) for push in pushes]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Unavailable("treeherder", f"{url} does not answer a list of pushes: {_text(body)[:80]!r}") from None

    def _project_url(self, project: str, kind: str) -> str:
        return f"{self._url}/api/project/{quote(project, safe='')}/{kind}/"

    async def _post(self, url: str, body: list[dict[str, Any]]) -> None:
        assert self._credentials is not None, "the settings refuse rest without credentials"
        content = json.dumps(body).encode()
        # as a file: mohawk formats a text for a debug message, which takes longer than everything else
        signed = mohawk.Sender(
            self._credentials, url, "POST", content=io.BytesIO(content), content_type="application/json"
        )
        headers = {"Authorization": signed.request_header, "Content-Type": "application/json", **_ACCEPT}
        await self._send("POST", url, data=content, headers=headers)

    async def _send(self, method: str, url: str, **more: Any) -> bytes:
        try:
            answer = await self._http.send(method, url, seconds=self._timeout, limit=MAX_ANSWER, **more)
        except AnswerTooLargeError:
            raise Unavailable("treeherder", f"{url} answers more than {MAX_ANSWER:,} bytes") from None
        status = answer.status
        if 200 <= status < 300:
            return answer.body
        reason = f"{url} answers {status}: {hawk.explain_refusal(_detail(answer.body))}"
        if answer.is_redirect:
            reason += f" (a redirect to {answer.headers['location']}, and redirects are not followed)"
        if status >= 500 or answer.is_redirect or status in {401, 403, 404, 408, 429}:
            # an operator can fix these: the credentials, the project in Treeherder, or the URL in the settings
            raise Unavailable("treeherder", reason, wait_asked_for(answer.headers), status)
        raise PermanentUpstreamError("treeherder", reason, status)


def _parse_push(push: dict[str, Any], wanted_revision: str | None) -> FoundPush:
    """Return a push of a list.

    Treeherders until 2016 give only the first digits of the tip; `wanted_revision` then stands for it.
    """
    tip, revision_hash = push.get("revision"), push.get("revision_hash")
    if wanted_revision and (not tip or wanted_revision.startswith(str(tip))):
        tip = wanted_revision
    return FoundPush(str(tip or revision_hash), str(revision_hash) if revision_hash else None)


def _detail(body: bytes | bytearray) -> str:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict):
        return str(parsed.get("detail") or parsed.get("message") or parsed)[:500]
    return _text(body)[:200]


def _text(body: bytes | bytearray) -> str:
    return body.decode(errors="replace")


def hgpushes_message(url: str, path: str, push_id: int, user: str, date: datetime, head: str) -> dict[str, Any]:
    """Return a message in the form of `exchange/hgpushes/v1`, which makes Treeherder fetch the push itself."""
    pushes = f"{url}/json-pushes?version=2"
    window = f"startID={push_id - 1}&endID={push_id}"
    return {
        "payload": {
            "pushlog_pushes": [
                {
                    "pushid": push_id,
                    "time": int(date.timestamp()),
                    "user": user,
                    "push_json_url": f"{pushes}&{window}",
                    "push_full_json_url": f"{pushes}&full=1&{window}",
                }
            ],
            "heads": [head],
            "repo_url": url,
            "_meta": {
                "exchange": "exchange/hgpushes/v1",
                "routing_key": path,
                "serializer": "json",
                "sent": now().isoformat(),
            },
        },
    }


_DECISION_PLATFORM = {"platform": "taskcluster-decision", "os_name": "-", "architecture": "-"}

DECISION_PLACE: dict[str, Any] = {
    "job_symbol": "D",
    "group_name": "unknown",
    "group_symbol": "?",
    "product_name": "unknown",
    "build_platform": _DECISION_PLATFORM,
    "machine_platform": _DECISION_PLATFORM,
    "option_collection": {"opt": True},
    "tier": 1,
}
"""The place of jobs about a whole push: beside its decision task."""


def failed_job(digest: bytes, name: str, who: str, place: dict[str, Any]) -> dict[str, Any]:
    """Return a failed, completed job whose id is made from `digest`; `place` says where Treeherder shows it."""
    return {
        "job_guid": f"{uuid.UUID(bytes=digest[:16], version=4)}/0",
        "name": name,
        **place,
        "who": who[:50] or "unknown",
        "machine": "unknown",
        "build_system_type": "taskcluster",
        "state": "completed",
        "result": "exception",
    }
