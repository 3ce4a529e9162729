"""Announced pushes: a repository in which something was pushed is polled at once.

The announcement is a hint only. What is forwarded is what the pushlog lists beyond the cursor, by the poll's own code;
so nothing is lost when an announcement is, and the poll goes on as the safety net.
"""

import json
import threading
from typing import Any

import structlog

from listeners.clock import steady
from listeners.forward import Forwarder, Rejected, encode
from listeners.listing import Pushlogs
from listeners.pushlog import Poll
from listeners.retry import wait_or_stop
from listeners.settings import ListenerSettings
from listeners.shift import Held, ShiftEnded
from service.contract.events import AnnouncedLeases, Lease

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
    """Polls the repositories of a batch of announcements, one after the other, beside the shifts of whoever has them.

    The requests come from a reserve of the host's budget. What that does not reach for in time, and whatever a poll
    finds beside pushes, is left to the shifts. Urls that the service does not know do nothing. Raises ListenerStopped.
    """

    def __init__(self, settings: ListenerSettings, forwarder: Forwarder, stop: threading.Event, tls: Any) -> None:
        self._settings, self._forwarder, self._stop = settings, forwarder, stop
        self._pushlogs = Pushlogs(settings.hg_timeout.total_seconds(), settings.max_listing, 1, tls)

    def close(self) -> None:
        self._pushlogs.close()

    def __call__(self, urls: list[str], _: Any = None) -> None:
        due = sorted({url for url in urls if url})[:MOST]
        patience = steady() + self._settings.announced_wait.total_seconds()
        while due:
            try:
                answer = self._forwarder.post("/api/v1/polls/announced", encode({"urls": due}), AnnouncedLeases)
            except Rejected as error:
                log.error("announcement-rejected", error=str(error), remedy="the poll goes on without announcements")  # noqa: TRY400 - the message says it all
                return
            polled = {lease.url: self._poll(lease) for lease in answer.leases}
            due = [url for url in due if not polled.get(url)]
            if answer.wait is None and all(polled.values()):
                return
            wait = answer.wait or 0
            if steady() + wait > patience:
                return
            wait_or_stop(self._stop, wait)

    def _poll(self, lease: Lease) -> bool:
        """Poll once; return False if the repository's shift ended meanwhile, or one request was not enough."""
        log.info("polling-announced", repository=lease.repository)
        now, seconds = steady(), self._settings.announced_wait.total_seconds()
        requests = iter([seconds])  # one is paid; where more are needed, the repository's shift goes on

        def pace() -> float:
            for left in requests:
                return left
            raise ShiftEnded

        held = Held.of(lease, now, now + seconds)
        result = Poll(held, self._settings, self._pushlogs, self._forwarder, self._stop, pace).run()
        return result.good or result.news is not None
