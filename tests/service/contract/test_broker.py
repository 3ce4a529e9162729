"""Errors of a broker, in words and with their remedies."""

import pika.exceptions
import pytest
from pika.adapters.utils.connection_workflow import AMQPConnectorSocketConnectError

from service.contract.broker import error_text, find_remedy


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("no route\n  to host"), "OSError: no route to host"),
        (pika.exceptions.StreamLostError(), "StreamLostError"),
        (pika.exceptions.AMQPConnectionError(ConnectionRefusedError("refused")), "ConnectionRefusedError: refused"),
        (AMQPConnectorSocketConnectError(TimeoutError("connect")), "TimeoutError: connect"),
        (pika.exceptions.AMQPConnectionError(OSError("a"), OSError("b")), "OSError: a; OSError: b"),
    ],
)
def test_error_text_names_the_wrapped_errors(error: Exception, expected: str) -> None:
    assert error_text(error) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (pika.exceptions.ProbableAuthenticationError(), "check user and password in TC_TREEHERDER_PULSE__URL"),
        (pika.exceptions.IncompatibleProtocolError(), "check the port"),
        (pika.exceptions.ChannelClosedByBroker(403, "ACCESS_REFUSED - access to queue"), "TC_TREEHERDER_PULSE__USER"),
    ],
)
def test_known_errors_have_a_remedy(error: Exception, expected: str) -> None:
    assert expected in (find_remedy(error) or "")


def test_other_errors_have_no_remedy() -> None:
    assert find_remedy(ConnectionResetError("reset")) is None


def test_a_remedy_names_the_variables_that_the_program_reads() -> None:
    refused = pika.exceptions.ProbableAuthenticationError()
    assert "in TC_TREEHERDER_PULSE_URL." in (find_remedy(refused, "TC_TREEHERDER_PULSE_URL") or "")
