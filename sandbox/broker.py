"""Check the RabbitMQ that a stack or the demo uses, and remove from it what the stack made.

Everything is named after the stack's own user (`exchange/<user>/…`, `queue/<user>/…`), including the stand-ins for
exchanges of other systems. So only this stack receives the presses of its own buttons, although others may listen at
the same broker, and only what the stack made is removed.
"""

import contextlib
import secrets
from collections.abc import Iterator

import pika
import pika.exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from sandbox.taskcluster.pulse import TASK_EXCHANGES
from sandbox.treeherder.job_actions import JOB_ACTIONS_EXCHANGE
from service.clients.pulse import ANNOUNCEMENTS, HGPUSHES, JOBS, RETRIGGERS, exchange_name
from service.contract.broker import error_text

LOCAL = "amqp://guest:guest@127.0.0.1:5672/%2F"
"""A RabbitMQ as its package or image installs it."""

PATIENCE = 10.0
"""Seconds for a broker that ought to be there."""


class BrokerError(RuntimeError):
    """An error of a broker that cannot be used; the message has its address and the reason, and no password."""


def new_user() -> str:
    """Return a user name for a stack's queues and exchanges that no other stack has."""
    return f"sandbox-{secrets.token_hex(4)}"


def exchange_prefix(user: str) -> str:
    """Return the prefix that makes the names of other systems' exchanges this user's own."""
    return f"exchange/{user}/"


def exchanges(user: str) -> list[str]:
    """Return the names of all exchanges that the sandbox and the service may declare for this user."""
    service_exchanges = [exchange_name(user, name) for name in (HGPUSHES, ANNOUNCEMENTS, RETRIGGERS, JOBS)]
    return [exchange_prefix(user) + name for name in (*TASK_EXCHANGES, JOB_ACTIONS_EXCHANGE)] + service_exchanges


def queues(user: str) -> list[str]:
    """Return the names of all queues that the Pulse listener may declare for this user by default."""
    return [f"queue/{user}/tc-treeherder/{events}" for events in ("job-actions", "tasks", "pushes")]


def address(url: str) -> str:
    """Return host and port of the URL. Raises BrokerError."""
    parameters = _parameters(url, PATIENCE)
    return f"{parameters.host}:{parameters.port}"


def check(url: str, seconds: float = PATIENCE) -> None:
    """Declare an exchange and a queue, send a message through both, and remove them. Raises BrokerError.

    `seconds` limits the connecting, and again the wait for a broker that is too short of memory or disk for messages.
    """
    name = f"{new_user()}/check"
    exchange, queue = f"exchange/{name}", f"queue/{name}"
    with _connected(url, seconds) as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange, "topic", auto_delete=True)
        channel.queue_declare(queue, exclusive=True)
        channel.queue_bind(queue, exchange, "#")
        channel.confirm_delivery()
        channel.basic_publish(exchange, "check", b"", mandatory=True)
        channel.queue_delete(queue)  # the exchange is deleted with its last queue


def remove(url: str, user: str) -> None:
    """Delete the user's queues and exchanges, as far as they exist. Raises BrokerError."""
    with _connected(url, PATIENCE) as connection:
        channel = connection.channel()
        for queue in queues(user):
            channel.queue_delete(queue)
        for exchange in exchanges(user):
            channel.exchange_delete(exchange)


@contextlib.contextmanager
def _connected(url: str, seconds: float) -> Iterator[pika.BlockingConnection]:
    """Yield a connection; turn everything that pika raises meanwhile into BrokerError."""
    parameters = _parameters(url, seconds)
    try:
        with pika.BlockingConnection(parameters) as connection:
            yield connection
    except Exception as error:
        raise BrokerError(
            f"The broker at {parameters.host}:{parameters.port} cannot be used ({_describe(error)})"
        ) from error


def _parameters(url: str, seconds: float) -> pika.URLParameters:
    try:
        parameters = pika.URLParameters(url)
    except Exception as error:  # noqa: BLE001 - pika raises the errors of its parts, too
        # its text may contain the password
        raise BrokerError(f"The broker's URL cannot be parsed ({type(error).__name__})") from None
    parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = seconds
    parameters.connection_attempts = 1
    return parameters


def _describe(error: Exception) -> str:
    if isinstance(error, pika.exceptions.IncompatibleProtocolError | AMQPConnectorStackTimeout):
        return f"the server there does not speak RabbitMQ's protocol: {error_text(error)}"
    if isinstance(error, pika.exceptions.ProbableAuthenticationError):
        return "it rejects this user and password"
    return error_text(error)
