"""The demo does what it says, and says so when it does not."""

import subprocess
import sys
from pathlib import Path


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sandbox.demo", "--once", "--folder", str(folder / "demo"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_a_push_travels_and_a_failed_task_is_retriggered(tmp_path: Path) -> None:
    done = demo(tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        "push noticed by tc-treeherder",
        "resultset in Treeherder",
        "task decision created",
        "task build completed",
        "task test failed",
        "task test (copy) completed",
        "task report (copy) completed",
    ):
        assert line in done.stdout


def test_with_a_broker_the_button_is_pressed(tmp_path: Path, amqp_url: str) -> None:
    done = demo(tmp_path, "--amqp-url", amqp_url)
    assert done.returncode == 0, done.stderr
    assert "Pressing retrigger on Treeherder's page" in done.stdout
    assert "task test (copy) completed" in done.stdout


def test_a_push_that_is_not_through_in_time_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    done = demo(tmp_path, "--seconds", "0.1")
    assert done.returncode == 1
    assert "the push is not through after 0.1 s" in done.stderr
