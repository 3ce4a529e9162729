"""Measure how much one greedy user delays others: `bin/measure-fairness`.

A push or a cancel of another user is timed alone, and then beside the greedy one in the same stack: one pusher with
many waiting graphs, or with templates that take as long as they may; for the cancel, with one graph of ten thousand
tasks.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.figures import DatabaseUrl, ms, p95, prepare
from benchmarks.pushes import FAST, YML
from sandbox.stack import Stack, wait_for
from service.log import configure

HOG, OTHER = "try", "autoland"

MANY = """\
version: 1
tasks:
  $map: {$eval: "range(0, %d)"}
  each(n):
    taskId: {$if: "n == 0", then: {$eval: ownTaskId}, else: {$eval: "as_slugid('t' + str(n))"}}
    taskGroupId: {$eval: ownTaskId}
    taskQueueId: sandbox/measure
    schedulerId: sandbox-level-3
    created: {$fromNow: ""}
    deadline: {$fromNow: "1 day"}
    routes: ["tc-treeherder.v2.${repository.project}.${push.revision}.${push.pushlog_id}"]
    payload: {sandbox: {result: hang}}
    metadata: {name: "t${n}", description: d, owner: "${push.owner}", source: "${repository.url}"}
"""

SLOW = """\
version: 1
tasks:
  $map: {$eval: "range(0, 9000)"}
  each(x):
    $map: {$eval: "range(0, 9000)"}
    each(y): {$if: "x < 0", then: 1}
"""
"""It takes more than the time that a template has, and is killed."""


class Measured:
    """A running stack with two repositories, one of them the greedy user's."""

    def __init__(self, stack: Stack, upstream: float) -> None:
        self.stack = stack
        self.api = stack.api()
        self.hg, self.taskcluster, self.treeherder = (stack.control(p) for p in ("hg", "taskcluster", "treeherder"))
        for name in (HOG, OTHER):
            body = {"alias": name, "url": stack.sandbox["repositories"][name], "level": "3", "last_push_id": 0}
            self.api.post("/repositories", json=body).raise_for_status()
        self.taskcluster.post("/latency", json={"seconds": upstream}).raise_for_status()

    def push(self, repository: str, yml: str) -> int:
        changesets = [{"message": "Bug 1 - a change", "files": {".taskcluster.yml": yml}}]
        path = self.stack.sandbox["repositories"][repository].removeprefix(f"{self.stack.sandbox['hg']}/")
        body = {"repository": path, "user": f"{repository}@example.com", "changesets": changesets}
        return int(self.hg.post("/push", json=body).raise_for_status().json()["id"])

    def graph(self, repository: str, push_id: int) -> dict[str, Any]:
        answer = self.api.get(f"/pushes/{repository}/{push_id}")
        push: dict[str, Any] = answer.json() if answer.status_code == 200 else {"graph": {"state": "unknown"}}
        return push

    def notice_to_graph(self) -> float:
        """Push as another user and return the seconds from notice to graph, by the service's own times."""
        push_id = self.push(OTHER, YML)
        wait_for(lambda: self.graph(OTHER, push_id)["graph"]["state"] == "done", 120)
        push = self.graph(OTHER, push_id)
        ended, noticed = (datetime.fromisoformat(at) for at in (push["graph"]["at"], push["noticed_at"]))
        return (ended - noticed).total_seconds()

    def waiting(self, repository: str) -> int:
        """Return the number of unfinished graphs of a repository."""
        answer = self.api.get("/pushes", params={"repository": repository, "state": "pending", "limit": 500})
        return len(answer.json()["items"])


def pushes(
    folder: Path, database_url: str | None, count: int, upstream: float, graphs: int, yml: str, hog: str, warm_up: int
) -> None:
    """Time a push of another user, alone and beside waiting graphs of the greedy one."""
    with Stack(folder, database_url=database_url, settings=FAST) as stack:
        prepare(stack, database_url)
        stack.service()
        stack.listener()
        measured = Measured(stack, upstream)
        for _ in range(warm_up):
            measured.notice_to_graph()
        alone = [measured.notice_to_graph() for _ in range(count)]
        for _ in range(graphs):
            measured.push(HOG, yml)
        wait_for(lambda: measured.graph(HOG, graphs)["graph"]["state"] != "unknown", 120)
        beside: list[float] = []
        while len(beside) < count:
            beside.append(measured.notice_to_graph())
            if not measured.waiting(HOG):
                break
        left = measured.waiting(HOG)
    _say(f"a push beside {hog}, {len(beside)} times, {upstream * 1000:g} ms a call of Taskcluster", alone, beside, 1.5)
    print(f"  of the hog's {graphs} graphs {left} still waited at the end")


def cancels(folder: Path, database_url: str | None, count: int, upstream: float, tasks: int) -> None:
    """Time a cancel of another user, alone and beside a push of many tasks."""
    with Stack(folder, database_url=database_url, settings=FAST) as stack:
        prepare(stack, database_url)
        stack.service()
        stack.listener()
        measured = Measured(stack, upstream)
        pushed = measured.push(OTHER, MANY % (2 * count + 1))
        wait_for(lambda: measured.graph(OTHER, pushed)["graph"]["state"] == "done", 120)
        ids = [task["task_id"] for task in measured.graph(OTHER, pushed)["graph"]["tasks"]]
        alone = [_cancel(measured, task_id) for task_id in ids[:count]]
        hog = measured.push(HOG, MANY % tasks)
        before = measured.taskcluster.get("/calls").json()["calls"]["createTask"]

        def created() -> int:
            return int(measured.taskcluster.get("/calls").json()["calls"]["createTask"] - before)

        wait_for(lambda: created() > min(20, tasks // 2), 120)
        beside = [_cancel(measured, task_id) for task_id in ids[count : 2 * count]]
        done, state = created(), str(measured.graph(HOG, hog)["graph"]["state"])
    _say(
        f"a cancel beside {tasks} creations, {count} times, {upstream * 1000:g} ms a call of Taskcluster", alone, beside
    )
    print(f"  slowest beside {ms(max(beside))} (aim: 1 s); the hog's graph was {state}, {done} tasks created")


def _cancel(measured: Measured, task_id: str) -> float:
    body = {"action": "cancel", "project": OTHER, "task_id": task_id}
    began = time.perf_counter()
    action = measured.api.post("/actions", json=body).raise_for_status().json()
    while action["state"] in {"received", "planned"}:
        time.sleep(0.01)
        action = measured.api.get(f"/actions/{action['id']}").json()
    assert action["state"] == "done", action
    return time.perf_counter() - began


def _say(title: str, alone: list[float], beside: list[float], aim: float | None = None) -> None:
    ratio = p95(beside) / p95(alone)
    print(f"{title}:")
    print(f"  alone    median {ms(statistics.median(alone))}, p95 {ms(p95(alone))}")
    slowest = ", ".join(ms(seconds) for seconds in sorted(beside)[-3:])
    print(f"  beside   median {ms(statistics.median(beside))}, p95 {ms(p95(beside))}, slowest {slowest}")
    print(f"  ratio    {ratio:.2f} of the p95" + (f" (aim: {aim})" if aim else ""))


def main(
    what: Annotated[list[str] | None, typer.Argument(help="graphs, templates, cancels; default: all")] = None,
    database_url: DatabaseUrl = None,
    times: int = 30,
    graphs: Annotated[int, typer.Option(help="the hog's waiting pushes")] = 100,
    tasks: Annotated[int, typer.Option(help="in each of the hog's graphs")] = 300,
    creations: int = 10_000,
    warm_up: Annotated[int, typer.Option(help="pushes that are not counted")] = 5,
    upstream: Annotated[float, typer.Option(help="seconds that each call of Taskcluster takes at least")] = 0.1,
) -> None:
    """Measure how much one greedy user delays others."""
    configure("WARNING", as_json=None)
    measures: dict[str, Callable[[Path], None]] = {
        "graphs": lambda folder: pushes(
            folder, database_url, times, upstream, graphs, MANY % tasks, f"{graphs} graphs of {tasks} tasks", warm_up
        ),
        "templates": lambda folder: pushes(
            folder, database_url, times, upstream, graphs, SLOW, f"{graphs} templates of 10 s", warm_up
        ),
        "cancels": lambda folder: cancels(folder, database_url, times, upstream, creations),
    }
    for name in what or list(measures):
        with tempfile.TemporaryDirectory() as folder:
            measures[name](Path(folder))


if __name__ == "__main__":
    typer.run(main)
