"""States have colours and words, and failures are explained."""

from service.clients.taskcluster import ScopesRefusal
from service.flow.tasks import create
from service.store.models import PlannedTask
from service.web.words import explain_graph, explain_resultset, tone_of


def test_a_state_has_a_colour() -> None:
    assert [tone_of(state) for state in ("done", "failed", "running", "pending", "skipped", "x")] == [
        "good",
        "bad",
        "busy",
        "wait",
        "mute",
        "mute",
    ]


def test_missing_scopes_are_told_one_by_one() -> None:
    task = PlannedTask(task_id="A" * 22, position=0, label="task", name="build, debug", definition={})
    missing = ["queue:route:index.a, b", "queue:scheduler-id:gecko-level-3", "secrets:get:x"]
    reason = create._refusal_text(task, ScopesRefusal("refused", 403, missing))
    explained = explain_graph(f"{reason}; no task could show this on the push: x", "mc", 101)
    assert [(each.scope, each.needed_for) for each in explained.scopes] == [
        ("queue:route:index.a, b", "its route"),
        ("queue:scheduler-id:gecko-level-3", "its schedulerId"),
        ("secrets:get:x", "the task's own scopes"),
    ]
    assert "the project's, not yours" in explained.what
    assert "tc-treeherder pushes retry mc 101" in explained.remedy


def test_scopes_that_look_like_a_list_are_read_in_one_go() -> None:
    for text in (", (for its", ", and (for the ", " (for its, "):
        reason = (
            f"the project's scopes lack {text * 100_000}. Add them to its role"  # twice as much took four times as long
        )
        assert explain_graph(reason, "mc", 101).scopes == ()


def test_a_broken_file_is_told_with_its_line() -> None:
    explained = explain_graph(".taskcluster.yml is no YAML: in line 3, column 7: mapping values", "mc", 1)
    assert explained.place == "line 3, column 7"
    assert "Correct .taskcluster.yml and push again" in explained.remedy


def test_everything_else_has_a_remedy_too() -> None:
    for reason in ("Taskcluster refuses task a with 400: bad", "gave up", ""):
        explained = explain_graph(reason, "mc", 1)
        assert explained.what
        assert "pushes retry mc 1" in explained.remedy
        assert explained.reason == reason
    assert "tc-treeherder doctor" in explain_resultset("401", "mc", 1).remedy


def test_the_line_of_what_json_e_finds_wrong_is_quoted() -> None:
    reason = ".taskcluster.yml does not render: at tasks[0].payload (line 5): unknown context value nope"
    assert explain_graph(reason, "mc", 101).line == 5
