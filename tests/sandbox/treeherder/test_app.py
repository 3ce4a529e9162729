"""The Treeherder stand-in, asked as our service asks it: signed with mohawk, over HTTP."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import pika
import pytest
from mohawk import Sender

from sandbox.treeherder.app import create_app
from sandbox.treeherder.job_actions import JOB_ACTIONS_EXCHANGE, declare_job_actions
from sandbox.treeherder.state import State
from sandbox.treeherder.store import MAX_REVISIONS, Repository, Store
from tests.published_schemas import read_published
from tests.services import Amqp

REVISION = "219d38523a321229f7f48aca6592f76b993fb1aa"
GUID = "037e6659-346e-426c-a3f3-cc8c9c81747c/0"
HEADERS = {"User-Agent": "tc-treeherder/test", "Accept": "application/json; version=1.0"}
RESULTSET = "/api/project/autoland/resultset/"
JOBS = "/api/project/autoland/jobs/"
PUSH = "/api/project/autoland/push/"


class Treeherder(httpx.AsyncClient):
    """A client that signs what it posts, and that has the state of the other side at hand."""

    def __init__(self) -> None:
        repositories = [Repository("autoland", "https://hg.example/autoland"), Repository("try")]
        self.state = State(Store(repositories), {"tc": "secret", "other": "secret"})
        app = create_app(self.state)
        super().__init__(transport=httpx.ASGITransport(app), base_url="http://treeherder", headers=HEADERS)

    def sign(self, path: str, body: str, client_id: str = "tc", key: str = "secret") -> dict[str, str]:
        credentials = {"id": client_id, "key": key, "algorithm": "sha256"}
        url = f"http://treeherder{path}"
        sender = Sender(credentials, url, "POST", content=body, content_type="application/json")
        return {"Authorization": str(sender.request_header), "Content-Type": "application/json"}

    async def submit(self, path: str, body: Any, **credentials: str) -> httpx.Response:
        text = json.dumps(body)
        return await self.post(path, content=text, headers=self.sign(path, text, **credentials))

    async def behave(self, **changes: Any) -> None:
        answer = await self.patch("/__control__/behaviour", json=changes)
        assert answer.status_code == 200, answer.text

    async def inside(self, **query: str) -> Any:
        return (await self.get("/__control__/state", params=query)).json()

    async def outcomes(self) -> list[str]:
        (job,) = (await self.inside(job_guid=GUID))["jobs"]
        return [entry["outcome"] for entry in job["history"]]


@pytest.fixture
async def th() -> AsyncIterator[Treeherder]:
    async with Treeherder() as client:
        yield client


def resultset(**changes: Any) -> dict[str, Any]:
    revisions = [
        {
            "revision": node,
            "author": "Ada <ada@example.com>",
            "comment": "Bug 1 - <b>count</b>",
            "files": ["a/b.c"],
            "branch": "default",
            "repository": "autoland",
        }
        for node in ("1" * 40, REVISION)
    ]
    return {
        "revision": REVISION,
        "revision_hash": hashlib.sha1(f"{'1' * 40}default{REVISION}default".encode()).hexdigest(),
        "push_timestamp": 1561576431,
        "author": "ada@example.com",
        "type": "push",
        "active_status": "active",
        "revisions": revisions,
    } | changes


def entry(**changes: Any) -> dict[str, Any]:
    platform = {"platform": "linux64", "os_name": "-", "architecture": "-"}
    job = {
        "job_guid": GUID,
        "name": "build-linux64/debug",
        "desc": "",
        "job_symbol": "B",
        "group_name": "Builds",
        "group_symbol": "?",
        "product_name": "firefox",
        "state": "pending",
        "result": "unknown",
        "reason": "scheduled",
        "who": "ada@example.com",
        "submit_timestamp": 1561576431,
        "machine": "i-0123",
        "build_system_type": "taskcluster",
        "build_platform": platform,
        "machine_platform": platform,
        "option_collection": {"debug": True},
        "tier": 1,
        "log_references": [],
        "artifacts": [],
    }
    return {"project": "autoland", "revision": REVISION, "superseded": [], "job": job | changes}


RUNNING = {"state": "running", "start_timestamp": 1561576440}
COMPLETED = RUNNING | {"state": "completed", "result": "success", "end_timestamp": 1561576450}


async def test_a_resultset_is_stored_once_however_often_it_is_posted(th: Treeherder) -> None:
    for author in ("ada@example.com", "bob@example.com"):
        answer = await th.submit(RESULTSET, [resultset(author=author)])
        assert (answer.status_code, answer.json()) == (200, {"message": "well-formed JSON stored"})
    (push,) = (await th.inside())["resultsets"]
    assert push["posts"] == 2
    assert push["resultset"]["author"] == "bob@example.com"


async def test_a_push_is_found_by_its_tip(th: Treeherder) -> None:
    assert (await th.get(RESULTSET, params={"revision": REVISION})).json()["results"] == []
    await th.submit(RESULTSET, [resultset()])
    for year in (2015, 2016, 2017, "today"):
        await th.behave(year=year)
        path = RESULTSET if year != "today" else PUSH
        (found,) = (await th.get(path, params={"revision": REVISION})).json()["results"]
        assert found["revision"] == REVISION
        assert found.get("revision_hash") == (None if year == "today" else resultset()["revision_hash"])
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


async def test_what_each_year_has(th: Treeherder) -> None:
    there = {}
    for year in (2015, 2016, 2017, "today"):
        await th.behave(year=year)
        answers = {
            "POST resultset": await th.submit(RESULTSET, []),
            "POST jobs": await th.submit(JOBS, []),
            "GET resultset": await th.get(RESULTSET, params={"revision": REVISION}),
            "GET push": await th.get(PUSH, params={"revision": REVISION}),
        }
        there[year] = {call for call, answer in answers.items() if answer.status_code != 404}
    submission = {"POST resultset", "POST jobs", "GET resultset"}
    assert there == {2015: submission, 2016: submission, 2017: submission, "today": {"GET push"}}


async def test_in_2015_jobs_need_a_hash_and_keep_their_first_artifacts(th: Treeherder) -> None:
    await th.behave(year=2015)
    await th.submit(RESULTSET, [resultset()])
    assert (await th.submit(JOBS, [entry()])).status_code == 200
    assert (await th.inside())["jobs"] == []
    for year, shown in ((2015, "{}"), (2016, '{"job_details": []}')):
        await th.delete("/__control__/data")
        await th.behave(year=year)
        await th.submit(RESULTSET, [resultset()])
        for blob, changes in (("{}", RUNNING), ('{"job_details": []}', COMPLETED)):
            artifact = {"type": "json", "name": "Job Info", "blob": blob}
            sent = entry(**changes, artifacts=[artifact]) | {"revision_hash": resultset()["revision_hash"]}
            assert (await th.submit(JOBS, [sent])).status_code == 200
        (job,) = (await th.inside())["jobs"]
        assert [artifact["blob"] for artifact in job["artifacts"]] == [shown]


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


async def test_an_unknown_project_is_404(th: Treeherder) -> None:
    for path in ("/api/project/nowhere/resultset/", "/api/project/nowhere/jobs/"):
        answer = await th.submit(path, [])
        assert (answer.status_code, answer.json()) == (404, {"detail": "No project with name nowhere"})
        assert (await th.get(path, params={"revision": REVISION, "job_guid": GUID})).status_code == 404


async def test_a_project_can_be_added(th: Treeherder) -> None:
    assert (await th.post("/__control__/repositories", json={"name": "a/b"})).status_code == 400
    added = await th.post("/__control__/repositories", json={"name": "new", "url": "https://hg.example/new"})
    assert added.status_code == 201
    names = {repository["name"]: repository for repository in (await th.get("/api/repository/")).json()}
    assert set(names) == {"autoland", "try", "new"}
    assert names["new"] == {
        "name": "new",
        "url": "https://hg.example/new",
        "dvcs_type": "hg",
        "active_status": "active",
    }


async def test_jobs_that_a_real_treeherder_made_are_taken(th: Treeherder) -> None:
    for recorded in read_published("pulse/task-events.json"):
        tip = [resultset()["revisions"][1] | {"revision": recorded["revision"]}]
        whole = resultset(
            revision=recorded["revision"],
            revisions=tip,
            revision_hash=hashlib.sha1(f"{recorded['revision']}default".encode()).hexdigest(),
        )
        assert (await th.submit(RESULTSET, [whole])).status_code == 200
        answer = await th.submit(JOBS, [entry() | {"revision": recorded["revision"], "job": recorded["job"]}])
        assert (answer.status_code, answer.text) == (200, '{"message": "Job successfully updated"}')
    assert (await th.inside())["jobs_stored"] == len(
        {e["job"]["job_guid"] for e in read_published("pulse/task-events.json")}
    )


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


async def test_bodies_that_are_no_list_of_json(th: Treeherder) -> None:
    for body, status in (("{", 400), ("[NaN", 400), ("{}", 400)):
        answer = await th.post(JOBS, content=body, headers=th.sign(JOBS, body))
        assert answer.status_code == status
    untyped = th.sign(JOBS, "[]") | {"Content-Type": "text/plain"}
    assert (await th.post(JOBS, content="[]", headers=untyped)).status_code == 403


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


async def test_the_limits_hold_for_each_credential_and_kind(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    await th.behave(throttle=True, jobs_per_minute=2)
    statuses = [(await th.submit(JOBS, [entry()])).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert (await th.submit(JOBS, [entry()], client_id="other")).status_code == 200
    assert (await th.submit(RESULTSET, [resultset()])).status_code == 200
    without = await th.submit(JOBS, [entry()])
    await th.behave(retry_after=True)
    named = await th.submit(JOBS, [entry()])
    assert "retry-after" not in without.headers
    assert 50 <= int(named.headers["retry-after"]) <= 60


async def test_the_limits_are_treeherders_and_off_at_first(th: Treeherder) -> None:
    behaviour = (await th.get("/__control__/behaviour")).json()
    assert (behaviour["jobs_per_minute"], behaviour["resultsets_per_minute"]) == (220, 400)
    assert behaviour["throttle"] is False


async def test_down_for_some_requests(th: Treeherder) -> None:
    await th.behave(down=2)
    statuses = [(await th.get("/api/repository/")).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]


async def test_down_until_it_is_cleared(th: Treeherder) -> None:
    await th.behave(down=-1, down_how="drop")
    for _ in range(3):
        with pytest.raises(httpx.TransportError):
            await th.get("/api/repository/")
    assert (await th.delete("/__control__/behaviour")).json()["down"] == 0
    assert (await th.get("/api/repository/")).status_code == 200
    assert (await th.inside())["requests"]["GET repository dropped"] == 3


async def test_429_and_500_on_request(th: Treeherder) -> None:
    await th.behave(too_many=1, fail_after=1)
    statuses = [(await th.submit(RESULTSET, [resultset()])).status_code for _ in range(3)]
    assert statuses == [429, 500, 200]
    assert (await th.inside())["resultsets"][0]["posts"] == 2


async def test_a_delay_comes_before_the_work(th: Treeherder) -> None:
    await th.behave(delay=30)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(th.submit(RESULTSET, [resultset()]), 0.05)
    assert (await th.inside())["resultsets"] == []


async def test_a_given_job_is_always_refused(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    await th.behave(refuse_jobs=[GUID])
    other = entry(job_guid=GUID.replace("/0", "/1"))
    assert (await th.submit(JOBS, [other, entry()])).status_code == 400
    assert (await th.submit(JOBS, [other])).status_code == 200


async def test_an_unknown_fault_is_refused(th: Treeherder) -> None:
    answer = await th.patch("/__control__/behaviour", json={"downn": 1})
    assert (answer.status_code, "downn" in answer.text) == (400, True)


async def test_clearing_forgets_data_and_keeps_projects(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    await th.submit(JOBS, [entry()])
    before = await th.inside()
    assert before["requests"] == {"POST resultset 200": 1, "POST jobs 200": 1, "jobs received": 1}
    await th.delete("/__control__/data")
    after = await th.inside()
    assert (after["resultsets"], after["jobs"], after["requests"]) == ([], [], {})
    assert after["repositories"] == before["repositories"]


async def test_the_inside_can_be_asked_for_one_push_or_job(th: Treeherder) -> None:
    await th.submit(RESULTSET, [resultset()])
    await th.submit(JOBS, [entry(), entry(job_guid="another/0")])
    assert len((await th.inside(project="autoland", revision=REVISION))["jobs"]) == 2
    assert len((await th.inside(job_guid=GUID))["jobs"]) == 1
    for query in ({"project": "try"}, {"revision": "0" * 40}):
        inside = await th.inside(**query)
        assert (inside["resultsets"], inside["jobs"]) == ([], [])


async def test_the_page_shows_pushes_and_jobs_and_escapes(th: Treeherder) -> None:
    assert "No pushes yet" in (await th.get("/")).text
    await th.submit(RESULTSET, [resultset(author="<script>alert(1)</script>")])
    await th.submit(JOBS, [entry(name='"><script>', **COMPLETED | {"result": "busted"})])
    page = await th.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.text.count("<script>") == 1  # its own
    assert "Bug 1 - &lt;b&gt;count" in page.text
    assert f'data-guid="{GUID}">B</button>' in page.text
    assert page.text.count("#c3001c") == 2  # the legend and the job


PRESS = {"project": "autoland", "job_guid": GUID, "action": "retrigger", "requester": "ada@example.com"}


async def test_a_button_without_a_broker_says_so(th: Treeherder) -> None:
    answer = await th.post("/__control__/job-action", json=PRESS)
    assert (answer.status_code, "AMQP" in answer.json()["detail"]) == (409, True)
    assert (await th.post("/__control__/job-action", json=PRESS | {"action": "smile"})).status_code == 400


async def test_a_button_with_a_broker_that_is_away_says_so(th: Treeherder, unused_tcp_port: int) -> None:
    th.state.amqp_url = f"amqp://guest:guest@127.0.0.1:{unused_tcp_port}/"
    answer = await th.post("/__control__/job-action", json=PRESS)
    assert (answer.status_code, "press again" in answer.json()["detail"]) == (503, True)


@pytest.mark.parametrize(("dot", "suffix"), [(False, ""), (True, ".")])
async def test_a_button_publishes_the_message_of_the_published_schema(
    th: Treeherder, monkeypatch: pytest.MonkeyPatch, dot: bool, suffix: str
) -> None:
    published: list[tuple[Any, ...]] = []

    class Channel:
        def exchange_declare(self, *arguments: Any, **named: Any) -> None:
            published.append((*arguments, named))

        def confirm_delivery(self) -> None:
            published.append(("confirm",))

        def basic_publish(self, exchange: str, key: str, body: bytes, *_: Any, **named: Any) -> None:
            published.append((exchange, key, json.loads(body)))

    class Connection:
        is_open = False

        def __init__(self, parameters: Any) -> None:
            assert parameters.host == "broker.example"

        def channel(self) -> Channel:
            return Channel()

    monkeypatch.setattr(pika, "BlockingConnection", Connection)
    th.state.amqp_url = "amqp://broker.example/"
    await th.submit(RESULTSET, [resultset()])
    await th.submit(JOBS, [entry()])
    answer = await th.post("/__control__/job-action", json=PRESS | {"trailing_dot": dot})
    assert (answer.status_code, answer.json()["heard"]) == (200, True)
    declared, confirmed, (exchange, key, message) = published
    assert declared == (JOB_ACTIONS_EXCHANGE, {"exchange_type": "topic", "durable": True})
    assert confirmed == ("confirm",)
    assert (exchange, key) == (JOB_ACTIONS_EXCHANGE, f"taskcluster.autoland.retrigger{suffix}")
    jsonschema.validate(message, read_published("treeherder/job-action-message.json"), jsonschema.Draft4Validator)
    assert message == {"version": 1, **PRESS, "job_id": 1}


async def test_a_real_broker_hears_the_button(th: Treeherder, amqp: Amqp) -> None:
    th.state.amqp_url = amqp.url
    press = PRESS | {"project": amqp.name}  # so that nobody else's binding matches
    queue = amqp.queue()

    def listen() -> None:
        with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
            channel = connection.channel()
            channel.exchange_declare(JOB_ACTIONS_EXCHANGE, passive=True)  # Pulse allows no more
            channel.queue_declare(queue, durable=True)
            channel.queue_bind(queue, JOB_ACTIONS_EXCHANGE, f"taskcluster.{amqp.name}.#")

    def read() -> tuple[Any, Any, bytes]:
        with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
            method, properties, body = connection.channel().basic_get(queue, auto_ack=True)
            return method, properties, body

    await asyncio.to_thread(declare_job_actions, amqp.url)
    unheard = await th.post("/__control__/job-action", json=press)
    assert (unheard.status_code, unheard.json()["heard"]) == (200, False)
    await asyncio.to_thread(listen)
    assert (await th.post("/__control__/job-action", json=press)).json()["heard"] is True
    method, properties, body = await asyncio.to_thread(read)
    assert (method.exchange, method.routing_key) == (JOB_ACTIONS_EXCHANGE, f"taskcluster.{amqp.name}.retrigger")
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert json.loads(body) == {"version": 1, **press}
