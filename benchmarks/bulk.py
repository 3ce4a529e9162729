"""Measure actions on whole pushes: `bin/measure-bulk`."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from benchmarks.figures import DatabaseUrl, cpu_seconds, database_name, prepare
from benchmarks.retrigger import BATCH, definition, task_id
from sandbox.credentials import LEVEL, TRUST_DOMAIN
from sandbox.stack import Stack, wait_for

PROJECT = "try"
SETTINGS = {"TC_TREEHERDER_LOG_LEVEL": "WARNING", "TC_TREEHERDER_POLL__INTERVAL": "0.2"}
LATENCY = 0.02
"""Seconds of each call to Taskcluster."""

DECISION = """\
version: 1
tasks:
  - taskId: {$eval: ownTaskId}
    taskGroupId: {$eval: ownTaskId}
    taskQueueId: sandbox/measure
    schedulerId: sandbox-level-3
    created: {$fromNow: ""}
    deadline: {$fromNow: "1 day"}
    payload: {sandbox: {seconds: 0, result: completed}}
    metadata: {name: decision, description: d, owner: d@example.com, source: "https://example.com"}
"""

Json = dict[str, Any]


class Measured:
    """A running stack, and pushes whose tasks are created as a decision task would create them."""

    def __init__(self, stack: Stack) -> None:
        self.api, self.taskcluster, self._hg = stack.api(), stack.control("taskcluster"), stack.control("hg")
        self._service = stack.service()
        url = stack.sandbox["repositories"][PROJECT]
        body = {"alias": PROJECT, "url": url, "level": LEVEL, "trust_domain": TRUST_DOMAIN, "last_push_id": 0}
        self.api.post("/repositories", json=body).raise_for_status()
        stack.listener()

    def push(self, names: dict[str, list[str]], *, hang: bool) -> int:
        """Push, and create these tasks, by their names with those that they depend on; return the push id.

        All tasks hang, or fail at once.
        """
        self.taskcluster.post("/latency", json={"seconds": 0}).raise_for_status()
        changeset = {"message": "Bug 1 - a change", "files": {".taskcluster.yml": DECISION}}
        pushed = self._hg.post("/push", json={"repository": PROJECT, "user": "me", "changesets": [changeset]})
        push_id = int(pushed.raise_for_status().json()["id"])
        wait_for(lambda: self._graph(push_id).get("state") == "done", 30)
        group = self._graph(push_id)["tasks"][0]["task_id"]
        tasks = []
        for name, dependencies in names.items():
            task = definition(f"{push_id} {name}", group, [task_id(f"{push_id} {needed}") for needed in dependencies])
            task["payload"]["sandbox"] = {"seconds": 0, "result": "hang" if hang else "failed"}
            tasks.append({"taskId": task_id(f"{push_id} {name}"), "task": task})
        for start in range(0, len(tasks), BATCH):
            batch = tasks[start : start + BATCH]
            self.taskcluster.post("/tasks", json={"tasks": batch}, timeout=120).raise_for_status()
        return push_id

    def _graph(self, push_id: int) -> Json:
        answer = self.api.get(f"/pushes/{PROJECT}/{push_id}")
        graph: Json = (answer.json()["graph"] or {}) if answer.is_success else {}
        return graph

    def failed(self) -> int:
        """Return the number of tasks that have failed."""
        tasks = self.taskcluster.get("/tasks").json()["tasks"]
        return sum(task["status"]["state"] == "failed" for task in tasks)

    def slow_down(self) -> None:
        """Let each call take its time from now on, and count calls anew."""
        self.taskcluster.post("/latency", json={"seconds": LATENCY}).raise_for_status()
        self.taskcluster.delete("/calls").raise_for_status()

    def calls(self) -> int:
        """Return the number of calls of Taskcluster."""
        return sum(self.taskcluster.get("/calls").json()["calls"].values())

    def cpu(self) -> float:
        """Return the seconds of CPU that the service has used."""
        return cpu_seconds(self._service)

    def carry_out(self, action: str, push_id: int) -> Json:
        """Ask for an action, and return it as it ended."""
        body = {"action": action, "project": PROJECT, "push": push_id}
        asked: Json = self.api.post("/actions", json=body).raise_for_status().json()
        while (ended := self._state(asked["id"])) in {"received", "planned"}:
            time.sleep(0.05)
        if ended != "done":
            raise typer.BadParameter(f"{action} {asked['id']} is {ended}: {self._action(asked['id'])['reason']}")
        return self._action(asked["id"])

    def _action(self, action_id: int) -> Json:
        action: Json = self.api.get(f"/actions/{action_id}").json()
        return action

    def _state(self, action_id: int) -> str:
        listed: httpx.Response = self.api.get("/actions", params={"limit": 5})
        return next(str(each["state"]) for each in listed.json()["items"] if each["id"] == action_id)


def cancel(one: Measured, size: int, rounds: int) -> None:
    """Time the cancel of a push of so many tasks, half of which wait for the other half."""
    seconds = []
    for _ in range(rounds):
        names = {f"t{number}": [f"t{number - 1}"] if number % 2 else [] for number in range(size - 1)}
        push_id = one.push(names, hang=True)
        one.slow_down()
        cpu, began = one.cpu(), time.perf_counter()
        done = one.carry_out("cancel-push", push_id)
        seconds.append(time.perf_counter() - began)
        typer.echo(
            f"  {done['cancels_count']} tasks: {seconds[-1]:.2f} s, CPU {one.cpu() - cpu:.2f} s, {one.calls()} calls"
        )
    typer.echo(f"  median {statistics.median(seconds):.2f} s")


def plan(one: Measured, failing: int, rounds: int) -> None:
    """Measure the plan of a retrigger of so many failed tasks, with half as many that depend on two of them each."""
    names: dict[str, list[str]] = {f"f{number}": [] for number in range(failing)}
    shared = {f"d{number}": [f"f{2 * number}", f"f{2 * number + 1}"] for number in range(failing // 2)}
    push_id = one.push({**names, **shared}, hang=False)
    wait_for(lambda: one.failed() == failing, 60)
    one.slow_down()
    body = {"action": "retrigger-failed", "project": PROJECT, "push": push_id}
    spent = []
    for _ in range(rounds):
        cpu, began = one.cpu(), time.perf_counter()
        planned = one.api.post("/actions/plan", json=body).raise_for_status().json()
        spent.append(one.cpu() - cpu)
        typer.echo(f"  {len(planned['tasks'])} copies: CPU {spent[-1]:.2f} s, {time.perf_counter() - began:.2f} s")
    typer.echo(f"  median CPU {statistics.median(spent):.2f} s")


def main(
    database_url: DatabaseUrl = None,
    size: Annotated[int, typer.Option(help="tasks of a push that is cancelled")] = 1_000,
    failing: Annotated[int, typer.Option(help="failed tasks of a push that are retriggered")] = 300,
    rounds: Annotated[int, typer.Option(help="of each, one after the other")] = 5,
) -> None:
    """Measure actions on pushes on this machine: the service, a listener and Taskcluster's stand-in, each a process."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Stack(Path(folder), settings=SETTINGS, database_url=database_url) as stack,
    ):
        prepare(stack, database_url)
        one = Measured(stack)
        typer.echo(f"cancel-push, {LATENCY * 1000:.0f} ms a call, {database_name(database_url)}")
        cancel(one, size, rounds)
        typer.echo(f"plan of retrigger-failed, {LATENCY * 1000:.0f} ms a call")
        plan(one, failing, rounds)


if __name__ == "__main__":
    typer.run(main)
