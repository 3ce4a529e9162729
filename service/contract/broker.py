"""Put an AMQP broker's errors into words, with the remedy, for those who read from Pulse and who publish to it."""

from collections.abc import Iterable

import pika
import pika.exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from service.contract.configuration import PULSE_URL, PULSE_USER

BROKER_ERRORS = (pika.exceptions.AMQPError, AMQPConnectorException, OSError)
"""Errors of pika when a broker is unreachable, disconnects, refuses, or accepts a connection and does not answer."""

URL_REMEDY = f"set {PULSE_URL} to amqps://user:password@pulse.mozilla.org:5671/%2F"


def error_text(error: BaseException) -> str:
    """Return type and message of an error of pika, which may have no message and wrap the error that has one."""
    texts: list[str] = []
    for cause in _wrapped_errors(error):
        message = " ".join(str(cause).split())
        texts.append(f"{type(cause).__name__}: {message}".rstrip(": "))
    return "; ".join(texts)


def _wrapped_errors(error: BaseException) -> Iterable[BaseException]:
    causes = [value for value in (*error.args, getattr(error, "exception", None)) if isinstance(value, BaseException)]
    if not causes:
        yield error
    for cause in causes:
        yield from _wrapped_errors(cause)


def find_remedy(error: BaseException, url: str = PULSE_URL, user: str = PULSE_USER) -> str | None:
    """Return what a person can do about an error, None if nothing is known.

    `url` and `user` are the variables that the program reads.
    """
    text = error_text(error)
    for sign, remedy in _REMEDIES:
        if sign in text if isinstance(sign, str) else isinstance(error, sign):
            return remedy.format(url=url, user=user)
    return None


_REMEDIES: list[tuple[str | tuple[type[BaseException], ...], str]] = [
    (
        "CERTIFICATE_VERIFY_FAILED",
        "The broker's certificate is not trusted: check the host in {url}, or set SSL_CERT_FILE to your own CA.",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "The port does not speak TLS: check the port in {url} (Pulse has 5671; a broker without TLS "
        "has 5672 and amqp://).",
    ),
    (
        (pika.exceptions.IncompatibleProtocolError,),
        "The port does not speak AMQP without TLS: check the port in {url}, and whether the URL must "
        "begin with amqps://.",
    ),
    (
        (pika.exceptions.AuthenticationError, pika.exceptions.ProbableAuthenticationError),
        "The broker does not accept the login: check user and password in {url}.",
    ),
    (
        (pika.exceptions.ProbableAccessDeniedError,),
        "The broker does not open the virtual host: check the virtual host at the end of {url} (Pulse has %2F).",
    ),
    (
        "ACCESS_REFUSED",
        "The user may only use exchanges and queues named after it (exchange/<user>/…, queue/<user>/…): check {user}.",
    ),
]
"""Words in an error's text, or its type, with the remedy. The first entry that matches applies."""
