"""Measure whether memory stays flat while everything is used: `bin/measure-memory`.

At an even rate, a commit is pushed whose graph has five tasks that run and are reported, a page is read, and for every
tenth push a task is retriggered and another one cancelled with Treeherder's buttons. What each process has is printed
ten times.
"""

import base64
import itertools
import tempfile
import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.figures import DatabaseUrl, database_name, prepare
from benchmarks.pages import SETTINGS, Pusher
from sandbox.demo import REPOSITORY, USER
from sandbox.stack import Process, Stack, wait_for
from service.log import configure

PRINTED = 10

BUTTONS = 10
"""Pushes from one pair of presses to the next."""

PAGES = ("/pushes", "/actions", "/reports", "/repositories")


class Users:
    """Those who push, press buttons and read pages."""

    def __init__(self, stack: Stack) -> None:
        self._pusher = Pusher(stack)
        self._treeherder, self._api = stack.control("treeherder"), stack.api()
        self._pages = itertools.cycle(PAGES)
        self.pushes = self.presses = 0

    def act(self) -> None:
        """Push once, and do what is due with that."""
        self.pushes += 1
        self._pusher.push()
        self._api.get(f"{self._api.base_url.copy_with(path=next(self._pages))}").raise_for_status()
        if self.pushes % BUTTONS == 0:
            self._press(self.pushes - BUTTONS // 2)

    def _press(self, push_id: int) -> None:
        wait_for(lambda: self._tasks(push_id) is not None, 60)
        ids = self._tasks(push_id) or {}
        for name, action in (("test", "retrigger"), ("report", "cancel")):
            guid = f"{uuid.UUID(bytes=base64.urlsafe_b64decode(ids[name] + '=='))}/0"
            press = {"project": REPOSITORY, "job_guid": guid, "action": action, "requester": USER}
            wait_for(lambda press=press: self._heard(press), 60)  # type: ignore[misc]  # mypy cannot infer lambdas with defaults
            self.presses += 1

    def _tasks(self, push_id: int) -> dict[str, str] | None:
        """Return the ids of a push's tasks by name, once all are created."""
        answer = self._api.get(f"/pushes/{REPOSITORY}/{push_id}")
        if answer.status_code != 200 or answer.json()["graph"]["state"] != "done":
            return None
        return {task["name"]: task["task_id"] for task in answer.json()["graph"]["tasks"]}

    def _heard(self, press: dict[str, str]) -> bool:
        """Press a button, and say whether somebody was there to receive that."""
        return bool(self._treeherder.post("/job-action", json=press).raise_for_status().json()["heard"])

    def unfinished(self) -> bool:
        """Say whether any push or action has not ended."""
        states = (("pushes", "pending"), ("actions", "received"), ("actions", "planned"))
        return any(self._count(what, state) for what, state in states)

    def unsuccessful(self) -> int:
        """Return how many pushes and actions have failed, up to 500 of each kind."""
        states = (("pushes", "failed"), ("actions", "failed"), ("actions", "rejected"), ("actions", "nothing-to-do"))
        return sum(self._count(what, state) for what, state in states)

    def _count(self, what: str, state: str) -> int:
        answer = self._api.get(f"/{what}", params={"state": state, "limit": 500}).raise_for_status()
        return len(answer.json()["items"])


def _megabytes(process: Process) -> float:
    return float(psutil.Process(process.pid).memory_info().rss / 1e6)


def flat(folder: Path, database_url: str | None, amqp_url: str, minutes: float, rate: float) -> None:
    """Print the memory of each process while pushes come, so many a second."""
    with Stack(folder, database_url=database_url, amqp_url=amqp_url, settings=SETTINGS) as stack:
        prepare(stack, database_url)
        processes: dict[str, Any] = {
            "service": stack.service(),
            "pushlog listener": stack.listener(),
            "pulse listener": stack.listener("pulse-listener", "pulse"),
        }
        users = Users(stack)
        print(f"{database_name(database_url)}, {rate:g} pushes a second for {minutes:g} minutes; MB:", flush=True)
        print(f"  {'pushes':>8} {'presses':>8}" + "".join(f"{name:>18}" for name in processes), flush=True)
        began = time.monotonic()
        count = max(1, round(minutes * 60 * rate))
        for number in range(1, count + 1):
            users.act()
            if number * PRINTED // count > (number - 1) * PRINTED // count:
                figures = "".join(f"{_megabytes(process):>18.1f}" for process in processes.values())
                print(f"  {users.pushes:>8} {users.presses:>8}{figures}", flush=True)
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
        wait_for(lambda: not users.unfinished(), 60)
        print(f"  all ended; of pushes and presses, {users.unsuccessful()} failed")


def main(
    database_url: DatabaseUrl = None,
    amqp_url: Annotated[str, typer.Option(help="a RabbitMQ")] = "amqp://guest:guest@127.0.0.1:5672/%2F",
    minutes: float = 60,
    rate: Annotated[float, typer.Option(help="pushes a second")] = 1,
) -> None:
    """Measure whether memory stays flat."""
    configure("WARNING", as_json=None)
    with tempfile.TemporaryDirectory() as folder:
        flat(Path(folder), database_url, amqp_url, minutes, rate)


if __name__ == "__main__":
    typer.run(main)
