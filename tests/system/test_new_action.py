"""An action that a module of ten lines adds is planned, carried out, continued after a kill, and found everywhere."""

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.flow.tasks.action_kinds import ACTIONS
from tests.system.conftest import REPOSITORY, System
from tests.system.test_actions import became, put, task_id

MODULE = "tests.system.new_action"


def test_a_new_action_is_one_module(systems: Callable[..., System], monkeypatch: pytest.MonkeyPatch) -> None:
    system = systems()
    with system.stack as stack:
        stack.service(module=MODULE)
        system.add_repository()
        put(system, {"decision": []})
        monkeypatch.setenv("TC_TREEHERDER_TOKEN", stack.token)
        monkeypatch.setenv("TC_TREEHERDER_SERVICE_URL", stack.service_url)
        task = task_id("decision")

        def command(*arguments: str) -> str:
            done = CliRunner().invoke(app, ["actions", *arguments])
            assert done.exit_code == 0, done.output
            return done.stdout

        kinds = {kind["name"]: kind for kind in system.api.get("/actions/kinds").json()["items"]}
        assert kinds.keys() == {*ACTIONS, "look"}
        assert kinds["look"]["scope"] == "tc-treeherder:action:look:<project>"
        assert kinds["look"]["input"]["properties"]["seconds"]["type"] == "number"
        assert kinds["look"]["subjects"] == ["push", "task"]
        assert "Look at something for a while." in command("kinds")

        subject = ("--task", f"{REPOSITORY}/{task}")
        planned = command("run", "look", *subject, "--plan", "--input", '{"seconds": 3}')
        assert "would be looked at for 3.0 s" in planned
        push_id = system.push()
        stack.listener()
        system.wait(lambda: system.push_stored(push_id))
        subject_push = ("--push", f"{REPOSITORY}/{push_id}")
        assert f"push {push_id} of {REPOSITORY} would be looked at" in command("run", "look", *subject_push, "--plan")
        looked_at = json.loads(command("run", "look", *subject_push, "--wait", "--json"))
        assert (looked_at["push"], looked_at["generation"], looked_at["task_id"]) == (push_id, 0, None)
        assert looked_at["state"] == "done"
        listed = json.loads(command("list", "--push", str(push_id), "--json"))
        assert [action["id"] for action in listed] == [looked_at["id"]]
        wrong = {"action": "look", "project": REPOSITORY, "task_id": task, "input": {"seconds": "long"}}
        refused = system.api.post("/actions", json=wrong)
        assert (refused.status_code, "seconds" in refused.json()["detail"]) == (422, True)

        asked = ("run", "look", *subject, "--json", "--input", '{"seconds": 300}')
        action = json.loads(command(*asked))
        assert action["input"] == {"seconds": 300.0}
        system.wait(lambda: system.api.get(f"/actions/{action['id']}").json()["state"] == "planned")
        stack.processes["service"].kill()
        stack.service(module=MODULE)
        ended = became(system, action["id"])
        assert (ended["state"], ended["attempts"]) == ("done", 2)
        assert "look of" in command("show", str(action["id"]))
        metrics = system.api.get(f"{stack.service_url}/metrics").text
        assert 'tc_treeherder_work_attempts_total{outcome="done",work="look"} 1.0' in metrics
