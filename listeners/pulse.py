"""The Pulse listener: hands what Pulse delivers to the service, and acknowledges what the service has stored.

    queue/<user>/<name>/job-actions   pressed buttons   ──▶ events/job-actions
    queue/<user>/<name>/tasks         task events       ──▶ events/tasks
    queue/<user>/<name>/pushes        announced pushes  ──▶ a poll of the repository, at once (see `announced`)

It looks into no message: what cannot be understood is the service's to judge and to keep.
"""

import base64
import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pika
import structlog
from pydantic_core import to_json

from listeners.announced import Announced, announced_url
from listeners.channel import Lost, Session
from listeners.consumer import Binding, Consumer, Found
from listeners.forward import Forwarder, Rejected, TooLarge, encode
from listeners.probe import Probe
from listeners.process import Configure, run
from listeners.retry import wait_or_stop
from listeners.settings import ListenerSettings
from service.contract.configuration import SettingsError
from service.contract.events import MAX_BYTES, MAX_EVENTS, QueueReport, QueueState, Verdicts

log = structlog.get_logger()

TASK_EVENTS = ("defined", "pending", "running", "completed", "failed", "exception")

LONGEST_NAME = 255
"""Bytes of an exchange's name or a routing key in AMQP 0-9-1, and characters in `PulseMessage`."""

MAX_CC = 1_000
"""Routing keys in the CC header that are forwarded; a task has at most 64 routes."""

SHORTENED = 64 * 1024
"""Characters that are left of a body which is too large to be sent."""

LATE = 0.5
"""Seconds that the end may take beyond `drain`, for closing connections."""

URL_FORM = "set TC_TREEHERDER_PULSE_URL to amqps://user:password@pulse.mozilla.org:5671/%2F"


def task_event(_: str, method: Any, properties: Any, body: bytes) -> bytes:
    """Return a delivery as `PulseMessage`, in JSON."""
    return to_json(_message(method, properties, body))


def pulse_message(channel: str, method: Any, properties: Any, body: bytes) -> bytes:
    """Return a delivery as `JobActionMessage`, in JSON; `channel` is the UUID of the channel that it came on."""
    return to_json(
        {
            "delivery": str(uuid.uuid4()),
            "channel": channel,
            "redelivered": method.redelivered,
            "stamp": time.time(),
            **_message(method, properties, body),
        }
    )


def _message(method: Any, properties: Any, body: bytes) -> dict[str, Any]:
    try:
        text, encoding = body.decode(), "utf-8"
    except UnicodeDecodeError:
        text, encoding = base64.b64encode(body).decode("ascii"), "base64"
    cc = (properties.headers or {}).get("CC")
    return {
        "exchange": _name(method.exchange),
        "routing_key": _name(method.routing_key),
        "cc": [_name(key) for key in cc[:MAX_CC] if isinstance(key, str | bytes)] if isinstance(cc, list) else [],
        "body": text,
        "encoding": encoding,
    }


def _name(value: str | bytes) -> str:
    # pika leaves as bytes what is not UTF-8
    return (value if isinstance(value, str) else value.decode("utf-8", "backslashreplace"))[:LONGEST_NAME]


def shortened(event: bytes) -> bytes:
    """An event with the beginning of its body only: no JSON any more, so it becomes a dead letter."""
    cut = json.loads(event)
    cut["body"] = cut["body"][:SHORTENED]
    return encode(cut)


class Post:
    """Post batches of events to `path`; return once the service has stored each, or judged it.

    `counted`: the service counts equal events. So it gets none that was read after the broker took it back, and it is
    told, with the next batch or a moment later, what the broker will not bring again. Raises Lost, ListenerStopped.
    """

    def __init__(
        self, path: str, forwarder: Forwarder, settings: ListenerSettings, stop: threading.Event,
        judged: Callable[[str, int], None], *, counted: bool,
    ) -> None:  # fmt: skip
        self._path, self._forwarder, self._stop, self._judged, self._counted = path, forwarder, stop, judged, counted
        self._refused_retry = settings.refused_retry.total_seconds()
        self._posted: tuple[Session, list[str]] | None = None  # of the last batch: acknowledged, perhaps not confirmed
        self._confirmed: list[str] = []

    def __call__(self, events: list[bytes], session: Session) -> None:
        if self._counted:
            self._confirm(session)
        self._send(events, session)
        if self._counted:
            self._posted = session, [json.loads(event)["delivery"] for event in events]

    def idle(self) -> None:
        """Report what the broker has confirmed, if no batch comes that could."""
        if self._posted is not None:
            with suppress(Lost):
                self._confirm(self._posted[0])
        if self._confirmed:
            self._send([], None)

    def _confirm(self, session: Session) -> None:
        """Ask the broker whether the channel is open; if so, it has the acknowledgement of the last batch, too."""
        posted, self._posted = self._posted, None
        if session.confirmed():
            if posted is not None and posted[0] is session:
                self._confirmed += posted[1]
        elif session.lost:
            raise Lost

    def _send(self, events: list[bytes], session: Session | None) -> None:
        while True:
            try:
                self._post(events, session)
            except TooLarge as error:
                if len(events) > 1:
                    half = len(events) // 2
                    self._send(events[:half], session)
                    self._send(events[half:], session)
                    return
                if not events or len(events[0]) <= 2 * SHORTENED:
                    self._refused(error)
                    continue
                size = len(events[0])
                log.error("event-too-large", path=self._path, size=size, error=str(error), kept=SHORTENED)  # noqa: TRY400 - the message says it all
                events = [shortened(events[0])]
            except Rejected as error:
                self._refused(error)
            else:
                return

    def _post(self, events: list[bytes], session: Session | None) -> None:
        confirmed = self._confirmed[:MAX_EVENTS]

        def body() -> bytes:
            if session is not None and session.lost:
                raise Lost
            made = b'{"acknowledged":' + encode(confirmed) + b',"events":[' + b",".join(events) + b"]}"
            if len(made) > MAX_BYTES:
                raise TooLarge(f"{len(made):,} bytes are more than the {MAX_BYTES:,} that a request may have")
            return made

        verdicts = self._forwarder.post(self._path, body, Verdicts).verdicts
        if len(verdicts) != len(events):
            raise Rejected(f"the service gave {len(verdicts)} verdicts for {len(events)} events: run equal versions")
        del self._confirmed[: len(confirmed)]
        for verdict, number in Counter(each.verdict for each in verdicts).items():
            self._judged(verdict, number)
        reasons = [each.reason for each in verdicts if each.verdict == "rejected"]
        if reasons:
            log.warning("events-rejected", path=self._path, events=len(reasons), first_reason=reasons[0])

    def _refused(self, error: Rejected) -> None:
        log.error(
            "batch-refused",
            path=self._path,
            error=str(error),
            remedy="the messages stay at the broker, and are sent again",
            again_in=self._refused_retry,
        )
        wait_or_stop(self._stop, self._refused_retry)


class PulseListener:
    """Reads its queues until `stop()`, each with two threads of its own. Raises SettingsError."""

    def __init__(self, settings: ListenerSettings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._announced: Announced | None = None
        self._parameters = parameters(settings)
        self._user = user(settings)
        kinds = [kind for kind in settings.pulse_read if kind != "tasks" or settings.environments]
        if not kinds:
            raise SettingsError("pulse_read is tasks alone, and no environment is configured: nothing would be read")
        self._tls = httpx.create_ssl_context()  # one for all clients: it takes megabytes
        self._forwarder = Forwarder(settings, self._stop, connections=len(kinds), tls=self._tls)
        self.consumers: dict[str, Consumer[Any]] = {kind: self._consumer(kind) for kind in kinds}
        self._probe = self._listening(settings.probe_host, settings.probe_port)

    def _listening(self, host: str, port: int | None) -> Probe | None:
        try:
            return None if port is None else Probe(host, port, self.state)
        except OSError as error:
            raise SettingsError(
                f"probe_port: {host}:{port} cannot be listened on ({error}): set TC_TREEHERDER_PROBE_PORT to another"
            ) from None

    def _consumer(self, kind: str) -> Consumer[Any]:
        settings = self._settings
        queue = f"queue/{self._user}/{settings.pulse_queue}/{kind}"

        def judged(verdict: str, events: int) -> None:
            consumer.counts[verdict] += events

        def report(found: Found) -> None:
            self._report(kind, queue, found)

        read: Callable[[str, Any, Any, bytes], Any] = task_event if kind == "tasks" else pulse_message
        give: Callable[[list[Any], Session], None]
        idle = None
        if kind == "pushes":
            self._announced = Announced(settings, self._forwarder, self._stop, self._tls)
            read, give = announced_url, self._announced
        else:
            path = f"/api/v1/events/{kind}"
            counted = kind == "job-actions"  # a task event changes nothing when it comes twice
            give = post = Post(path, self._forwarder, settings, self._stop, judged, counted=counted)
            idle = post.idle
        consumer = Consumer(
            queue, bindings(kind, settings), settings, self._parameters, self._stop, read, give, report, idle
        )
        return consumer

    def _report(self, kind: str, queue: str, found: Found) -> None:
        report = QueueReport.model_validate({"queue": queue, "events": kind, "found": found})
        once = time.monotonic()
        state = self._forwarder.post("/api/v1/listeners/report", encode(report.model_dump()), QueueState, until=once)
        if found == "new" and state.deleted:
            self.consumers[kind].deleted(f"since it was last read, at {state.messages_lost_since}")

    def stop(self) -> None:
        """Let `run` end: nothing more is read, and what was read may be given within `drain`. From any thread."""
        self._stop.set()

    def run(self) -> None:
        """Listen until `stop()`. What is not given within `drain` stays at the broker."""
        settings = self._settings
        with ExitStack() as stack:
            if self._probe is not None:
                stack.enter_context(self._probe)
                log.info("probe", host=settings.probe_host, port=self._probe.port)
            log.info("listening", service=settings.service, queues=[each.queue for each in self.consumers.values()])
            # daemons: a broker or service that says nothing must not hold up the end of the process
            threads = [
                threading.Thread(target=self._guarded, args=(work,), name=f"{kind} {what}", daemon=True)
                for kind, consumer in self.consumers.items()
                for what, work in (("reads", consumer.read_until_stopped), ("gives", consumer.give_until_stopped))
            ]
            for thread in threads:
                thread.start()
            self._stop.wait()
            until = time.monotonic() + settings.drain.total_seconds() + LATE
            for thread in threads:
                thread.join(max(until - time.monotonic(), 0))
            abandoned = [thread.name for thread in threads if thread.is_alive()]
        if abandoned:
            log.warning("abandoned", work=abandoned, reason="what was not acknowledged is delivered again")
        else:
            self._forwarder.close()
            if self._announced is not None:
                self._announced.close()
        if self._failure is not None:
            raise self._failure
        log.info("stopped")

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - run() raises it, on the thread that somebody looks at
            self._failure = self._failure or error
            self._stop.set()

    def state(self) -> dict[str, Any]:
        """How it is, for the probe. `error`: a queue could not be read for a while."""
        limit = self._settings.unhealthy_after.total_seconds()
        queues = {}
        status = "ok"
        for consumer in self.consumers.values():
            warned = not consumer.connected or consumer.missing or consumer.counts["deleted"]
            its = "error" if consumer.away > limit else "warning" if warned else "ok"
            status = max(status, its, key=["ok", "warning", "error"].index)
            queues[consumer.queue] = {
                "status": its,
                "connected": consumer.connected,
                "seconds_since_connected": round(consumer.away, 1),
                "waiting": len(consumer.inbox),
                "missing_exchanges": consumer.missing,
                **dict(sorted(consumer.counts.items())),
            }
        return {"status": status, "queues": queues}


def bindings(kind: str, settings: ListenerSettings) -> list[Binding]:
    """What a queue is bound to."""
    if kind == "job-actions":
        # <build_system_type>.<project>.<action>; some publishers add a trailing dot
        return [Binding(settings.pulse_job_actions, ("taskcluster.#",))]
    if kind == "pushes":
        return [Binding(settings.pulse_pushes, ("#",))]
    # a message is routed by its task's routes too, which its CC header has, each with `route.` before it
    keys = tuple(f"route.{prefix}.#" for prefix in settings.environments)
    return [Binding(f"{settings.pulse_tasks}task-{event}", keys) for event in TASK_EVENTS]


def parameters(settings: ListenerSettings) -> Any:
    """How to connect. TLS by `amqps://`, with the certificate and its host name verified. Raises SettingsError."""
    url = _url(settings)
    try:
        if urlsplit(url).scheme not in {"amqp", "amqps"}:
            raise ValueError("pika takes http for amqp")
        made = pika.URLParameters(url)
    except Exception as error:  # noqa: BLE001 - pika raises whatever its parts do
        # the error may hold the password
        raise SettingsError(f"pulse_url cannot be understood ({type(error).__name__}): {URL_FORM}") from None
    timeout = settings.pulse_timeout.total_seconds()
    made.socket_timeout = timeout
    made.stack_timeout = timeout + 1
    made.blocked_connection_timeout = settings.pulse_blocked.total_seconds()
    if "heartbeat=" not in urlsplit(url).query:
        made.heartbeat = settings.pulse_heartbeat
    made.client_properties = {"connection_name": "tc-treeherder listen pulse"}
    return made


def user(settings: ListenerSettings) -> str:
    """Whose queues they are: Pulse lets nobody make others."""
    return settings.pulse_user or settings.pulse.user or unquote(urlsplit(_url(settings)).username or "guest")


def _url(settings: ListenerSettings) -> str:
    url = settings.pulse_url or settings.pulse.url
    if url is None:
        raise SettingsError(f"pulse_url: the Pulse listener has nowhere to listen: {URL_FORM}")
    return url.get_secret_value()


def main(configure_log: Configure | None = None) -> int:
    """Run the listener until SIGTERM or SIGINT; see `process.run`."""

    def make(settings: ListenerSettings) -> PulseListener:
        # pika tells every failure several times, and with a traceback; each is told here once
        logging.getLogger("pika").setLevel(logging.CRITICAL)
        return PulseListener(settings)

    return run(make, configure_log)
