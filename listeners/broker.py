"""The broker's errors in words, with what to do about them, and how a connection is closed."""

from collections.abc import Iterable
from typing import Any

import pika
import pika.exceptions
import structlog
from pika.adapters.utils.connection_workflow import AMQPConnectorException

log = structlog.get_logger()

BROKER_ERRORS = (pika.exceptions.AMQPError, AMQPConnectorException, OSError)
"""What pika raises when a broker is away, breaks off, refuses, or takes a connection and then says nothing."""

ACCESS_REFUSED = 403
"""AMQP's reply code to who may not do something."""


def _wanted(error: pika.exceptions.ChannelClosedByBroker) -> str:
    return "this user may read it" if error.reply_code == ACCESS_REFUSED else "it is there"


def close(connection: Any) -> None:
    try:
        if connection.is_open:
            connection.close()
    except BROKER_ERRORS as error:
        log.info("close-failed", error=told(error))


def told(error: BaseException) -> str:
    """An error of pika's in words: many have none of their own, and hold another that has."""
    parts: list[str] = []
    for part in _within(error):
        words = " ".join(str(part).split())
        parts.append(f"{type(part).__name__}: {words}".rstrip(": "))
    return "; ".join(parts)


def _within(error: BaseException) -> Iterable[BaseException]:
    inner = [part for part in (*error.args, getattr(error, "exception", None)) if isinstance(part, BaseException)]
    if not inner:
        yield error
    for part in inner:
        yield from _within(part)


def remedy(error: BaseException) -> dict[str, str]:
    """What to do about it, where a person has to."""
    words = told(error)
    for sign, what in _REMEDIES:
        if sign in words if isinstance(sign, str) else isinstance(error, sign):
            return {"remedy": what}
    return {}


_REMEDIES: list[tuple[str | tuple[type[BaseException], ...], str]] = [
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the broker's certificate is not trusted: check the host in the url, or name your own CA in SSL_CERT_FILE",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "nothing speaks TLS there: check the port in TC_TREEHERDER_PULSE_URL (Pulse's is 5671; a broker without TLS "
        "has 5672 and amqp://)",
    ),
    (
        (pika.exceptions.IncompatibleProtocolError,),
        "nothing speaks AMQP without TLS there: check the port in TC_TREEHERDER_PULSE_URL, and whether it must begin "
        "with amqps://",
    ),
    (
        (pika.exceptions.AuthenticationError, pika.exceptions.ProbableAuthenticationError),
        "check user and password in TC_TREEHERDER_PULSE_URL",
    ),
    (
        (pika.exceptions.ProbableAccessDeniedError,),
        "check the virtual host, which is the end of TC_TREEHERDER_PULSE_URL: Pulse's is %2F",
    ),
    (
        "ACCESS_REFUSED",
        "the user may use queues named queue/<user>/… only: check TC_TREEHERDER_PULSE_USER",
    ),
]
"""What words of an error, or its type, tell of; the first that fits."""
