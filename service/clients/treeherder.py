"""Treeherder: its REST submission (Hawk), and for one that listens on Pulse the message that it reads."""

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import httpx
import mohawk

from service.errors import Refusal, Unavailable
from service.settings import Environment


class Treeherder(Protocol):
    async def post_resultset(self, project: str, resultset: dict[str, Any]) -> None:
        """Store a resultset; again the same one is no harm. Raises Refusal when it will never be taken."""


class RestTreeherder:
    """The REST API of one Treeherder."""

    def __init__(self, environment: Environment, client: httpx.AsyncClient) -> None:
        self._url = str(environment.url).rstrip("/")
        self._timeout = environment.timeout.total_seconds()
        self._client = client
        assert environment.client_id is not None
        assert environment.secret is not None
        self._credentials = {
            "id": environment.client_id,
            "key": environment.secret.get_secret_value(),
            "algorithm": "sha256",
        }

    async def post_resultset(self, project: str, resultset: dict[str, Any]) -> None:
        await self._post(f"{self._url}/api/project/{project}/resultset/", [resultset])

    async def _post(self, url: str, body: list[dict[str, Any]]) -> None:
        content = json.dumps(body).encode()
        # as a file: mohawk formats a text for a debug message that nobody reads, which takes longer than all else
        signed = mohawk.Sender(
            self._credentials, url, "POST", content=io.BytesIO(content), content_type="application/json"
        )
        headers = {
            "Authorization": signed.request_header,
            "Content-Type": "application/json",
            "Accept": "application/json; version=1.0",
        }
        try:
            response = await self._client.post(url, content=content, headers=headers, timeout=self._timeout)
        except httpx.HTTPError as error:
            raise Unavailable("treeherder", f"{url}: {type(error).__name__} {error}".strip()) from error
        if response.is_success:
            return
        answer = f"{url} answers {response.status_code}: {_detail(response)}"
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise Unavailable("treeherder", answer, _retry_after(response))
        if response.is_server_error or response.status_code in {401, 403, 404, 408}:
            # 403 and 404 are mended by an operator: credentials there, or the project added to Treeherder
            raise Unavailable("treeherder", answer, _retry_after(response))
        raise Refusal("treeherder", answer, response.status_code)


def _detail(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        return str(body.get("detail") or body.get("message") or body)[:500]
    return response.text[:200]


def _retry_after(response: httpx.Response) -> timedelta | None:
    """`Retry-After` in seconds; a date, or nonsense, is left to our own backoff."""
    value = response.headers.get("retry-after", "")
    return timedelta(seconds=min(int(value), 3600)) if value.isascii() and value.isdigit() else None


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
                "sent": datetime.now(UTC).isoformat(),
            },
        },
    }
