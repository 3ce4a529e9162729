"""Sandbox as a process of its own, used over real sockets."""

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jsone
import pika.exceptions
import pytest
import taskcluster
from mohawk import Sender

from sandbox import hg, treeherder
from sandbox.credentials import SCHEDULER
from sandbox.hg import mercurial
from sandbox.run import SandboxError, run
from sandbox.taskcluster.pulse import Publisher

PATIENCE = 30
"""Seconds for a start or a stop on a busy machine."""


class Sandbox:
    def __init__(self, folder: Path, *options: str) -> None:
        self.ready_file = folder / "ready" / "sandbox.json"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        ports = [part for name in ("hg", "taskcluster", "treeherder") for part in (f"--{name}-port", "0")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sandbox", *ports, "--ready-file", str(self.ready_file), *options],
            env=os.environ | {"TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal hits the whole group, the hg process too
        )

    def wait_until_ready(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while not self.ready_file.exists():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise AssertionError(f"the sandbox did not start: {self.process.communicate()}")
            time.sleep(0.02)
        ready: dict[str, Any] = json.loads(self.ready_file.read_text())
        return ready

    def fail(self, code: int = 1) -> str:
        """Wait until the sandbox ends by itself with this code; return what it wrote to stderr."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == code
        assert "Traceback" not in errors
        assert not self.ready_file.exists()
        return errors

    def stop(self, tell: Callable[[int], None]) -> str:
        tell(self.process.pid)
        output, errors = self.process.communicate(timeout=PATIENCE)
        assert (self.process.returncode, errors) == (0, "")
        assert not self.ready_file.exists()
        assert list(self.temporary.iterdir()) == []
        return output


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Sandbox]]:
    started: list[Sandbox] = []

    def starter(*options: str) -> Sandbox:
        started.append(Sandbox(tmp_path, *options))
        return started[-1]

    yield starter
    for sandbox in started:
        if sandbox.process.poll() is None:
            sandbox.process.kill()
            sandbox.process.communicate()


def terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def press_ctrl_c(pid: int) -> None:
    os.killpg(pid, signal.SIGINT)


async def test_each_part_answers_and_all_end_at_sigterm(start: Callable[..., Sandbox]) -> None:
    sandbox = start("--no-mercurial")
    ready = await asyncio.to_thread(sandbox.wait_until_ready)
    await ask_hg(ready)
    await asyncio.to_thread(ask_taskcluster, ready)
    await ask_treeherder(ready)
    output = await asyncio.to_thread(sandbox.stop, terminate)
    for name in ("hg", "taskcluster", "treeherder"):
        assert ready[name] in output
        with socket.socket() as closed:
            assert closed.connect_ex(("127.0.0.1", int(ready[name].rsplit(":", 1)[1]))) != 0


async def test_real_repositories_and_ctrl_c(start: Callable[..., Sandbox]) -> None:
    sandbox = start()
    ready = await asyncio.to_thread(sandbox.wait_until_ready)
    await ask_hg(ready)
    await asyncio.to_thread(sandbox.stop, press_ctrl_c)


async def ask_hg(ready: dict[str, Any]) -> None:
    async with hg.Client(ready["hg"]) as client:
        await client.push("integration/autoland", [hg.NewChangeset(files={".taskcluster.yml": "version: 1"})])
    async with httpx.AsyncClient() as client:
        autoland = ready["repositories"]["autoland"]
        pushes = await client.get(f"{autoland}/json-pushes?version=2")
        assert pushes.json()["lastpushid"] == 1
        assert len(pushes.headers.get_list("date")) == 1
        assert (await client.get(f"{autoland}/raw-file/tip/.taskcluster.yml")).text == "version: 1"
        assert (await client.get(f"{ready['repositories']['try']}/json-pushes?version=2")).json()["pushes"] == {}


def ask_taskcluster(ready: dict[str, Any]) -> None:
    """Create a task with the rights of a project only, wait for its end, and cancel it with the one scope for that."""
    role = f"assume:repo:{ready['repositories']['autoland'].removeprefix('http://')}:branch:default"
    own = {"rootUrl": ready["taskcluster"], "credentials": ready["credentials"]["taskcluster"], "maxRetries": 0}
    scopes = [role, "queue:route:notify.email.ada@example.com.*"]
    of_project = taskcluster.Queue(own | {"authorizedScopes": scopes})
    task_id, now = taskcluster.slugId(), datetime.now(UTC)
    route = "tc-treeherder.v2.autoland.219d38523a321229f7f48aca6592f76b993fb1aa.1"
    definition = {
        "taskQueueId": "sandbox/linux",
        "schedulerId": SCHEDULER,
        "created": now.isoformat(),
        "deadline": (now + timedelta(hours=1)).isoformat(),
        "routes": [route, "notify.email.ada@example.com.on-failed"],
        "payload": {"sandbox": {"seconds": 0}},
        "metadata": {
            "name": "n",
            "description": "",
            "owner": "ada@example.com",
            "source": ready["repositories"]["autoland"],
        },
    }
    of_project.createTask(task_id, definition)
    ask_anonymously(ready, task_id, definition)
    with pytest.raises(taskcluster.exceptions.TaskclusterRestFailure, match="missing"):
        of_project.createTask(taskcluster.slugId(), definition | {"routes": ["somebody.elses"]})
    with pytest.raises(taskcluster.exceptions.TaskclusterRestFailure, match="missing"):
        of_project.cancelTask(task_id)
    queue = taskcluster.Queue(own)
    status = wait_for_completion(queue, task_id)
    assert [task["task"]["routes"][0] for task in queue.listTaskGroup(task_id)["tasks"]] == [route]
    cancel = f"queue:cancel-task:{status['schedulerId']}/{status['taskGroupId']}/{task_id}"
    assert taskcluster.Queue(own | {"authorizedScopes": [cancel]}).cancelTask(task_id)["status"]["state"] == "completed"
    offer_actions(ready, own, of_project, definition | {"routes": [route]}, role)


def offer_actions(
    ready: dict[str, Any], own: dict[str, Any], of_project: Any, definition: dict[str, Any], role: str
) -> None:
    """Let a decision task write its actions.json, trigger one of its hooks, and wait for what the action creates."""
    url = ready["repositories"]["autoland"]
    push = {"owner": "ada@example.com", "revision": "a" * 40, "base_revision": "b" * 40, "pushlog_id": 1}
    decision = {"repository": {"url": url, "project": "autoland", "level": 3}, "push": push}
    task_id, name = taskcluster.slugId(), definition["metadata"]["name"]
    of_decision = {
        "scopes": [role],
        "payload": {"sandbox": {"seconds": 0, "decision": decision}},
        "metadata": definition["metadata"] | {"name": "decision"},
    }
    of_project.createTask(task_id, definition | of_decision)
    of_project.createTask(taskcluster.slugId(), definition | {"taskGroupId": task_id})
    queue, hooks = taskcluster.Queue(own), taskcluster.Hooks(own)
    wait_for_completion(queue, task_id)
    offered = httpx.get(queue.getLatestArtifact(task_id, "public/actions.json")["url"]).json()
    action = next(action for action in offered["actions"] if action["name"] == "add-new-jobs")
    payload = jsone.render(
        action["hookPayload"],
        {"taskGroupId": task_id, "taskId": None, "input": {"tasks": [name]}},
    )
    action_id = hooks.triggerHook(action["hookGroupId"], action["hookId"], payload)["status"]["taskId"]
    wait_for_completion(queue, action_id)
    assert hooks.listLastFires(action["hookGroupId"], action["hookId"])["lastFires"][0]["taskId"] == action_id
    labels = [task["task"]["metadata"]["name"] for task in queue.listTaskGroup(task_id)["tasks"]]
    assert sorted(labels) == ["Action: Add new jobs", "decision", name, name]


def wait_for_completion(queue: taskcluster.Queue, task_id: str) -> dict[str, Any]:
    """Return the status of a task once it has completed."""
    until = time.monotonic() + PATIENCE
    while (status := queue.status(task_id)["status"])["state"] != "completed":
        assert status["state"] != "failed"
        assert time.monotonic() < until, status
        time.sleep(0.05)
    return dict(status)


def ask_anonymously(ready: dict[str, Any], task_id: str, definition: dict[str, Any]) -> None:
    """Check that reads and the scopes of roles are public, and nothing else is."""
    nobody = {"rootUrl": ready["taskcluster"], "credentials": {}, "maxRetries": 0}
    queue = taskcluster.Queue(nobody)
    assert queue.task(task_id)["schedulerId"] == SCHEDULER
    assert queue.status(task_id)["status"]["taskId"] == task_id
    assert [task["status"]["taskId"] for task in queue.listTaskGroup(task_id)["tasks"]] == [task_id]
    assert queue.listDependentTasks(task_id)["tasks"] == []
    wait_for_run(queue, task_id)
    queue.listArtifacts(task_id, "0")
    assert (
        f"queue:scheduler-id:{SCHEDULER}"
        in taskcluster.Auth(nobody).expandScopes({"scopes": ["assume:repo:x"]})["scopes"]
    )
    refused: list[Callable[[], Any]] = [
        lambda: queue.createTask(taskcluster.slugId(), definition),
        lambda: queue.cancelTask(task_id),
        lambda: queue.getLatestArtifact(task_id, "private/x"),
        lambda: taskcluster.Auth(nobody).currentScopes(),
    ]
    for call in refused:
        with pytest.raises(taskcluster.exceptions.TaskclusterFailure):
            call()


def wait_for_run(queue: taskcluster.Queue, task_id: str) -> None:
    end = time.monotonic() + PATIENCE
    while not queue.status(task_id)["status"]["runs"]:
        assert time.monotonic() < end
        time.sleep(0.02)


async def ask_treeherder(ready: dict[str, Any]) -> None:
    url, node = f"{ready['treeherder']}/api/project/autoland/resultset/", "1" * 40
    revision = {"revision": node, "author": "", "comment": "Bug 7", "files": [], "branch": "default"}
    resultset = {
        "revision": node,
        "revision_hash": hashlib.sha1(f"{node}default".encode()).hexdigest(),
        "push_timestamp": 1561576431,
        "author": "ada@example.com",
        "type": "push",
        "active_status": "active",
        "revisions": [revision | {"repository": "autoland"}],
    }
    body = json.dumps([resultset])
    signer = Sender(
        {**ready["credentials"]["treeherder"], "algorithm": "sha256"},
        url,
        "POST",
        content=body,
        content_type="application/json",
    )
    headers = {"Authorization": str(signer.request_header), "Content-Type": "application/json"}
    everywhere = {"User-Agent": "tc-treeherder/test", "Accept": "application/json; version=1.0"}
    async with httpx.AsyncClient(headers=everywhere) as client:
        control = f"{ready['treeherder']}/__control__"
        await client.patch(f"{control}/behaviour", json={"down": 1, "down_how": "drop"})
        with pytest.raises(httpx.TransportError):
            await client.post(url, content=body, headers=headers)
        answer = await client.post(url, content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert (await client.get(f"{control}/counters")).json()["requests"] == {
            "POST resultset dropped": 1,
            "POST resultset 200": 1,
        }
        assert "Bug 7" in (await client.get(ready["treeherder"])).text


@pytest.mark.parametrize("name", ["hg", "taskcluster", "treeherder"])
def test_a_port_that_is_taken_is_named_with_its_stand_in_and_its_option(
    start: Callable[..., Sandbox], name: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        errors = start(f"--{name}-port", str(port)).fail(5)
    system = {"hg": "Mercurial", "taskcluster": "Taskcluster", "treeherder": "Treeherder"}[name]
    assert errors.startswith(
        f"sandbox: The stand-in for {system} cannot listen on port {port} of 127.0.0.1 (Address already in use). "
    )
    assert errors.endswith(f"choose another one: --{name}-port 0 takes any free port.\n")


def test_a_port_that_does_not_exist_is_named(start: Callable[..., Sandbox]) -> None:
    errors = start("--hg-port", "65536").fail(5)
    assert errors.startswith("sandbox: The stand-in for Mercurial cannot listen on port 65536 of 127.0.0.1 (")


@pytest.mark.parametrize("target", ["a file/sandbox.json", "a folder"])
def test_a_ready_file_that_cannot_be_written_is_named(
    start: Callable[..., Sandbox], tmp_path: Path, target: str
) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    before = sorted(tmp_path.iterdir())
    errors = start("--no-mercurial", "--ready-file", str(tmp_path / target)).fail()
    assert errors.startswith(f"sandbox: The ready file {tmp_path / target} cannot be written (")
    assert errors.endswith("--ready-file PATH.\n")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "tmp"])


def test_a_temporary_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(SandboxError, match=rf"cannot be written .*{tmp_path}/missing/.* Set TMPDIR .* --no-mercurial"):
        run(0, 0, 0)


def test_a_disk_that_fills_while_repositories_are_made_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: hg.MercurialPushlog, repository: str) -> None:
        raise mercurial.CommandError([b"init"], 255, b"abort: No space left on device")

    monkeypatch.setattr(hg.MercurialPushlog, "_create", fail)
    with pytest.raises(SandboxError, match=r"No space left on device.* Set TMPDIR .* free space"):
        run(0, 0, 0)


def test_without_mercurial_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mercurial, "HG", tmp_path / "no-hg")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SandboxError, match=r"no-hg.*--no-mercurial"):
        run(0, 0, 0)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_broker_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    monkeypatch.setattr(Publisher.__init__, "__kwdefaults__", {"patience": 0.2})
    with pytest.raises(SandboxError, match=f"No RabbitMQ answers at 127.0.0.1:{unused_tcp_port} "):
        run(0, 0, 0, amqp_url=f"amqp://guest:guest@127.0.0.1:{unused_tcp_port}/", mercurial=False)


def test_a_broker_that_refuses_the_exchange_of_job_actions_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(amqp_url: str, exchange: str) -> None:
        raise pika.exceptions.ChannelClosedByBroker(403, f"ACCESS_REFUSED to {exchange} at {amqp_url}")

    monkeypatch.setattr(Publisher, "start", lambda self: None)
    monkeypatch.setattr(treeherder, "declare_job_actions", refuse)
    with pytest.raises(
        SandboxError,
        match=r"refuses the exchange mine/exchange/treeherder/v1/job-actions.*ACCESS_REFUSED to mine/.* at amqp://broker.example/",
    ):
        run(0, 0, 0, amqp_url="amqp://broker.example/", mercurial=False, exchange_prefix="mine/")
