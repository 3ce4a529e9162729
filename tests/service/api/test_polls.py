"""Which repository is asked next, over the API: signed, leased to one listener, and what a listener reports."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.database import now
from tests.service.asgi import Api, is_problem, node, push_event, running, settings_for, signature
from tests.service.strange import ANYTHING, api_in_a_loop


def result(lease: dict[str, Any], outcome: str = "listed", **more: Any) -> dict[str, Any]:
    return {"repository": lease["repository"], "lease": lease["lease"], "outcome": outcome, **more}


async def test_a_due_repository_is_leased_with_all_that_a_listener_needs(api: Api) -> None:
    await api.add()
    (lease,) = (await api.lease())["leases"]
    assert lease == {
        "repository": "mc",
        "lease": 1,
        "url": "https://hg.mozilla.org/mc",
        "host": "hg.mozilla.org",
        "generation": 0,
        "cursor": 100,
        "last_changeset": None,
        "etag": None,
        "seconds": 30.0,
    }
    assert (await api.lease())["leases"] == [], "one listener at a time has it"


async def test_many_listeners_at_once_never_get_the_same(api: Api) -> None:
    for number in range(4):
        await api.add(f"r{number}")
    answers = await asyncio.gather(*(api.lease(maximum=2) for _ in range(6)))
    leased = [lease["repository"] for answer in answers for lease in answer["leases"]]
    assert len(leased) == len(set(leased))
    assert set(leased) <= {f"r{n}" for n in range(4)}
    leased += [lease["repository"] for lease in (await api.lease(maximum=10))["leases"]]
    assert sorted(leased) == [f"r{n}" for n in range(4)], "and none is left out"


async def test_max_0_only_reports(api: Api) -> None:
    await api.add()
    started = time.monotonic()
    answer = await api.lease(maximum=0, wait=5)
    assert answer == {"leases": [], "problems": []}
    assert time.monotonic() - started < 4


async def test_it_waits_while_nothing_is_due_and_answers_when_something_is(sqlite_api: Api) -> None:
    started = time.monotonic()
    assert (await sqlite_api.lease(wait=0.4))["leases"] == []
    assert time.monotonic() - started >= 0.4
    waiting = asyncio.create_task(sqlite_api.lease(wait=5))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await sqlite_api.add()
    leases = (await asyncio.wait_for(waiting, 4.5))["leases"]
    assert [lease["repository"] for lease in leases] == ["mc"]


async def test_a_listener_that_has_gone_is_leased_nothing(sqlite_api: Api) -> None:
    """Its connection ended while it waited: a lease for it would keep the repository from others for 30 s."""
    raw = json.dumps({"results": [], "max": 1, "wait": 5}).encode()
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": raw}, {"type": "http.disconnect"}]
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if len(messages) == 1:
            await gone.wait()
        return messages.pop(0) if len(messages) > 1 else messages[0]

    async def send(message: Any) -> None:
        """Nobody hears it."""

    headers = [(name.encode(), value.encode()) for name, value in signature(raw, path="/polls/lease").items()]
    scope = {"type": "http", "method": "POST", "path": "/api/v1/polls/lease", "query_string": b"", "headers": headers}
    call = asyncio.create_task(sqlite_api.app(scope, receive, send))
    await asyncio.sleep(0.1)
    gone.set()
    await sqlite_api.add()
    await asyncio.wait_for(call, 4)
    assert (await sqlite_api.repository()).leased_until is None
    assert [lease["repository"] for lease in (await sqlite_api.lease())["leases"]] == ["mc"]


async def test_a_good_result_ends_the_lease_and_is_shown(api: Api) -> None:
    await api.add()
    (lease,) = (await api.lease())["leases"]
    tag = f'W/"{int(now().timestamp()) - 60}"'
    told = result(lease, lastpushid=100, at_cursor=node(100), etag=tag, date=now().isoformat())
    assert await api.lease([told], maximum=0) == {"leases": [], "problems": []}
    shown = (await api.get("/repositories/mc")).json()
    assert shown["last_changeset"] == node(100)
    assert shown["last_good_poll_at"] is not None
    await api.change_repository(due_at=now())
    (again,) = (await api.lease())["leases"]
    assert (again["etag"], again["last_changeset"], again["lease"]) == (tag, node(100), 2)


async def test_a_tag_of_the_second_of_a_push_is_not_relied_on(sqlite_api: Api) -> None:
    await sqlite_api.add()
    at = int(now().timestamp())
    for tag, date in ((f'W/"{at}"', at + 1), ('W/"x"', at), ("9" * 400, at), (f'W/"{at - 60}"', None), ("", at)):
        (lease,) = (await sqlite_api.lease())["leases"]
        moment = None if date is None else datetime.fromtimestamp(date, UTC).isoformat()
        assert (await sqlite_api.lease([result(lease, etag=tag, date=moment)], maximum=0))["problems"] == []
        assert (await sqlite_api.repository()).etag is None
        await sqlite_api.change_repository(due_at=now())


async def test_a_failure_is_shown_and_backs_off_until_it_is_good_again(api: Api) -> None:
    await api.add()
    waits = []
    for count in (1, 2, 3):
        (lease,) = (await api.lease())["leases"]
        await api.lease([result(lease, "failed", error="404 \u00e9 Not Found")], maximum=0)
        shown = (await api.get("/repositories/mc")).json()
        assert (shown["poll_error"], shown["poll_failures"]) == ("404 \u00e9 Not Found", count)
        waits.append((await api.repository()).due_at - now())
        await api.change_repository(due_at=now())
    assert waits[0] < waits[1] < waits[2]
    (lease,) = (await api.lease())["leases"]
    await api.lease([result(lease, "unchanged")], maximum=0)
    shown = (await api.get("/repositories/mc")).json()
    assert (shown["poll_error"], shown["poll_failures"]) == (None, 0)


async def test_a_result_of_an_older_lease_is_ignored(api: Api) -> None:
    await api.add()
    (old,) = (await api.lease())["leases"]
    await api.change_repository(leased_until=now(), due_at=now())  # its time is over
    (new,) = (await api.lease())["leases"]
    assert new["lease"] == old["lease"] + 1
    await api.lease([result(old, "failed", error="late")], maximum=0)
    repository = await api.repository()
    assert repository.poll_error is None
    assert repository.leased_until is not None, "the other still has it"


async def test_results_that_are_not_understood_are_told_and_spoil_nothing(api: Api) -> None:
    await api.add()
    (lease,) = (await api.lease())["leases"]
    bad: list[Any] = [
        *(None, 1, "x", [], {}),
        result(lease, "splendid"),
        result(lease, requests=-1),
        result(lease, requests=10**400),
        result(lease, seconds=float("inf")),
        result(lease, seconds=float("nan")),
        result(lease, seconds=1e300),
        result(lease, lastpushid=-1),
        result(lease, at_cursor="tip"),
        result(lease, date="yesterday"),
        result(lease, date="0001-01-01T00:00:00"),
        result(lease, error="x" * 2001),
        result(lease, etag="x" * 501),
        {**result(lease), "repository": "\udce9"},
        {**result(lease), "lease": None},
    ]
    answer = await api.lease([*bad, result(lease, "failed", error="this one is good")], maximum=0)
    assert len(answer["problems"]) == len(bad)
    assert all(problem for problem in answer["problems"])
    assert (await api.get("/repositories/mc")).json()["poll_error"] == "this one is good"


async def test_results_of_unknown_repositories_are_ignored(api: Api) -> None:
    nowhere = {"repository": "nowhere", "lease": 1}
    huge = {"repository": "nowhere", "lease": 10**400}
    answer = await api.lease([result(nowhere), result(huge)], maximum=0)
    assert answer == {"leases": [], "problems": []}


async def test_a_reset_needs_several_polls_over_a_while_and_happens_once(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    for _ in range(4):
        (lease,) = (await api.lease())["leases"]
        await api.lease([result(lease, lastpushid=3, at_cursor=None)], maximum=0)
        await api.change_repository(due_at=now())
    assert (await api.repository()).generation == 0, "a minute has not passed"
    await api.change_repository(reset_suspected_at=now() - timedelta(minutes=2))
    (lease,) = (await api.lease())["leases"]
    told = result(lease, lastpushid=3)
    await asyncio.gather(*(api.lease([told], maximum=0) for _ in range(4)))
    shown = (await api.get("/repositories/mc")).json()
    assert (shown["generation"], shown["last_push_id"], shown["reset_suspected_at"]) == (1, 0, None)


async def test_wrong_requests_say_what_is_wrong(sqlite_api: Api) -> None:
    for body, word in (
        ([], "dictionary"),
        ({"max": -1}, "max"),
        ({"max": 101}, "max"),
        ({"wait": 6}, "wait"),
        ({"wait": float("nan")}, "wait"),
        ({"results": [1] * 1001}, "results"),
        ({"results": {}}, "results"),
    ):
        is_problem(await sqlite_api.signed("/polls/lease", body), 422, word)


async def test_a_commit_that_fails_leases_nothing(api: Api) -> None:
    await api.add()
    with api.commits_fail():
        is_problem(await api.signed("/polls/lease", {"wait": 0}), 500)
    (lease,) = (await api.lease())["leases"]
    with api.commits_fail():
        answer = await api.signed("/polls/lease", {"results": [result(lease, "failed", error="x")], "max": 0})
        is_problem(answer, 500)
    assert (await api.get("/repositories/mc")).json()["poll_error"] is None


async def test_a_host_that_is_no_longer_allowed_is_not_asked(sqlite_url: str) -> None:
    async with running(settings_for(sqlite_url)) as api:
        await api.add()
    async with running(settings_for(sqlite_url, allowed_hosts=["hg.example.com"])) as api:
        assert (await api.lease())["leases"] == []


RESULT = {
    "repository": "mc",
    "lease": 1,
    "outcome": "listed",
    "error": None,
    "requests": 1,
    "seconds": 0.5,
    "lastpushid": 100,
    "at_cursor": node(100),
    "moved": False,
    "etag": 'W/"1700000000"',
    "date": "2023-11-14T22:13:30Z",
    "more": False,
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mangles=st.lists(st.tuples(st.sampled_from(sorted(RESULT)), ANYTHING), min_size=1, max_size=20), junk=ANYTHING)
@example(mangles=[("date", 0), ("date", -62135596800), ("date", 253402300799)], junk=None)
@example(mangles=[("etag", "9" * 400), ("lease", 10**400), ("seconds", "inf"), ("requests", 10_000)], junk=None)
def test_mangled_results_are_never_our_fault(loop_api: Any, mangles: list[tuple[str, Any]], junk: Any) -> None:
    api, run = loop_api
    run(api.change_repository(lease=1, generation=0))
    results = [{**RESULT, name: value} for name, value in mangles]
    answer = run(api.signed("/polls/lease", {"results": [*results, junk], "max": 0}))
    assert answer.status_code == 200, answer.text
    answer = run(api.signed("/polls/lease", {"results": [], "wait": 0, "max": junk, "more": junk}))
    assert answer.status_code in {200, 422}, answer.text


@pytest.fixture
def loop_api(database_url: str) -> Any:
    with api_in_a_loop(database_url) as made:
        yield made
