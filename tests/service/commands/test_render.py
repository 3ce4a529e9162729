"""`tc-treeherder render`: a file is tried before it is pushed."""

from pathlib import Path

from tests.service.commands.conftest import GRAPH, Pushed, Run


def test_a_file_is_tried_for_a_push(tc: Run, pushed: Pushed, tmp_path: Path) -> None:
    file = tmp_path / ".taskcluster.yml"
    file.write_text(GRAPH)
    ran = tc("render", str(file), "--push", f"try/{pushed.good}")
    assert ran.code == 0, ran.err
    assert [row[:3] for row in ran.rows] == [
        ["decision", "sandbox/test", "sandbox-level-3"],
        ["test", "sandbox/test", "sandbox-level-3"],
    ]
    document = tc("render", str(file), "--push", f"try/{pushed.good}", "--json").json
    assert not {task["task_id"] for task in document["tasks"]} & set(pushed.tasks), "the ids are made up"


def test_missing_scopes_and_a_broken_file_are_failures(tc: Run, pushed: Pushed, tmp_path: Path) -> None:
    file = tmp_path / "file.yml"
    file.write_text(GRAPH.replace("sandbox-level-3", "gecko-level-3"))
    ran = tc("render", str(file), "--repository", "try", "--message", "try: x", "--user", "me@example.com")
    assert ran.code == 1
    assert "queue:scheduler-id:gecko-level-3" in ran.out
    assert "lacks scopes for 2 of 2 tasks" in ran.err
    file.write_text("version: 1\ntasks: [{a: 1, a: 2}]")
    ran = tc("render", str(file), "--repository", "try")
    assert ran.code == 1
    assert "the key 'a' is repeated, in lines 2 and 2" in ran.err


def test_wrong_usage_is_explained(tc: Run, tmp_path: Path) -> None:
    file = tmp_path / "file.yml"
    for arguments, words in (
        ([str(file), "--repository", "try"], "cannot be read"),
        ([str(file)], "give --push ALIAS/ID"),
        ([str(file), "--push", "try"], "is not ALIAS/ID"),
        ([str(file), "--push", "try/1", "--repository", "try"], "give --push ALIAS/ID"),
    ):
        ran = tc("render", *arguments)
        assert ran.code == 2
        assert words in ran.err
