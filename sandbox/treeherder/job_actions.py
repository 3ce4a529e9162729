"""Publish job actions on Pulse, as a button on Treeherder's page does."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Literal

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel
from pydantic import BaseModel, ConfigDict, Field

JOB_ACTIONS_EXCHANGE = "exchange/treeherder/v1/job-actions"


class Press(BaseModel):
    """A button pressed on Treeherder's page; further fields are passed on in the message."""

    model_config = ConfigDict(extra="allow")

    project: str
    job_guid: str
    action: Literal["backfill", "cancel", "retrigger"]
    requester: str
    trailing_dot: bool = Field(False, description="whether the routing key ends in a dot, as some publishers have it")


def declare_job_actions(amqp_url: str, exchange: str = JOB_ACTIONS_EXCHANGE) -> None:
    """Declare the exchange, because listeners may not, and look for it before the first press.

    Raises pika's AMQPError if the broker is away or refuses. Blocks: do not call it on the event loop's thread.
    """
    with _job_actions(amqp_url, exchange):
        pass


def publish_job_action(
    amqp_url: str, routing_key: str, message: dict[str, Any], exchange: str = JOB_ACTIONS_EXCHANGE
) -> bool:
    """Publish a message of data/treeherder/job-action-message.json, confirmed by the broker.

    Return True if a queue is bound that receives it. Raises and blocks as `declare_job_actions` does.
    """
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
    with _job_actions(amqp_url, exchange) as channel:
        channel.confirm_delivery()
        try:
            channel.basic_publish(exchange, routing_key, json.dumps(message).encode(), properties, mandatory=True)
        except pika.exceptions.UnroutableError:
            return False
        return True


@contextlib.contextmanager
def _job_actions(amqp_url: str, exchange: str) -> Iterator[BlockingChannel]:
    """Yield a channel with the exchange declared; presses are rare, so each one opens a connection."""
    parameters = pika.URLParameters(amqp_url)
    parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = 5
    connection = pika.BlockingConnection(parameters)
    try:
        channel = connection.channel()
        channel.exchange_declare(exchange, exchange_type="topic", durable=True)
        yield channel
    finally:
        if connection.is_open:
            connection.close()
