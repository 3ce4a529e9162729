"""The pushlog listener: asks the pushlogs of the repositories that the service leases it, and forwards what is new.

    lease ──▶ json-pushes, from the cursor ──▶ events/pushes ──▶ how it went, with the next request for leases

It keeps no state: cursors, ETags and suspicions are the service's, and what is cut off in the middle is leased again.
"""

import queue
import threading
import time
from datetime import datetime
from typing import Any, Literal

import httpx
import structlog

from events import MAX_BYTES, MAX_EVENTS, LeasedRepository, LeaseRequest, Leases, PollResult, Verdict, Verdicts
from listeners.forward import Forwarder, ForwardError, Rejected, Stopped, TooLarge, encode
from listeners.listing import (
    LAST_ID,
    Listing,
    ListingError,
    ListingTooLargeError,
    Pushlogs,
    Unchanged,
    tip_and_nodes,
    trim,
)
from listeners.process import Configure, run
from listeners.settings import ListenerSettings

log = structlog.get_logger()

MAX_GAP = 100_000
"""Push ids that are looked through at a time for the end of a gap."""

MAX_ETAG = 500

_ENVELOPE = 1_024
"""Bytes that are more than enough for what stands around a push in a request."""


class PollError(Exception):
    """A poll came to no good end; the message says why in plain words."""


class Poll:
    """One poll of a leased repository: `run()` forwards what its pushlog has beyond the cursor.

    `cursor` is the service's as of the last verdicts, `position` how far the pushlog was listed. They differ where ids
    are missing, or where a push could not be understood: that one is sent as it is and becomes a dead letter, and the
    cursor passes it with the next good push.
    """

    def __init__(
        self, lease: LeasedRepository, settings: ListenerSettings, pushlogs: Pushlogs, forwarder: Forwarder,
        stop: threading.Event,
    ) -> None:  # fmt: skip
        self._lease, self._pushlogs, self._forwarder, self._stop = lease, pushlogs, forwarder, stop
        self._chunk_bytes = settings.chunk_bytes
        self._window = settings.poll_window
        began = time.monotonic()
        self._until = began + lease.seconds
        self._enough = began + lease.seconds * 2 / 3  # a window begun later might not be through within the lease
        self._cursor = self._position = lease.cursor
        self._oversized: dict[int, str] = {}
        self._requests, self._longest = 0, 0.0
        self._lastpushid: int | None = None
        self._at_cursor: str | None = None
        self._moved = False
        self._etag: str | None = None
        self._date: datetime | None = None
        self._more = False

    def run(self) -> PollResult | None:
        """How it went; None when the listener was told to end before that was clear."""
        try:
            self._poll()
        except Stopped:
            return None
        except Unchanged:
            return self._result("unchanged")
        except (ListingError, ForwardError, PollError) as error:
            log.info("poll-failed", repository=self._lease.repository, error=str(error))
            return self._result("failed", error=str(error))
        return self._result("listed")

    def _result(self, outcome: Literal["listed", "unchanged", "failed"], error: str | None = None) -> PollResult:
        common: dict[str, Any] = {
            "repository": self._lease.repository,
            "lease": self._lease.lease,
            "outcome": outcome,
            "requests": self._requests,
            "seconds": self._longest,  # of one answer: a backlog of many windows does not make the pushlog slow
        }
        if error is not None:
            # what a stranger's server said: visible in ASCII
            common["error"] = error.encode("ascii", "backslashreplace").decode()[:2_000]
        if outcome != "listed":
            return PollResult(**common)
        return PollResult(
            **common,
            lastpushid=self._lastpushid,
            at_cursor=self._at_cursor,
            moved=self._moved,
            etag=self._etag if len(self._etag or "") <= MAX_ETAG else None,
            date=self._date,
            more=self._more,
        )

    def _poll(self) -> None:
        cursor = self._lease.cursor
        # from the cursor minus one, to see whether the push at the cursor is still the one that is known
        listing, end = self._ask(max(cursor - 1, 0), cursor + self._window, self._lease.etag)
        etag, self._date = listing.etag, listing.date
        self._compare(listing)
        while not self._suspicious(listing):
            new = listing.between(self._position, end)
            self._forward(new, listing.lastpushid)
            self._position = max(end, self._cursor)
            if listing.lastpushid <= self._position:
                self._etag = etag  # the first answer's: all that it stands for was forwarded
                return
            if not new:
                self._skip_gap(listing.lastpushid)
            if self._stop.is_set() or time.monotonic() > self._enough:
                self._more = True
                return
            listing, end = self._ask(self._position, self._position + self._window)

    def _compare(self, listing: Listing) -> None:
        entry = listing.pushes.get(self._lease.cursor)
        if entry is None:
            return
        self._at_cursor, nodes = tip_and_nodes(self._lease.cursor, entry)
        known = self._lease.last_changeset
        self._moved = known is not None and self._at_cursor is not None and known not in nodes

    def _suspicious(self, listing: Listing) -> bool:
        """Whether this may be another repository than the one that the cursor belongs to.

        The service judges; until then nothing is forwarded, and no ETag is given, for the next poll must look again.
        """
        self._lastpushid = listing.lastpushid
        return self._moved or listing.lastpushid < self._cursor

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
        self._requests += 1
        began = time.monotonic()
        try:
            return self._pushlogs.list(
                self._lease.url, start, min(end, LAST_ID), etag=etag, full=full, until=self._until
            )
        finally:
            self._longest = max(self._longest, time.monotonic() - began)

    def _skip_gap(self, last: int) -> None:
        """Move the position to just before the next push, up to `last`, in a few small answers: tips only.

        A repository can begin at push 136,000, and `hg strip` takes pushes out: windows of nothing would use up the
        lease, and the next one would begin at the same cursor.
        """
        span = self._window
        while self._position < last and time.monotonic() <= self._enough:
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
        part = b'"push":' + encode(trim(push_id, entry))
        if len(part) > MAX_BYTES - _ENVELOPE:
            return self._too_large(push_id, f"it has {len(part):,} bytes, a request may have {MAX_BYTES:,}")
        return part

    def _too_large(self, push_id: int, why: str) -> bytes:
        log.warning("push-too-large", repository=self._lease.repository, push=push_id, why=why)
        reason = f"push {push_id} is too large to send: {why}. Look at {self._lease.url}/json-pushes"
        return encode({"oversized": True, "push_id": push_id, "reason": reason})[1:-1]

    def _head(self, lastpushid: int) -> bytes:
        """What every event says; `since` is the cursor, and from there on everything was listed."""
        head = {
            "repository": self._lease.repository,
            "generation": self._lease.generation,
            "since": self._cursor,
            "lastpushid": lastpushid,
        }
        return encode(head)[1:-1] + b","

    def _send(self, chunk: list[tuple[int, bytes]], lastpushid: int) -> None:
        head = self._head(lastpushid)
        body = b'{"events":[' + b",".join(b"{" + head + part + b"}" for _, part in chunk) + b"]}"
        try:
            answer = self._forwarder.post("/api/v1/events/pushes", body, Verdicts, until=self._until)
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
            if verdict.generation not in {None, lease.generation}:
                raise PollError(f"push {push_id} was listed from a generation that ended: {verdict.reason}")
            if verdict.verdict == "rejected" and verdict.repository is not None:
                raise PollError(f"the service rejected push {push_id}: {verdict.reason}")
            if verdict.verdict == "rejected":
                log.warning("push-not-understood", repository=lease.repository, push=push_id, reason=verdict.reason)
            elif verdict.cursor is not None:
                self._cursor = max(self._cursor, verdict.cursor)
        log.info("pushes-forwarded", repository=lease.repository, pushes=len(push_ids), last=push_ids[-1])


class PushlogListener:
    """Leases, polls and reports until `stop()`. Polls have threads of their own, so that none delays another."""

    def __init__(self, settings: ListenerSettings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._over = threading.Event()
        self._failure: Exception | None = None
        workers = settings.poll_workers
        tls = httpx.create_ssl_context()  # one for both clients: it takes megabytes
        self._forwarder = Forwarder(settings, self._stop, connections=workers + 1, tls=tls)
        self._pushlogs = Pushlogs(settings.hg_timeout.total_seconds(), settings.max_listing, workers, tls)
        self._leased: queue.SimpleQueue[LeasedRepository | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[tuple[str, PollResult | None]] = queue.SimpleQueue()
        self._polling: set[str] = set()
        self._threads = 0

    def stop(self) -> None:
        """Let `run` end: nothing more is leased, and polls under way may finish within `drain`. From any thread."""
        self._stop.set()

    def run(self) -> None:
        """Listen until `stop()`. Polls that outlast `drain` are abandoned: nothing is lost, they are leased again."""
        log.info("listening", service=self._settings.service, workers=self._settings.poll_workers)
        # daemons: a pushlog that says nothing for half a minute must not hold up the end of the process
        threading.Thread(target=self._lease_until_stopped, name="leases", daemon=True).start()
        self._stop.wait()
        if self._over.wait(self._settings.drain.total_seconds()):
            self._forwarder.close()
            self._pushlogs.close()
        else:
            log.warning("polls-abandoned", repositories=sorted(self._polling))
        for _ in range(self._threads):
            self._leased.put(None)
        if self._failure is not None:
            raise self._failure
        log.info("stopped")

    def _lease_until_stopped(self) -> None:
        try:
            self._lease_and_report()
        except Stopped:
            log.info("last-results-not-reported", reason="the service is away; the leases end by themselves")
        except Exception as error:  # noqa: BLE001 - run() raises it, on the thread that somebody looks at
            self._failure = error
        finally:
            self._over.set()
            self._stop.set()

    def _lease_and_report(self) -> None:
        workers, look = self._settings.poll_workers, self._settings.lease_look.total_seconds()
        results: list[PollResult] = []
        while True:
            stopping = self._stop.is_set()
            if stopping and not self._polling and not results:
                return
            free = 0 if stopping else max(workers - len(self._polling), 0)
            idle = not stopping and not self._polling
            if free or results:
                asked = time.monotonic()
                leases = self._lease(results, free, self._settings.lease_wait if idle else 0)
                results = [refused for lease in leases if (refused := self._begin(lease))]
                if idle and not leases and time.monotonic() - asked < look:
                    self._stop.wait(look)  # the service did not wait, or took nothing: do not ask in a circle
            if self._polling and not results:
                results = self._collect(look)

    def _lease(self, results: list[PollResult], free: int, wait: float) -> list[LeasedRepository]:
        """Report, and lease up to `free` repositories."""
        request = LeaseRequest(results=[result.model_dump(mode="json") for result in results], max=free, wait=wait)
        try:
            answer = self._forwarder.post("/api/v1/polls/lease", encode(request.model_dump()), Leases)
        except Rejected as error:
            pause = self._settings.refused_retry.total_seconds()
            log.error("lease-rejected", error=str(error), again_in=pause)  # noqa: TRY400 - the message says it all
            self._stop.wait(pause)
            return []
        for problem in answer.problems:
            log.error("result-not-understood", problem=problem, remedy="run equal versions of service and listener")
        return answer.leases

    def _begin(self, lease: LeasedRepository) -> PollResult | None:
        """Let a thread poll; a result when that cannot be."""
        if lease.repository in self._polling:
            # its lease ended; a second thread that hangs there would in the end leave none for the others
            error = "the poll before has not come to an end: the pushlog neither answers nor closes the connection"
            return PollResult(repository=lease.repository, lease=lease.lease, outcome="failed", error=error, requests=0)
        self._polling.add(lease.repository)
        if self._threads < min(len(self._polling), self._settings.poll_workers):
            self._threads += 1
            threading.Thread(target=self._work, name=f"poll-{self._threads}", daemon=True).start()
        self._leased.put(lease)
        return None

    def _collect(self, look: float) -> list[PollResult]:
        """Results of polls that end within `look` seconds: of the first one, and of those that end together with it."""
        results = []
        until = time.monotonic() + look
        linger = self._settings.linger.total_seconds()
        while self._polling:
            try:
                repository, result = self._ended.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                break
            self._polling.remove(repository)
            if result is not None:
                results.append(result)
            until = min(until, time.monotonic() + linger)
        return results

    def _work(self) -> None:
        while (lease := self._leased.get()) is not None:
            self._ended.put((lease.repository, self._poll(lease)))

    def _poll(self, lease: LeasedRepository) -> PollResult | None:
        try:
            return Poll(lease, self._settings, self._pushlogs, self._forwarder, self._stop).run()
        except Exception as error:  # a poll that breaks must neither end its thread nor stay unknown
            log.exception("poll-broke", repository=lease.repository)
            error_text = f"a bug in the listener, whose log has more: {type(error).__name__}"
            return PollResult(repository=lease.repository, lease=lease.lease, outcome="failed", error=error_text)


def main(configure_log: Configure | None = None) -> int:
    """Run the listener until SIGTERM or SIGINT; see `process.run`."""
    return run(PushlogListener, configure_log)
