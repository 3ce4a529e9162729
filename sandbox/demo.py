"""Run the demo: make a push and print how it travels from Mercurial to Treeherder and Taskcluster.

`bin/demo` runs it. Everything is real except the three systems around it, which are stand-ins on this machine.
"""

import base64
import contextlib
import fcntl
import logging
import shutil
import signal
import sys
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TextIO

import httpx
import typer

from sandbox import broker
from sandbox.credentials import LEVEL, TRUST_DOMAIN
from sandbox.run import HG_PORT, HOST, TASKCLUSTER_PORT, TREEHERDER_PORT
from sandbox.stack import Stack, StackError
from service.contract.ports import EXIT_CODE, PortError, require_free

REPOSITORY, PATH = "autoland", "integration/autoland"
USER = "dev@example.com"
SERVICE_PORT = 8080

FOLDER = Path(__file__).parents[1] / ".demo"

LOOKED_FOR = 0.8
"""Seconds that a broker of which nobody spoke may take to answer."""

TASKCLUSTER_YML = """\
version: 1
tasks:
  $let:
    common:
      taskGroupId: {$eval: ownTaskId}
      schedulerId: sandbox-level-3
      created: {$fromNow: ""}
      deadline: {$fromNow: "1 day"}
      routes: ["tc-treeherder.v2.${repository.project}.${push.revision}.${push.pushlog_id}"]
    tags: {createdForUser: "${push.owner}", worker-implementation: docker-worker}
    decision: {$eval: ownTaskId}
    build: {$eval: as_slugid("build")}
  in:
    - $merge:
        - {$eval: common}
        - taskId: {$eval: decision}
          taskQueueId: sandbox/decision
          # It writes public/actions.json: what can be done with tasks of this push.
          scopes: ["assume:repo:${split(repository.url, '://')[1]}:branch:default"]
          payload: {sandbox: {seconds: 0.2, decision: {repository: {$eval: repository}, push: {$eval: push}}}}
          metadata: {name: decision, description: Decides, owner: "${push.owner}", source: "${repository.url}"}
          tags: {$merge: [{$eval: tags}, {kind: decision-task}]}
          extra: {treeherder: {symbol: D, machine: {platform: taskcluster-decision}}}
    - $merge:
        - {$eval: common}
        - taskId: {$eval: build}
          taskQueueId: sandbox/linux
          dependencies: [{$eval: decision}]
          payload: {sandbox: {seconds: 0.5}}
          metadata: {name: build, description: Builds, owner: "${push.owner}", source: "${repository.url}"}
          tags: {$merge: [{$eval: tags}, {kind: build, label: build}]}
          extra: {treeherder: {symbol: B, machine: {platform: linux64}}}
    - $merge:
        - {$eval: common}
        - taskId: {$eval: as_slugid("lint")}
          taskQueueId: sandbox/linux
          dependencies: [{$eval: decision}]
          payload: {sandbox: {seconds: 0.3}}
          metadata: {name: lint, description: Lints, owner: "${push.owner}", source: "${repository.url}"}
          tags: {$merge: [{$eval: tags}, {kind: source-test, label: lint, retrigger: "true"}]}
          extra: {treeherder: {symbol: lint, machine: {platform: linux64}}}
    - $merge:
        - {$eval: common}
        - taskId: {$eval: as_slugid("test")}
          taskQueueId: sandbox/linux
          dependencies: [{$eval: build}]
          payload: {sandbox: {seconds: 0.5, once: failed}}
          metadata: {name: test, description: Tests, owner: "${push.owner}", source: "${repository.url}"}
          tags: {$merge: [{$eval: tags}, {kind: test, label: test, retrigger: "true"}]}
          extra: {treeherder: {symbol: t, machine: {platform: linux64}}}
    - $merge:
        - {$eval: common}
        - taskId: {$eval: as_slugid("report")}
          taskQueueId: sandbox/linux
          dependencies: [{$eval: as_slugid("test")}]
          payload: {sandbox: {seconds: 0.2}}
          metadata: {name: report, description: Reports, owner: "${push.owner}", source: "${repository.url}"}
          tags: {$merge: [{$eval: tags}, {kind: report, label: report, retrigger: "true"}]}
          extra: {treeherder: {symbol: r, machine: {platform: linux64}}}
"""


WITHOUT_TESTS = TASKCLUSTER_YML[
    : TASKCLUSTER_YML.rindex("    - $merge:", 0, TASKCLUSTER_YML.index('as_slugid("test")'))
]
"""The file of an earlier push, on which a backfill runs the test."""


@dataclass
class Timeline:
    """Events with their times in milliseconds after the push; each event is printed once."""

    pushed_at: float
    printed: set[str] = field(default_factory=set)
    quiet: bool = False

    def print_once(self, event: str, at: float) -> None:
        if event not in self.printed and not self.quiet:
            self.printed.add(event)
            typer.echo(f"  {max(0, at - self.pushed_at) * 1000:7.0f} ms  {event}")


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


class Demo:
    """One run of the demo on a stack."""

    def __init__(self, stack: Stack) -> None:
        self._api = stack.api()
        self._hg, self._taskcluster, self._treeherder = (
            stack.control(part) for part in ("hg", "taskcluster", "treeherder")
        )
        self._stack = stack

    def run(self, seconds: float) -> None:
        """Push once and print what happens. Raises StackError unless the push is complete within `seconds`."""
        url = self._stack.sandbox["repositories"][REPOSITORY]
        typer.echo(f"\nAdding the repository {REPOSITORY} ({url})")
        answer = self._api.post(
            "/repositories", json={"alias": REPOSITORY, "url": url, "level": LEVEL, "trust_domain": TRUST_DOMAIN}
        )
        _expect(answer, 201)

        end = time.monotonic() + seconds
        typer.echo(f"Pushing a commit to {PATH} as {USER}, whose graph has no tests")
        self._push("Bug 0 - only documentation", WITHOUT_TESTS, Timeline(time.time(), quiet=True), end)
        typer.echo("Pushing another one, whose graph has tests\n")
        ended = self._push("Bug 1 - the first change", TASKCLUSTER_YML, Timeline(time.time()), end)
        typer.echo("\nThe push is complete. One of its tasks has failed, and its dependents stay unscheduled.")
        failed = next(task for task, state in ended.items() if state == "failed")
        self._retrigger(failed, end)
        self._backfill(failed, end)

    def _push(self, message: str, file: str, timeline: Timeline, end: float) -> dict[str, str]:
        """Push this file, print what happens, and return the state of each task once nothing runs any more."""
        changeset = {"message": message, "files": {".taskcluster.yml": file}}
        answer = self._hg.post("/push", json={"repository": PATH, "user": USER, "changesets": [changeset]})
        push_id = _expect(answer, 200)["id"]
        timeline.print_once(f"push {push_id} stands in the pushlog", time.time())
        while not (ended := self._look(timeline, push_id)):
            if time.monotonic() > end:
                raise StackError(f"The push is not complete in time: {self._explain(push_id)}")
            time.sleep(0.05)
        return ended

    def _retrigger(self, task_id: str, end: float) -> None:
        """Retrigger a failed task, by the button if there is a broker, and print how its copies run."""
        timeline = Timeline(time.time())
        before = {action["id"] for action in self._api.get("/actions").json()["items"]}
        if self._stack.amqp_url:
            typer.echo("Pressing the retrigger button of Treeherder's page\n")
            guid = f"{uuid.UUID(bytes=base64.urlsafe_b64decode(task_id + '=='))}/0"
            press = {"project": REPOSITORY, "job_guid": guid, "action": "retrigger", "requester": USER}
            while not _expect(self._treeherder.post("/job-action", json=press), 200)["heard"]:
                if time.monotonic() > end:
                    raise StackError("Nobody receives the press of the button: see pulse-listener.log.")
                time.sleep(0.05)
        else:
            typer.echo("Retriggering it over the API of tc-treeherder, because there is no broker\n")
            body = {"action": "retrigger", "project": REPOSITORY, "task_id": task_id, "requester": USER}
            _expect(self._api.post("/actions", json=body), 202)
        while not self._copies_ran(timeline, before):
            if time.monotonic() > end:
                raise StackError(f"The retrigger is not complete: {self._api.get('/actions').json()['items'][:1]}")
            time.sleep(0.05)

    def _backfill(self, task_id: str, end: float) -> None:
        """Have the tree's own action run the task on the earlier push, and print what becomes of it."""
        offered = _expect(self._api.get(f"/tasks/{task_id}/actions"), 200)["items"]
        typer.echo(
            f"\nThe retrigger is complete. The tree offers for this task: {', '.join(a['name'] for a in offered)}"
        )
        typer.echo("Asking for a backfill, which runs it on the earlier push\n")
        timeline, before = Timeline(time.time()), set(self._in_taskcluster()[1])
        body = {
            "action": "backfill",
            "project": REPOSITORY,
            "task_id": task_id,
            "input": {"depth": 1},
            "requester": USER,
        }
        action_id = _expect(self._api.post("/actions", json=body), 202)["id"]
        while not self._backfilled(timeline, action_id, before):
            if time.monotonic() > end:
                raise StackError(f"The backfill is not complete: {self._api.get(f'/actions/{action_id}').json()}")
            time.sleep(0.05)

    def _backfilled(self, timeline: Timeline, action_id: int, before: set[str]) -> bool:
        action = _expect(self._api.get(f"/actions/{action_id}"), 200)
        if action["state"] in {"failed", "rejected"}:
            raise StackError(f"The backfill is {action['state']}: {action['reason']}")
        events = [(_seconds(action["received_at"]), "backfill received")]
        tasks = self._taskcluster.get("/tasks").json()["tasks"]
        new = [task for task in tasks if task["status"]["taskId"] not in before]
        created = {task["status"]["taskId"]: task["task"]["created"] for task in new}
        statuses = {task["status"]["taskId"]: task["status"] for task in new}
        for found in new:
            name = found["task"]["metadata"]["name"]
            events += self._task({"task_id": found["status"]["taskId"], "name": name}, created, statuses)
        for at, event in sorted(events):
            timeline.print_once(event, at)
        ended = [status["state"] for status in statuses.values() if status["state"] in {"completed", "failed"}]
        return action["state"] == "done" and len(ended) == 2

    def _copies_ran(self, timeline: Timeline, before: set[int]) -> bool:
        actions = [action for action in self._api.get("/actions").json()["items"] if action["id"] not in before]
        if not actions:
            return False
        (action,) = actions
        if action["state"] in {"failed", "rejected", "nothing-to-do"}:
            raise StackError(f"The retrigger is {action['state']}: {action['reason']}")
        events = [(_seconds(action["received_at"]), "retrigger received")]
        created, statuses = self._in_taskcluster()
        for task in action["tasks"]:
            events += self._task({**task, "name": f"{task['name']} (copy)"}, created, statuses)
        for at, event in sorted(events):
            timeline.print_once(event, at)
        states = {statuses.get(task["task_id"], {}).get("state") for task in action["tasks"]}
        return action["state"] == "done" and states == {"completed"}

    def _in_taskcluster(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the creation time of each task, and the status of each task."""
        statuses = {
            task["status"]["taskId"]: task["status"] for task in self._taskcluster.get("/tasks").json()["tasks"]
        }
        return {c["task_id"]: c["time"] for c in self._taskcluster.get("/calls").json()["creations"]}, statuses

    def _look(self, timeline: Timeline, push_id: int) -> dict[str, str]:
        """Print new events; return the state of each task once the push is complete, otherwise nothing."""
        answer = self._api.get(f"/pushes/{REPOSITORY}/{push_id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return {}
        push = _expect(answer, 200)
        events = [(_seconds(push["noticed_at"]), "push noticed by tc-treeherder")]
        for resultset in self._treeherder.get("/state").json()["resultsets"]:
            if resultset["resultset"]["revision"] == push["revision"]:
                events.append((resultset["first_posted"], "resultset in Treeherder"))
        created, statuses = self._in_taskcluster()
        for task in push["graph"]["tasks"]:
            events += self._task(task, created, statuses)
        for at, event in sorted(events):
            timeline.print_once(event, at)
        states = {resultset["state"] for resultset in push["resultsets"]} | {push["graph"]["state"]}
        if states & {"failed", "skipped"}:
            raise StackError(f"The push failed: {self._explain(push_id)}")
        states_by_task = {
            task["task_id"]: statuses.get(task["task_id"], {}).get("state") for task in push["graph"]["tasks"]
        }
        ended = set(states_by_task.values()) in ({"completed"}, {"completed", "failed", "unscheduled"})
        return states_by_task if states == {"done"} and ended else {}

    def _task(self, task: dict[str, Any], created: dict[str, str], statuses: dict[str, Any]) -> list[tuple[float, str]]:
        events = []
        name, task_id = task["name"], task["task_id"]
        if task_id in created:
            events.append((_seconds(created[task_id]), f"task {name} created ({task_id})"))
        for run in statuses.get(task_id, {}).get("runs", []):
            if "started" in run:
                events.append((_seconds(run["started"]), f"task {name} running"))
            if "resolved" in run:
                events.append((_seconds(run["resolved"]), f"task {name} {run['state']}"))
        return events

    def _explain(self, push_id: int) -> str:
        answer = self._api.get(f"/pushes/{REPOSITORY}/{push_id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            repository = self._api.get(f"/repositories/{REPOSITORY}").json()
            return f"tc-treeherder has not noticed it; poll_error: {repository.get('poll_error')}"
        push = answer.json()
        reasons = [push["graph"]["reason"], *(resultset["error"] for resultset in push["resultsets"])]
        return "; ".join(reason for reason in reasons if reason) or f"graph is {push['graph']['state']}"


def _expect(answer: httpx.Response, status: int) -> Any:
    if answer.status_code != status:
        raise StackError(f"{answer.request.method} {answer.request.url} answers {answer.status_code}: {answer.text}")
    return answer.json()


def _broker(amqp_url: str | None, no_broker: bool) -> str | None:
    """Return the URL of the broker to use, if any, and print the choice.

    Raises StackError if a broker was named and cannot be used.
    """
    if no_broker:
        typer.echo("No broker is used (--no-broker): the retrigger goes over HTTP.")
        return None
    try:
        broker.check(amqp_url or broker.LOCAL, broker.PATIENCE if amqp_url else LOOKED_FOR)
    except broker.BrokerError as error:
        if amqp_url:
            raise StackError(f"{error}. Start it, correct --amqp-url (SANDBOX_AMQP_URL), or leave it out.") from error
        typer.echo(f"{error}. The retrigger goes over HTTP.")
        return None
    origin = "as named" if amqp_url else "it answers there; --no-broker uses none"
    typer.echo(f"Broker: {broker.address(amqp_url or broker.LOCAL)} ({origin})")
    return amqp_url or broker.LOCAL


def _stay(stack: Stack) -> None:
    hg = stack.sandbox["hg"]
    with contextlib.suppress(KeyboardInterrupt):
        typer.echo(
            f"""
The system keeps running. Look at it, and press Ctrl-C to end it:
  Treeherder   {stack.sandbox["treeherder"]}/
  Taskcluster  {stack.sandbox["taskcluster"]}/
  Mercurial    {hg}/{PATH}/json-pushes?version=2&full=1
  the page     {stack.service_url}/   (sign in with Taskcluster, or with the token {stack.token})
  the API      {stack.service_url}/docs   (Authorization: Bearer {stack.token})
  the logs     {stack.folder}/*.log
Push again:
  bin/sandbox push {PATH} README.md -m "Bug 2 - another change" --hg-url {hg}
"""
        )
        while True:  # pause() would miss a signal that arrived just before it
            time.sleep(0.5)


MARKER = ".tc-treeherder-demo"
"""The file that says that a folder is the demo's own."""


class FolderError(StackError):
    """A folder is not for the demo. The message says why not, and what to do."""


def claim_folder(folder: Path) -> TextIO:
    """Make `folder` an empty folder that is marked as the demo's, and return its marker, which is locked until closed.

    Raises FolderError if the folder contains anything and is not marked, because only the demo's own files are deleted,
    or if another demo runs in it.
    """
    with contextlib.ExitStack() as opened:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            contents = list(folder.iterdir())
            marker = folder / MARKER
            if contents and not marker.is_file():
                raise FolderError(
                    f"The folder {folder} contains files that are not the demo's ({contents[0].name}, ...). "
                    "Name a new or an empty one with --folder."
                )
            claim = opened.enter_context(marker.open("a"))
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in contents:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path != marker:
                    path.unlink()
        except BlockingIOError:
            raise FolderError(
                f"Another demo runs in the folder {folder}. End it with Ctrl-C, or name another folder with --folder."
            ) from None
        except OSError as error:
            raise FolderError(
                f"The folder {folder} cannot be used ({error}). Name another one with --folder."
            ) from None
        opened.pop_all()
    return claim


app = typer.Typer(add_completion=False)


@app.command()
def main(
    once: Annotated[bool, typer.Option("--once", help="End when push, retrigger and backfill are complete.")] = False,
    folder: Annotated[
        Path,
        typer.Option(
            help="Folder for the database and the logs: new, empty, or an earlier demo's.",
            show_default=".demo in the checkout",
        ),
    ] = FOLDER,
    free_ports: Annotated[bool, typer.Option(help="Use any free ports instead of the default ones.")] = False,
    amqp_url: Annotated[
        str | None,
        typer.Option(
            help="URL of the RabbitMQ for buttons and task events. By default one on this machine with its default "
            "user; without any, the demo uses HTTP.",
            envvar="SANDBOX_AMQP_URL",
        ),
    ] = None,
    no_broker: Annotated[bool, typer.Option("--no-broker", help="Use no broker, even if one answers.")] = False,
    seconds: Annotated[float, typer.Option(help="Time limit for pushes, retrigger and backfill.")] = 50,
) -> None:
    """Push a commit through tc-treeherder, with stand-ins for the systems around it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # its errors are printed here, in one line
    names = ("The stand-in for Mercurial", "The stand-in for Taskcluster", "The stand-in for Treeherder", "The service")
    ports = (0, 0, 0) if free_ports or once else (HG_PORT, TASKCLUSTER_PORT, TREEHERDER_PORT)
    service_port = 0 if free_ports or once else SERVICE_PORT
    try:
        for name, port in zip(names, (*ports, service_port), strict=True):
            require_free(HOST, port, name, "Stop the program that uses it, or let the demo choose: --free-ports.")
        claim = claim_folder(folder)
        url = _broker(amqp_url, no_broker)
        stack = Stack(
            folder.absolute(),
            mercurial=True,
            ports=ports,
            service_port=service_port,
            amqp_url=url,
            settings={"TC_TREEHERDER_POLL__INTERVAL": "1"},  # people watch
        )
        if url:
            user = stack.pulse_user
            typer.echo(f"  exchange/{user}/… and queue/{user}/… are created there, and removed at the end")
        typer.echo("Starting: sandbox (Mercurial, Taskcluster, Treeherder), service, listeners")
        with claim, stack:
            stack.service()
            typer.echo(f"Watch it at {stack.service_url}/ (sign in with Taskcluster, or with the token {stack.token})")
            stack.listener()
            if url:
                stack.listener("pulse-listener", "pulse")
            Demo(stack).run(seconds)
            typer.echo("\nThe backfill is complete: the test fails on the earlier push, too.")
            if not once:
                _stay(stack)
    except PortError as error:
        typer.echo(f"The demo cannot start. {error}", err=True)
        sys.exit(EXIT_CODE)
    except FolderError as error:
        typer.echo(f"The demo cannot start. {error}", err=True)
        sys.exit(1)
    except (StackError, httpx.HTTPError) as error:
        typer.echo(f"\nThe demo failed. {error}", err=True)
        typer.echo(f"The logs are in {folder.absolute()}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        app(prog_name="bin/demo")
