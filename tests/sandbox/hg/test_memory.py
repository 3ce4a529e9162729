"""Recordings, speed and thread safety of the pushlog in memory."""

import json
import threading
import time
from typing import Any

import httpx
import pytest

from sandbox.hg import (
    MemoryPushlog,
    Query,
    create_app,
)
from tests.published_schemas import read_published
from tests.pushlog_examples import EXAMPLES, TEN
from tests.sandbox.hg.support import change


@pytest.mark.parametrize("name", EXAMPLES)
async def test_a_loaded_example_is_answered_as_it_was(name: str) -> None:
    await answers_as_loaded(*EXAMPLES[name])


@pytest.mark.published
@pytest.mark.parametrize(
    ("recorded", "repository", "query"),
    [
        ("json-pushes-ten-full.json", "", "full=1"),
        ("json-pushes-one-full.json", "try", "full=1&startID=136597&endID=136598"),
        ("latest-full.json", "mozilla-central", "full=1"),
        ("latest.json", "mozilla-central", ""),
        ("range-full.json", "mozilla-central", "full=1&startID=0&endID=2"),
        ("obsolete-changesets-full.json", "obs", "full=1&startID=0"),
        ("odd-commit-messages-full.json", "latin", "full=1"),
        ("after-strip.json", "stripme", "startID=0"),
        ("after-reset.json", "stripme", "startID=4&endID=14"),
    ],
)
async def test_a_loaded_recording_is_answered_as_it_was(recorded: str, repository: str, query: str) -> None:
    await answers_as_loaded(repository, query, read_published(f"hg/{recorded}"))


async def answers_as_loaded(repository: str, query: str, recorded: dict[str, Any]) -> None:
    pushlog = MemoryPushlog()
    pushlog.load(repository, recorded, {".taskcluster.yml": "version: 1"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(pushlog)), base_url="http://hg") as web:
        prefix = f"/{repository}" if repository else ""
        answer = await web.get(f"{prefix}/json-pushes?version=2&{query}")
        assert answer.json() == recorded
        for push in answer.json()["pushes"].values():
            for changeset in push["changesets"]:
                node = changeset["node"] if "full" in query else changeset
                assert (await web.get(f"{prefix}/raw-file/{node}/.taskcluster.yml")).text == "version: 1"
                assert (await web.get(f"{prefix}/raw-file/{node}/README")).status_code == 404


def test_a_loaded_repository_takes_more_pushes() -> None:
    pushlog = MemoryPushlog()
    pushlog.load("r", TEN)
    push = pushlog.push("r", [change("Bug 3", "a.txt")])
    answer = json.loads(pushlog.json_pushes("r", Query(version=2, full=True, start_id=70009)))
    assert push.id == answer["lastpushid"] == 70011
    old, new = (answer["pushes"][i]["changesets"][0] for i in ("70010", "70011"))
    assert new["parents"] == [old["node"]]
    assert (old["tags"], new["tags"]) == ([], ["tip"])


def test_a_big_push_is_quick_in_memory() -> None:
    pushlog = MemoryPushlog()
    pushlog.create("r")
    began = time.perf_counter()
    pushlog.push("r", [change(f"Bug {number}", f"d{number % 50}/{number}.txt") for number in range(5_000)])
    body = pushlog.json_pushes("r", Query(version=2, full=True, start_id=0))
    assert len(json.loads(body)["pushes"]["1"]["changesets"]) == 5_000
    for _ in range(2_000):
        pushlog.json_pushes("r", Query(version=2, full=True, start_id=0))
        pushlog.raw_file("r", "tip", b"d0/0.txt")
    assert time.perf_counter() - began < 5  # 0.3 s when nothing else runs


def test_many_threads_push_and_read() -> None:
    pushlog = MemoryPushlog()
    pushlog.create("r")

    def work(name: int) -> None:
        for number in range(50):
            pushlog.push("r", [change(f"{name} {number}", f"{name}")])
            pushlog.json_pushes("r", Query(version=2, full=True))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pushes = json.loads(pushlog.json_pushes("r", Query(version=2, full=True, start_id=0)))["pushes"]
    assert sorted(map(int, pushes)) == list(range(1, 401))
    ordered = [pushes[str(number)]["changesets"][0] for number in range(1, 401)]
    assert [c["parents"][0] for c in ordered[1:]] == [c["node"] for c in ordered[:-1]]
