"""A stack has a broker's part to itself, and leaves nothing there."""

import os
import signal
from pathlib import Path
from typing import Any

import pika
import pytest

from sandbox import broker
from sandbox.stack import Stack
from sandbox.taskcluster.pulse import TASK_EXCHANGES
from sandbox.treeherder.job_actions import JOB_ACTIONS_EXCHANGE
from tests.sandbox.support import existing

FOREIGN = [*TASK_EXCHANGES, JOB_ACTIONS_EXCHANGE]
JOB = "8a8c9ee0-1b2e-4c8e-9d3f-0a1b2c3d4e5f/0"
PRESS = {"project": "try", "job_guid": JOB, "action": "cancel", "requester": "dev@example.com"}


def stand_ins(stack: Stack) -> list[str]:
    """Return the exchanges that the stack's sandbox declares at the broker."""
    return [broker.exchange_prefix(stack.pulse_user) + name for name in FOREIGN]


def left(stack: Stack, amqp_url: str) -> set[str]:
    return existing(amqp_url, broker.exchanges(stack.pulse_user), broker.queues(stack.pulse_user))


def heard(stack: Stack) -> bool:
    """Press a button of this stack's."""
    with stack.control("treeherder") as treeherder:
        return bool(treeherder.post("/job-action", json=PRESS).raise_for_status().json()["heard"])


def test_two_stacks_at_one_broker_do_not_meet_and_leave_nothing(tmp_path: Path, amqp_url: str) -> None:
    before = existing(amqp_url, FOREIGN, [])
    with Stack(tmp_path / "one", amqp_url=amqp_url) as one:
        assert left(one, amqp_url) == set(stand_ins(one))
        with (
            Stack(tmp_path / "other", amqp_url=amqp_url) as other,
            pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection,
        ):
            channel = connection.channel()
            queue = str(channel.queue_declare("", exclusive=True).method.queue)
            channel.queue_bind(queue, other.environment["TC_TREEHERDER_PULSE_JOB_ACTIONS"], "#")
            assert (heard(one), heard(other)) == (False, True)
        assert left(other, amqp_url) == set()
        assert left(one, amqp_url) == set(stand_ins(one))
    assert left(one, amqp_url) == set()
    assert existing(amqp_url, FOREIGN, []) == before


def test_impatience_does_not_stop_the_clearing_up(
    tmp_path: Path, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = broker.remove

    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        remove(*arguments)

    stack = Stack(tmp_path, amqp_url=amqp_url)
    monkeypatch.setattr(broker, "remove", interrupted)
    with pytest.raises(KeyboardInterrupt), stack:
        assert left(stack, amqp_url) == set(stand_ins(stack))
    assert left(stack, amqp_url) == set()
    assert not stack.processes["sandbox"].running()


def test_what_is_left_at_a_broker_that_went_away_is_named(
    tmp_path: Path, amqp_url: str, unused_tcp_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stack(tmp_path, amqp_url=amqp_url) as stack:
        stack.amqp_url = f"amqp://guest:guest@127.0.0.1:{unused_tcp_port}/"
    errors = capsys.readouterr().err
    assert errors.startswith(f"The broker at 127.0.0.1:{unused_tcp_port} cannot be used (")
    assert f"exchange/{stack.pulse_user}/…" in errors
    broker.remove(amqp_url, stack.pulse_user)


def test_without_a_broker_the_environment_brings_none_in(
    tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX_AMQP_URL", f"amqp://guest:guest@127.0.0.1:{unused_tcp_port}/")
    with Stack(tmp_path) as stack, stack.control("treeherder") as treeherder:
        assert treeherder.post("/job-action", json=PRESS).status_code == 409
