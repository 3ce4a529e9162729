"""Answers of `json-pushes` with the traits of a real pushlog's: people, repositories and hashes are invented."""

import hashlib
from typing import Any

Json = dict[str, Any]

NULL = "0" * 40
LATIN = "latin-1: caf\xe9, cp1252 as latin-1: \x93quoted\x94, a lone surrogate's bytes: \xed\xa0\x80"
TEXT = 'utf-8: Žofie 文字 \U0001f600 U+2028:\u2028 tab\t "quotes" \\ </script> \x01\x1b'


def node_of(name: str) -> str:
    return hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()


def old_changeset(name: str, **more: Any) -> Json:
    """Return a changeset as servers of 2013 list it: without files and parents."""
    author = "Rosa Example <rosa@example.org>"
    return {"node": node_of(name), "tags": [], "author": author, "branch": "default", "desc": name, **more}


def full_changeset(name: str, *files: str, parents: tuple[str, ...] = (), **more: Any) -> Json:
    """Return a changeset as today's servers list it."""
    nodes = [node_of(parent) for parent in parents] or [NULL]
    changeset = old_changeset(name, files=sorted(files), parents=nodes, git_node=None, git_parents=[None] * len(nodes))
    return {**changeset, "author": "rosa@example.org", **more}


def push_entry(*changesets: Any, date: int = 0, **more: Any) -> Json:
    git: Json = {"git_changesets": [None] * len(changesets)} if changesets else {}
    return {"changesets": list(changesets), "date": date, "user": "rosa@example.org", **git, **more}


def pushlog_answer(last: int, *pushes: tuple[int, Json]) -> Json:
    return {"lastpushid": last, "pushes": {str(push_id): push for push_id, push in pushes}}


def ten_old_pushes() -> Json:
    """Return ten pushes of 2013, of one to three changesets each."""
    sizes = (1, 1, 2, 1, 3, 1, 3, 2, 1, 1)
    pushes: list[tuple[int, Json]] = []
    for number, size in enumerate(sizes, 70_001):
        parts = [old_changeset(f"Bug {number} - part {part}, with <b>&amp;</b>. r=ivo") for part in range(size)]
        pushes.append((number, {"date": 1_380_000_000 + number * 60, "changesets": parts, "user": "rosa@example.org"}))
    pushes[-1][1]["changesets"][-1]["tags"] = ["tip"]
    return pushlog_answer(70_010, *pushes)


TEN = ten_old_pushes()
_FIRST = push_entry(full_changeset("Bug 1 - first", ".taskcluster.yml", "README"), date=1_890_000_001)
_SECOND = push_entry(full_changeset("Bug 2 - second", "browser/x.js", parents=("Bug 1 - first",)), date=1_890_000_002)
_MERGE = push_entry(
    full_changeset("a side", "side.txt", parents=("Bug 1 - first",)),
    full_changeset("Merge of both", parents=("Bug 2 - second", "a side")),
    date=1_890_000_003,
)
_OBSOLETE = pushlog_answer(
    4,
    (1, push_entry(full_changeset("base", "base.txt"), date=1_890_000_010)),
    (
        2,
        push_entry(
            date=1_890_000_011,
            obsoletechangesets=[
                full_changeset("one v1", "1", parents=("base",)),
                full_changeset("two v1", "2", parents=("one v1",)),
            ],
        ),
    ),
    (
        3,
        push_entry(
            full_changeset("one v2", "1", parents=("base",), precursors=[node_of("one v1")]),
            date=1_890_000_012,
            obsoletechangesets=[full_changeset("two v2", "2", parents=("one v2",), precursors=[node_of("two v1")])],
        ),
    ),
    (
        4,
        push_entry(
            full_changeset("two v3", "2", parents=("one v2",), precursors=[node_of("two v2")]), date=1_890_000_013
        ),
    ),
)
_ODD = pushlog_answer(
    2,
    (
        1,
        push_entry(
            full_changeset("odd 1", "a.txt", desc=TEXT, author="žofie@example.org"),
            full_changeset(
                "odd 2", "latin-\udce9.txt", parents=("odd 1",), desc=LATIN, author="J\xf6rn <jorn@example.org>"
            ),
            date=1_890_000_020,
            user="žofie@example.org",
        ),
    ),
    (2, push_entry(full_changeset("plain", "z.txt", parents=("odd 1",)), date=1_890_000_021)),
)
_ONE_OF_TRY = pushlog_answer(
    450_002,
    (
        450_002,
        {
            "changesets": [
                old_changeset("work", files=["a/b.ini", "c.ini"], parents=[node_of("elsewhere")]),
                old_changeset("try: -b do -p all", files=[], parents=[node_of("work")]),
            ],
            "date": 1_469_000_000,
            "user": "rosa@example.org",
        },
    ),
)

EXAMPLES: dict[str, tuple[str, str, Json]] = {
    "ten-old": ("", "full=1", TEN),
    "one-of-try": ("try", "full=1&startID=450001&endID=450002", _ONE_OF_TRY),
    "merge": ("central", "full=1", pushlog_answer(3, (1, _FIRST), (2, _SECOND), (3, _MERGE))),
    "nodes": (
        "central",
        "",
        pushlog_answer(
            2,
            (1, push_entry(node_of("x"), date=1_890_000_030)),
            (2, push_entry(node_of("y"), node_of("z"), date=1_890_000_031)),
        ),
    ),
    "window": ("central", "full=1&startID=0&endID=2", pushlog_answer(3, (1, _FIRST), (2, _SECOND))),
    "obsolete": ("obs", "full=1&startID=0", _OBSOLETE),
    "odd-messages": ("latin", "full=1", _ODD),
    "gap-after-strip": (
        "stripped",
        "startID=0",
        pushlog_answer(
            5, (1, push_entry(node_of("x"), date=1_890_000_040)), (4, push_entry(node_of("y"), date=1_890_000_041))
        ),
    ),
    "behind-after-reset": ("reset", "startID=4&endID=14", pushlog_answer(1)),
    "empty": ("empty", "", pushlog_answer(0)),
}
"""By name: the repository, the query after `version=2&`, and the answer."""
