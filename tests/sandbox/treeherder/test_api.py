"""Pushes are found, and requests are authenticated, as Treeherder does."""

import json
from typing import Any

import pytest
from mohawk import Sender

from tests.sandbox.treeherder.support import GUID, JOBS, PUSH, RESULTSET, REVISION, Treeherder, entry, resultset


async def test_a_push_is_found_by_its_tip(th: Treeherder) -> None:
    assert (await th.get(RESULTSET, params={"revision": REVISION})).json()["results"] == []
    await th.submit(RESULTSET, [resultset()])
    for year in (2015, 2016, 2017, "today"):
        await th.behave(year=year)
        path = RESULTSET if year != "today" else PUSH
        (push,) = (await th.get(path, params={"revision": REVISION})).json()["results"]
        assert push["revision"] == REVISION
        assert push.get("revision_hash") == (None if year == "today" else resultset()["revision_hash"])
        assert (await th.get(path.replace("autoland", "try"), params={"revision": REVISION})).json()["results"] == []
        by_another = (await th.get(path, params={"revision": "1" * 40})).json()["results"]
        assert len(by_another) == (0 if year == 2015 else 1), "any of its changesets, since 2016"


async def test_a_push_is_found_by_its_hash_until_2016_and_later_the_newest_are_listed(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    for year, pushes in ((2015, 0), (2016, 0), (2017, 1)):
        await th.behave(year=year)
        by_hash = {"revision_hash": resultset()["revision_hash"]}
        assert len((await th.get(RESULTSET, params=by_hash)).json()["results"]) == 1
        other = (await th.get(RESULTSET, params={"revision_hash": "0" * 40})).json()["results"]
        assert len(other) == pushes


async def test_an_unknown_project_is_404(th: Treeherder) -> None:
    for path in ("/api/project/nowhere/resultset/", "/api/project/nowhere/jobs/"):
        answer = await th.submit(path, [])
        assert (answer.status_code, answer.json()) == (404, {"detail": "No project with name nowhere"})
        assert (await th.get(path, params={"revision": REVISION, "job_guid": GUID})).status_code == 404


async def test_signatures_are_checked(th: Treeherder) -> None:
    body = json.dumps([resultset()])
    good = th.sign(RESULTSET, body)
    attempts = {
        "none": await th.post(RESULTSET, content=body, headers={"Content-Type": "application/json"}),
        "nonsense": await th.post(RESULTSET, content=body, headers=good | {"Authorization": "Hawk x"}),
        "half": await th.post(RESULTSET, content=body, headers=good | {"Authorization": 'Hawk mac="x"'}),
        "another key": await th.submit(RESULTSET, [resultset()], key="wrong"),
        "another id": await th.submit(RESULTSET, [resultset()], client_id="nobody"),
        "another body": await th.post(RESULTSET, content=body + " ", headers=good),
        "another path": await th.post(RESULTSET, content=body, headers=th.sign(JOBS, body)),
    }
    assert {name: answer.status_code for name, answer in attempts.items()} == dict.fromkeys(attempts, 403)
    assert all(list(answer.json()) == ["detail"] for answer in attempts.values())
    assert (await th.post(RESULTSET, content=body, headers=good)).status_code == 200
    replayed = await th.post(RESULTSET, content=body, headers=good)
    assert (replayed.status_code, "AlreadyProcessed" in replayed.text) == (403, True)


async def test_a_body_that_is_not_hashed_is_refused(th: Treeherder) -> None:
    credentials = {"id": "tc", "key": "secret", "algorithm": "sha256"}
    sender = Sender(credentials, f"http://treeherder{JOBS}", "POST", always_hash_content=False)
    headers = {"Authorization": str(sender.request_header), "Content-Type": "application/json"}
    assert (await th.post(JOBS, content="[]", headers=headers)).status_code == 403


@pytest.mark.parametrize("agent", ["python-requests/2.31", "python-httpx/0.28.1", "curl/8.0", "node-fetch/1.0", ""])
async def test_library_agents_are_turned_away(th: Treeherder, agent: str) -> None:
    assert (await th.get("/api/repository/", headers={"User-Agent": agent})).status_code == 403


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json; version=2.0"])
async def test_the_version_of_the_api_must_be_asked_for(th: Treeherder, accept: str) -> None:
    assert (await th.get("/api/repository/", headers={"Accept": accept})).status_code == 406


async def decision(th: Treeherder, guid: str = GUID, **changes: Any) -> None:
    job = {"name": "Gecko Decision Task", "job_symbol": "D", "state": "completed", "result": "success"}
    times = {"start_timestamp": 1561576431, "end_timestamp": 1561576432}
    of_task = {"taskcluster_task_id": "Vg7hTWNXSTyVNsVjBpOyCQ", "taskcluster_retry_id": 0}
    await th.behave(year=2017)
    answer = await th.submit(JOBS, [entry(**{**job, **times, **of_task, "job_guid": guid, **changes})])
    assert answer.status_code == 200, answer.text
    await th.behave(year="today")


async def test_the_decision_task_of_a_push_is_found_today(th: Treeherder) -> None:
    path = f"{PUSH}decisiontask/"
    await th.submit(RESULTSET, [resultset()])
    assert (await th.get(path, params={"push_ids": "1"})).status_code == 404  # of its time without this call
    failed = GUID.replace("/0", "/1")
    await decision(th, failed, result="testfailed")
    await decision(th, GUID.replace("/0", "/2"), job_symbol="B")
    nothing = await th.get(path, params={"push_ids": "1"})
    assert (nothing.status_code, nothing.json()) == (404, "No decision tasks found for pushes: ['1']")
    await decision(th)
    answer = await th.get(path, params={"push_ids": "7,1"})
    assert answer.json() == {"1": {"id": "Vg7hTWNXSTyVNsVjBpOyCQ", "run": "0"}}
    for nonsense in ({}, {"push_ids": ""}, {"push_ids": "1,x"}):
        assert (await th.get(path, params=nonsense)).status_code == 500


async def test_a_decision_task_that_was_not_posted_as_one_of_taskcluster_breaks_the_answer(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    await decision(th)
    job = th.state.store.jobs["autoland", GUID]
    del job.body["taskcluster_task_id"]
    assert (await th.get(f"{PUSH}decisiontask/", params={"push_ids": "1"})).status_code == 500
