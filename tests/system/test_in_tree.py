"""In-tree actions with real processes that are killed, and hooks that break: each is triggered once at most."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandbox.stack import free_port
from tests.system.conftest import PATH, REPOSITORY, System, mostly_postgresql
from tests.system.test_actions import became

Systems = Callable[..., System]

GRAPH = """\
version: 1
tasks:
  $let:
    common:
      taskGroupId: {$eval: ownTaskId}
      schedulerId: sandbox-level-3
      created: {$fromNow: ""}
      deadline: {$fromNow: "1 day"}
      routes: ["tc-treeherder.v2.${repository.project}.${push.revision}.${push.pushlog_id}"]
  in:
    - $merge:
        - {$eval: common}
        - taskId: {$eval: ownTaskId}
          taskQueueId: sandbox/decision
          scopes: ["assume:repo:${split(repository.url, '://')[1]}:branch:default"]
          payload: {sandbox: {seconds: 0, decision: {repository: {$eval: repository}, push: {$eval: push}}}}
          tags: {kind: decision-task}
          metadata: {name: decision, description: d, owner: "${push.owner}", source: "${repository.url}"}
    - $merge:
        - {$eval: common}
        - taskId: {$eval: as_slugid("build")}
          taskQueueId: sandbox/test
          dependencies: [{$eval: ownTaskId}]
          payload: {sandbox: {seconds: 0}}
          tags: {kind: build, label: build, retrigger: "false"}
          metadata: {name: build, description: d, owner: "${push.owner}", source: "${repository.url}"}
    - $merge:
        - {$eval: common}
        - taskId: {$eval: as_slugid("test")}
          taskQueueId: sandbox/test
          dependencies: [{$eval: ownTaskId}]
          payload: {sandbox: {seconds: 0}}
          tags: {kind: test, label: test, retrigger: "true"}
          metadata: {name: test, description: d, owner: "${push.owner}", source: "${repository.url}"}
"""


_ENDED = {"completed", "failed", "exception"}


class Tree:
    """A system with a push whose decision task offers actions, and a task of it."""

    def __init__(self, systems: Systems, database_url: str, **repository: Any) -> None:
        self.system = system = systems(database_url, settings={"TC_TREEHERDER_REPORTS__QUIET": "1"})
        system.stack.service()
        system.add_repository(**repository)
        system.stack.listener()
        changeset = {"message": "Bug 1 - a change", "files": {".taskcluster.yml": GRAPH}}
        pushed = system.hg.post("/push", json={"repository": PATH, "user": "d@example.com", "changesets": [changeset]})
        self.push_id = int(pushed.json()["id"])
        system.wait(lambda: self._graph().get("state") == "done")
        tasks = {task["name"]: task["task_id"] for task in self._graph()["tasks"]}
        self.decision, self.task, self.build = tasks["decision"], tasks["test"], tasks["build"]
        system.wait(lambda: {"completed"} == system.task_states())

    def _graph(self) -> dict[str, Any]:
        answer = self.system.api.get(f"/pushes/{REPOSITORY}/{self.push_id}")
        return answer.json()["graph"] if answer.is_success else {}

    def ask(self, action: str = "retrigger", **more: Any) -> int:
        body = {"action": action, "project": REPOSITORY, "task_id": self.task, **more}
        answer = self.system.api.post("/actions", json=body)
        assert answer.status_code == 202, answer.text
        return int(answer.json()["id"])

    def fault(self, kind: str, **more: Any) -> None:
        body = {"kind": kind, "method": "triggerHook", **more}
        self.system.taskcluster.post("/faults", json=body).raise_for_status()

    def triggers(self) -> int:
        return int(self.system.taskcluster.get("/calls").json()["calls"].get("triggerHook", 0))

    def action_tasks(self) -> Iterator[str]:
        """Yield the tasks that hooks have created."""
        for hook in self.system.taskcluster.get("/hooks").json()["hooks"]:
            yield from (fire["taskId"] for fire in hook["lastFires"])


@pytest.mark.timeout(120)
@mostly_postgresql
def test_what_the_tree_offers_is_listed_and_done_and_followed(systems: Systems, database_url: str) -> None:
    tree = Tree(systems, database_url, actions="in-tree")
    offered = tree.system.api.get(f"/tasks/{tree.task}/actions").json()
    names = [action["name"] for action in offered["items"]]
    assert offered["decision_task"] == tree.decision, offered
    assert "retrigger" in names
    of_push = tree.system.api.get(f"/pushes/{REPOSITORY}/{tree.push_id}/actions").json()
    assert "cancel-all" in [action["name"] for action in of_push["items"]], of_push
    action_id = tree.ask(input={"times": 2})
    action = became(tree.system, action_id)
    assert (action["state"], action["reason"], action["tasks"]) == ("done", None, [])
    in_tree = action["in_tree"]
    assert [in_tree["task_id"]] == list(tree.action_tasks())
    assert in_tree["decision_task"] == tree.decision
    tree.system.wait(lambda: tree.system.api.get(f"/actions/{action_id}").json()["in_tree"]["state"] in _ENDED)
    assert tree.system.api.get(f"/actions/{action_id}").json()["in_tree"]["state"] == "completed"
    copies = [
        task
        for task in tree.system.taskcluster.get("/tasks").json()["tasks"]
        if task["task"]["metadata"]["name"] == "test" and task["status"]["taskId"] != tree.task
    ]
    assert len(copies) == 2, "the tree's own action did it"


@pytest.mark.timeout(120)
def test_an_action_task_that_fails_is_shown_on_the_push(systems: Systems, sqlite_url: str) -> None:
    tree = Tree(systems, sqlite_url, actions="in-tree")
    action = became(tree.system, tree.ask(task_id=tree.build))
    assert action["state"] == "done"

    def shown() -> list[str]:
        jobs = tree.system.treeherder.get("/state").json()["jobs"]
        return [job["job"]["reason"] for job in jobs if job["job"]["name"] == "retrigger: build"]

    tree.system.wait(lambda: bool(shown()))
    assert shown() == [f"retrigger failed: its action task {action['in_tree']['task_id']} has ended as failed"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seconds", [0.4, 1.0])
@mostly_postgresql
def test_killed_while_the_hook_is_being_triggered(systems: Systems, database_url: str, seconds: float) -> None:
    tree = Tree(systems, database_url, actions="in-tree")
    tree.fault("delay", seconds=seconds, times=1)
    action_id = tree.ask()
    tree.system.wait(lambda: tree.triggers() == 1)
    tree.system.stack.processes["service"].kill()
    tree.system.stack.service()
    action = became(tree.system, action_id)
    assert (action["state"], action["reason"]) == ("done", None)
    assert [action["in_tree"]["task_id"]] == list(tree.action_tasks())
    assert tree.triggers() == 1


@pytest.mark.timeout(120)
def test_killed_where_nothing_was_done_is_for_a_person(systems: Systems, sqlite_url: str) -> None:
    tree = Tree(systems, sqlite_url, actions="in-tree")
    tree.fault("hang", times=1)
    action_id = tree.ask()
    tree.system.wait(lambda: tree.triggers() == 1)
    tree.system.stack.processes["service"].kill()
    tree.system.stack.service()
    action = became(tree.system, action_id)
    assert action["state"] == "failed"
    assert action["reason"].startswith("it may have been triggered: Taskcluster gave no clear answer")
    assert (tree.triggers(), list(tree.action_tasks())) == (1, [])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("fault", "state"),
    [
        ({"kind": "after", "status": 500}, "done"),
        ({"kind": "drop-after"}, "done"),
        ({"kind": "before", "status": 502}, "failed"),
        ({"kind": "delay", "seconds": 2.0}, "done"),  # longer than the time limit of a call
    ],
)
def test_hooks_that_break(systems: Systems, sqlite_url: str, fault: dict[str, Any], state: str) -> None:
    tree = Tree(systems, sqlite_url, actions="in-tree")
    tree.fault(**fault, times=1)
    action = became(tree.system, tree.ask())
    assert (action["state"], tree.triggers()) == (state, 1)
    assert action["in_tree"]["task_id"] == next(tree.action_tasks(), None)


@pytest.mark.timeout(180)
def test_two_services_trigger_each_action_once(systems: Systems, postgres_url: str) -> None:
    tree = Tree(systems, postgres_url, actions="in-tree")
    tree.system.stack.service("other", port=free_port())
    tree.fault("delay", seconds=0.2, times=20)
    ids = [tree.ask(input={"times": 1 + number}) for number in range(20)]
    tree.system.wait(lambda: tree.triggers() >= 3)
    tree.system.stack.processes["other"].kill()
    ended = [became(tree.system, action_id) for action_id in ids]
    done = [action for action in ended if action["state"] == "done"]
    for action in ended:  # of a call that was recorded and killed before it was sent there is no trace
        assert action in done or "it may have been triggered" in action["reason"]
    assert len(done) >= 10  # the killed service may have begun ten, which is work.per_lane
    assert tree.triggers() == len(done)
    assert sorted(action["in_tree"]["task_id"] for action in done) == sorted(tree.action_tasks())
