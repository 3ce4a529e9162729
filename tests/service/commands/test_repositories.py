"""`tc-treeherder repositories`, but for `import`."""

import json
import sqlite3
from contextlib import closing

import pytest

from tests.service.commands.conftest import Ran, Run
from tests.system.conftest import System


def added(system: System, tc: Run, alias: str, *options: str) -> Ran:
    """Add a repository that is not polled, from push 7 on: its pushlog is not asked."""
    url = f"{system.stack.sandbox['hg']}/{alias}"
    ran = tc("repositories", "add", alias, url, "--last-push-id", "7", "--disabled", "--level", "1", *options)
    assert ran.code == 0, ran.err
    return ran


def test_a_repository_is_added_and_shown(system: System, tc: Run) -> None:
    options = ["--level", "nss", "--scope", "assume:a", "--scope", "assume:b", "--contains", "[ci]", "--no-graph"]
    ran = added(system, tc, "added", *options, "--environment", "tc-treeherder", "--json")
    expected = {
        "alias": "added",
        "level": "nss",
        "scopes": ["assume:a", "assume:b"],
        "contains": "[ci]",
        "graph": False,
        "enabled": False,
        "environments": ["tc-treeherder"],
        "last_push_id": 7,
    }
    assert {name: ran.json[name] for name in expected} == expected
    assert tc("repositories", "show", "added", "--json").json == ran.json
    lines = tc("repositories", "show", "added").out.splitlines()
    assert "scopes          assume:a" in lines
    assert "                assume:b" in lines
    assert "cursor          push 7 of generation 0" in lines
    (row,) = [row for row in tc("repositories", "list").rows if row[0] == "added"]
    assert row == ["added", ran.json["url"], "nss", "no", "no", "7", "-"]
    assert ran.json in tc("repositories", "list", "--json").json


def test_without_a_cursor_it_begins_at_the_pushlogs_end(system: System, tc: Run) -> None:
    system.hg.post("/repositories", json={"repository": "fresh"}).raise_for_status()
    ran = tc("repositories", "add", "fresh", f"{system.stack.sandbox['hg']}/fresh", "--disabled", "--level", "1")
    assert ran.code == 0
    assert "cursor          push 0 of generation 0" in ran.out


def test_no_level_is_assumed(system: System, tc: Run) -> None:
    ran = tc("repositories", "add", "no-level", f"{system.stack.sandbox['hg']}/no-level", "--last-push-id", "0")
    assert ran.code == 2
    assert "--level" in ran.err
    assert tc("repositories", "show", "no-level").code == 4


def test_what_the_service_refuses_is_1_in_its_words(system: System, tc: Run) -> None:
    ran = tc("repositories", "add", "elsewhere", "https://hg.example.com/x", "--level", "1")
    assert ran.code == 1
    assert "hg.example.com, which is not among allowed_hosts" in ran.err
    assert "add it to that setting" in ran.err
    assert ran.out == ""
    added(system, tc, "taken")
    ran = tc(
        "repositories", "add", "taken", f"{system.stack.sandbox['hg']}/other", "--last-push-id", "0", "--level", "1"
    )
    assert ran.code == 1
    assert "Taken: alias 'taken' is taken" in ran.err


def test_set_changes_what_is_given_and_leaves_the_rest(system: System, tc: Run) -> None:
    before = added(system, tc, "setting", "--level", "2", "--contains", "x", "--scope", "assume:x", "--json").json
    after = tc("repositories", "set", "setting", "--level", "3", "--no-contains", "--default-scopes", "--json").json
    host = before["url"].removeprefix("http://")
    assert after["level"] == "3"
    assert after["contains"] is None
    assert after["scopes"] == [f"assume:repo:{host}:branch:default"]
    assert {name for name in after if after[name] != before[name]} == {"level", "contains", "scopes"}
    tree = tc("repositories", "set", "setting", "--actions", "auto", "--pulse-action", "backfill")
    assert "actions         auto" in tree.out
    assert "pulse actions   backfill" in tree.out
    refused = tc("repositories", "set", "setting", "--actions", "tree")
    assert refused.code == 1
    assert 'actions "tree" is none of copies, in-tree, auto' in refused.err
    changed = tc("repositories", "set", "setting", "--environment", "tc-treeherder", "--graph", "--json").json
    assert changed["environments"] == ["tc-treeherder"]
    assert tc("repositories", "set", "setting", "--supersede", "pusher", "--json").json["supersede"] == "pusher"
    assert "supersede       pusher" in tc("repositories", "show", "setting").out.splitlines()
    assert tc("repositories", "set", "setting", "--supersede", "mine").code == 2
    assert tc("repositories", "set", "setting", "--all-environments", "--json").json["environments"] is None


@pytest.mark.parametrize(
    "options",
    [[], ["--contains", "x", "--no-contains"], ["--scope", "x", "--default-scopes"], ["--level"]],
)
def test_set_is_used_wrongly(tc: Run, options: list[str]) -> None:
    assert tc("repositories", "set", "whatever", *options).code == 2


@pytest.mark.parametrize("command", ["remove", "reset"])
def test_what_destroys_data_needs_a_yes(system: System, tc: Run, command: str) -> None:
    added(system, tc, "keeping")
    before = tc("repositories", "show", "keeping", "--json").json
    ran = tc("repositories", command, "keeping")
    assert ran.code == 2
    assert (
        "keeping, which cannot be undone: add --yes" in ran.err
        or "cursor, which cannot be undone: add --yes" in ran.err
    )
    after = tc("repositories", "show", "keeping", "--json").json
    assert (after["generation"], after["last_push_id"]) == (before["generation"], before["last_push_id"])
    assert tc("repositories", "remove", "keeping", "-y").code == 0


def test_a_scope_is_added_and_removed(system: System, tc: Run) -> None:
    added(system, tc, "scoped", "--scope", "a:1", "--scope", "b:2")

    def change(*options: str) -> list[str]:
        ran = tc("repositories", "set", "scoped", *options, "--json")
        assert ran.code == 0, ran.err
        scopes: list[str] = ran.json["scopes"]
        return scopes

    assert change("--add-scope", "c:3", "--add-scope", "a:1") == ["a:1", "b:2", "c:3"]
    assert change("--remove-scope", "a:1", "--add-scope", "d:4", "--level", "2") == ["b:2", "c:3", "d:4"]
    assert change("--remove-scope", "b:2", "--remove-scope", "c:3", "--remove-scope", "d:4") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--remove-scope", "zzz"], "strict does not have the scope zzz; it has a:1"),
        (["--add-scope", "b", "--remove-scope", "b"], "b cannot be added and removed at once"),
        (["--add-scope", "b", "--scope", "c"], "leave out the other option"),
        (["--remove-scope", "a:1", "--default-scopes"], "leave out the other option"),
    ],
)
def test_a_scope_that_cannot_be_changed_changes_nothing(
    system: System, tc: Run, options: list[str], words: str
) -> None:
    if tc("repositories", "show", "strict").code:
        added(system, tc, "strict", "--scope", "a:1")
    ran = tc("repositories", "set", "strict", "--level", "2", *options)
    assert ran.code == 2
    assert words in ran.err
    shown = tc("repositories", "show", "strict", "--json").json
    assert (shown["scopes"], shown["level"]) == (["a:1"], "1")


@pytest.mark.parametrize("command", [["show"], ["poll"], ["remove", "--yes"], ["reset", "--yes"]])
def test_there_is_no_such_repository(tc: Run, command: list[str]) -> None:
    ran = tc("repositories", command[0], "nowhere", *command[1:])
    assert ran.code == 4
    assert "'nowhere'" in ran.err


def test_reset_begins_a_new_generation(system: System, tc: Run) -> None:
    added(system, tc, "resetting")
    ran = tc("repositories", "reset", "resetting", "--last-push-id", "3", "--json", "--yes")
    assert (ran.json["generation"], ran.json["last_push_id"]) == (1, 3)


def test_a_poll_is_asked_for(system: System, tc: Run) -> None:
    added(system, tc, "polled-now")
    ran = tc("repositories", "poll", "polled-now")
    assert ran.code == 1
    assert "polled-now is not polled: enable it first" in ran.err
    assert tc("repositories", "set", "polled-now", "--enabled").code == 0
    assert tc("repositories", "poll", "polled-now").out.startswith("polled-now is polled within seconds")
    ran = tc("repositories", "poll", "polled-now", "--json")
    assert (ran.code, ran.json["alias"]) == (0, "polled-now")
    assert tc("repositories", "remove", "polled-now", "--yes").code == 0


def test_a_removed_repository_is_gone(system: System, tc: Run) -> None:
    added(system, tc, "leaving")
    ran = tc("repositories", "remove", "leaving", "--yes")
    assert (ran.code, ran.out) == (0, "leaving is not monitored any more\n")
    assert tc("repositories", "remove", "leaving", "--yes").code == 4
    added(system, tc, "leaving")
    assert tc("repositories", "remove", "leaving", "--json", "--yes").json == {"removed": "leaving"}


def test_unfinished_work_is_buried_only_by_force(system: System, tc: Run) -> None:
    # its graph waits for a file of a repository that is not there
    added(system, tc, "busy")
    event = {"id": 8, "user": "u", "date": 1_900_000_000, "changesets": [{"node": "a" * 40}]}
    file = system.stack.environment["TC_TREEHERDER_DATABASE_URL"].partition(":///")[2]
    with closing(sqlite3.connect(file)) as database:
        row, shift = database.execute("SELECT id, shift FROM repository WHERE alias = 'busy'").fetchone()
    listed = {"repository": "busy", "repository_id": row, "shift": shift, "generation": 0, "since": 7, "lastpushid": 8}
    push = {**listed, "push": event}
    from tests.service.asgi import signature

    raw = json.dumps({"events": [push]}).encode()
    (secret,) = json.loads(system.stack.environment["TC_TREEHERDER_WEBHOOK_SECRETS"])
    answer = system.api.post("/events/pushes", content=raw, headers=signature(raw, secret))
    assert answer.json()["verdicts"][0]["verdict"] == "accepted"
    ran = tc("repositories", "remove", "busy", "--yes")
    assert ran.code == 1
    assert "Unfinished work" in ran.err
    assert tc("repositories", "remove", "busy", "--force", "--yes").code == 0
