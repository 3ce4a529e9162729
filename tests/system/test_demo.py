"""Demo, and its errors."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pika.exceptions
import pytest

from sandbox import broker
from sandbox.treeherder.job_actions import JOB_ACTIONS_EXCHANGE
from tests.sandbox.support import existing, listening, web_server
from tests.services import Amqp

NOWHERE = "amqp://guest:guest@127.0.0.1:1/"

RUN = """
import signal, sys, typer
from sandbox import broker, demo

broker.LOCAL = sys.argv.pop(1)  # the machine's own broker is none of the tests' business
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, however the tests were started
signal.signal(signal.SIGHUP, signal.SIG_DFL)
typer.run(demo.main)
"""


def start(folder: Path, *arguments: str, local: str = NOWHERE, **environment: str) -> "subprocess.Popen[str]":
    inherited = {name: value for name, value in os.environ.items() if name != "SANDBOX_AMQP_URL"}
    return subprocess.Popen(
        [sys.executable, "-u", "-c", RUN, local, "--folder", str(folder / "demo"), *arguments],
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def demo(folder: Path, *arguments: str, local: str = NOWHERE, **environment: str) -> tuple[int, str, str]:
    """Run the demo; return its exit code, its output and its errors."""
    with start(folder, "--once", *arguments, local=local, **environment) as process:
        output, errors = process.communicate(timeout=90)
    return process.returncode, output, errors


def test_a_folder_with_somebodys_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").write_text("years of work")
    code, _, errors = demo(tmp_path)
    assert code == 1
    assert "thesis.tex" in errors
    assert "--folder" in errors
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["thesis.tex"]


def left(output: str, amqp_url: str) -> set[str]:
    """Return what the demo with this output has left at the broker."""
    (user,) = set(re.findall(r"exchange/(sandbox-[0-9a-f]{8})/", output))
    return existing(amqp_url, broker.exchanges(user), broker.queues(user))


@pytest.fixture
def neighbour(amqp: Amqp) -> Iterator[str]:
    """Yield a queue of another user of the broker, who receives every press of the real exchange."""
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        channel = connection.channel()
        channel.exchange_declare(JOB_ACTIONS_EXCHANGE, "topic", durable=True)
        channel.queue_declare(amqp.queue(), durable=True)
        channel.queue_bind(amqp.queue(), JOB_ACTIONS_EXCHANGE, "#")
    yield amqp.queue()
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        channel = connection.channel()
        channel.queue_delete(amqp.queue())
        with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):  # in use: it was there before
            channel.exchange_delete(JOB_ACTIONS_EXCHANGE, if_unused=True)


def test_a_push_travels_and_a_failed_task_is_retriggered_and_backfilled_where_something_else_listens(
    tmp_path: Path,
) -> None:
    with listening(web_server) as url:
        code, output, errors = demo(tmp_path, local=url)
    assert code == 0, errors
    for line in (
        f"The broker at {broker.address(url)} cannot be used (the server there does not speak RabbitMQ's protocol",
        "). The retrigger goes over HTTP.",
        "push noticed by tc-treeherder",
        "resultset in Treeherder",
        "task decision created",
        "task build completed",
        "task test failed",
        "Retriggering it over the API of tc-treeherder",
        "task test (copy) completed",
        "task report (copy) completed",
        "The tree offers for this task: retrigger, backfill, rerun, cancel, create-interactive",
        "task Action: Backfill completed",
        "The backfill is complete",
    ):
        assert line in output
    assert errors == ""


def test_a_broker_that_is_there_is_found_used_and_left_as_it_was(tmp_path: Path, amqp: Amqp, neighbour: str) -> None:
    code, output, errors = demo(tmp_path, local=amqp.url)
    assert (code, errors) == (0, "")
    assert f"Broker: {broker.address(amqp.url)} (it answers there" in output
    assert "Pressing the retrigger button of Treeherder's page" in output
    assert "task test (copy) completed" in output
    assert left(output, amqp.url) == set()
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        channel = connection.channel()
        channel.exchange_declare(JOB_ACTIONS_EXCHANGE, passive=True)
        assert channel.queue_declare(neighbour, passive=True).method.message_count == 0


@pytest.mark.parametrize("named", [["--amqp-url", NOWHERE], []], ids=["argument", "environment"])
def test_a_broker_that_was_named_must_be_there(tmp_path: Path, amqp_url: str, named: list[str]) -> None:
    code, output, errors = demo(tmp_path, *named, local=amqp_url, SANDBOX_AMQP_URL=NOWHERE)
    assert (code, output) == (1, "")
    assert "The demo failed. The broker at 127.0.0.1:1 cannot be used (" in errors
    assert "Start it, correct --amqp-url (SANDBOX_AMQP_URL), or leave it out" in errors


def test_a_push_that_is_not_through_in_time_is_a_failure_with_its_reason(tmp_path: Path, amqp_url: str) -> None:
    code, output, errors = demo(tmp_path, "--seconds", "0.1", local=amqp_url)
    assert code == 1
    assert "The push is not complete in time" in errors
    assert left(output, amqp_url) == set()


def test_no_broker_is_used_where_none_is_wanted(tmp_path: Path, amqp_url: str) -> None:
    code, output, _ = demo(tmp_path, "--no-broker", "--seconds", "0.1", local=amqp_url, SANDBOX_AMQP_URL=amqp_url)
    assert code == 1
    assert output.startswith("No broker is used (--no-broker): the retrigger goes over HTTP.\nStarting")
    assert not (tmp_path / "demo" / "pulse-listener.log").exists()


@pytest.mark.parametrize(
    ("number", "when", "code"),
    [(signal.SIGINT, "press Ctrl-C", 0), (signal.SIGTERM, "Pushing a commit", 130), (signal.SIGHUP, "Starting", 130)],
)
def test_nothing_is_left_when_it_is_ended(
    tmp_path: Path, amqp_url: str, number: signal.Signals, when: str, code: int
) -> None:
    output = ""
    with start(tmp_path, "--free-ports", "--amqp-url", amqp_url) as process:
        assert process.stdout is not None
        while when not in output:
            line = process.stdout.readline()
            assert line, f"it ended before: {output}"
            output += line
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == code
    assert f"Broker: {broker.address(amqp_url)} (as named)" in output
    assert left(output, amqp_url) == set()
