"""The harnesses of the listeners' tests."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from structlog.testing import capture_logs

from listeners import channel as channel_module
from listeners import consumer as consumer_module
from tests.listeners.broker_harness import BrokerHarness, FakeEventService
from tests.listeners.fakes import serving
from tests.listeners.pushlog_harness import PushlogHarness
from tests.private_servers import PrivateBroker
from tests.proxy import TcpProxy, TlsProxy, make_certificate
from tests.services import Amqp


@pytest.fixture
def broker_harness(amqp: Amqp, check_often: None) -> Iterator[BrokerHarness]:
    service = FakeEventService()
    with ExitStack() as stack:
        broker_harness = BrokerHarness(amqp, stack.enter_context(serving(service.answer)), service)
        broker_harness.logs = stack.enter_context(capture_logs())
        yield broker_harness
        broker_harness.connection.close()


@pytest.fixture
def proxy(broker_harness: BrokerHarness) -> Iterator[TcpProxy]:
    """Run a proxy between the listener and the broker, which sends heartbeats every second."""
    parts = urlsplit(broker_harness.amqp.url)
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672) as proxy:
        user, _, _ = parts.netloc.rpartition("@")
        broker_harness.broker = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}", query="heartbeat=1"))
        yield proxy


@pytest.fixture
def check_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let listeners stop soon after `stop()`."""
    for module in (consumer_module, channel_module):
        monkeypatch.setattr(module, "CHECK_INTERVAL", 0.02)


@pytest.fixture
def opened_channels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Return a list that gets the connection and the channel of each consumer that connects."""
    opened: list[tuple[Any, Any]] = []

    class RecordedChannel(channel_module.AckChannel):
        def __init__(self, connection: Any, channel: Any, *more: Any) -> None:
            super().__init__(connection, channel, *more)
            opened.append((connection, channel))

    monkeypatch.setattr(consumer_module, "AckChannel", RecordedChannel)
    return opened


@pytest.fixture
def private_harness(private_broker: PrivateBroker, check_often: None) -> Iterator[BrokerHarness]:
    """Return a harness with a broker that a test may break."""
    service = FakeEventService()
    with serving(service.answer) as url, capture_logs() as logs:
        broker_harness = BrokerHarness(Amqp(private_broker.url), url, service, logs)
        yield broker_harness
        broker_harness.connection.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")


@pytest.fixture
def tls(broker_harness: BrokerHarness, certificate: Path) -> Iterator[TlsProxy]:
    parts = urlsplit(broker_harness.amqp.url)
    with TlsProxy(parts.hostname or "127.0.0.1", parts.port or 5672, certificate) as proxy:
        user, _, _ = parts.netloc.rpartition("@")
        broker_harness.broker = urlunsplit(parts._replace(scheme="amqps", netloc=f"{user}@127.0.0.1:{proxy.port}"))
        yield proxy


@pytest.fixture
def pushlog_harness() -> Iterator[PushlogHarness]:
    pushlog_harness = PushlogHarness()
    with pushlog_harness.stack:
        pushlog_harness.url = pushlog_harness.stack.enter_context(serving(pushlog_harness.service.answer))
        yield pushlog_harness
