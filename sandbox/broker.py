"""The RabbitMQ that a stack or the demo uses: whether it can be used, and what a stack leaves there, which is nothing.

Everything is named after the stack's own user (`exchange/<user>/…`, `queue/<user>/…`), also what stands for other
people's exchanges. So a press of a stack's button is heard by this stack alone, whoever else listens at the broker,
and what is removed is nobody else's.
"""

import contextlib
import secrets
from collections.abc import Iterator

import pika
import pika.exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from listeners.broker import error_text
from sandbox.taskcluster.pulse import TASK_EXCHANGES
from sandbox.treeherder.job_actions import JOB_ACTIONS_EXCHANGE
from service.clients.pulse import ANNOUNCEMENTS, HGPUSHES, JOBS, RETRIGGERS, exchange_name

LOCAL = "amqp://guest:guest@127.0.0.1:5672/%2F"
"""A RabbitMQ as its package or image installs it."""

PATIENCE = 10.0
"""Seconds for a broker that ought to be there."""


class BrokerError(RuntimeError):
    """A broker cannot be used; the message says where and why, without the password."""


def new_user() -> str:
    """A name for a stack's queues and exchanges that no other stack has."""
    return f"sandbox-{secrets.token_hex(4)}"


def exchange_prefix(user: str) -> str:
    """What goes before the names of other systems' exchanges, to make them this user's."""
    return f"exchange/{user}/"


def exchanges(user: str) -> list[str]:
    """All that the sandbox and the service may make for this user."""
    ours = [exchange_name(user, name) for name in (HGPUSHES, ANNOUNCEMENTS, RETRIGGERS, JOBS)]
    return [exchange_prefix(user) + name for name in (*TASK_EXCHANGES, JOB_ACTIONS_EXCHANGE)] + ours


def queues(user: str) -> list[str]:
    """All that the Pulse listener may make for this user, with the default `pulse_queue`."""
    return [f"queue/{user}/tc-treeherder/{events}" for events in ("job-actions", "tasks", "pushes")]


def address(url: str) -> str:
    """Host and port, for people. Raises BrokerError."""
    parameters = _parameters(url, PATIENCE)
    return f"{parameters.host}:{parameters.port}"


def check(url: str, seconds: float = PATIENCE) -> None:
    """Make an exchange and a queue and send a message through both; nothing of it stays. Raises BrokerError.

    `seconds` are for the way to the broker, and again for one that is too short of memory or disk to take messages.
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
        channel.queue_delete(queue)  # and the exchange goes with its last queue


def remove(url: str, user: str) -> None:
    """Delete the user's queues and exchanges, those that are there. Raises BrokerError."""
    with _connected(url, PATIENCE) as connection:
        channel = connection.channel()
        for queue in queues(user):
            channel.queue_delete(queue)
        for exchange in exchanges(user):
            channel.exchange_delete(exchange)


@contextlib.contextmanager
def _connected(url: str, seconds: float) -> Iterator[pika.BlockingConnection]:
    """A connection; whatever pika raises meanwhile is a BrokerError."""
    parameters = _parameters(url, seconds)
    try:
        with pika.BlockingConnection(parameters) as connection:
            yield connection
    except Exception as error:
        raise BrokerError(f"no usable broker at {parameters.host}:{parameters.port} ({_why(error)})") from error


def _parameters(url: str, seconds: float) -> pika.URLParameters:
    try:
        parameters = pika.URLParameters(url)
    except Exception as error:  # noqa: BLE001 - pika raises whatever its parts do
        # its words may hold the password
        raise BrokerError(f"the broker's URL cannot be understood ({type(error).__name__})") from None
    parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = seconds
    parameters.connection_attempts = 1
    return parameters


def _why(error: Exception) -> str:
    if isinstance(error, pika.exceptions.IncompatibleProtocolError | AMQPConnectorStackTimeout):
        return f"what listens there does not answer as RabbitMQ does: {error_text(error)}"
    if isinstance(error, pika.exceptions.ProbableAuthenticationError):
        return "it does not take this user and password"
    return error_text(error)
