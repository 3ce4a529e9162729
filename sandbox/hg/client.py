"""Control a running stand-in over HTTP, for tests and the demo."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import httpx

from sandbox.hg.faults import Fault
from sandbox.hg.pushlog import NewChangeset


class Client:
    """A client whose methods have the names and meanings of `Pushlog`, `Faults` and `Requests`.

    They raise RuntimeError if the stand-in refuses, and ValueError if something else answers. `transport` can be an
    `httpx.ASGITransport`, for an app in the same process.
    """

    def __init__(self, url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._http = httpx.AsyncClient(base_url=url.rstrip("/") + "/__control__", transport=transport, timeout=60)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def create(self, repository: str, *, last_push_id: int = 0) -> None:
        await self._call("POST", "/repositories", repository=repository, last_push_id=last_push_id)

    async def repositories(self) -> list[dict[str, Any]]:
        """Return `[{"repository", "last_push_id"}]`."""
        repositories: list[dict[str, Any]] = await self._call("GET", "/repositories")
        return repositories

    async def push(
        self,
        repository: str,
        changesets: Sequence[NewChangeset] = (NewChangeset(),),
        *,
        user: str = "dev@example.com",
        date: int | None = None,
    ) -> dict[str, Any]:
        """Push changesets; return `{"id", "user", "date", "changesets": [node, ...]}`."""
        new = [{**asdict(changeset), "files": _files(changeset)} for changeset in changesets]
        push: dict[str, Any] = await self._call(
            "POST", "/push", repository=repository, changesets=new, user=user, date=date
        )
        return push

    async def obsolete(self, repository: str, push_id: int) -> None:
        await self._call("POST", "/obsolete", repository=repository, push_id=push_id)

    async def strip(self, repository: str, push_id: int) -> None:
        await self._call("POST", "/strip", repository=repository, push_id=push_id)

    async def reset(self, repository: str, *, away: float = 0.0) -> None:
        await self._call("POST", "/reset", repository=repository, away=away)

    async def fault(self, fault: Fault) -> None:
        await self._call("POST", "/faults", **asdict(fault))

    async def clear_faults(self) -> None:
        await self._call("DELETE", "/faults")

    async def requests(self) -> dict[str, Any]:
        """Return the counts of `Requests.report`."""
        counts: dict[str, Any] = await self._call("GET", "/requests")
        return counts

    async def clear_requests(self) -> None:
        await self._call("DELETE", "/requests")

    async def _call(self, method: str, path: str, **arguments: Any) -> Any:
        # json.dumps escapes lone surrogates, which httpx's own encoder refuses
        answer = await self._http.request(method, path, content=json.dumps(arguments) if arguments else None)
        body = answer.json()
        if answer.status_code != 200:
            raise RuntimeError(body.get("error") or f"{method} {answer.url} was answered {answer.status_code}")
        return body


def _files(changeset: NewChangeset) -> dict[str, str | None]:
    return {
        path: content.decode("utf-8", "surrogateescape") if isinstance(content, bytes) else content
        for path, content in changeset.files.items()
    }
