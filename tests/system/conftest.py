"""Run the whole system as real processes, and check what must hold in the end, whatever failed on the way."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from sandbox.credentials import LEVEL, TRUST_DOMAIN
from sandbox.stack import Stack, StackError, wait_for
from tests.system.warm import WarmProcess

REPOSITORY, PATH = "try", "try"

SHORT = {
    "TC_TREEHERDER_TASKCLUSTER__TIMEOUT": "1.5",
    "TC_TREEHERDER_WORK__LEASE": "2",
    "TC_TREEHERDER_WORK__IDLE": "0.1",
    "TC_TREEHERDER_WORK__FIRST_RETRY": "0.2",
    "TC_TREEHERDER_WORK__MAX_RETRY": "1",
    "TC_TREEHERDER_POLL__INTERVAL": "0.2",
    "TC_TREEHERDER_POLL__SHIFT": "2",
    "TC_TREEHERDER_POLL__RENEW": "0.25",
    "TC_TREEHERDER_POLL__MAX_REQUESTS_PER_HOST": "100",
    "TC_TREEHERDER_POLL__MAX_BACKOFF": "1",
}
"""Durations that let a test see in seconds what takes minutes in production."""


mostly_postgresql = pytest.mark.parametrize(
    "database_url", ["postgresql", pytest.param("sqlite", marks=pytest.mark.long)], indirect=True
)
"""Test with PostgreSQL, and with SQLite in bin/soak: for tests that take seconds, in which databases differ little."""


def graph_of(tasks: int, *, seconds: float = 0.0) -> str:
    """Return a `.taskcluster.yml` with a decision task, and tasks that depend on it."""
    return f"""\
version: 1
tasks:
  $map: {{$eval: "range(0, {tasks})"}}
  each(n):
    $mergeDeep:
      - taskId: {{$if: "n == 0", then: {{$eval: ownTaskId}}, else: {{$eval: "as_slugid('t' + str(n))"}}}}
        taskGroupId: {{$eval: ownTaskId}}
        taskQueueId: sandbox/test
        schedulerId: sandbox-level-3
        created: {{$fromNow: ""}}
        deadline: {{$fromNow: "1 day"}}
        payload: {{sandbox: {{seconds: {seconds}}}}}
        metadata: {{name: "t${{n}}", description: d, owner: "${{push.owner}}", source: "${{repository.url}}"}}
      - $if: n > 0
        then: {{dependencies: [{{$eval: ownTaskId}}]}}
        else: {{}}
"""


class System:
    """A stack with one repository, and the questions that the tests ask of it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.hg, self.taskcluster, self.treeherder = (stack.control(p) for p in ("hg", "taskcluster", "treeherder"))
        self.api = stack.api()

    def add_repository(self, **fields: Any) -> None:
        url = self.stack.sandbox["repositories"][REPOSITORY]
        body = {
            "alias": REPOSITORY,
            "url": url,
            "level": LEVEL,
            "trust_domain": TRUST_DOMAIN,
            "last_push_id": 0,
            **fields,
        }
        answer = self.api.post("/repositories", json=body)
        assert answer.status_code == 201, answer.text

    def push(
        self, tasks: int = 2, *, user: str = "dev@example.com", message: str = "Bug 1 - a change", seconds: float = 0
    ) -> int:
        """Push a commit whose graph has so many tasks, each of which takes so long; the push id."""
        changeset = {"message": message, "files": {".taskcluster.yml": graph_of(tasks, seconds=seconds)}}
        answer = self.hg.post("/push", json={"repository": PATH, "user": user, "changesets": [changeset]})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["id"])

    def pushes(self) -> list[dict[str, Any]]:
        try:
            answer = self.api.get("/pushes", params={"limit": 500})
        except httpx.TransportError:  # killed just now
            return []
        return answer.json()["items"] if answer.is_success else []

    def push_stored(self, push_id: int) -> bool:
        return any(push["push_id"] == push_id for push in self.pushes())

    def creations(self) -> int:
        """Return the number of calls of createTask, answered or in progress."""
        return int(self.taskcluster.get("/calls").json()["calls"].get("createTask", 0))

    def task_states(self) -> set[str]:
        """Return the states of all tasks in Taskcluster."""
        return {task["status"]["state"] for task in self.taskcluster.get("/tasks").json()["tasks"]}

    def polls(self, what: str = "statuses") -> int:
        """Return the number of json-pushes requests that were answered with a list; `requests`: of all that came in."""
        counts = self.hg.get("/requests").json()["kinds"].get("json-pushes", {})
        return int(counts.get("statuses", {}).get("200", 0) if what == "statuses" else counts.get(what, 0))

    def settled(self, pushes: int) -> bool:
        """Return True if so many pushes are stored, and every step of each has ended."""
        stored = self.pushes()
        return len(stored) == pushes and all(
            push["graph"]["state"] != "pending" and all(r["state"] != "pending" for r in push["resultsets"])
            for push in stored
        )

    def wait(self, what: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until `what` is true. Fails with the end of each process's log."""
        try:
            wait_for(what, seconds, next(iter(self.stack.processes.values())))
        except StackError as error:
            logs = [f"--- {name}:\n{process.tail()}" for name, process in self.stack.processes.items()]
            raise StackError("\n".join([str(error), *logs])) from None

    def expect_exactly_once(self, pushes: int, tasks: int, environments: int = 1) -> list[dict[str, Any]]:
        """Wait until all is done, then hold it to the promise: one resultset an environment, one graph a push."""
        try:
            self.wait(lambda: self.settled(pushes))
        except Exception as error:
            raise AssertionError(f"not settled: {self.pushes()}") from error
        time.sleep(0.3)  # what is done twice would be done now
        stored = self.pushes()
        assert [push["graph"]["state"] for push in stored] == ["done"] * pushes, stored
        assert all(r["state"] == "done" for push in stored for r in push["resultsets"]), stored
        assert all(len(push["resultsets"]) == environments for push in stored)

        resultsets = self.treeherder.get("/state").json()["resultsets"]
        revisions = Counter(resultset["resultset"]["revision"] for resultset in resultsets)
        assert revisions == Counter(push["revision"] for push in stored)

        # a list shows the first tasks of each graph
        whole = [self.api.get(f"/pushes/{push['repository']}/{push['push_id']}").json() for push in stored]
        planned = [task for push in whole for task in push["graph"]["tasks"]]
        assert len(planned) == pushes * tasks
        assert all(task["created"] for task in planned)
        task_ids = [task["status"]["taskId"] for task in self.taskcluster.get("/tasks").json()["tasks"]]
        assert sorted(task_ids) == sorted(task["task_id"] for task in planned)
        return stored


@pytest.fixture
def systems(tmp_path: Path) -> Iterator[Callable[..., System]]:
    """Yield a factory of systems; stop everything at the end."""
    with ExitStack() as exits:

        def make(database_url: str | None = None, **arguments: Any) -> System:
            settings = {**SHORT, **arguments.pop("settings", {})}
            values = {"database_url": database_url, "settings": settings, "process": WarmProcess, **arguments}
            stack = exits.enter_context(Stack(tmp_path / "stack", **values))
            system = System(stack)
            for client in (system.api, system.hg, system.taskcluster, system.treeherder):
                exits.enter_context(client)
            return system

        yield make


@pytest.fixture
def locked() -> Callable[[str], AbstractContextManager[None]]:
    """Keep everybody from writing pushes to the database while inside: a commit in progress waits."""

    @contextmanager
    def lock(database_url: str) -> Iterator[None]:
        url = make_url(database_url)
        if url.get_backend_name() == "postgresql":
            with psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
                connection.execute("LOCK TABLE push IN ACCESS EXCLUSIVE MODE")
                yield
                connection.rollback()
        else:
            engine = create_engine(f"sqlite:///{url.database}", isolation_level="AUTOCOMMIT")
            with engine.connect() as sqlite:
                sqlite.execute(text("BEGIN IMMEDIATE"))
                yield
                sqlite.execute(text("ROLLBACK"))
            engine.dispose()

    return lock
