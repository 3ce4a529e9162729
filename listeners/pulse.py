"""The Pulse listener: send messages to the service, and acknowledge those that the service has stored.

    queue/<user>/<name>/job-actions   pressed buttons   ──▶ events/job-actions
    queue/<user>/<name>/tasks         task events       ──▶ events/tasks
    queue/<user>/<name>/pushes        announced pushes  ──▶ a poll of the repository, at once (see `announced`)

It does not look into messages: the service judges and keeps those that cannot be understood.
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

from listeners import metrics
from listeners.announced import AnnouncedPoller, parse_announcement
from listeners.channel import AckChannel, ChannelLostError
from listeners.clock import boottime
from listeners.consumer import Binding, Consumer, QueuePresence
from listeners.forward import Forwarder, RequestRejectedError, RequestTooLargeError, encode_json
from listeners.probe import open_probe
from listeners.process import ConfigureLog, run_listener
from listeners.retry import wait_or_stop
from listeners.settings import ListenerSettings
from service.contract import tracing
from service.contract.broker import URL_REMEDY
from service.contract.configuration import PULSE_URL, SettingsError
from service.contract.events import MAX_BYTES, MAX_EVENTS, QueueReport, QueueState, Verdicts

log = structlog.get_logger()

TASK_EVENTS = ("defined", "pending", "running", "completed", "failed", "exception")

MAX_NAME_LENGTH = 255
"""Bytes of an exchange's name or a routing key in AMQP 0-9-1, and characters in `PulseMessage`."""

MAX_CC_KEYS = 1_000
"""Routing keys in the CC header that are forwarded; a task has at most 64 routes."""

SHORTENED_BODY = 64 * 1024
"""Characters that are left of a body which is too large to send."""

SHUTDOWN_GRACE = 0.5
"""Seconds that the end may take beyond `drain`, to close connections."""


def encode_task_event(_: str, method: Any, properties: Any, body: bytes) -> bytes:
    """Return a delivery as `PulseMessage`, in JSON."""
    return to_json(_message_fields(method, properties, body))


def encode_job_action(channel: str, method: Any, properties: Any, body: bytes) -> bytes:
    """Return a delivery as `JobActionMessage`, in JSON; `channel` is the UUID of the channel that delivered it."""
    return to_json(
        {
            "delivery": str(uuid.uuid4()),
            "channel": channel,
            "redelivered": method.redelivered,
            "stamp": time.time(),
            **_message_fields(method, properties, body),
        }
    )


def _message_fields(method: Any, properties: Any, body: bytes) -> dict[str, Any]:
    try:
        text, encoding = body.decode(), "utf-8"
    except UnicodeDecodeError:
        text, encoding = base64.b64encode(body).decode("ascii"), "base64"
    keys = (properties.headers or {}).get("CC")
    return {
        "exchange": _decode_name(method.exchange),
        "routing_key": _decode_name(method.routing_key),
        "cc": [_decode_name(key) for key in keys[:MAX_CC_KEYS] if isinstance(key, str | bytes)]
        if isinstance(keys, list)
        else [],
        "body": text,
        "encoding": encoding,
    }


def _decode_name(value: str | bytes) -> str:
    # pika leaves names as bytes that are not UTF-8
    return (value if isinstance(value, str) else value.decode("utf-8", "backslashreplace"))[:MAX_NAME_LENGTH]


def shorten_event(event: bytes) -> bytes:
    """Return an event with the beginning of its body, which is no longer JSON, so that it becomes a dead letter."""
    fields = json.loads(event)
    fields["body"] = fields["body"][:SHORTENED_BODY]
    return encode_json(fields)


class EventSender:
    """A sender of event batches to `path` of the service, which returns once each event is stored or judged.

    `counts_presses`: the service counts equal events, so it must not get an event that the broker has taken back
    already. It is also told, with the next batch or a moment later, which deliveries the broker will not repeat.
    """

    def __init__(
        self, path: str, forwarder: Forwarder, settings: ListenerSettings, stop: threading.Event,
        count_verdicts: Callable[[str, int], None], *, counts_presses: bool,
    ) -> None:  # fmt: skip
        self._path, self._forwarder, self._stop = path, forwarder, stop
        self._count_verdicts, self._counts_presses = count_verdicts, counts_presses
        self._refused_retry = settings.refused_retry.total_seconds()
        self._unconfirmed: tuple[AckChannel, list[str]] | None = None  # channel and deliveries of the last batch
        self._confirmed: list[str] = []  # deliveries that are still to be reported

    def send(self, events: list[bytes], channel: AckChannel) -> None:
        """Send a batch until the service has stored or judged it. Raises ChannelLostError, ListenerStopped."""
        if self._counts_presses:
            self._confirm(channel)
        with tracing.span(f"forward {self._path.rsplit('/', 1)[-1]}", events=len(events)):
            self._send(events, channel)
        if self._counts_presses:
            self._unconfirmed = channel, [json.loads(event)["delivery"] for event in events]

    def report_confirmed(self) -> None:
        """Report the deliveries that the broker has confirmed, if no batch comes to carry them."""
        if self._unconfirmed is not None:
            with suppress(ChannelLostError):
                self._confirm(self._unconfirmed[0])
        if self._confirmed:
            self._send([], None)

    def _confirm(self, channel: AckChannel) -> None:
        """Ask the broker whether the channel is open; if so, the broker also has the last batch's acknowledgement."""
        unconfirmed, self._unconfirmed = self._unconfirmed, None
        if channel.confirm_acknowledgements():
            if unconfirmed is not None and unconfirmed[0] is channel:
                self._confirmed += unconfirmed[1]
        elif channel.is_lost:
            raise ChannelLostError

    def _send(self, events: list[bytes], channel: AckChannel | None) -> None:
        while True:
            try:
                self._post(events, channel)
            except RequestTooLargeError as error:
                if len(events) > 1:
                    half = len(events) // 2
                    self._send(events[:half], channel)
                    self._send(events[half:], channel)
                    return
                if not events or len(events[0]) <= 2 * SHORTENED_BODY:
                    self._wait_for_repair(error)
                    continue
                size = len(events[0])
                log.error("event-too-large", path=self._path, size=size, error=str(error), kept=SHORTENED_BODY)  # noqa: TRY400 - the message says it all
                events = [shorten_event(events[0])]
            except RequestRejectedError as error:
                self._wait_for_repair(error)
            else:
                return

    def _post(self, events: list[bytes], channel: AckChannel | None) -> None:
        confirmed = self._confirmed[:MAX_EVENTS]

        def build_body() -> bytes:
            if channel is not None and channel.is_lost:
                raise ChannelLostError
            body = b'{"acknowledged":' + encode_json(confirmed) + b',"events":[' + b",".join(events) + b"]}"
            if len(body) > MAX_BYTES:
                raise RequestTooLargeError(f"the request has {len(body):,} bytes, and may have {MAX_BYTES:,}")
            return body

        verdicts = self._forwarder.post(self._path, build_body, Verdicts).verdicts
        if len(verdicts) != len(events):
            raise RequestRejectedError(
                f"the service gave {len(verdicts)} verdicts for {len(events)} events: run the same version of listener "
                "and service"
            )
        del self._confirmed[: len(confirmed)]
        for verdict, number in Counter(verdict.verdict for verdict in verdicts).items():
            self._count_verdicts(verdict, number)
            metrics.events_judged(self._path, verdict, number)
        reasons = [verdict.reason for verdict in verdicts if verdict.verdict == "rejected"]
        if reasons:
            log.warning("events-rejected", path=self._path, events=len(reasons), first_reason=reasons[0])

    def _wait_for_repair(self, error: RequestRejectedError) -> None:
        """Log an error that only a person can repair, and wait until the next attempt."""
        log.error(
            "batch-refused",
            path=self._path,
            error=str(error),
            remedy="The messages stay at the broker, and are sent again.",
            again_in=self._refused_retry,
        )
        wait_or_stop(self._stop, self._refused_retry)


class PulseListener:
    """A listener that reads its queues until `stop()`, each with two threads of its own. Raises SettingsError."""

    def __init__(self, settings: ListenerSettings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._announced: AnnouncedPoller | None = None
        self._parameters = connection_parameters(settings)
        kinds = kinds_to_read(settings)
        if not kinds:
            raise SettingsError(
                "pulse_read is tasks alone, and no environment is configured: nothing would be read. Set environments, "
                "or add job-actions to pulse_read"
            )
        self._tls = httpx.create_ssl_context()  # shared by all clients, because it takes megabytes
        self._forwarder = Forwarder(settings, self._stop, connections=len(kinds), tls=self._tls)
        self.consumers: dict[str, Consumer[Any]] = {kind: self._create_consumer(kind) for kind in kinds}
        self._probe = open_probe("Pulse", settings, self.state, self.exposition)

    def _create_consumer(self, kind: str) -> Consumer[Any]:
        settings = self._settings
        queue = queue_name(kind, settings)

        def count_verdicts(verdict: str, events: int) -> None:
            consumer.counts[verdict] += events

        def report(presence: QueuePresence) -> None:
            self._report(kind, queue, presence)

        parse: Callable[[str, Any, Any, bytes], Any] = encode_task_event if kind == "tasks" else encode_job_action
        handle: Callable[[list[Any], AckChannel], None]
        on_idle = None
        if kind == "pushes":
            self._announced = AnnouncedPoller(settings, self._forwarder, self._stop, self._tls)
            parse, handle = parse_announcement, self._announced.poll_announced
        else:
            path = f"/api/v1/events/{kind}"
            counts_presses = kind == "job-actions"  # a task event changes nothing when it comes twice
            sender = EventSender(
                path, self._forwarder, settings, self._stop, count_verdicts, counts_presses=counts_presses
            )
            handle, on_idle = sender.send, sender.report_confirmed
        consumer = Consumer(
            queue,
            queue_bindings(kind, settings),
            settings,
            self._parameters,
            self._stop,
            parse,
            handle,
            report,
            on_idle,
        )
        return consumer

    def _report(self, kind: str, queue: str, presence: QueuePresence) -> None:
        report = QueueReport.model_validate({"queue": queue, "events": kind, "found": presence})
        body = encode_json(report.model_dump())
        # until now: a single attempt
        state = self._forwarder.post("/api/v1/listeners/report", body, QueueState, until=boottime())
        if presence == "new" and state.deleted:
            self.consumers[kind].record_deletion(f"since it was last read, at {state.messages_lost_since}")

    def stop(self) -> None:
        """Let `run` return: no more is read, and what was read may be handled within `drain`. From any thread."""
        self._stop.set()

    def run(self) -> None:
        """Listen until `stop()`. Messages that are not handled within `drain` stay at the broker."""
        settings = self._settings
        with ExitStack() as stack:
            if self._probe is not None:
                stack.enter_context(self._probe)
                log.info("probe", host=settings.probe_host, port=self._probe.port)
            queues = [consumer.queue for consumer in self.consumers.values()]
            log.info("listening", service=settings.service, queues=queues)
            # daemon threads: a broker or service that does not answer must not delay the end of the process
            threads = [
                threading.Thread(target=self._guard, args=(target,), name=f"{kind} {role}", daemon=True)
                for kind, consumer in self.consumers.items()
                for role, target in (
                    ("reader", consumer.read_until_stopped),
                    ("handler", consumer.handle_until_stopped),
                )
            ]
            for thread in threads:
                thread.start()
            self._stop.wait()
            until = time.monotonic() + settings.drain.total_seconds() + SHUTDOWN_GRACE
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

    def _guard(self, target: Callable[[], None]) -> None:
        """Run `target` of a thread, and stop the listener if it raises."""
        try:
            target()
        except Exception as error:  # noqa: BLE001 - run() raises it on the main thread
            self._failure = self._failure or error
            self._stop.set()

    def exposition(self) -> bytes:
        """Return the metrics of this process."""
        return metrics.exposition(
            {
                consumer.queue: metrics.QueueState(
                    consumer.connected, len(consumer.inbox), len(consumer.missing_exchanges)
                )
                for consumer in self.consumers.values()
            }
        )

    def state(self) -> dict[str, Any]:
        """Return the listener's health for the probe; `error` means that a queue cannot be read for a while."""
        max_seconds = self._settings.unhealthy_after.total_seconds()
        queues = {}
        worst = "ok"
        for consumer in self.consumers.values():
            has_warning = not consumer.connected or consumer.missing_exchanges or consumer.counts["deleted"]
            is_error = consumer.seconds_since_connected > max_seconds
            status = "error" if is_error else "warning" if has_warning else "ok"
            worst = max(worst, status, key=["ok", "warning", "error"].index)
            queues[consumer.queue] = {
                "status": status,
                "connected": consumer.connected,
                "seconds_since_connected": round(consumer.seconds_since_connected, 1),
                "waiting": len(consumer.inbox),
                "missing_exchanges": consumer.missing_exchanges,
                **dict(sorted(consumer.counts.items())),
            }
        return {"status": worst, "queues": queues}


def kinds_to_read(settings: ListenerSettings) -> list[str]:
    """Return the kinds of queues that the listener reads: without environments, no task events."""
    return [kind for kind in settings.pulse_read if kind != "tasks" or settings.environments]


def queue_name(kind: str, settings: ListenerSettings) -> str:
    """Return the name of a queue."""
    return f"queue/{queue_owner(settings)}/{settings.pulse_queue}/{kind}"


def queue_bindings(kind: str, settings: ListenerSettings) -> list[Binding]:
    """Return the bindings of a queue."""
    if kind == "job-actions":
        # <build_system_type>.<project>.<action>; some publishers add a trailing dot
        return [Binding(settings.pulse_job_actions, ("taskcluster.#",))]
    if kind == "pushes":
        return [Binding(settings.pulse_pushes, ("#",))]
    # a message is also routed by its task's routes, which its CC header has, each with `route.` before it
    keys = tuple(f"route.{prefix}.#" for prefix in settings.environments)
    return [Binding(f"{settings.pulse_tasks}task-{event}", keys) for event in TASK_EVENTS]


def connection_parameters(settings: ListenerSettings) -> Any:
    """Return pika's parameters of a connection. Raises SettingsError.

    With `amqps://`, the connection uses TLS, and certificate and host name are verified.
    """
    url = _pulse_url(settings)
    try:
        if urlsplit(url).scheme not in {"amqp", "amqps"}:
            raise ValueError("pika takes http for amqp")
        parameters = pika.URLParameters(url)
    except Exception as error:  # noqa: BLE001 - pika raises whatever its parts raise
        # the error may hold the password
        name = settings.pulse_variables[0]
        remedy = URL_REMEDY.replace(PULSE_URL, name)
        raise SettingsError(f"{name} cannot be understood ({type(error).__name__}): {remedy}") from None
    timeout = settings.pulse_timeout.total_seconds()
    parameters.socket_timeout = timeout
    parameters.stack_timeout = timeout + 1
    parameters.blocked_connection_timeout = settings.pulse_blocked.total_seconds()
    if "heartbeat=" not in urlsplit(url).query:
        parameters.heartbeat = settings.pulse_heartbeat
    parameters.client_properties = {"connection_name": "tc-treeherder listen pulse"}
    return parameters


def queue_owner(settings: ListenerSettings) -> str:
    """Return the Pulse user in whose name the queues are: Pulse allows no other names."""
    return settings.pulse_user or settings.pulse.user or unquote(urlsplit(_pulse_url(settings)).username or "guest")


def _pulse_url(settings: ListenerSettings) -> str:
    url = settings.pulse_url or settings.pulse.url
    if url is None:
        raise SettingsError(f"pulse.url is not set, and the Pulse listener needs it: {URL_REMEDY}")
    return url.get_secret_value()


def main(configure_log: ConfigureLog | None = None) -> int:
    """Run the Pulse listener until SIGTERM or SIGINT; see `process.run_listener`."""

    def create(settings: ListenerSettings) -> PulseListener:
        # pika logs every failure several times, with a traceback; the listener logs each one once
        logging.getLogger("pika").setLevel(logging.CRITICAL)
        return PulseListener(settings)

    return run_listener("listen-pulse", create, configure_log)
