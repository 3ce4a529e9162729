"""The pushlog listener: polls the repositories that the service leased it for a shift, and forwards what is new.

    renewal ──▶ leases ──▶ json-pushes, from the cursor ──▶ events/pushes
       ▲                        │
       └── what was polled, and news ◀┘

It keeps no state that matters: cursors, ETags and suspicions are the service's, and whatever is cut off in the middle
is leased anew when the shift has ended.
"""

import threading
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import structlog

from listeners.clock import steady
from listeners.forward import Forwarder, ForwardError, Rejected, TooLarge, encode
from listeners.listing import (
    LAST_ID,
    Listing,
    ListingError,
    ListingTooLargeError,
    Pushlogs,
    Unchanged,
    reliable_etag,
    tip_and_nodes,
    tip_of,
    trim,
)
from listeners.process import Configure, run
from listeners.retry import ListenerStopped, wait_or_stop
from listeners.settings import ListenerSettings
from listeners.shift import Held, Result, ShiftEnded, Shifts
from service.contract.events import MAX_BYTES, MAX_EVENTS, PollNews, Shift, Verdict, Verdicts

log = structlog.get_logger()

MAX_GAP = 100_000
"""Push ids that are looked through at a time for the end of a gap."""

_ENVELOPE = 1_024
"""Bytes that are more than enough for what stands around a push in a request."""


class PollError(Exception):
    """A poll came to no good end; the message says why in plain words."""


class Poll:
    """One poll of a repository: `run()` forwards what its pushlog has beyond the cursor.

    `cursor` is the service's as of the last verdicts, `position` how far the pushlog was listed. They differ where ids
    are missing, or where a push could not be understood: that one is sent as it is and becomes a dead letter, and the
    cursor passes it with the next good push.

    `pace` waits before each request until it may be sent, and returns the seconds that are left for that.
    """

    def __init__(
        self, held: Held, settings: ListenerSettings, pushlogs: Pushlogs, forwarder: Forwarder, stop: threading.Event,
        pace: Callable[[], float],
    ) -> None:  # fmt: skip
        self._held, self._lease = held, held.lease
        self._pushlogs, self._forwarder, self._stop, self._pace = pushlogs, forwarder, stop, pace
        self._chunk_bytes = settings.chunk_bytes
        self._window = settings.poll_window
        self._since = self._cursor = self._position = held.cursor
        self._tip = held.last_changeset  # of the push at the cursor
        self._tips: dict[int, str | None] = {}
        self._oversized: dict[int, str] = {}
        self._result = Result(began=steady())
        self._lastpushid: int | None = None
        self._at_cursor: str | None = None
        self._moved = self._suspicious = False
        self._etag: str | None = None
        self._asked_with: str | None = None

    def run(self) -> Result:
        """Poll, and keep in `held` where the poll stands. Nothing is told of a shift that has ended."""
        try:
            self._poll()
        except (ListenerStopped, ShiftEnded):
            log.debug("poll-broken-off", repository=self._lease.repository)
        except Unchanged:
            self._result.good = True
        except (ListingError, ForwardError, PollError) as error:
            log.info("poll-failed", repository=self._lease.repository, error=str(error))
            # what a stranger's server said: visible in ASCII
            text = str(error).encode("ascii", "backslashreplace").decode()[:2_000]
            self._result.news = self._news("failed", error=text)
        else:
            self._listed()
        return self._result

    def _news(self, outcome: Any, **more: Any) -> PollNews:
        return PollNews(repository_id=self._lease.id, shift=self._lease.shift, outcome=outcome, **more)

    def _listed(self) -> None:
        """Say what the service does not know: that this may be another repository, or an ETag that stands for all."""
        found = {
            "since": self._since,
            "cursor": self._cursor,
            "lastpushid": self._lastpushid,
            "at_cursor": self._at_cursor,
            "moved": self._moved,
        }
        if self._suspicious:
            self._result.news = self._news("suspicious", **found)
            return
        held = self._held
        new_tip = self._at_cursor is not None and held.last_changeset is None and self._cursor == self._since
        new_etag = self._etag is not None and (self._etag != self._asked_with or self._cursor != self._since)
        if new_etag or new_tip:
            self._result.news = self._news("listed", etag=self._etag, **found)
        held.cursor, held.etag, held.suspected = self._cursor, self._etag, False
        held.full_at = self._result.began + held.full_every
        held.last_changeset = self._at_cursor if new_tip else self._tip
        self._result.good = True

    def _poll(self) -> None:
        held = self._held
        etag = self._asked_with = held.etag if steady() < held.full_at else None
        # from the cursor minus one, to see whether the push at the cursor is still the one that is known
        listing, end = self._ask(max(self._cursor - 1, 0), self._cursor + self._window, etag)
        first = listing
        self._compare(listing)
        while not self._looks_reset(listing):
            new = listing.between(self._position, end)
            self._forward(new, listing.lastpushid)
            self._position = max(end, self._cursor)
            if listing.lastpushid <= self._position:
                # the first answer's: all that it stands for was forwarded
                self._etag = reliable_etag(first.etag, first.date)
                return
            if not new:
                self._skip_gap(listing.lastpushid)
            wait_or_stop(self._stop, 0)
            listing, end = self._ask(self._position, self._position + self._window)

    def _compare(self, listing: Listing) -> None:
        entry = listing.pushes.get(self._since)
        if entry is None:
            return
        self._at_cursor, nodes = tip_and_nodes(self._since, entry)
        known = self._held.last_changeset
        self._moved = known is not None and self._at_cursor is not None and known not in nodes

    def _looks_reset(self, listing: Listing) -> bool:
        """Return True if this may be another repository than the one that the cursor belongs to.

        The service judges; until then nothing is forwarded, and no ETag is given, for the next poll must look again.
        """
        self._lastpushid = listing.lastpushid
        self._suspicious = self._moved or listing.lastpushid < self._cursor
        return self._suspicious

    # Asking

    def _ask(self, start: int, end: int, etag: str | None = None) -> tuple[Listing, int]:
        """The pushes after `start` up to `end`, or up to less where that is too large: the listing, and its end."""
        while True:
            try:
                return self._request(start, end, etag), end
            except ListingTooLargeError as error:
                if end - start > 1:
                    self._window = (end - start) // 2
                    end = start + self._window
                    log.info("listing-too-large", repository=self._lease.repository, start=start, next_end=end)
                    continue
                self._oversized[end] = str(error)
                return self._request(start, end, full=False), end

    def _request(self, start: int, end: int, etag: str | None = None, *, full: bool = True) -> Listing:
        left = self._pace()
        began = steady()
        if not self._result.requests:
            self._result.began = began
        self._result.requests += 1
        try:
            return self._pushlogs.list(
                self._lease.url, start, min(end, LAST_ID),
                etag=etag, full=full, anew=self._held.suspected, send_within=left,
            )  # fmt: skip
        finally:
            self._result.slowest = max(self._result.slowest, steady() - began)

    def _skip_gap(self, last: int) -> None:
        """Move the position to just before the next push, up to `last`, in a few small answers: tips only.

        A repository can begin at push 136,000, and `hg strip` takes pushes out: windows of nothing would use up the
        lease, and the next one would begin at the same cursor.
        """
        span = self._window
        while self._position < last:
            span = min(span * 2, MAX_GAP)
            end = min(self._position + span, last)
            found = self._request(self._position, end, full=False).between(self._position, end)
            if found:
                self._position = found[0][0] - 1
                return
            self._position = end

    # Forwarding

    def _forward(self, pushes: list[tuple[int, Any]], lastpushid: int) -> None:
        """Send pushes, in order, in chunks."""
        chunk: list[tuple[int, bytes]] = []
        size = 0
        for push_id, entry in pushes:
            part = self._part(push_id, entry)
            if chunk and (size + len(part) > self._chunk_bytes or len(chunk) == MAX_EVENTS):
                self._send(chunk, lastpushid)
                chunk, size = [], 0
            chunk.append((push_id, part))
            size += len(part)
        if chunk:
            self._send(chunk, lastpushid)

    def _part(self, push_id: int, entry: Any) -> bytes:
        """What an event says of its push: the members of a JSON object, without its braces."""
        if why := self._oversized.get(push_id):
            return self._too_large(push_id, why)
        self._tips[push_id] = tip_of(entry)
        part = b'"push":' + encode(trim(push_id, entry))
        if len(part) > MAX_BYTES - _ENVELOPE:
            return self._too_large(push_id, f"it has {len(part):,} bytes, a request may have {MAX_BYTES:,}")
        return part

    def _too_large(self, push_id: int, why: str) -> bytes:
        log.warning("push-too-large", repository=self._lease.repository, push=push_id, why=why)
        self._tips[push_id] = None
        reason = f"push {push_id} is too large to send: {why}. Look at {self._lease.url}/json-pushes"
        return encode({"oversized": True, "push_id": push_id, "reason": reason})[1:-1]

    def _head(self, lastpushid: int) -> bytes:
        """What every event says; `since` is the cursor, and from there on everything was listed."""
        head = {
            "repository": self._lease.repository,
            "repository_id": self._lease.id,
            "shift": self._lease.shift,
            "generation": self._lease.generation,
            "since": self._cursor,
            "lastpushid": lastpushid,
        }
        return encode(head)[1:-1] + b","

    def _send(self, chunk: list[tuple[int, bytes]], lastpushid: int) -> None:
        head = self._head(lastpushid)
        body = b'{"events":[' + b",".join(b"{" + head + part + b"}" for _, part in chunk) + b"]}"
        try:
            answer = self._forwarder.post("/api/v1/events/pushes", body, Verdicts, until=self._held.until)
        except TooLarge as error:
            push_id, part = chunk[0]
            half = len(chunk) // 2
            if half:
                self._send(chunk[:half], lastpushid)
                self._send(chunk[half:], lastpushid)
            elif part.startswith(b'"push"'):
                self._send([(push_id, self._too_large(push_id, str(error)))], lastpushid)
            else:
                raise
            return
        self._judge([push_id for push_id, _ in chunk], answer.verdicts)

    def _judge(self, push_ids: list[int], verdicts: list[Verdict]) -> None:
        lease = self._lease
        if len(verdicts) != len(push_ids):
            raise PollError(f"the service gave {len(verdicts)} verdicts for {len(push_ids)} pushes: run equal versions")
        for push_id, verdict in zip(push_ids, verdicts, strict=True):
            if verdict.shift not in {None, lease.shift}:
                log.info("shift-ended", repository=lease.repository, push=push_id, reason=verdict.reason)
                raise ShiftEnded
            if verdict.verdict == "rejected" and verdict.repository is not None:
                raise PollError(f"the service rejected push {push_id}: {verdict.reason}")
            if verdict.verdict == "rejected":
                log.warning("push-not-understood", repository=lease.repository, push=push_id, reason=verdict.reason)
            elif verdict.cursor is not None and verdict.cursor > self._cursor:
                self._cursor, self._tip = verdict.cursor, self._tips.get(verdict.cursor)
        log.info("pushes-forwarded", repository=lease.repository, pushes=len(push_ids), last=push_ids[-1])


class PushlogListener:
    """Polls and renews its shift until `stop()`. Polls have threads of their own, so that none delays another."""

    def __init__(self, settings: ListenerSettings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._over = threading.Event()
        self._failure: Exception | None = None
        workers = settings.poll_workers
        tls = httpx.create_ssl_context()  # one for both clients: it takes megabytes
        self._forwarder = Forwarder(settings, self._stop, connections=workers + 1, tls=tls)
        self._pushlogs = Pushlogs(settings.hg_timeout.total_seconds(), settings.max_listing, workers, tls)
        self._shifts = Shifts(str(uuid.uuid4()), self._stop)
        self._threads = 0

    def stop(self) -> None:
        """Let `run` end: nothing more is polled, and polls under way may finish within `drain`. From any thread."""
        self._stop.set()

    def run(self) -> None:
        """Listen until `stop()`. Polls that outlast `drain` are abandoned: nothing is lost, they are leased again."""
        log.info("listening", service=self._settings.service, workers=self._settings.poll_workers)
        # daemons: a pushlog that says nothing for half a minute must not hold up the end of the process
        threading.Thread(target=self._renew_until_stopped, name="shift", daemon=True).start()
        self._start_thread()
        self._stop.wait()
        self._shifts.stop()
        if self._over.wait(self._settings.drain.total_seconds()):
            self._forwarder.close()
            self._pushlogs.close()
        else:
            log.warning("polls-abandoned", repositories=self._shifts.polling)
        if self._failure is not None:
            raise self._failure
        log.info("stopped")

    def _renew_until_stopped(self) -> None:
        try:
            while not self._stop.wait(self._renew()):
                pass
            self._shifts.wait_until_idle()
            self._renew(ends=True)
        except ListenerStopped:
            log.info("shift-not-given-back", reason="the service is away; the shift ends by itself")
        except Exception as error:  # noqa: BLE001 - run() raises it, on the thread that somebody looks at
            self._failure = error
        finally:
            self._over.set()
            self._stop.set()

    def _renew(self, *, ends: bool = False) -> float:
        """Renew the shift; return in how many seconds it is to be renewed again."""

        def report() -> bytes:
            return self._shifts.report(ends=ends).model_dump_json().encode("ascii")

        try:
            answer = self._forwarder.post("/api/v1/polls/lease", report, Shift)
        except Rejected as error:
            pause = self._settings.refused_retry.total_seconds()
            log.error("shift-rejected", error=str(error), again_in=pause)  # noqa: TRY400 - the message says it all
            return pause
        for problem in answer.problems:
            log.error("news-not-understood", problem=problem, remedy="run equal versions of service and listener")
        return 0 if self._shifts.take(answer) else answer.renew

    def _start_thread(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, name=f"poll-{self._threads}", daemon=True).start()

    def _work(self) -> None:
        while (job := self._shifts.next()) is not None:
            held, last = job
            if last and self._threads < self._settings.poll_workers:
                self._start_thread()
            self._shifts.ended(held, self._poll(held))

    def _poll(self, held: Held) -> Result:
        poll = Poll(held, self._settings, self._pushlogs, self._forwarder, self._stop, lambda: self._shifts.pace(held))
        try:
            return poll.run()
        except Exception as error:  # a poll that breaks must neither end its thread nor stay unknown
            log.exception("poll-broke", repository=held.lease.repository)
            error_text = f"a bug in the listener, whose log has more: {type(error).__name__}"
            lease = held.lease
            news = PollNews(repository_id=lease.id, shift=lease.shift, outcome="failed", error=error_text)
            return Result(news=news, requests=1)


def main(configure_log: Configure | None = None) -> int:
    """Run the listener until SIGTERM or SIGINT; see `process.run`."""
    return run(PushlogListener, configure_log)
