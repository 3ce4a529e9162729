"""Connections to a broker that refuses them, and that break."""

from pathlib import Path
from urllib.parse import urlsplit

import pika
import pika.exceptions
import pytest

from listeners.broker import close_connection, unbound_reason
from tests.listeners.broker_harness import BrokerHarness, wait_until
from tests.proxy import TlsProxy


def test_a_missing_permission_is_told_from_a_missing_exchange() -> None:
    assert unbound_reason(pika.exceptions.ChannelClosedByBroker(403, "refused")) == "this user may not read it"
    assert unbound_reason(pika.exceptions.ChannelClosedByBroker(404, "no exchange")) == "it does not exist"


def test_a_connection_that_breaks_while_it_is_closed_is_no_error() -> None:
    class BrokenConnection:
        is_open = True

        def close(self) -> None:
            raise pika.exceptions.StreamLostError("reset")

    close_connection(BrokenConnection())


def test_amqps_connects_to_a_trusted_broker(
    broker_harness: BrokerHarness, tls: TlsProxy, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with broker_harness.listening():
        broker_harness.press("1")
        wait_until(lambda: broker_harness.service.bodies() == ["1"])


def test_an_untrusted_certificate_is_refused(broker_harness: BrokerHarness, tls: TlsProxy) -> None:
    with broker_harness.listening(wait=False) as listener:
        (line, *_) = wait_until(lambda: broker_harness.logged("broker-away"))
        assert not listener.consumers["job-actions"].connected
    assert "CERTIFICATE_VERIFY_FAILED" in line["error"]
    assert "SSL_CERT_FILE" in line["remedy"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("amqps://", "amqp://"), "whether the URL must begin with amqps://"),
        ((":TLS/", ":PLAIN/"), "The port does not speak TLS"),
        (("/VHOST", "/nowhere"), "check the virtual host"),
        (("PASSWORD@", "wrong@"), "check user and password"),
    ],
)
def test_a_wrong_url_is_logged_with_its_remedy(
    broker_harness: BrokerHarness,
    tls: TlsProxy,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: tuple[str, str],
    words: str,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    plain = urlsplit(broker_harness.amqp.url)
    assert plain.password is not None
    url = f"amqps://{plain.username}:PASSWORD@127.0.0.1:TLS/VHOST".replace(*changed)
    for name, value in {
        "PASSWORD": plain.password, "TLS": tls.port, "PLAIN": plain.port or 5672, "VHOST": plain.path[1:]
    }.items():  # fmt: skip
        url = url.replace(name, str(value))
    broker_harness.broker = url
    with broker_harness.listening(wait=False):
        (line, *_) = wait_until(lambda: broker_harness.logged("broker-away"))
    assert words in line["remedy"]


def test_a_certificate_of_another_host_is_refused(
    broker_harness: BrokerHarness, tls: TlsProxy, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    broker_harness.broker = broker_harness.broker.replace("@127.0.0.1", "@localhost")
    with broker_harness.listening(wait=False):
        (line, *_) = wait_until(lambda: broker_harness.logged("broker-away"))
    assert "Hostname mismatch" in line["error"]
