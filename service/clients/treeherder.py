"""Treeherder: its REST submission (Hawk), and for one that listens on Pulse the message that it reads."""

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
"""Bytes of one answer: a list of one push, or a few words."""


class FoundPush(NamedTuple):
    """A push that a Treeherder has; those since 2017-08 may tell no hash."""

    revision: str
    revision_hash: str | None


class Treeherder(Protocol):
    async def post_resultset(self, project: str, resultset: dict[str, Any]) -> None:
        """Store a resultset; again the same one is no harm. Raises Refusal when it will never be taken."""

    async def post_jobs(self, project: str, entries: list[dict[str, Any]]) -> None:
        """Store jobs, all or none of them. Raises Refusal when they will never be taken together."""

    async def post_artifacts(self, project: str, artifacts: list[dict[str, Any]]) -> None:
        """Store artifacts of jobs that are there, each with its `job_guid`; a completed job takes them only so.

        Raises Refusal with status 404 where this Treeherder has no such call.
        """

    async def find_push(self, project: str, revision: str | None, revision_hash: str | None) -> FoundPush | None:
        """Return the push with that tip, or without one with that hash; None when it is not there."""


class RestTreeherder:
    """The REST API of one Treeherder."""

    def __init__(self, environment: Environment, http: Http) -> None:
        self._url = str(environment.url).rstrip("/")
        self._timeout = environment.timeout.total_seconds()
        self._http = http
        assert environment.client_id is not None
        assert environment.secret is not None
        self._credentials = {
            "id": environment.client_id,
            "key": environment.secret.get_secret_value(),
            "algorithm": "sha256",
        }

    async def post_resultset(self, project: str, resultset: dict[str, Any]) -> None:
        await self._post(self._of(project, "resultset"), [resultset])

    async def post_nothing(self, project: str) -> None:
        """Prove the credentials: a signed list of no resultsets, of which nothing is stored.

        Treeherder's own `store_push_data` (in older releases `store_result_set_data`) goes home on an empty list; all
        that is left of it is one request in the credential's limit of a minute.
        """
        await self._post(self._of(project, "resultset"), [])

    async def post_jobs(self, project: str, entries: list[dict[str, Any]]) -> None:
        await self._post(self._of(project, "jobs"), entries)

    async def post_artifacts(self, project: str, artifacts: list[dict[str, Any]]) -> None:
        try:
            await self._post(self._of(project, "artifact"), artifacts)
        except (Unavailable, PermanentUpstreamError) as error:
            if error.status in {404, 405}:  # the project is known: its jobs were taken
                raise PermanentUpstreamError("treeherder", str(error), 404) from None
            raise

    async def find_push(self, project: str, revision: str | None, revision_hash: str | None) -> FoundPush | None:
        asked = {"revision": revision} if revision else {"revision_hash": revision_hash or ""}
        try:
            pushes = await self._pushes(self._of(project, "resultset"), asked)
        except Unavailable as error:
            if error.status != 404 or not revision:
                raise
            try:  # a Treeherder that takes no resultsets any more; or it has no such project
                pushes = await self._pushes(self._of(project, "push"), asked)
            except Unavailable as also:
                if also.status != 404:
                    raise
                raise Unavailable("treeherder", f"{error}; {also}", status=404) from None
        if not revision:  # those that do not know the parameter list their newest pushes
            pushes = [push for push in pushes if push.revision_hash == revision_hash]
        same = [push for push in pushes if push.revision == revision]  # others have it among their changesets
        return next(iter(same or pushes), None)

    async def _pushes(self, url: str, asked: dict[str, str]) -> list[FoundPush]:
        body = await self._send("GET", url, params=asked, headers=_ACCEPT)
        try:
            pushes = json.loads(body)["results"]
            if not isinstance(pushes, list):
                raise TypeError(pushes)
            return [_found(push, asked.get("revision")) for push in pushes]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Unavailable("treeherder", f"{url} answers no list of pushes: {_text(body)[:80]!r}") from None

    def _of(self, project: str, kind: str) -> str:
        return f"{self._url}/api/project/{quote(project, safe='')}/{kind}/"

    async def _post(self, url: str, body: list[dict[str, Any]]) -> None:
        content = json.dumps(body).encode()
        # as a file: mohawk formats a text for a debug message that nobody reads, which takes longer than all else
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
        why = f"{url} answers {status}: {_detail(answer.body)}"
        if answer.is_redirect:
            why += f" (a redirect to {answer.headers['location']}, and redirects are not followed)"
        if status >= 500 or answer.is_redirect or status in {401, 403, 404, 408, 429}:
            # mended by an operator: credentials there, the project added to Treeherder, the url in the settings
            raise Unavailable("treeherder", why, wait_asked_for(answer.headers), status)
        raise PermanentUpstreamError("treeherder", why, status)


def _found(push: dict[str, Any], asked: str | None) -> FoundPush:
    """Return a push of a list; the tip is the one asked for where only its first digits are told, as until 2016."""
    tip, revision_hash = push.get("revision"), push.get("revision_hash")
    if asked and (not tip or asked.startswith(str(tip))):
        tip = asked
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
    """A message in the form of `exchange/hgpushes/v1`, from which Treeherder fetches the push itself."""
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


def failed_job(digest: bytes, name: str, who: str, place: dict[str, Any]) -> dict[str, Any]:
    """Return a completed job of the id that the digest makes; `place` is what says where it stands in Treeherder."""
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
