"""Pulse: it lets us in, over TLS; our user may declare; the exchanges are there, and the queues are read."""

import contextlib
import secrets
import ssl
from collections.abc import Iterator
from typing import Any

import pika
import pika.exceptions

from listeners import pulse as listening
from listeners.broker import BROKER_ERRORS, error_text, find_remedy
from listeners.settings import ListenerSettings
from service.auth import loopback
from service.clients.pulse import exchanges
from service.commands.doctor.finding import Examination, Report, apart
from service.contract.configuration import SettingsError

NOT_FOUND = 404

MANY, TOO_MANY = 500, 2_000
"""Messages that wait in a queue: Pulse deletes one of a few thousand."""

PERMISSIONS = "user and password in the URL must be a Pulse user's, and exchanges and queues named after that user"


async def publisher(report: Report, ex: Examination) -> None:
    """Where the service publishes."""
    settings = ex.settings.pulse
    if settings.url is None:
        return
    try:
        parameters = pika.URLParameters(settings.url.get_secret_value())
    except Exception as error:  # noqa: BLE001 - pika raises whatever its parts do
        # its words may hold the password
        detail = f"pulse.url cannot be understood ({type(error).__name__})"
        report.error("connection", detail, "set TC_TREEHERDER_PULSE__URL to amqps://user:password@host:5671/%2F")
        return

    def look() -> None:
        with _connected(report, parameters, ex.seconds) as connection:
            if connection is None:
                return
            for exchange in exchanges(ex.settings):
                # as the publisher does it at its start
                declared = _try(
                    connection, lambda channel, name=exchange: channel.exchange_declare(name, "topic", durable=True)
                )
                if isinstance(declared, Exception):
                    remedy = f"check pulse.user and environments.<prefix>.pushes_exchange: {PERMISSIONS}"
                    report.error("exchange", f"{exchange}: {error_text(declared)}", remedy)
                else:
                    report.ok("exchange", exchange)

    await apart(look)


async def listener(report: Report, ex: Examination) -> None:
    """What the Pulse listener reads."""
    settings = ex.listeners
    if settings is None:
        report.warning("connection", "not checked: the listeners' settings are wrong", "see the finding on settings")
        return
    if (settings.pulse_url or settings.pulse.url) is None:
        detail = "no pulse_url: buttons of Treeherder are not heard, and jobs are not reported"
        report.warning("connection", detail, listening.URL_REMEDY)
        return
    try:
        parameters, user = listening.connection_parameters(settings), listening.queue_owner(settings)
    except SettingsError as error:
        report.error("connection", str(error), listening.URL_REMEDY)
        return

    def look() -> None:
        with _connected(report, parameters, ex.seconds) as connection:
            if connection is not None:
                _permission(report, connection, f"queue/{user}/{settings.pulse_queue}")
                _exchanges(report, connection, settings)
                _queues(report, connection, settings)

    await apart(look)


@contextlib.contextmanager
def _connected(report: Report, parameters: Any, seconds: float) -> Iterator[Any]:
    """A connection; None when there is none, which is reported."""
    where = f"{parameters.host}:{parameters.port}"
    # the way there may take most of the time that the whole check has, so that it is said which way it was
    parameters.socket_timeout = min(parameters.socket_timeout, 0.8 * seconds)
    parameters.stack_timeout = parameters.socket_timeout
    parameters.connection_attempts = 1
    try:
        connection = pika.BlockingConnection(parameters)
    except BROKER_ERRORS as error:
        remedy = find_remedy(error) or "check host and port in the URL, and the way there"
        report.error("connection", f"{where}: {error_text(error)}", remedy)
        yield None
        return
    try:
        judge_tls(report, parameters, where)
        yield connection
    finally:
        with contextlib.suppress(pika.exceptions.AMQPError, OSError):  # nothing is left that a close could lose
            connection.close()


def judge_tls(report: Report, parameters: Any, where: str) -> None:
    """Say whether others can read along."""
    if parameters.ssl_options is not None:
        context = parameters.ssl_options.context
        if context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname:
            report.ok("connection", f"{where}, TLS verified")
        else:
            remedy = "leave ssl_options out of the URL; name your own CA in SSL_CERT_FILE"
            report.error("connection", f"{where}: whose certificate it shows is not verified", remedy)
    elif loopback(f"[{parameters.host}]" if ":" in parameters.host else parameters.host):
        report.ok("connection", where)
    else:
        report.warning(
            "connection", f"{where} without TLS: password and messages are readable on the way", "use amqps://"
        )


def _try(connection: Any, call: Any) -> Any:
    """What `call` of a new channel returns, or why the broker closed the channel."""
    channel = connection.channel()
    try:
        answer = call(channel)
    except pika.exceptions.ChannelClosedByBroker as error:
        return error
    channel.close()
    return answer


def _permission(report: Report, connection: Any, prefix: str) -> None:
    # a queue of our own that is bound to nothing, and goes with the connection
    name = f"{prefix}/doctor-{secrets.token_hex(4)}"
    declared = _try(
        connection, lambda channel: channel.queue_declare(name, durable=False, exclusive=True, auto_delete=True)
    )
    if isinstance(declared, Exception):
        report.error("declare", f"{prefix}/…: {error_text(declared)}", f"check pulse_user: {PERMISSIONS}")
    else:
        report.ok("declare", f"{prefix}/… may be declared")


def _exchanges(report: Report, connection: Any, settings: ListenerSettings) -> None:
    """Other people's exchanges are looked for only, never made."""
    wanted = {
        binding.exchange
        for kind in listening.kinds_to_read(settings)
        for binding in listening.queue_bindings(kind, settings)
    }
    for exchange in sorted(wanted):
        found = _try(connection, lambda channel, name=exchange: channel.exchange_declare(name, passive=True))
        if isinstance(found, Exception):
            remedy = "check the names pulse_job_actions, pulse_tasks, pulse_pushes: nothing is heard from it"
            report.error("exchange", f"{exchange}: {error_text(found)}", remedy)
        else:
            report.ok("exchange", exchange)


def _queues(report: Report, connection: Any, settings: ListenerSettings) -> None:
    for kind in listening.kinds_to_read(settings):
        name = listening.queue_name(kind, settings)
        found = _try(connection, lambda channel, queue=name: channel.queue_declare(queue, passive=True))
        if isinstance(found, Exception):
            if getattr(found, "reply_code", None) == NOT_FOUND:
                report.warning(
                    "queue", f"{name} is not there: nothing is kept for us", "`tc-treeherder listen pulse` makes it"
                )
            else:
                report.error("queue", f"{name}: {error_text(found)}", PERMISSIONS)
            continue
        waiting, readers = found.method.message_count, found.method.consumer_count
        state = f"{name}: {waiting:,} messages wait, {readers} read it"
        remedy = (
            "start `tc-treeherder listen pulse`; when it runs, see its log: Pulse deletes a queue of a few thousand"
        )
        if waiting >= TOO_MANY:
            report.error("queue", state, remedy)
        elif waiting >= MANY or not readers:
            report.warning("queue", state, remedy)
        else:
            report.ok("queue", state)
