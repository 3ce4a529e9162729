"""Checks of Pulse, with a real broker."""

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import pika
import pytest

from sandbox.stack import free_port
from service.commands.doctor import pulse
from service.commands.doctor.finding import Report
from tests.service.commands.doctor.conftest import Doctor
from tests.services import Amqp

LISTENER, PUBLISHER = "pulse listener", "pulse publisher"

TASK_EVENTS = ("defined", "pending", "running", "completed", "failed", "exception")


@contextlib.contextmanager
def channel_of(amqp: Amqp) -> Iterator[object]:
    connection = pika.BlockingConnection(pika.URLParameters(amqp.url))
    yield connection.channel()
    connection.close()


@pytest.fixture
def named(amqp: Amqp) -> dict[str, str]:
    """Declare the exchanges of other users, and return settings with names of this test only."""
    actions = amqp.exchange("job-actions")
    tasks = amqp.exchange("task-")
    names = [actions, *(f"{tasks}{event}" for event in TASK_EVENTS)]
    amqp.exchanges |= set(names)
    amqp.exchanges.discard(tasks)
    with channel_of(amqp) as channel:
        for name in names:
            channel.exchange_declare(name, "topic", durable=True)  # type: ignore[attr-defined]  # pika publishes no types
    return {
        "PULSE_URL": amqp.url,
        "PULSE_USER": amqp.user,
        "PULSE_QUEUE": amqp.name,
        "PULSE_JOB_ACTIONS": actions,
        "PULSE_TASKS": tasks.removesuffix("task-"),
    }


def declare(amqp: Amqp, kind: str, messages: int = 0) -> str:
    queue = amqp.queue(kind)
    with channel_of(amqp) as channel:
        channel.queue_declare(queue, durable=True)  # type: ignore[attr-defined]  # as above
        channel.confirm_delivery()  # type: ignore[attr-defined]  # as above
        for _ in range(messages):
            channel.basic_publish("", queue, b"{}")  # type: ignore[attr-defined]  # as above
    return queue


def test_all_is_there(doctor: Doctor, amqp: Amqp, named: dict[str, str]) -> None:
    queues = [declare(amqp, kind) for kind in ("job-actions", "tasks")]
    connection = pika.BlockingConnection(pika.URLParameters(amqp.url))
    channel = connection.channel()
    for queue in queues:
        channel.basic_consume(queue, lambda *_: None)
    report = doctor(**named)
    connection.close()
    assert report.problems() == []
    assert report.status(LISTENER, "declare") == "ok"
    exchanges = [
        finding for finding in report.findings if (finding["system"], finding["check"]) == (LISTENER, "exchange")
    ]
    assert len(exchanges) == 7
    details = [finding["detail"] for finding in report.findings if finding["check"] == "queue"]
    assert details == [f"{queue}: 0 messages wait, 1 consumers" for queue in queues]


def test_nothing_is_left_behind(
    doctor: Doctor, amqp: Amqp, named: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    doctor(**named)
    with channel_of(amqp) as channel, pytest.raises(pika.exceptions.ChannelClosedByBroker):
        channel.queue_declare(f"queue/{amqp.user}/{amqp.name}/doctor-known", passive=True)  # type: ignore[attr-defined]  # as above


def test_what_nobody_reads(doctor: Doctor, amqp: Amqp, named: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "TOO_MANY", 3)
    idle, growing = declare(amqp, "job-actions", 1), declare(amqp, "tasks", 3)
    queues = [finding for finding in doctor(**named).findings if finding["check"] == "queue"]
    assert [(finding["status"], finding["detail"]) for finding in queues] == [
        ("warning", f"{idle}: 1 messages wait, 0 consumers"),
        ("error", f"{growing}: 3 messages wait, 0 consumers"),
    ]


def test_queues_and_exchanges_that_are_not_there(doctor: Doctor, amqp: Amqp, named: dict[str, str]) -> None:
    missing = amqp.exchange("nowhere")
    report = doctor(**{**named, "PULSE_JOB_ACTIONS": missing})
    absent = [finding for finding in report.findings if finding["check"] == "queue"]
    assert [finding["status"] for finding in absent] == ["warning", "warning"]
    assert "does not exist" in absent[0]["detail"]
    (bad,) = [finding for finding in report.findings if finding["check"] == "exchange" and finding["status"] == "error"]
    assert missing in bad["detail"]
    assert "NOT_FOUND" in bad["detail"]


def test_a_wrong_password(doctor: Doctor, amqp: Amqp) -> None:
    services = urlsplit(amqp.url)
    secret = "a-wrong-password"
    url = amqp.url.replace(services.netloc, f"{services.username}:{secret}@{services.hostname}:{services.port}")
    report = doctor(PULSE_URL=url, PULSE__URL=url)
    for system, variable in ((LISTENER, "TC_TREEHERDER_PULSE_URL"), (PUBLISHER, "TC_TREEHERDER_PULSE__URL")):
        assert report.status(system, "connection") == "error"
        assert f"check user and password in {variable}." in report.finding(system, "connection")["remedy"]
    shared = doctor(PULSE_URL="", PULSE__URL=url)
    assert "in TC_TREEHERDER_PULSE__URL." in shared.finding(LISTENER, "connection")["remedy"]
    assert secret not in report.ran.out


def test_nobody_is_there(doctor: Doctor) -> None:
    port = free_port()
    report = doctor(PULSE_URL=f"amqp://u:p@127.0.0.1:{port}/%2F", PULSE__URL=f"amqps://u:p@127.0.0.1:{port}/%2F")
    for system in (LISTENER, PUBLISHER):
        assert report.status(system, "connection") == "error"
        assert f"127.0.0.1:{port}" in report.finding(system, "connection")["detail"]


def test_a_url_that_is_none(doctor: Doctor) -> None:
    report = doctor(PULSE_URL="amqp://u:secret-part@h:secret-port/x", PULSE__URL="https://secret-host:x")
    for system in (LISTENER, PUBLISHER):
        assert report.status(system, "connection") == "error"
        assert "amqps://user:password@" in report.finding(system, "connection")["remedy"]
    assert "secret-" not in report.ran.out


def test_where_the_service_publishes(doctor: Doctor, amqp: Amqp) -> None:
    user = f"{amqp.user}/{amqp.name}"
    exchange = f"exchange/{user}/hgpushes/v1"
    names = {exchange, *(f"exchange/{user}/v1/{name}" for name in ("action", "jobs", "pushes", "retrigger"))}
    amqp.exchanges |= names
    environments = {"th": {"url": "http://127.0.0.1:9", "pushes": "pulse", "jobs": "pulse"}}
    wanted = {"PULSE__URL": amqp.url, "PULSE__USER": user, "PULSE_READ": '["job-actions"]'}
    wanted["ENVIRONMENTS"] = json.dumps(environments)

    def exchanges() -> dict[str, str]:
        findings = [finding for finding in doctor(**wanted).findings if finding["check"] == "exchange"]
        return {finding["detail"]: finding["status"] for finding in findings if finding["system"] == PUBLISHER}

    assert exchanges() == dict.fromkeys(names, "ok")
    with channel_of(amqp) as channel:
        channel.exchange_delete(exchange)  # type: ignore[attr-defined]  # as above
        channel.exchange_declare(exchange, "fanout")  # type: ignore[attr-defined]  # as above
    ((detail, _),) = [finding for finding in exchanges().items() if finding[1] == "error"]
    assert detail.startswith(f"{exchange}: ")
    assert "PRECONDITION_FAILED" in detail


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("amqps://u:p@pulse.example.com/x", "ok", "TLS verified"),
        ("amqp://u:p@pulse.example.com/x", "warning", "without TLS"),
        ("amqp://u:p@127.0.0.1/x", "ok", "127.0.0.1"),
        ("amqp://u:p@[::1]/x", "ok", "::1"),
    ],
)
def test_tls(url: str, status: str, words: str) -> None:
    report = Report("pulse")
    parameters = pika.URLParameters(url)
    pulse.judge_tls(report, parameters, parameters.host)
    (finding,) = report.findings
    assert finding.status == status
    assert words in finding.detail


def test_tls_that_believes_everybody() -> None:
    report = Report("pulse")
    parameters = pika.URLParameters("amqps://u:p@pulse.example.com/x")
    parameters.ssl_options = pika.SSLOptions(ssl._create_unverified_context())  # what `protocol` in the URL can lead to
    pulse.judge_tls(report, parameters, parameters.host)
    assert [(finding.status, "is not verified" in finding.detail) for finding in report.findings] == [("error", True)]


def test_what_takes_the_connection_and_says_nothing_is_an_error(doctor: Doctor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        report = doctor("--seconds", "2", PULSE_URL=f"amqp://u:p@127.0.0.1:{port}/%2F")
    assert report.status(LISTENER, "connection") == "error"
    detail = report.finding(LISTENER, "connection")["detail"]
    assert f"127.0.0.1:{port}: " in detail
    assert "Timeout" in detail
