"""The demo: somebody pushes, and the push travels from Mercurial to Treeherder and Taskcluster while you look on.

`bin/demo` runs it. Everything is real but the three systems around it, which are stand-ins on this machine.
"""

import contextlib
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from sandbox.run import HG_PORT, TASKCLUSTER_PORT, TREEHERDER_PORT
from sandbox.stack import Stack, StackError

REPOSITORY, PATH = "autoland", "integration/autoland"
USER = "dev@example.com"
SERVICE_PORT = 8080

TASKCLUSTER_YML = """\
version: 1
tasks:
  $let:
    common:
      taskGroupId: {$eval: ownTaskId}
      schedulerId: demo
      created: {$fromNow: ""}
      deadline: {$fromNow: "1 day"}
      routes: ["tc-treeherder.v2.${repository.project}.${push.revision}.${push.pushlog_id}"]
    decision: {$eval: ownTaskId}
    build: {$eval: as_slugid("build")}
  in:
    - $merge:
        - {$eval: common}
        - taskId: {$eval: decision}
          taskQueueId: sandbox/decision
          payload: {sandbox: {seconds: 0.2}}
          metadata: {name: decision, description: Decides, owner: "${push.owner}", source: "${repository.url}"}
          extra: {treeherder: {symbol: D, machine: {platform: taskcluster-decision}}}
    - $merge:
        - {$eval: common}
        - taskId: {$eval: build}
          taskQueueId: sandbox/linux
          dependencies: [{$eval: decision}]
          payload: {sandbox: {seconds: 0.5}}
          metadata: {name: build, description: Builds, owner: "${push.owner}", source: "${repository.url}"}
          extra: {treeherder: {symbol: B, machine: {platform: linux64}}}
    - $merge:
        - {$eval: common}
        - taskId: {$eval: as_slugid("lint")}
          taskQueueId: sandbox/linux
          dependencies: [{$eval: decision}]
          payload: {sandbox: {seconds: 0.3}}
          metadata: {name: lint, description: Lints, owner: "${push.owner}", source: "${repository.url}"}
          extra: {treeherder: {symbol: lint, machine: {platform: linux64}}}
    - $merge:
        - {$eval: common}
        - taskId: {$eval: as_slugid("test")}
          taskQueueId: sandbox/linux
          dependencies: [{$eval: build}]
          payload: {sandbox: {seconds: 0.5}}
          metadata: {name: test, description: Tests, owner: "${push.owner}", source: "${repository.url}"}
          extra: {treeherder: {symbol: t, machine: {platform: linux64}}}
"""


@dataclass
class Timeline:
    """What happened when, in milliseconds after the push was made; each thing is told once."""

    pushed_at: float
    told: set[str] = field(default_factory=set)

    def tell(self, what: str, at: float) -> None:
        if what not in self.told:
            self.told.add(what)
            typer.echo(f"  {max(0, at - self.pushed_at) * 1000:7.0f} ms  {what}")


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


class Demo:
    def __init__(self, stack: Stack) -> None:
        self._api = stack.api()
        self._hg, self._taskcluster, self._treeherder = (
            stack.control(part) for part in ("hg", "taskcluster", "treeherder")
        )
        self._stack = stack

    def run(self, seconds: float) -> None:
        """Push once and tell what happens. Raises StackError when it is not through in time."""
        url = self._stack.sandbox["repositories"][REPOSITORY]
        typer.echo(f"\nAdding the repository {REPOSITORY} ({url})")
        answer = self._api.post("/repositories", json={"alias": REPOSITORY, "url": url, "level": "3"})
        _expect(answer, 201)

        typer.echo(f"Pushing a commit to {PATH} as {USER}\n")
        pushed_at = time.time()
        changeset = {"message": "Bug 1 - the first change", "files": {".taskcluster.yml": TASKCLUSTER_YML}}
        answer = self._hg.post("/push", json={"repository": PATH, "user": USER, "changesets": [changeset]})
        push_id = _expect(answer, 200)["id"]
        timeline = Timeline(pushed_at)
        timeline.tell(f"push {push_id} stands in the pushlog", time.time())
        end = time.monotonic() + seconds
        while not self._look(timeline, push_id):
            if time.monotonic() > end:
                raise StackError(f"the push is not through after {seconds:g} s: {self._why(push_id)}")
            time.sleep(0.05)

    def _look(self, timeline: Timeline, push_id: int) -> bool:
        """Tell what is new; whether the push is through."""
        answer = self._api.get(f"/pushes/{REPOSITORY}/{push_id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return False
        push = _expect(answer, 200)
        events = [(_seconds(push["noticed_at"]), "push noticed by tc-treeherder")]
        for resultset in self._treeherder.get("/state").json()["resultsets"]:
            if resultset["resultset"]["revision"] == push["revision"]:
                events.append((resultset["first_posted"], "resultset in Treeherder"))
        statuses = {
            task["status"]["taskId"]: task["status"] for task in self._taskcluster.get("/tasks").json()["tasks"]
        }
        created = {c["task_id"]: c["time"] for c in self._taskcluster.get("/calls").json()["creations"]}
        for task in push["graph"]["tasks"]:
            events += self._task(task, created, statuses)
        for at, what in sorted(events):
            timeline.tell(what, at)
        states = {resultset["state"] for resultset in push["resultsets"]} | {push["graph"]["state"]}
        if states & {"failed", "skipped"}:
            raise StackError(f"the push failed: {self._why(push_id)}")
        mine = [statuses.get(task["task_id"], {}).get("state") for task in push["graph"]["tasks"]]
        return states == {"done", "created"} and set(mine) == {"completed"}

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

    def _why(self, push_id: int) -> str:
        answer = self._api.get(f"/pushes/{REPOSITORY}/{push_id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            repository = self._api.get(f"/repositories/{REPOSITORY}").json()
            return f"it was not noticed; poll_error: {repository.get('poll_error')}"
        push = answer.json()
        reasons = [push["graph"]["reason"], *(resultset["error"] for resultset in push["resultsets"])]
        return "; ".join(reason for reason in reasons if reason) or f"graph is {push['graph']['state']}"


def _expect(answer: httpx.Response, status: int) -> Any:
    if answer.status_code != status:
        raise StackError(f"{answer.request.method} {answer.request.url} answers {answer.status_code}: {answer.text}")
    return answer.json()


def _stay(stack: Stack) -> None:
    hg = stack.sandbox["hg"]
    typer.echo(
        f"""
Look around, and press Ctrl-C when you have seen enough:
  Treeherder   {stack.sandbox["treeherder"]}/
  Taskcluster  {stack.sandbox["taskcluster"]}/__control__/tasks
  Mercurial    {hg}/{PATH}/json-pushes?version=2&full=1
  the API      {stack.service_url}/docs   (Authorization: Bearer {stack.token})
  the logs     {stack.folder}/*.log
Push again:
  .venv/bin/tc-treeherder sandbox push {PATH} README.md -m "Bug 2 - another change" --hg-url {hg}
"""
    )
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def main(
    once: Annotated[bool, typer.Option("--once", help="Leave when the push is through.")] = False,
    folder: Annotated[Path, typer.Option(help="for the database and the logs; emptied first")] = Path(".demo"),
    free_ports: Annotated[bool, typer.Option(help="Any free ports instead of the usual ones.")] = False,
    seconds: Annotated[float, typer.Option(help="how long the push may take")] = 50,
) -> None:
    """Push a commit through tc-treeherder, with stand-ins for the systems around it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(folder, ignore_errors=True)
    ports = (0, 0, 0) if free_ports or once else (HG_PORT, TASKCLUSTER_PORT, TREEHERDER_PORT)
    service_port = 0 if free_ports or once else SERVICE_PORT
    try:
        with Stack(folder.absolute(), mercurial=True, ports=ports, service_port=service_port) as stack:
            typer.echo("Starting: sandbox (Mercurial, Taskcluster, Treeherder), service, pushlog listener")
            stack.service()
            stack.listener()
            Demo(stack).run(seconds)
            typer.echo("\nThe push is through.")
            if not once:
                _stay(stack)
    except (StackError, httpx.HTTPError) as error:
        typer.echo(f"\nThe demo failed: {error}\nThe logs are in {folder.absolute()}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        typer.run(main)
