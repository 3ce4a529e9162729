"""Entries of a pushlog, cut to what a push event has."""

from typing import Any

import pytest

from listeners.forward import encode_json
from service.contract.events import PushEvent
from service.contract.pushlog import trim_entry

A = "a" * 40


def changeset(number: int, files: int = 1) -> dict[str, Any]:
    return {
        "node": f"{number:040x}",
        "branch": f"branch {number}",
        "author": "Jörg",
        "desc": f"Bug {number}\0\x1b",
        "parents": [A],
        "files": [f"{file}-\udce9" for file in range(files)],
        "tags": ["tip"],
        "git_node": None,
    }


def test_only_the_last_200_changesets_are_sent_in_full() -> None:
    entry = {"user": "u", "date": 5, "changesets": [changeset(n, files=1_005 if n == 250 else 1) for n in range(300)]}
    sent = trim_entry(7, {**entry, "obsoletechangesets": [changeset(999)]})
    assert set(sent) == {"id", "user", "date", "changesets"}
    assert (sent["id"], sent["user"], sent["date"]) == (7, "u", 5)
    assert sent["changesets"][99] == {"node": f"{99:040x}", "branch": "branch 99"}
    assert set(sent["changesets"][0]) == {"node", "branch", "parents"}, "what the push is based on"
    full = sent["changesets"][100]
    assert set(full) == {"node", "branch", "author", "desc", "parents", "files", "files_count"}
    assert (full["files"], full["files_count"], full["desc"]) == (["0-\udce9"], 1, "Bug 100\0\x1b")
    assert (len(sent["changesets"][250]["files"]), sent["changesets"][250]["files_count"]) == (1_000, 1_005)
    head = {"repository": "r", "repository_id": 1, "shift": 1, "generation": 0}
    event = {**head, "since": 1, "lastpushid": 7, "push": {**sent}}
    assert encode_json(event).isascii()
    PushEvent.model_validate({**event, "push": {**sent, "changesets": [{**full, "files": None}]}})


@pytest.mark.parametrize(
    ("entry", "sent"),
    [
        ("text", "text"),
        (None, None),
        ({"user": 1, "odd": 2}, {"id": 7, "user": 1, "odd": 2}),
        ({"changesets": [A], "x": 1}, {"id": 7, "changesets": [A], "x": 1}),
        ({"changesets": {"node": A}}, {"id": 7, "changesets": {"node": A}}),
        ({"id": "x", "changesets": [{"files": 5}]}, {"id": 7, "changesets": [{"files": 5}]}),
    ],
)
def test_malformed_entries_are_not_trimmed(entry: Any, sent: Any) -> None:
    assert trim_entry(7, entry) == sent
