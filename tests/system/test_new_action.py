"""An action that a module of ten lines adds is planned, carried out, continued after a kill, and found everywhere."""

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from service.cli import app
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
        assert kinds.keys() == {"cancel", "look", "retrigger"}
        assert kinds["look"]["scope"] == "tc-treeherder:action:look:<project>"
        assert kinds["look"]["input"]["properties"]["seconds"]["type"] == "number"
        assert "Look at a task for a while." in command("kinds")

        planned = command("run", "look", REPOSITORY, "--plan", "--input", '{"seconds": 3}', "--", task)
        assert "would be looked at for 3.0 s" in planned
        wrong = {"action": "look", "project": REPOSITORY, "task_id": task, "input": {"seconds": "long"}}
        refused = system.api.post("/actions", json=wrong)
        assert (refused.status_code, "seconds" in refused.json()["detail"]) == (422, True)

        asked = ("run", "look", REPOSITORY, "--json", "--input", '{"seconds": 300}', "--", task)
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
