"""Put an AMQP broker's errors into words, with the remedy, and close its connections."""

from collections.abc import Iterable
from typing import Any

import pika
import pika.exceptions
import structlog
from pika.adapters.utils.connection_workflow import AMQPConnectorException

log = structlog.get_logger()

BROKER_ERRORS = (pika.exceptions.AMQPError, AMQPConnectorException, OSError)
"""Errors of pika when a broker is unreachable, disconnects, refuses, or accepts a connection and does not answer."""

ACCESS_REFUSED = 403
"""AMQP's reply code for a missing permission."""


def close_connection(connection: Any) -> None:
    """Close a connection that may be broken already."""
    try:
        if connection.is_open:
            connection.close()
    except BROKER_ERRORS as error:
        log.info("close-failed", error=error_text(error))


def error_text(error: BaseException) -> str:
    """Return type and message of an error of pika, which may have no message and wrap the error that has one."""
    texts: list[str] = []
    for cause in _wrapped_errors(error):
        message = " ".join(str(cause).split())
        texts.append(f"{type(cause).__name__}: {message}".rstrip(": "))
    return "; ".join(texts)


def unbound_reason(error: pika.exceptions.ChannelClosedByBroker) -> str:
    """Return why a queue cannot be bound to an exchange."""
    return "this user may not read it" if error.reply_code == ACCESS_REFUSED else "it does not exist"


def _wrapped_errors(error: BaseException) -> Iterable[BaseException]:
    causes = [value for value in (*error.args, getattr(error, "exception", None)) if isinstance(value, BaseException)]
    if not causes:
        yield error
    for cause in causes:
        yield from _wrapped_errors(cause)


def find_remedy(error: BaseException) -> str | None:
    """Return what a person can do about an error, None if nothing is known."""
    text = error_text(error)
    for sign, remedy in _REMEDIES:
        if sign in text if isinstance(sign, str) else isinstance(error, sign):
            return remedy
    return None


_REMEDIES: list[tuple[str | tuple[type[BaseException], ...], str]] = [
    (
        "CERTIFICATE_VERIFY_FAILED",
        "The broker's certificate is not trusted: check the host in TC_TREEHERDER_PULSE_URL, or set SSL_CERT_FILE to "
        "your own CA.",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "The port does not speak TLS: check the port in TC_TREEHERDER_PULSE_URL (Pulse has 5671; a broker without TLS "
        "has 5672 and amqp://).",
    ),
    (
        (pika.exceptions.IncompatibleProtocolError,),
        "The port does not speak AMQP without TLS: check the port in TC_TREEHERDER_PULSE_URL, and whether the URL must "
        "begin with amqps://.",
    ),
    (
        (pika.exceptions.AuthenticationError, pika.exceptions.ProbableAuthenticationError),
        "The broker does not accept the login: check user and password in TC_TREEHERDER_PULSE_URL.",
    ),
    (
        (pika.exceptions.ProbableAccessDeniedError,),
        "The broker does not open the virtual host: check the virtual host at the end of TC_TREEHERDER_PULSE_URL "
        "(Pulse has %2F).",
    ),
    (
        "ACCESS_REFUSED",
        "The user may only use queues named queue/<user>/…: check TC_TREEHERDER_PULSE_USER.",
    ),
]
"""Words in an error's text, or its type, with the remedy. The first entry that matches applies."""
