"""Plan a repository: say if it could be added, before it is."""

from tests.service.asgi import READER, Api, is_problem

MC = {"alias": "mc", "url": "HTTPS://hg.mozilla.org/mozilla-central/", "level": "1"}


async def test_it_tells_as_what_it_would_be_stored_and_stores_nothing(api: Api) -> None:
    answer = await api.post("/repositories/plan", {**MC, "level": "3"}, token=READER)
    assert answer.status_code == 200
    planned = answer.json()
    assert planned["url"] == "https://hg.mozilla.org/mozilla-central"
    assert planned["scopes"] == ["assume:repo:hg.mozilla.org/mozilla-central:branch:default"]
    assert planned["level"] == "3"
    assert (await api.get("/repositories")).json()["items"] == []
    assert api.hg.asked == []
    added = (await api.post("/repositories", {**MC, "level": "3"})).json()
    told = {name for name in planned if name != "last_push_id"}
    assert {name: added[name] for name in told} == {name: planned[name] for name in told}


async def test_what_stands_in_the_way_is_what_adding_would_be_told(sqlite_api: Api) -> None:
    await sqlite_api.add("taken")
    for body, status, words in (
        ({"alias": "x", "url": "https://hg.example.org/x", "level": "1"}, 422, "allowed_hosts"),
        ({"alias": "taken", "url": "https://hg.mozilla.org/other", "level": "1"}, 409, "alias 'taken'"),
        ({"alias": "x", "url": "https://hg.mozilla.org/taken", "level": "1"}, 409, "is taken by repository taken"),
        (
            {"alias": "x", "url": "https://hg.mozilla.org/x", "level": "1", "environments": ["none-such"]},
            422,
            "none-such",
        ),
        ({"alias": "no alias", "url": "https://hg.mozilla.org/x", "level": "1"}, 422, "alias"),
    ):
        planned = is_problem(await sqlite_api.post("/repositories/plan", body), status, words)
        assert planned == is_problem(await sqlite_api.post("/repositories", body), status, words)
    far = await sqlite_api.post("/repositories/plan", {"alias": "x", "url": "https://hg.example.org/x", "level": "1"})
    assert far.json()["host_not_allowed"] == "hg.example.org"


async def test_a_stranger_is_told_nothing(sqlite_api: Api) -> None:
    is_problem(await sqlite_api.post("/repositories/plan", MC, token=None), 401)
