"""The pushlog listener: poll the repositories that the service has leased to it for a shift, and forward new pushes.

    renewal ──▶ leases ──▶ json-pushes, from the cursor ──▶ events/pushes
       ▲                        │
       └── polled, and news ◀───┘

It keeps no state that matters: cursors, ETags and suspicions are stored by the service, and a poll that is interrupted
is leased again when the shift has ended.
"""

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import structlog

from listeners import metrics
from listeners.clock import boottime
from listeners.forward import Forwarder, ForwardError, RequestRejectedError, RequestTooLargeError, encode_json
from listeners.listing import (
    MAX_PUSH_ID,
    Listing,
    ListingError,
    ListingTooLargeError,
    PushlogClient,
    PushlogUnchanged,
    reliable_etag,
    tip_and_nodes,
    tip_of,
)
from listeners.probe import open_probe
from listeners.process import ConfigureLog, run_listener
from listeners.retry import ListenerStopped, wait_or_stop
from listeners.settings import ListenerSettings
from listeners.shift import LeasedRepository, PollResult, ShiftEnded, ShiftScheduler
from service.contract import tracing
from service.contract.events import MAX_BYTES, MAX_EVENTS, PollNews, Shift, Verdict, Verdicts
from service.contract.pushlog import trim_entry

log = structlog.get_logger()

MAX_GAP = 100_000
"""Push ids in one request that looks for the end of a gap."""

EVENTS = "/api/v1/events/pushes"
"""The path that pushes are posted to."""

_ENVELOPE_BYTES = 1_024
"""Upper bound of what a request has beside a single push."""


class PollError(Exception):
    """A poll failed; the message says why, for people."""


class Poll:
    """A single poll of a repository: `run()` forwards the pushes that its pushlog lists beyond the cursor.

    `cursor` is the service's, as of the last verdicts, and `position` is how far the pushlog was listed. They differ
    where ids are missing, and after a push that the service does not understand: it is sent unchanged and becomes a
    dead letter, and the cursor passes it with the next good push.

    `wait_for_turn` waits until a request may be sent, and returns the seconds that are left to send it.
    """

    def __init__(
        self, repository: LeasedRepository, settings: ListenerSettings, pushlogs: PushlogClient, forwarder: Forwarder,
        stop: threading.Event, wait_for_turn: Callable[[], float],
    ) -> None:  # fmt: skip
        self._repository, self._lease = repository, repository.lease
        self._pushlogs, self._forwarder, self._stop, self._wait_for_turn = pushlogs, forwarder, stop, wait_for_turn
        self._chunk_bytes = settings.chunk_bytes
        self._window = settings.poll_window
        self._since = self._cursor = self._position = repository.cursor
        self._tip_at_cursor = repository.last_changeset
        self._tips: dict[int, str | None] = {}
        self._oversized: dict[int, str] = {}  # push id: reason
        self._result = PollResult(began_at=boottime())
        self._lastpushid: int | None = None
        self._tip_at_since: str | None = None
        self._moved = self._suspicious = False
        self._etag: str | None = None
        self._sent_etag: str | None = None

    def run(self) -> PollResult:
        """Poll, and store in `repository` where the next poll begins. After the end of its shift there is no news."""
        try:
            self._poll()
        except (ListenerStopped, ShiftEnded):
            log.debug("poll-broken-off", repository=self._lease.repository)
        except PushlogUnchanged:
            self._result.succeeded = True
        except (ListingError, ForwardError, PollError) as error:
            log.info("poll-failed", repository=self._lease.repository, error=str(error))
            # ASCII, because the text may quote a server that is not ours
            text = str(error).encode("ascii", "backslashreplace").decode()[:2_000]
            self._result.news = self._news("failed", error=text)
        else:
            self._finish()
        return self._result

    def _news(self, outcome: Any, **fields: Any) -> PollNews:
        return PollNews(repository_id=self._lease.id, shift=self._lease.shift, outcome=outcome, **fields)

    def _finish(self) -> None:
        """Add what the service does not know to the result: a suspicion, a new ETag, or the tip at the cursor."""
        fields = {
            "since": self._since,
            "cursor": self._cursor,
            "lastpushid": self._lastpushid,
            "at_cursor": self._tip_at_since,
            "moved": self._moved,
        }
        if self._suspicious:
            self._result.news = self._news("suspicious", **fields)
            return
        repository = self._repository
        has_new_pushes = self._cursor != self._since
        is_new_tip = self._tip_at_since is not None and repository.last_changeset is None and not has_new_pushes
        is_new_etag = self._etag is not None and (self._etag != self._sent_etag or has_new_pushes)
        if is_new_etag or is_new_tip:
            self._result.news = self._news("listed", etag=self._etag, **fields)
        repository.cursor, repository.etag, repository.suspected = self._cursor, self._etag, False
        repository.unconditional_at = self._result.began_at + repository.unconditional_every
        repository.last_changeset = self._tip_at_since if is_new_tip else self._tip_at_cursor
        self._result.succeeded = True

    def _poll(self) -> None:
        repository = self._repository
        etag = self._sent_etag = repository.etag if boottime() < repository.unconditional_at else None
        # from the cursor minus one, to compare the push at the cursor with the one that the service knows
        listing, end = self._list_window(max(self._cursor - 1, 0), self._cursor + self._window, etag)
        first_listing = listing
        self._compare_cursor(listing)
        while not self._looks_reset(listing):
            pushes = listing.between(self._position, end)
            self._forward(pushes, listing.lastpushid)
            self._position = max(end, self._cursor)
            if listing.lastpushid <= self._position:
                # the ETag of the first answer, because everything that it stands for was forwarded
                self._etag = reliable_etag(first_listing.etag, first_listing.date)
                return
            if not pushes:
                self._skip_gap(listing.lastpushid)
            wait_or_stop(self._stop, 0)
            listing, end = self._list_window(self._position, self._position + self._window)

    def _compare_cursor(self, listing: Listing) -> None:
        entry = listing.pushes.get(self._since)
        if entry is None:
            return
        self._tip_at_since, nodes = tip_and_nodes(self._since, entry)
        last_changeset = self._repository.last_changeset
        self._moved = last_changeset is not None and self._tip_at_since is not None and last_changeset not in nodes

    def _looks_reset(self, listing: Listing) -> bool:
        """Return True if this may be another repository than the one that the cursor belongs to.

        The service decides. Until then nothing is forwarded, and no ETag is reported, as the next poll must list again.
        """
        self._lastpushid = listing.lastpushid
        self._suspicious = self._moved or listing.lastpushid < self._cursor
        return self._suspicious

    # Listing

    def _list_window(self, start: int, end: int, etag: str | None = None) -> tuple[Listing, int]:
        """Return the pushes after `start` up to `end`, and the end, which is lower if the answer was too large."""
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
        send_within = self._wait_for_turn()
        began_at = boottime()
        if not self._result.requests:
            self._result.began_at = began_at
        self._result.requests += 1
        try:
            return self._pushlogs.list_pushes(
                self._lease.url, start, min(end, MAX_PUSH_ID),
                etag=etag, full=full, new_connection=self._repository.suspected, send_within=send_within,
            )  # fmt: skip
        finally:
            self._result.slowest = max(self._result.slowest, boottime() - began_at)

    def _skip_gap(self, last: int) -> None:
        """Move the position to just before the next push, at most to `last`, with a few small answers: tips only.

        A repository can begin at push 136,000, and `hg strip` removes pushes. Empty windows would use up the shift, and
        the next poll would begin at the same cursor.
        """
        span = self._window
        while self._position < last:
            span = min(span * 2, MAX_GAP)
            end = min(self._position + span, last)
            pushes = self._request(self._position, end, full=False).between(self._position, end)
            if pushes:
                self._position = pushes[0][0] - 1
                return
            self._position = end

    # Forwarding

    def _forward(self, pushes: list[tuple[int, Any]], lastpushid: int) -> None:
        """Send pushes in their order, in chunks."""
        chunk: list[tuple[int, bytes]] = []
        size = 0
        for push_id, entry in pushes:
            push = self._encode_push(push_id, entry)
            if chunk and (size + len(push) > self._chunk_bytes or len(chunk) == MAX_EVENTS):
                self._send(chunk, lastpushid)
                chunk, size = [], 0
            chunk.append((push_id, push))
            size += len(push)
        if chunk:
            self._send(chunk, lastpushid)

    def _encode_push(self, push_id: int, entry: Any) -> bytes:
        """Return the members of an event that describe its push: a JSON object without braces."""
        if reason := self._oversized.get(push_id):
            return self._encode_oversized(push_id, reason)
        self._tips[push_id] = tip_of(entry)
        push = b'"push":' + encode_json(trim_entry(push_id, entry))
        if len(push) > MAX_BYTES - _ENVELOPE_BYTES:
            return self._encode_oversized(push_id, f"it has {len(push):,} bytes, and a request at most {MAX_BYTES:,}")
        return push

    def _encode_oversized(self, push_id: int, reason: str) -> bytes:
        log.warning("push-too-large", repository=self._lease.repository, push=push_id, why=reason)
        self._tips[push_id] = None
        reason = f"push {push_id} is too large to send: {reason}. See {self._lease.url}/json-pushes"
        return encode_json({"oversized": True, "push_id": push_id, "reason": reason})[1:-1]

    def _encode_origin(self, lastpushid: int) -> bytes:
        """Return the members that all events share. `since` is the cursor: everything after it was listed."""
        origin = {
            "repository": self._lease.repository,
            "repository_id": self._lease.id,
            "shift": self._lease.shift,
            "generation": self._lease.generation,
            "since": self._cursor,
            "lastpushid": lastpushid,
        }
        return encode_json(origin)[1:-1] + b","

    def _send(self, chunk: list[tuple[int, bytes]], lastpushid: int) -> None:
        origin = self._encode_origin(lastpushid)
        body = b'{"events":[' + b",".join(b"{" + origin + push + b"}" for _, push in chunk) + b"]}"
        try:
            with tracing.span(
                "forward pushes", repository=self._lease.repository, pushes=len(chunk), last=chunk[-1][0]
            ):
                answer = self._forwarder.post(EVENTS, body, Verdicts, until=self._repository.until)
        except RequestTooLargeError as error:
            push_id, push = chunk[0]
            half = len(chunk) // 2
            if half:
                self._send(chunk[:half], lastpushid)
                self._send(chunk[half:], lastpushid)
            elif push.startswith(b'"push"'):
                self._send([(push_id, self._encode_oversized(push_id, str(error)))], lastpushid)
            else:
                raise
            return
        self._apply_verdicts([push_id for push_id, _ in chunk], answer.verdicts)

    def _apply_verdicts(self, push_ids: list[int], verdicts: list[Verdict]) -> None:
        lease = self._lease
        if len(verdicts) != len(push_ids):
            raise PollError(
                f"the service gave {len(verdicts)} verdicts for {len(push_ids)} pushes: run the same version of "
                "listener and service"
            )
        for push_id, verdict in zip(push_ids, verdicts, strict=True):
            metrics.events_judged(EVENTS, verdict.verdict, 1)
            if verdict.shift not in {None, lease.shift}:
                log.info("shift-ended", repository=lease.repository, push=push_id, reason=verdict.reason)
                raise ShiftEnded
            if verdict.verdict == "rejected" and verdict.repository is not None:
                raise PollError(f"the service rejected push {push_id}: {verdict.reason}")
            if verdict.verdict == "rejected":
                log.warning("push-not-understood", repository=lease.repository, push=push_id, reason=verdict.reason)
            elif verdict.cursor is not None and verdict.cursor > self._cursor:
                self._cursor, self._tip_at_cursor = verdict.cursor, self._tips.get(verdict.cursor)
        log.info("pushes-forwarded", repository=lease.repository, pushes=len(push_ids), last=push_ids[-1])


class PushlogListener:
    """A listener that polls and renews its shift until `stop()`.

    Polls have their own threads, so that none delays another or the renewal.
    """

    def __init__(self, settings: ListenerSettings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._renewals_ended = threading.Event()
        self._failure: Exception | None = None
        workers = settings.poll_workers
        tls = httpx.create_ssl_context()  # shared by both clients, because it takes megabytes
        self._forwarder = Forwarder(settings, self._stop, connections=workers + 1, tls=tls)
        self._pushlogs = PushlogClient(settings.hg_timeout.total_seconds(), settings.max_listing, workers, tls)
        self._scheduler = ShiftScheduler(str(uuid.uuid4()), self._stop)
        self._threads = 0
        self._renewed_at = time.monotonic()
        self._probe = open_probe("pushlog", settings, self.state, self.exposition)

    def stop(self) -> None:
        """Let `run` return: no poll begins any more, and polls in progress may end within `drain`. From any thread."""
        self._stop.set()

    def run(self) -> None:
        """Listen until `stop()`. Polls that outlast `drain` are abandoned; nothing is lost, they are leased again."""
        with ExitStack() as stack:
            if self._probe is not None:
                stack.enter_context(self._probe)
                log.info("probe", host=self._settings.probe_host, port=self._probe.port)
            log.info("listening", service=self._settings.service, workers=self._settings.poll_workers)
            # daemon threads: a pushlog that does not answer for half a minute must not delay the end of the process
            threading.Thread(target=self._renew_until_stopped, name="shift", daemon=True).start()
            self._start_thread()
            self._stop.wait()
            self._scheduler.wake()
            if self._renewals_ended.wait(self._settings.drain.total_seconds()):
                self._forwarder.close()
                self._pushlogs.close()
            else:
                log.warning("polls-abandoned", repositories=self._scheduler.polling)
        if self._failure is not None:
            raise self._failure
        log.info("stopped")

    def _renew_until_stopped(self) -> None:
        try:
            while not self._stop.wait(self._renew()):
                pass
            self._scheduler.wait_until_idle()
            self._renew(ends=True)
        except ListenerStopped:
            log.info("shift-not-given-back", reason="the service is away; the shift ends by itself")
        except Exception as error:  # noqa: BLE001 - run() raises it on the main thread
            self._failure = error
        finally:
            self._renewals_ended.set()
            self._stop.set()

    def _renew(self, *, ends: bool = False) -> float:
        """Renew the shift, and return the seconds until the next renewal."""

        def report() -> bytes:
            return self._scheduler.build_report(ends=ends).model_dump_json().encode("ascii")

        try:
            answer = self._forwarder.post("/api/v1/polls/lease", report, Shift)
        except RequestRejectedError as error:
            pause = self._settings.refused_retry.total_seconds()
            log.error("shift-rejected", error=str(error), again_in=pause)  # noqa: TRY400 - the message says it all
            return pause
        self._renewed_at = time.monotonic()
        for problem in answer.problems:
            log.error("news-not-understood", problem=problem, remedy="Run the same version of listener and service.")
        return 0 if self._scheduler.apply_answer(answer) else answer.renew

    def _start_thread(self) -> None:
        self._threads += 1
        threading.Thread(target=self._poll_until_stopped, name=f"poll-{self._threads}", daemon=True).start()

    def _poll_until_stopped(self) -> None:
        while (next_poll := self._scheduler.next_poll()) is not None:
            repository, no_thread_waits = next_poll
            if no_thread_waits and self._threads < self._settings.poll_workers:
                self._start_thread()
            self._scheduler.record_result(repository, self._poll(repository))

    def _poll(self, repository: LeasedRepository) -> PollResult:
        def wait_for_turn() -> float:
            return self._scheduler.wait_for_turn(repository)

        poll = Poll(repository, self._settings, self._pushlogs, self._forwarder, self._stop, wait_for_turn)
        try:
            result = poll.run()
        except Exception as error:  # a bug must neither end the thread nor remain unreported
            metrics.polled("failed")
            lease = repository.lease
            log.exception("poll-broke", repository=lease.repository)
            error_text = f"bug in the listener ({type(error).__name__}): see its log"
            news = PollNews(repository_id=lease.id, shift=lease.shift, outcome="failed", error=error_text)
            return PollResult(news=news, requests=1)
        outcome = "unchanged" if result.succeeded else "interrupted"
        metrics.polled(outcome if result.news is None else result.news.outcome)
        return result

    def exposition(self) -> bytes:
        """Return the metrics of this process."""
        return metrics.exposition(repositories=len(self._scheduler.leased))

    def state(self) -> dict[str, Any]:
        """Return the listener's health for the probe. A restart helps nothing, so it is never `error`."""
        seconds = time.monotonic() - self._renewed_at
        return {
            "status": "warning" if seconds > self._settings.unhealthy_after.total_seconds() else "ok",
            "seconds_since_renewal": round(seconds, 1),
            "repositories": len(self._scheduler.leased),
            "polling": len(self._scheduler.polling),
        }


def main(configure_log: ConfigureLog | None = None) -> int:
    """Run the pushlog listener until SIGTERM or SIGINT; see `process.run_listener`."""
    return run_listener("listen-pushlog", PushlogListener, configure_log)
