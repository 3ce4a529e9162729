"""Resultsets and jobs are stored, updated and refused as Treeherder's submission API does."""

import hashlib
from typing import Any

import pytest

from sandbox.treeherder.store import MAX_REVISIONS
from tests.published_schemas import read_published
from tests.sandbox.treeherder.support import (
    COMPLETED,
    GUID,
    JOBS,
    RESULTSET,
    REVISION,
    RUNNING,
    Treeherder,
    entry,
    resultset,
)
from tests.task_event_examples import EVENTS


async def test_a_resultset_is_stored_once_however_often_it_is_posted(th: Treeherder) -> None:
    for author in ("ada@example.com", "bob@example.com"):
        answer = await th.submit(RESULTSET, [resultset(author=author)])
        assert (answer.status_code, answer.json()) == (200, {"message": "well-formed JSON stored"})
    (push,) = (await th.inside())["resultsets"]
    assert push["posts"] == 2
    assert push["resultset"]["author"] == "bob@example.com"


async def test_in_2015_jobs_need_a_hash_and_keep_their_first_artifacts(th: Treeherder) -> None:
    await th.behave(year=2015)
    await th.submit(RESULTSET, [resultset()])
    assert (await th.submit(JOBS, [entry()])).status_code == 200
    assert (await th.inside())["jobs"] == []
    for year, kept_blob in ((2015, "{}"), (2016, '{"job_details": []}')):
        await th.delete("/__control__/data")
        await th.behave(year=year)
        await th.submit(RESULTSET, [resultset()])
        for blob, changes in (("{}", RUNNING), ('{"job_details": []}', COMPLETED)):
            artifact = {"type": "json", "name": "Job Info", "blob": blob}
            sent = entry(**changes, artifacts=[artifact]) | {"revision_hash": resultset()["revision_hash"]}
            assert (await th.submit(JOBS, [sent])).status_code == 200
        (job,) = (await th.inside())["jobs"]
        assert [artifact["blob"] for artifact in job["artifacts"]] == [kept_blob]


def with_revision(**changes: Any) -> dict[str, Any]:
    return resultset(revisions=[resultset()["revisions"][0], resultset()["revisions"][1] | changes])


BAD_RESULTSETS = {
    **{f"no {name}": {k: v for k, v in resultset().items() if k != name} for name in resultset()},
    **{
        f"no revisions.{name}": resultset(
            revisions=[{k: v for k, v in revision.items() if k != name} for revision in resultset()["revisions"]]
        )
        for name in resultset()["revisions"][0]
    },
    "short revision": resultset(revision=REVISION[:12]),
    "upper-case hash": resultset(revision_hash=resultset()["revision_hash"].upper()),
    "hash of something else": resultset(revision_hash="0" * 40),
    "hash in another order": resultset(
        revision_hash=hashlib.sha1(f"{REVISION}default{'1' * 40}default".encode()).hexdigest()
    ),
    "long author": resultset(author="a" * 151),
    "float timestamp": resultset(push_timestamp=1561576431.0),
    "text timestamp": resultset(push_timestamp="1561576431"),
    "type": resultset(type="pull"),
    "active_status": resultset(active_status="on"),
    "no revisions": resultset(revisions=[]),
    "tip not last": resultset(
        revisions=resultset()["revisions"][::-1],
        revision_hash=hashlib.sha1(f"{REVISION}default{'1' * 40}default".encode()).hexdigest(),
    ),
    "another repository": with_revision(repository="try"),
    "files is text": with_revision(files="a b"),
    "comment is null": with_revision(comment=None),
    "lone surrogate": with_revision(files=["latin-\udce9.txt"]),
    "unknown field": resultset(resultset_id=1),
    "201 revisions": resultset(revisions=[resultset()["revisions"][1]] * (MAX_REVISIONS + 1)),
}


@pytest.mark.parametrize("bad", BAD_RESULTSETS.values(), ids=BAD_RESULTSETS.keys())
async def test_a_malformed_resultset_is_a_500_that_says_why_and_nothing_is_stored(
    th: Treeherder, bad: dict[str, Any]
) -> None:
    answer = await th.submit(RESULTSET, [resultset(), bad])
    assert answer.status_code == 500
    assert answer.json()["detail"]
    assert (await th.inside())["resultsets"] == []


async def test_of_200_revisions_the_hash_is_taken_as_it_is(th: Treeherder) -> None:
    revisions = [resultset()["revisions"][1]] * MAX_REVISIONS
    whole = resultset(revisions=revisions, revision_hash="0" * 40, author="a" * 150)
    assert (await th.submit(RESULTSET, [whole])).status_code == 200


async def test_jobs_in_the_form_of_2019_are_taken(th: Treeherder) -> None:
    await are_taken(th, EVENTS)


@pytest.mark.published
async def test_jobs_that_a_real_treeherder_made_are_taken(th: Treeherder) -> None:
    await are_taken(th, read_published("pulse/task-events.json"))


async def are_taken(th: Treeherder, events: list[dict[str, Any]]) -> None:
    for recorded in events:
        tip = [resultset()["revisions"][1] | {"revision": recorded["revision"]}]
        whole = resultset(
            revision=recorded["revision"],
            revisions=tip,
            revision_hash=hashlib.sha1(f"{recorded['revision']}default".encode()).hexdigest(),
        )
        assert (await th.submit(RESULTSET, [whole])).status_code == 200
        answer = await th.submit(JOBS, [entry() | {"revision": recorded["revision"], "job": recorded["job"]}])
        assert (answer.status_code, answer.text) == (200, '{"message": "Job successfully updated"}')
    assert (await th.inside())["jobs_stored"] == len({event["job"]["job_guid"] for event in events})


async def test_a_completed_job_is_immutable_and_running_stays_running(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    for changes in (RUNNING, {}, COMPLETED, COMPLETED | {"result": "busted"}, RUNNING):
        answer = await th.submit(JOBS, [entry(**changes)])
        assert (answer.status_code, answer.json()) == (200, {"message": "Job successfully updated"})
    assert await th.outcomes() == ["stored", "ignored", "updated", "ignored", "ignored"]
    (job,) = (await th.get(JOBS, params={"job_guid": GUID})).json()["results"]
    assert (job["state"], job["result"]) == ("completed", "success")


async def test_jobs_survive_that_their_resultset_is_posted_again(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    await th.submit(JOBS, [entry()])
    await th.submit(RESULTSET, [resultset()])
    await th.submit(JOBS, [entry(**RUNNING)])
    assert [push["jobs"] for push in (await th.inside())["resultsets"]] == [1]
    assert (await th.get(JOBS, params={"job_guid": GUID})).json()["results"][0]["push_id"] == 1


async def test_jobs_before_their_push(th: Treeherder) -> None:
    assert (await th.submit(JOBS, [entry()])).status_code == 500
    await th.behave(unknown_push="drop")
    assert (await th.submit(JOBS, [entry()])).status_code == 200
    inside = await th.inside()
    assert (inside["jobs"], inside["jobs_dropped"], inside["requests"]["POST jobs 200"]) == ([], 1, 1)


TEXT_LIMITS = {
    "job_guid": 50,
    "name": 100,
    "job_symbol": 25,
    "group_name": 100,
    "group_symbol": 25,
    "product_name": 100,
    "reason": 125,
    "who": 50,
    "machine": 100,
}


LOG = {"url": "https://example.com/" + "l" * 235, "name": "n" * 50, "parse_status": "pending"}


PLATFORM = {"platform": "p" * 100, "os_name": "o" * 25, "architecture": "a" * 25}


LONGEST: dict[str, Any] = {
    **{name: "x" * limit for name, limit in TEXT_LIMITS.items()},
    "build_platform": PLATFORM,
    "log_references": [LOG],
    "artifacts": [{"type": "json", "name": "Job Info", "blob": "{}"}],
}


BAD_JOBS: dict[str, dict[str, Any]] = {
    **{f"long {name}": {name: "x" * (limit + 1)} for name, limit in TEXT_LIMITS.items()},
    **{f"null {name}": {name: None} for name in TEXT_LIMITS},
    **{
        f"long platform.{name}": {"machine_platform": PLATFORM | {name: "x" * (limit + 1)}}
        for name, limit in {"platform": 100, "os_name": 25, "architecture": 25}.items()
    },
    "log url": {"log_references": [LOG | {"url": "x" * 256}]},
    "log name": {"log_references": [LOG | {"name": "x" * 51}]},
    "log status": {"log_references": [LOG | {"parse_status": "later"}]},
    "artifact": {"artifacts": [{"type": "json", "name": "Job Info"}]},
    "guid": {"job_guid": "a b"},
    "numeric symbol": {"job_symbol": 1},
    "state": {"state": "unscheduled"},
    "result": COMPLETED | {"result": "fail"},
    "completed without result": COMPLETED | {"result": "unknown"},
    "result before the end": {"result": "success"},
    "completed without end": {"state": "completed", "result": "success"},
    "running without start": {"state": "running"},
    "float time": {"submit_timestamp": 1.5},
    "build system": {"build_system_type": "buildbot"},
    "no options": {"option_collection": {}},
    "false option": {"option_collection": {"opt": False}},
    "tier 0": {"tier": 0},
    "tier true": {"tier": True},
    "unknown field": {"jobSymbol": "B"},
}


async def test_the_longest_job_is_taken(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    answer = await th.submit(JOBS, [entry(**LONGEST)])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("bad", BAD_JOBS.values(), ids=BAD_JOBS.keys())
async def test_one_bad_job_refuses_the_whole_bulk(th: Treeherder, bad: dict[str, Any]) -> None:
    await th.submit(RESULTSET, [resultset()])
    answer = await th.submit(JOBS, [entry(), entry(**bad)])
    assert answer.status_code == 400
    assert "[1].job" in answer.json()["detail"]
    await th.behave(bad_job_status=500)
    assert (await th.submit(JOBS, [entry(), entry(**bad)])).status_code == 500
    assert (await th.inside())["jobs"] == []


@pytest.mark.parametrize(
    "name", [name for name in entry()["job"] if name not in ("desc", "log_references", "artifacts")]
)
async def test_a_job_needs_its_fields(th: Treeherder, name: str) -> None:
    await th.submit(RESULTSET, [resultset()])
    bad = entry()
    del bad["job"][name]
    answer = await th.submit(JOBS, [bad])
    assert (answer.status_code, answer.json()["detail"]) == (400, f"[0].job lacks {name}")


async def test_a_job_goes_with_its_push(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    assert (await th.submit(JOBS, [entry() | {"revision_hash": "0" * 40}])).status_code == 400
    assert (await th.submit(JOBS, [entry() | {"project": "try"}])).status_code == 400
    good = entry() | {"revision_hash": resultset()["revision_hash"]}
    assert (await th.submit(JOBS, [good])).status_code == 200
    first = resultset()["revisions"][:1]
    earlier = resultset(
        revision="1" * 40, revisions=first, revision_hash=hashlib.sha1(f"{'1' * 40}default".encode()).hexdigest()
    )
    assert (await th.submit(RESULTSET, [earlier])).status_code == 200
    moved = await th.submit(JOBS, [entry(**COMPLETED) | {"revision": "1" * 40}])
    assert (moved.status_code, REVISION in moved.json()["detail"]) == (400, True)
    assert await th.outcomes() == ["stored"]
