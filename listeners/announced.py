"""Announced pushes: a repository in which something was pushed is polled at once.

The announcement is a hint only. What is forwarded is what the pushlog lists beyond the cursor, by the poll's own code;
so nothing is lost when an announcement is, and the poll goes on as the safety net.
"""

import json
import threading
from typing import Any

import structlog

from events import LeaseRequest, Leases, PollResult
from listeners.forward import Forwarder, Rejected, encode
from listeners.listing import Pushlogs
from listeners.pushlog import Poll
from listeners.settings import ListenerSettings

log = structlog.get_logger()

CHANGEGROUP = "changegroup.1"
"""The one type of exchange/hgpushes/v2 that announces pushes; v1 has nothing else, and no type."""

MOST = 100
"""Repositories in one request; a burst of more is left to the poll."""


def announced_url(_: str, method: Any, properties: Any, body: bytes) -> str:
    """The repository's url that a message announces a push of; empty when it announces none."""
    try:
        payload = json.loads(body)["payload"]
        kind = payload.get("type", CHANGEGROUP)
        url = payload.get("data", payload).get("repo_url")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        log.info("announcement-not-understood", exchange=str(method.exchange), error=type(error).__name__)
        return ""
    return url.rstrip("/") if kind == CHANGEGROUP and isinstance(url, str) else ""


class Announced:
    """Leases the repositories of a batch of announcements, one after the other, and polls them.

    Those that another listener holds, or whose host's budget is used up, are due at once all the same, and whoever
    leases next gets them. Urls that the service does not know do nothing. Raises Stopped.
    """

    def __init__(self, settings: ListenerSettings, forwarder: Forwarder, stop: threading.Event, tls: Any) -> None:
        self._settings, self._forwarder, self._stop = settings, forwarder, stop
        self._pushlogs = Pushlogs(settings.hg_timeout.total_seconds(), settings.max_listing, 1, tls)

    def close(self) -> None:
        self._pushlogs.close()

    def __call__(self, urls: list[str], _: Any = None) -> None:
        due = sorted({url for url in urls if url})[:MOST]
        results: list[PollResult] = []
        while due or results:
            request = LeaseRequest(
                results=[result.model_dump(mode="json") for result in results], max=min(len(due), 1), wait=0, urls=due
            )
            try:
                leases = self._forwarder.post("/api/v1/polls/lease", encode(request.model_dump()), Leases).leases
            except Rejected as error:
                log.error("lease-rejected", error=str(error), remedy="the poll goes on without announcements")  # noqa: TRY400 - the message says it all
                break
            results = [result for lease in leases if (result := self._poll(lease)) is not None]
            polled = {lease.url for lease in leases}
            due = [url for url in due if url not in polled] if leases else []

    def _poll(self, lease: Any) -> PollResult | None:
        log.info("polling-announced", repository=lease.repository)
        return Poll(lease, self._settings, self._pushlogs, self._forwarder, self._stop).run()
