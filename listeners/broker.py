"""Close an AMQP broker's connections, and tell why a queue cannot be bound."""

from typing import Any

import pika.exceptions
import structlog

from service.contract.broker import BROKER_ERRORS, error_text

log = structlog.get_logger()

ACCESS_REFUSED = 403
"""AMQP's reply code for a missing permission."""


def close_connection(connection: Any) -> None:
    """Close a connection that may be broken already."""
    try:
        if connection.is_open:
            connection.close()
    except BROKER_ERRORS as error:
        log.info("close-failed", error=error_text(error))


def unbound_reason(error: pika.exceptions.ChannelClosedByBroker) -> str:
    """Return why a queue cannot be bound to an exchange."""
    return "this user may not read it" if error.reply_code == ACCESS_REFUSED else "it does not exist"
