"""Poll a repository as soon as a push in it is announced on Pulse.

The announcement is only a hint: the poll forwards what the pushlog lists beyond the cursor. So nothing is lost when an
announcement is, because the regular polls go on.
"""

import json
import threading
from typing import Any

import structlog

from listeners.clock import boottime
from listeners.forward import Forwarder, RequestRejectedError, encode_json
from listeners.listing import PushlogClient
from listeners.pushlog import Poll
from listeners.retry import wait_or_stop
from listeners.settings import ListenerSettings
from listeners.shift import LeasedRepository, ShiftEnded
from service.contract.events import AnnouncedLeases, Lease

log = structlog.get_logger()

CHANGEGROUP = "changegroup.1"
"""The only message type of exchange/hgpushes/v2 that announces pushes. Messages of v1 have no type."""

MAX_URLS = 100
"""Repositories in one request; the regular polls find the pushes of a larger burst."""


def parse_announcement(_: str, method: Any, properties: Any, body: bytes) -> str:
    """Return the URL of the repository in which a message announces a push, "" if it announces none."""
    try:
        payload = json.loads(body)["payload"]
        message_type = payload.get("type", CHANGEGROUP)
        url = payload.get("data", payload).get("repo_url")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        log.info("announcement-not-understood", exchange=str(method.exchange), error=type(error).__name__)
        return ""
    return url.rstrip("/") if message_type == CHANGEGROUP and isinstance(url, str) else ""


class AnnouncedPoller:
    """Polls the repositories of a batch of announcements one after the other, whichever listener has their shifts.

    The requests are paid from a reserve of the host's budget. Repositories that the reserve does not cover in time, and
    everything that a poll finds beside pushes, are left to the regular polls. URLs that the service does not know are
    ignored.
    """

    def __init__(self, settings: ListenerSettings, forwarder: Forwarder, stop: threading.Event, tls: Any) -> None:
        self._settings, self._forwarder, self._stop = settings, forwarder, stop
        self._pushlogs = PushlogClient(settings.hg_timeout.total_seconds(), settings.max_listing, 1, tls)

    def close(self) -> None:
        """Close the connections to the pushlogs."""
        self._pushlogs.close()

    def poll_announced(self, urls: list[str], _: Any = None) -> None:
        """Poll the repositories at `urls`; "" is ignored. Raises ListenerStopped."""
        due = sorted({url for url in urls if url})[:MAX_URLS]
        give_up_at = boottime() + self._settings.announced_wait.total_seconds()
        while due:
            body = encode_json({"urls": due})
            try:
                answer = self._forwarder.post("/api/v1/polls/announced", body, AnnouncedLeases)
            except RequestRejectedError as error:
                log.error(  # noqa: TRY400 - the message has what a traceback would add
                    "announcement-rejected", error=str(error), remedy="The regular polls find the pushes."
                )
                return
            polled = {lease.url: self._poll(lease) for lease in answer.leases}
            due = [url for url in due if not polled.get(url)]
            if answer.wait is None and all(polled.values()):
                return
            wait = answer.wait or 0
            if boottime() + wait > give_up_at:
                return
            wait_or_stop(self._stop, wait)

    def _poll(self, lease: Lease) -> bool:
        """Poll once; return False if the repository's shift ended meanwhile, or one request was not enough."""
        log.info("polling-announced", repository=lease.repository)
        now, seconds = boottime(), self._settings.announced_wait.total_seconds()
        paid_requests = iter([seconds])  # the regular polls do what takes more than the one request that is paid

        def wait_for_turn() -> float:
            for seconds_left in paid_requests:
                return seconds_left
            raise ShiftEnded

        repository = LeasedRepository.from_lease(lease, now, now + seconds)
        poll = Poll(repository, self._settings, self._pushlogs, self._forwarder, self._stop, wait_for_turn)
        result = poll.run()
        return result.succeeded or result.news is not None
