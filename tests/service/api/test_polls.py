"""Shifts over the API: signed, leased to one listener, and what a listener tells."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.clock import now
from tests.service.asgi import LISTENER, Api, is_problem, node, push_event, running, settings_for
from tests.service.odd_input import ANYTHING, api_in_a_loop

OTHER = LISTENER.replace("0", "1")


def polled(*leases: dict[str, Any], ago: float = 0) -> list[list[float]]:
    return [[lease["id"], lease["shift"], ago, 0.1] for lease in leases]


def news(lease: dict[str, Any], outcome: str = "listed", **more: Any) -> dict[str, Any]:
    return {
        "repository_id": lease["id"],
        "shift": lease["shift"],
        "outcome": outcome,
        "since": 100,
        "cursor": 100,
        **more,
    }


async def test_a_due_repository_is_leased_with_all_that_a_listener_needs(api: Api) -> None:
    await api.add()
    shift = await api.lease()
    assert shift["leases"] == [
        {
            "repository": "mc",
            "id": 1,
            "shift": 1,
            "url": "https://hg.mozilla.org/mc",
            "host": "hg.mozilla.org",
            "generation": 0,
            "cursor": 100,
            "last_changeset": None,
            "etag": None,
            "full_in": 0.0,
            "first_in": 0.0,
            "interval": 5.0,
            "suspected": False,
        }
    ]
    assert shift["hosts"] == {"hg.mozilla.org": {"rate": 9.0, "at_a_time": 4}}
    assert (shift["renew"], shift["full_every"], shift["problems"]) == (5, 600, [])
    assert (await api.lease(OTHER))["leases"] == [], "one listener at a time has it"
    shown = (await api.get("/repositories/mc")).json()
    assert shown["shift_ends_at"] is not None
    assert (shown["last_polled_at"], shown["last_good_poll_at"]) == (None, None)


async def test_many_listeners_at_once_never_get_the_same(api: Api) -> None:
    for number in range(4):
        await api.add(f"r{number}")
    names = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(6)]
    answers = await asyncio.gather(*(api.lease(name) for name in names))
    leased = [lease["repository"] for answer in answers for lease in answer["leases"]]
    assert sorted(leased) == [f"r{n}" for n in range(4)]
    assert sum(answer["hosts"]["hg.mozilla.org"]["rate"] for answer in answers) == 9


async def test_a_renewal_shows_when_it_was_polled_and_keeps_it(api: Api) -> None:
    await api.add()
    shift = await api.lease()
    before = now()
    renewed = await api.lease(answer=shift["answer"], polled=polled(*shift["leases"]), polls=1, requests=1, slowest=0.1)
    assert (renewed["renewed"], renewed["leases"], renewed["answer"]) == ([1], [], shift["answer"] + 1)
    repository = await api.repository()
    assert repository.last_good_poll_at is not None
    assert repository.last_good_poll_at >= before
    assert repository.shift == 1
    exposition = (await api.client.get("/metrics")).text
    assert 'tc_treeherder_polls_total{outcome="good"}' in exposition
    assert "tc_treeherder_poll_requests_total" in exposition
    assert "tc_treeherder_slowest_poll_seconds_bucket" in exposition


async def test_an_etag_and_the_tip_are_kept(api: Api) -> None:
    await api.add()
    (lease,) = (await api.lease())["leases"]
    told = news(lease, lastpushid=100, at_cursor=node(100), etag='W/"5"')
    answer = await api.lease(polled=polled(lease), news=[told], ends=True)
    assert (answer["problems"], answer["leases"]) == ([], [])
    (again,) = (await api.lease(OTHER))["leases"]
    assert (again["etag"], again["last_changeset"], again["shift"]) == ('W/"5"', node(100), 2)
    assert 590 < again["full_in"] <= 600


async def test_a_failure_is_shown_and_backs_off_until_it_is_good_again(api: Api) -> None:
    await api.add()
    waits = []
    for count in (1, 2, 3):
        (lease,) = (await api.lease())["leases"]
        await api.lease(news=[news(lease, "failed", error="404 \u00e9 Not Found")])
        shown = (await api.get("/repositories/mc")).json()
        assert (shown["poll_error"], shown["poll_failures"]) == ("404 \u00e9 Not Found", count)
        assert shown["shift_ends_at"] is None
        waits.append((await api.repository()).due_at - now())
        await api.change_repository(due_at=now())
    assert waits[0] < waits[1] < waits[2]
    (lease,) = (await api.lease())["leases"]
    await api.lease(polled=polled(lease))
    shown = (await api.get("/repositories/mc")).json()
    assert (shown["poll_error"], shown["poll_failures"]) == (None, 0)


@pytest.mark.parametrize("patch", [{"contains": "try:"}, {"enabled": False}])
async def test_a_patch_in_the_middle_of_a_shift_ends_it_and_nothing_of_it_is_stored(
    api: Api, patch: dict[str, Any]
) -> None:
    await api.add()
    (lease,) = (await api.lease())["leases"]
    assert (await api.push(push_event(101, shift=1)))[0]["verdict"] == "accepted"
    assert (await api.patch("/repositories/mc", patch)).status_code == 200
    (verdict,) = await api.push(push_event(102, shift=1))
    assert (verdict["verdict"], verdict["shift"], verdict["cursor"]) == ("rejected", 2, 101)
    assert "shift 1 of mc, which has ended" in verdict["reason"]
    shift = await api.lease(polled=polled(lease), news=[news(lease, "failed", error="of the old shift")])
    assert shift["renewed"] == []
    repository = await api.repository()
    assert (repository.poll_error, repository.last_good_poll_at, repository.last_push_id) == (None, None, 101)
    assert [lease["shift"] for lease in shift["leases"]] == ([] if patch == {"enabled": False} else [3])
    assert len(await api.pushes()) == 1
    assert await api.letters() == []


async def test_after_delete_and_reset_nothing_of_the_old_shift_is_stored(api: Api) -> None:
    for end in ("reset", "delete"):
        await api.add("mc")
        (lease,) = (await api.lease())["leases"]
        told = {"repository_id": lease["id"], "shift": lease["shift"]}
        if end == "reset":
            assert (await api.post("/repositories/mc/reset", {"last_push_id": 5})).status_code == 200
        else:
            assert (await api.delete("/repositories/mc")).status_code == 204
        (verdict,) = await api.push(push_event(101, **told))
        assert verdict["verdict"] == "rejected"
        assert (await api.lease(polled=polled(lease), ends=True))["renewed"] == []
        if end == "reset":
            assert (await api.delete("/repositories/mc")).status_code == 204
    assert await api.pushes() == []


async def test_a_repository_that_is_added_again_goes_on_counting(api: Api) -> None:
    await api.add()
    await api.lease()
    await api.delete("/repositories/mc")
    await api.add()
    (lease,) = (await api.lease())["leases"]
    assert lease["shift"] == 3


async def test_news_that_are_not_understood_are_told_and_spoil_nothing(api: Api) -> None:
    await api.add()
    (lease,) = (await api.lease())["leases"]
    bad: list[Any] = [
        *(None, 1, "x", [], {}),
        news(lease, "splendid"),
        news(lease, good_ago=float("inf")),
        news(lease, good_ago=float("nan")),
        news(lease, lastpushid=-1),
        news(lease, at_cursor="tip"),
        news(lease, error="x" * 2001),
        news(lease, etag="x" * 501),
        {**news(lease), "repository_id": "mc"},
        {**news(lease), "repository_id": 10**400},
        {**news(lease), "shift": None},
    ]
    answer = await api.lease(news=[*bad, news(lease, "failed", error="this one is good")])
    assert len(answer["problems"]) == len(bad)
    assert all(problem for problem in answer["problems"])
    assert (await api.get("/repositories/mc")).json()["poll_error"] == "this one is good"


async def test_unknown_repositories_are_ignored(api: Api) -> None:
    nowhere = {"id": 2**31 - 1, "shift": 1}
    answer = await api.lease(polled=polled(nowhere), under_way=[[7, 7]], news=[news(nowhere)])
    assert (answer["renewed"], answer["leases"], answer["problems"]) == ([], [], [])


async def test_wrong_requests_say_what_is_wrong(sqlite_api: Api) -> None:
    for body, word in (
        ([], "it is a list, and must be an object"),
        ({}, "listener"),
        ({"listener": "me"}, "listener"),
        ({"answer": -1}, "answer"),
        ({"news": [1] * 1001}, "news"),
        ({"news": {}}, "news"),
        ({"polled": [[1, 2]]}, "polled"),
        ({"polled": [[1, 2, -1, 0]]}, "polled"),
        ({"polled": [[1, 2, float("nan"), 0]]}, "polled"),
        ({"polls": 10**9}, "polls"),
    ):
        told: Any = body if isinstance(body, list) or not body else {"listener": LISTENER, **body}
        is_problem(await sqlite_api.signed("/polls/lease", told), 422, word)
    is_problem(await sqlite_api.signed("/polls/announced", {"urls": ["x"] * 101}), 422, "urls")
    is_problem(await sqlite_api.signed("/polls/announced", {}), 422, "urls")


async def test_a_commit_that_fails_leases_nothing(api: Api) -> None:
    await api.add()
    with api.commits_fail():
        is_problem(await api.signed("/polls/lease", {"listener": LISTENER}), 500)
    (lease,) = (await api.lease())["leases"]
    with api.commits_fail():
        told: Any = {"listener": LISTENER, "news": [news(lease, "failed", error="x")]}
        is_problem(await api.signed("/polls/lease", told), 500)
    assert (await api.get("/repositories/mc")).json()["poll_error"] is None


async def test_a_host_that_is_no_longer_allowed_is_not_asked(sqlite_url: str) -> None:
    async with running(settings_for(sqlite_url)) as api:
        await api.add()
    async with running(settings_for(sqlite_url, allowed_hosts=["hg.example.com"])) as api:
        assert (await api.lease())["leases"] == []


async def test_an_announced_push_is_leased_beside_the_shift(sqlite_url: str) -> None:
    async with running(settings_for(sqlite_url, poll={"max_requests_per_host": 1000})) as api:
        await api.add()
        await api.lease()
        while not (leases := (await announced(api, "https://hg.mozilla.org/mc", "\ud800"))["leases"]):
            pass  # the reserve starts empty
        assert [(lease["repository"], lease["shift"]) for lease in leases] == [("mc", 1)]
        (verdict,) = await api.push(push_event(101, shift=1))
        assert verdict["verdict"] == "accepted"


async def announced(api: Api, *urls: str) -> dict[str, Any]:
    answer = await api.signed("/polls/announced", {"urls": urls})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


NEWS = {
    "repository_id": 1,
    "shift": 1,
    "outcome": "listed",
    "error": None,
    "since": 100,
    "cursor": 100,
    "lastpushid": 100,
    "at_cursor": node(100),
    "moved": False,
    "etag": 'W/"1700000000"',
    "good_ago": 0.5,
}
RENEWAL = {"polled": [[1, 1, 0, 0]], "under_way": [[1, 1]], "polls": 1, "requests": 1, "slowest": 0.5, "answer": 1}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mangles=st.lists(st.tuples(st.sampled_from(sorted(NEWS)), ANYTHING), min_size=1, max_size=20),
    field=st.sampled_from(sorted(RENEWAL)),
    junk=ANYTHING,
)
@example(mangles=[("good_ago", 86_400), ("since", 2**31 - 1), ("cursor", 2**31 - 1)], field="polls", junk=None)
@example(mangles=[("etag", "9" * 400), ("shift", 10**400)], field="polled", junk=[[1, 1, 86_400, 86_400]])
def test_mangled_renewals_are_never_our_fault(
    loop_api: Any, mangles: list[tuple[str, Any]], field: str, junk: Any
) -> None:
    api, run = loop_api
    run(api.change_repository(shift=1, generation=0, holder=LISTENER))
    told = [{**NEWS, name: value} for name, value in mangles]
    answer = run(api.signed("/polls/lease", {"listener": LISTENER, "news": [*told, junk]}))
    assert answer.status_code == 200, answer.text
    answer = run(api.signed("/polls/lease", {"listener": LISTENER, **RENEWAL, field: junk}))
    assert answer.status_code in {200, 422}, answer.text
    answer = run(api.signed("/polls/announced", {"urls": junk}))
    assert answer.status_code in {200, 422}, answer.text
    json.dumps(answer.json())


@pytest.fixture
def loop_api(database_url: str) -> Any:
    with api_in_a_loop(database_url) as made:
        yield made
