"""Check Pulse: it accepts us, over TLS; our user may declare; exchanges exist, and queues are read."""

import contextlib
import secrets
import ssl
from collections.abc import Iterator
from typing import Any

import pika
import pika.exceptions

from listeners import pulse as listening
from listeners.settings import ListenerSettings
from service.auth import loopback
from service.clients.pulse import exchanges
from service.commands.doctor.finding import Examination, Report, run_in_thread
from service.contract.broker import BROKER_ERRORS, URL_REMEDY, error_text, find_remedy
from service.contract.configuration import PULSE_URL, PULSE_USER, SettingsError

NOT_FOUND = 404

MANY, TOO_MANY = 500, 2_000
"""Waiting messages that are a warning and an error: Pulse deletes a queue with a few thousand."""

PERMISSIONS = "user and password in the URL must be a Pulse user's, and exchanges and queues named after that user"


async def publisher(report: Report, examination: Examination) -> None:
    """Check the exchanges that the service publishes to."""
    settings = examination.settings.pulse
    if settings.url is None:
        return
    try:
        parameters = pika.URLParameters(settings.url.get_secret_value())
    except Exception as error:  # noqa: BLE001 - pika raises many types
        # without its text, which may contain the password
        detail = f"pulse.url is not valid ({type(error).__name__})"
        report.error("connection", detail, URL_REMEDY)
        return

    def check_exchanges() -> None:
        with _connected(report, parameters, examination.seconds, PULSE_URL, PULSE_USER) as connection:
            if connection is None:
                return
            for exchange in exchanges(examination.settings):
                # as the publisher does when it starts
                declared = _try(
                    connection, lambda channel, name=exchange: channel.exchange_declare(name, "topic", durable=True)
                )
                if isinstance(declared, Exception):
                    remedy = f"check pulse.user and environments.<prefix>.pushes_exchange: {PERMISSIONS}"
                    report.error("exchange", f"{exchange}: {error_text(declared)}", remedy)
                else:
                    report.ok("exchange", exchange)

    await run_in_thread(check_exchanges)


async def listener(report: Report, examination: Examination) -> None:
    """Check the exchanges and queues that the Pulse listener reads."""
    settings = examination.listeners
    if settings is None:
        report.warning("connection", "not checked: the listeners' settings are invalid", "see the finding on settings")
        return
    if (settings.pulse_url or settings.pulse.url) is None:
        detail = "no pulse.url: buttons of Treeherder have no effect, and jobs are not reported"
        report.warning("connection", detail, URL_REMEDY)
        return
    try:
        parameters, user = listening.connection_parameters(settings), listening.queue_owner(settings)
    except SettingsError as error:
        report.error("connection", str(error), URL_REMEDY)
        return

    def check_queues() -> None:
        with _connected(report, parameters, examination.seconds, *settings.pulse_variables) as connection:
            if connection is not None:
                _permission(report, connection, f"queue/{user}/{settings.pulse_queue}")
                _exchanges(report, connection, settings)
                _queues(report, connection, settings)

    await run_in_thread(check_queues)


@contextlib.contextmanager
def _connected(report: Report, parameters: Any, seconds: float, url_variable: str, user_variable: str) -> Iterator[Any]:
    """Connect, and close the connection after the block. Yield None, and report the error, if that fails."""
    address = f"{parameters.host}:{parameters.port}"
    # less than the whole check may take, so that its finding says that the connection was the problem
    parameters.socket_timeout = min(parameters.socket_timeout, 0.8 * seconds)
    parameters.stack_timeout = parameters.socket_timeout
    parameters.connection_attempts = 1
    try:
        connection = pika.BlockingConnection(parameters)
    except BROKER_ERRORS as error:
        remedy = find_remedy(error, url_variable, user_variable)
        remedy = remedy or f"check host and port in {url_variable}, and the network on the way"
        report.error("connection", f"{address}: {error_text(error)}", remedy)
        yield None
        return
    try:
        judge_tls(report, parameters, address)
        yield connection
    finally:
        with contextlib.suppress(pika.exceptions.AMQPError, OSError):  # a failed close loses nothing
            connection.close()


def judge_tls(report: Report, parameters: Any, address: str) -> None:
    """Report whether the connection is encrypted, and the certificate verified."""
    if parameters.ssl_options is not None:
        context = parameters.ssl_options.context
        if context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname:
            report.ok("connection", f"{address}, TLS verified")
        else:
            remedy = "remove ssl_options from the URL; set SSL_CERT_FILE for a CA of your own"
            report.error("connection", f"{address}: its certificate is not verified", remedy)
    elif loopback(f"[{parameters.host}]" if ":" in parameters.host else parameters.host):
        report.ok("connection", address)
    else:
        report.warning(
            "connection", f"{address} without TLS: password and messages are readable on the way", "use amqps://"
        )


def _try(connection: Any, call: Any) -> Any:
    """Call with a new channel. Return the result, or the error with which the broker closed the channel."""
    channel = connection.channel()
    try:
        answer = call(channel)
    except pika.exceptions.ChannelClosedByBroker as error:
        return error
    channel.close()
    return answer


def _permission(report: Report, connection: Any, prefix: str) -> None:
    # an unbound queue, which is deleted with the connection
    name = f"{prefix}/doctor-{secrets.token_hex(4)}"
    declared = _try(
        connection, lambda channel: channel.queue_declare(name, durable=False, exclusive=True, auto_delete=True)
    )
    if isinstance(declared, Exception):
        report.error("declare", f"{prefix}/…: {error_text(declared)}", f"check pulse_user: {PERMISSIONS}")
    else:
        report.ok("declare", f"{prefix}/… may be declared")


def _exchanges(report: Report, connection: Any, settings: ListenerSettings) -> None:
    """Check that the exchanges exist, without declaring them, because they belong to other users."""
    names = {
        binding.exchange
        for kind in listening.kinds_to_read(settings)
        for binding in listening.queue_bindings(kind, settings)
    }
    for exchange in sorted(names):
        result = _try(connection, lambda channel, name=exchange: channel.exchange_declare(name, passive=True))
        if isinstance(result, Exception):
            remedy = "check the settings pulse_job_actions, pulse_tasks, pulse_pushes: this exchange cannot be read"
            report.error("exchange", f"{exchange}: {error_text(result)}", remedy)
        else:
            report.ok("exchange", exchange)


def _queues(report: Report, connection: Any, settings: ListenerSettings) -> None:
    for kind in listening.kinds_to_read(settings):
        name = listening.queue_name(kind, settings)
        result = _try(connection, lambda channel, queue=name: channel.queue_declare(queue, passive=True))
        if isinstance(result, Exception):
            if getattr(result, "reply_code", None) == NOT_FOUND:
                detail = f"{name} does not exist: messages are lost"
                report.warning("queue", detail, "start `tc-treeherder listen pulse`, which declares it")
            else:
                report.error("queue", f"{name}: {error_text(result)}", PERMISSIONS)
            continue
        waiting, consumers = result.method.message_count, result.method.consumer_count
        detail = f"{name}: {waiting:,} messages wait, {consumers} consumers"
        remedy = (
            "start `tc-treeherder listen pulse`, or see its log: Pulse deletes a queue with a few thousand messages"
        )
        if waiting >= TOO_MANY:
            report.error("queue", detail, remedy)
        elif waiting >= MANY or not consumers:
            report.warning("queue", detail, remedy)
        else:
            report.ok("queue", detail)
