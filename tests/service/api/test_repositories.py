"""The monitored repositories, over the API."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlmodel import col, select

from service.clients.hg import HttpHg
from service.errors import PermanentUpstreamError, Unavailable
from service.flow.actions.receive import new_action
from service.store.models import Action, Notice, PushStep, Source, State, StepKind
from service.store.wakeups import Topic
from tests.service.asgi import READER, WRITER, Api, is_problem, node, push_event

MC = {"alias": "mc", "url": "https://hg.mozilla.org/mozilla-central", "level": "1"}


async def test_a_new_repository_has_the_defaults_and_starts_at_the_pushlogs_present_end(api: Api) -> None:
    answer = await api.post("/repositories", MC)
    assert answer.status_code == 201
    assert answer.headers["location"] == "/api/v1/repositories/mc"
    created = answer.json()
    expected = {
        **MC,
        "level": "1",
        "scopes": ["assume:repo:hg.mozilla.org/mozilla-central:branch:default"],
        "contains": None,
        "graph": True,
        "environments": None,
        "supersede": "off",
        "actions": "copies",
        "pulse_actions": ["retrigger", "cancel"],
        "enabled": True,
        "last_push_id": 41,
        "last_changeset": None,
        "generation": 0,
        "poll_error": None,
        "poll_failures": 0,
    }
    assert {name: created[name] for name in expected} == expected
    assert created["created_at"].endswith("Z")
    assert api.hg.asked == [MC["url"]]
    assert (await api.get("/repositories/mc")).json() == created


@pytest.mark.parametrize("path", ["/repositories", "/repositories/plan"])
async def test_no_level_is_assumed(sqlite_api: Api, path: str) -> None:
    body = {name: value for name, value in MC.items() if name != "level"}
    is_problem(await sqlite_api.post(path, {**body, "last_push_id": 1}), 422, "level")
    assert (await sqlite_api.get("/repositories")).json()["items"] == []


async def test_everything_can_be_chosen_and_then_the_pushlog_is_not_asked(api: Api) -> None:
    chosen = {
        **MC,
        "level": "nss",
        "scopes": ["assume:repo:x"],
        "contains": "[ci] \u00e9\U0001f600",
        "graph": False,
        "environments": ["tc-treeherder-stage"],
        "supersede": "pusher",
        "actions": "auto",
        "pulse_actions": ["backfill"],
        "enabled": False,
        "last_push_id": 0,
    }
    created = (await api.post("/repositories", chosen)).json()
    assert {name: created[name] for name in chosen} == chosen
    assert api.hg.asked == []


async def test_urls_are_kept_in_one_form(sqlite_api: Api) -> None:
    kept_of = {
        "https://hg.mozilla.org/mozilla-central/": "https://hg.mozilla.org/mozilla-central",
        "HTTPS://HG.Mozilla.ORG/integration/autoland//": "https://hg.mozilla.org/integration/autoland",
        "https://hg.mozilla.org:443/users/%7ea": "https://hg.mozilla.org/users/~a",
        "https://hg.mozilla.org./%74ry": "https://hg.mozilla.org/try",
        "https://hg.mozilla.org/a%20%c3%a9%25": "https://hg.mozilla.org/a%20%C3%A9%25",
        "http://localhost:8000/x": "http://localhost:8000/x",
        "http://127.0.0.1:9/x": "http://127.0.0.1:9/x",
        "http://[::1]:8000/x": "http://[::1]:8000/x",
    }
    for number, (given, kept) in enumerate(kept_of.items()):
        created = await sqlite_api.add(f"r{number}", url=given)
        assert created["url"] == kept
        host, _, path = kept.partition("://")[2].partition("/")
        assert created["scopes"] == [f"assume:repo:{host}/{path}:branch:default"]


REFUSED_URLS: list[tuple[Any, list[str]]] = [
    ("https://hg.example.org/x", ["hg.example.org", "allowed_hosts", "hg.mozilla.org"]),
    ("https://hg.mozilla.org:8443/x", ["hg.mozilla.org:8443", "allowed_hosts"]),
    ("https://hg.mozilla.org.evil.example/x", ["allowed_hosts"]),
    ("https://hg.mozilla.org\\@evil.example/x", ["url"]),
    ("https://evil.example\\.hg.mozilla.org/x", ["allowed_hosts"]),
    ("http://hg.mozilla.org/x", ["loopback"]),
    ("http://hg.example.com/x", ["loopback"]),
    ("ssh://hg.mozilla.org/x", ["https"]),
    ("file:///etc/passwd", ["https"]),
    ("mozilla-central", ["https"]),
    ("", ["https"]),
    ("https://", ["https"]),
    ("https://hg.mozilla.org", ["path"]),
    ("https://hg.mozilla.org///", ["path"]),
    ("https://hg.mozilla.org/a/../b", ["path"]),
    ("https://hg.mozilla.org/a//b", ["path"]),
    ("https://hg.mozilla.org//try", ["path"]),
    ("https://hg.mozilla.org/try/%2e%2e/x", ["path"]),
    ("https://hg.mozilla.org/%2E/x", ["path"]),
    ("https://hg.mozilla.org/try%2Fx", ["slash"]),
    ("https://hg.mozilla.org/try%5cx", ["slash"]),
    ("https://hg.mozilla.org/try%00", ["control"]),
    ("https://hg.mozilla.org/try%0ax", ["control"]),
    ("https://hg.mozilla.org/try%2", ["percent-encoding"]),
    ("https://hg.mozilla.org/try%zz", ["percent-encoding"]),
    ("https://h\u00e9.example/try", ["is no https URL"]),
    ("https://hg.mozilla.org/x?a=1", ["scheme, host and path"]),
    ("https://hg.mozilla.org/x#a", ["scheme, host and path"]),
    ("https://me:secret@hg.mozilla.org/x", ["scheme, host and path"]),
    ("https://hg.mozilla.org/a b", ["percent-encoded"]),
    ("https://hg.mozilla.org/\u00e9", ["percent-encoded"]),
    ("https://hg.mozilla.org/x\x7f", ["percent-encoded"]),
    ("https://[::1/x", ["no URL"]),
    ("https://hg.mozilla.org:http/x", ["no URL"]),
    ("https://hg.mozilla.org:99999/x", ["no URL"]),
    ("https://hg.mozilla.org/" + "x" * 1000, ["url has 1,023 characters, at most 1,000 are allowed"]),
    ("https://hg.mozilla.org/\0", ["NUL"]),
    (None, ["url"]),
    (5, ["url"]),
]


async def test_urls_that_are_refused_and_why(sqlite_api: Api) -> None:
    for url, words in REFUSED_URLS:
        answer = await sqlite_api.post("/repositories", {"alias": "x", "url": url, "level": "1", "last_push_id": 1})
        is_problem(answer, 422, "url", *words)
        assert "secret" not in answer.text
    assert (await sqlite_api.get("/repositories")).json()["items"] == []


REFUSED_VALUES: dict[str, list[Any]] = {
    "alias": ["", "x" * 51, "a b", "a/b", "\u00e9", "a\n", "\0", None, 1, ["a"]],
    "level": ["", "a b", "1\n", 1, None, {}],
    "scopes": ["x", [""], ["caf\u00e9"], ["a\nb"], [1], ["x" * 1001], {}],
    "contains": ["\0", "x" * 1001, 1, []],
    "graph": [None, "maybe", 2, []],
    "enabled": [None, "maybe", 2, []],
    "supersede": [None, "maybe", True, []],
    "environments": ["tc-treeherder", ["nowhere"], ["tc-treeherder", "\0"], [1], {}],
    "actions": ["tree", None, True, []],
    "pulse_actions": [None, "retrigger", ["a:b"], [""], [1], ["x" * 101], ["retrigger", "cancel-push"]],
    "last_push_id": [-1, 2**31, "1", 1.5, True, []],
    "generation": [1],
    "unheard_of": [1],
}


async def test_values_that_are_refused_name_their_field(sqlite_api: Api) -> None:
    for field, values in REFUSED_VALUES.items():
        for value in values:
            answer = await sqlite_api.post("/repositories", {**MC, "last_push_id": 1, field: value})
            is_problem(answer, 422, field)
    assert (await sqlite_api.get("/repositories")).json()["items"] == []


async def test_an_unknown_environment_is_named_with_those_that_are_known(sqlite_api: Api) -> None:
    answer = await sqlite_api.post("/repositories", {**MC, "environments": ["tc-treeherder", "elsewhere"]})
    is_problem(answer, 422, "elsewhere is not configured; known: ", "tc-treeherder-stage")
    answer = await sqlite_api.post("/repositories", {**MC, "environments": ["tc-treherder"]})
    is_problem(answer, 422, "tc-treherder is not configured (did you mean tc-treeherder?); known: ")


NONSENSE = [
    b'{"alias": "mc", "url": "\\ud800"}',
    b'{"alias": "\\udfff", "url": "https://hg.mozilla.org/x"}',
    b'{"alias": "mc", "level": "1", "url": "https://hg.mozilla.org/x", "contains": "\\udc00"}',
    b'{"\\ud800": 1}',
    b'{"\\u0000": 1}',
    b'{"alias": NaN, "url": Infinity, "last_push_id": 1e999}',
    b'{"alias": "mc", "level": "1", "url": "https://hg.mozilla.org/x", "scopes": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    b'{"last_push_id": ' + b"9" * 5_000 + b"}",
    b'{"scopes": [' + b"1," * 50_000 + b"1]}",
    b"\xff\xfe",
    b"{",
    b"[]",
    b"null",
    b"",
]


async def test_a_body_that_is_nonsense_gets_a_readable_answer(sqlite_api: Api) -> None:
    for body in NONSENSE:
        answer = await sqlite_api.call(
            "POST", "/api/v1/repositories", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in {400, 413, 422}, body[:100]
        is_problem(answer, answer.status_code)
        assert len(answer.content) < 20_000


async def test_an_alias_that_is_taken_is_a_conflict_that_names_who_has_it(api: Api) -> None:
    await api.add("mc")
    answer = await api.post("/repositories", {"alias": "mc", "url": "https://hg.mozilla.org/other", "level": "1"})
    body = is_problem(answer, 409, "alias 'mc'", "https://hg.mozilla.org/mc")
    assert body["repository"] == "mc"
    assert api.hg.asked == [], "who cannot have the alias need not wait for the pushlog"


async def test_a_url_that_is_taken_is_a_conflict_that_names_who_has_it(api: Api) -> None:
    await api.add("mc")
    for url in ("https://hg.mozilla.org/mc", "https://HG.mozilla.org/mc//"):
        answer = await api.post("/repositories", {"alias": "other", "url": url, "level": "1"})
        assert is_problem(answer, 409, "https://hg.mozilla.org/mc", "repository mc")["repository"] == "mc"


@pytest.mark.parametrize("again", [False, True], ids=["new", "deleted-before"])
async def test_of_many_that_add_the_same_at_once_one_gets_it(api: Api, again: bool) -> None:
    if again:
        await api.add("before", url="https://hg.mozilla.org/mc")
        assert (await api.delete("/repositories/before")).status_code == 204
    bodies = [
        {"alias": f"mc{n}", "url": "https://hg.mozilla.org/mc", "level": "1", "last_push_id": n} for n in range(5)
    ]
    answers = await asyncio.gather(*(api.post("/repositories", body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    (winner,) = [answer.json() for answer in answers if answer.status_code == 201]
    for answer in answers:
        if answer.status_code == 409:
            assert is_problem(answer, 409, winner["alias"])["repository"] == winner["alias"]
    (listed,) = (await api.get("/repositories")).json()["items"]
    assert listed["alias"] == winner["alias"]
    assert listed["last_push_id"] == winner["last_push_id"]


async def test_of_many_that_want_the_same_alias_at_once_one_gets_it(api: Api) -> None:
    bodies = [{"alias": "mc", "url": f"https://hg.mozilla.org/{n}", "level": "1", "last_push_id": n} for n in range(5)]
    answers = await asyncio.gather(*(api.post("/repositories", body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    assert len((await api.get("/repositories")).json()["items"]) == 1


async def test_a_pushlog_that_is_away_is_a_502_that_says_what_to_do(sqlite_api: Api) -> None:
    sqlite_api.hg.end = Unavailable("hg", "hg.mozilla.org answers 503")
    answer = await sqlite_api.post("/repositories", MC)
    is_problem(answer, 502, "503", "last_push_id")
    assert (await sqlite_api.get("/repositories/mc")).status_code == 404


async def test_a_pushlog_that_cannot_be_reached_is_a_502(sqlite_api: Api) -> None:
    sqlite_api.services.hg = HttpHg(sqlite_api.settings)  # the real one; nothing listens on port 9
    try:
        answer = await sqlite_api.post("/repositories", {"alias": "x", "url": "http://127.0.0.1:9/x", "level": "1"})
        is_problem(answer, 502, "http://127.0.0.1:9/x", "last_push_id")
    finally:
        await sqlite_api.services.hg.close()


async def test_a_url_without_a_pushlog_is_a_422(sqlite_api: Api) -> None:
    sqlite_api.hg.end = PermanentUpstreamError(
        "hg", "https://hg.mozilla.org/mozilla-central is no repository with a pushlog", 404
    )
    is_problem(await sqlite_api.post("/repositories", MC), 422, "url", "no repository with a pushlog")


async def test_a_repository_that_is_not_there_is_a_404(api: Api) -> None:
    for alias in ["nowhere", "x" * 300, "%00", "%ED%A0%80", "%ff", "\u00e9", "%F0%9F%98%80"]:
        for answer in (
            await api.get(f"/repositories/{alias}"),
            await api.patch(f"/repositories/{alias}", {}),
            await api.delete(f"/repositories/{alias}"),
            await api.post(f"/repositories/{alias}/reset", {}),
        ):
            is_problem(answer, 404, "`tc-treeherder repositories add`")


async def test_lists_come_in_pages_in_the_order_of_adding(api: Api) -> None:
    for number in range(5):
        await api.add(f"r{number}")
    await api.delete("/repositories/r2")
    seen, after, pages = [], None, 0
    while True:
        page = (await api.get("/repositories", params={"limit": 2, **({"after": after} if after else {})})).json()
        assert set(page) == {"items", "next"}
        seen += [item["alias"] for item in page["items"]]
        after, pages = page["next"], pages + 1
        if after is None:
            break
    assert seen == ["r0", "r1", "r3", "r4"]
    assert pages == 2, "a full last page says that it is the last"


async def test_a_cursor_that_is_none_is_a_422(sqlite_api: Api) -> None:
    for after in ["x", "!!!", "LTE=", "MTA=x", "", "99999999999999999999", "\u00e9", "\0", "A" * 201]:
        for path in ("/repositories", "/pushes", "/dead-letters"):
            is_problem(await sqlite_api.get(path, params={"after": after}), 422, "after")


async def test_a_limit_that_is_none_is_a_422(sqlite_api: Api) -> None:
    for limit in ["0", "501", "-1", "x", "1.5", "9" * 5000]:
        for path in ("/repositories", "/pushes", "/dead-letters"):
            is_problem(await sqlite_api.get(path, params={"limit": limit}), 422, "limit")


async def test_a_patch_changes_what_it_names_and_null_goes_back_to_the_default(api: Api) -> None:
    before = await api.add(level="3", contains="x", scopes=["a"], environments=["tc-treeherder"])
    answer = await api.patch("/repositories/mc", {"level": "2", "graph": False})
    assert answer.status_code == 200
    assert answer.json() == {**before, "level": "2", "graph": False}
    assert (await api.get("/repositories/mc")).json() == answer.json()

    answer = await api.patch("/repositories/mc", {"contains": None, "scopes": None, "environments": None})
    expected = {"contains": None, "scopes": ["assume:repo:hg.mozilla.org/mc:branch:default"], "environments": None}
    assert answer.json() == {**before, "level": "2", "graph": False, **expected}
    assert (await api.get("/repositories/mc")).json() == answer.json()


async def test_an_empty_list_is_a_value_and_no_default(api: Api) -> None:
    await api.add()
    changed = (await api.patch("/repositories/mc", {"scopes": [], "environments": []})).json()
    assert (changed["scopes"], changed["environments"]) == ([], [])


async def test_a_patch_may_say_that_it_is_one(sqlite_api: Api) -> None:
    await sqlite_api.add()
    answer = await sqlite_api.call(
        "PATCH",
        "/api/v1/repositories/mc",
        content=b'{"level": "3"}',
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert answer.status_code == 200
    assert answer.json()["level"] == "3"


async def test_alias_url_and_cursor_are_immutable(sqlite_api: Api) -> None:
    before = await sqlite_api.add()
    for field, value in {"alias": "x", "url": "https://hg.mozilla.org/x", "last_push_id": 1}.items():
        is_problem(await sqlite_api.patch("/repositories/mc", {field: value, "level": "3"}), 422, field, "delete")
    refused: list[Any] = [
        {"generation": 5},
        {"level": None},
        {"graph": None},
        {"environments": ["x"]},
        [],
        "x",
        1,
        None,
    ]
    for body in refused:
        is_problem(await sqlite_api.patch("/repositories/mc", body), 422)
    assert (await sqlite_api.get("/repositories/mc")).json() == before


async def test_one_that_is_switched_on_again_is_due_at_once(api: Api) -> None:
    await api.add(enabled=False)
    assert (await api.lease())["leases"] == []
    await api.patch("/repositories/mc", {"enabled": True})
    assert [lease["repository"] for lease in (await api.lease())["leases"]] == ["mc"]


async def test_delete_ends_the_monitoring_and_the_pushes_can_still_be_read(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await api.end_steps(State.DONE)
    answer = await api.delete("/repositories/mc")
    assert (answer.status_code, answer.content) == (204, b"")
    is_problem(await api.get("/repositories/mc"), 404)
    is_problem(await api.delete("/repositories/mc"), 404)
    assert (await api.get("/repositories")).json()["items"] == []
    assert (await api.lease())["leases"] == []
    (verdict,) = await api.push(push_event(102))
    assert verdict["verdict"] == "rejected"
    assert (await api.get("/pushes/mc/101")).json()["revision"] == node(101)


async def test_delete_with_unfinished_work_is_a_conflict_unless_it_is_forced(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    answer = await api.delete("/repositories/mc")
    assert is_problem(answer, 409, "3 steps", "force=true")["unfinished"] == 3
    assert (await api.get("/repositories/mc")).status_code == 200

    assert (await api.delete("/repositories/mc", params={"force": "true"}, token=WRITER)).status_code == 204
    letters = await api.letters()
    assert sorted(letter.kind for letter in letters) == ["graph", "resultset", "resultset"]
    assert {letter.reason for letter in letters} == {"the repository was deleted by writer"}
    for step in await api.steps():
        assert (step.state, step.due_at, step.error) == (State.FAILED, None, "the repository was deleted by writer")
        assert step.fencing_token == 1, "whoever works on it has lost it"
        assert step.done_at is not None


async def test_unfinished_actions_are_unfinished_work_too(api: Api) -> None:
    await api.add()
    await api.add("other")
    shown = {"environment": "tc-treeherder", "project": "mc", "entry": {}}
    async with api.database.writing() as session:
        for project, state in (("mc", State.PENDING), ("mc", State.DONE), ("other", State.PENDING)):
            action = new_action("cancel", project, "Vg7hTWNXSTyVNsVjBpOyCQ", None, "sheriff", Source.API)
            action.state, action.failure_jobs = state, [shown]
            if state != State.PENDING:
                action.due_at = None
            session.add(action)
    answer = await api.delete("/repositories/mc")
    assert is_problem(answer, 409, "0 steps", "1 actions", "force=true")["unfinished"] == 1
    woken = api.database.wakeups.subscribe(Topic.WORK)
    woken.clear()
    assert (await api.delete("/repositories/mc", params={"force": "true"}, token=WRITER)).status_code == 204
    assert woken.is_set(), "the notice is due"
    async with api.database.reading() as session:
        buried, done, others = await session.exec(select(Action).order_by(col(Action.id)))
        (notice,) = await session.exec(select(Notice))
    assert (buried.state, buried.due_at, buried.fencing_token) == (State.FAILED, None, 1)
    assert buried.error == "the repository was deleted by writer"
    assert [(letter.kind, letter.action_id) for letter in await api.letters()] == [("action", buried.id)]
    assert (notice.action_id, notice.target) == (buried.id, "tc-treeherder"), "it is shown where it was pressed"
    assert (done.state, others.state, others.fencing_token) == (State.DONE, State.PENDING, 0)


async def test_what_a_worker_ends_meanwhile_is_not_buried(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    async with api.database.writing() as session:
        step = (await session.exec(select(PushStep).where(PushStep.kind == StepKind.GRAPH))).one()
        step.state, step.due_at = State.DONE, None
        await session.flush()
        call = asyncio.create_task(api.delete("/repositories/mc", params={"force": "true"}))
        await asyncio.sleep(0.3)  # it has come to the step, and waits
        assert not call.done()
    assert (await call).status_code == 204
    assert {step.kind: step.state for step in await api.steps()} == {"graph": "done", "resultset": "failed"}
    assert [letter.kind for letter in await api.letters()] == ["resultset", "resultset"]


async def test_the_generation_survives_re_creation_under_any_alias(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await api.end_steps(State.DONE)
    for expected in (1, 2):
        reset = (await api.post("/repositories/mc/reset", {"last_push_id": 7})).json()
        assert (reset["generation"], reset["last_push_id"]) == (expected, 7)
    await api.delete("/repositories/mc")
    again = await api.add("renamed", url="https://hg.mozilla.org/mc", last_push_id=5, level="3")
    assert (again["generation"], again["last_push_id"], again["level"]) == (2, 5, "3")
    assert again["last_changeset"] is None
    (stale,) = await api.push(push_event(101, alias="renamed"))
    assert stale["verdict"] == "rejected"
    fresh = push_event(6, alias="renamed", shift=3)
    fresh["generation"] = 2
    (verdict,) = await api.push(fresh)
    assert (verdict["verdict"], verdict["cursor"], verdict["shift"]) == ("accepted", 6, 3)


async def test_re_creation_keeps_nothing_of_the_old_poll(api: Api) -> None:
    await api.add()
    lease = (await api.lease())["leases"][0]
    await api.change_repository(poll_error="gone", poll_failures=5, etag='W/"1"', last_changeset=node(1))
    await api.delete("/repositories/mc")
    again = await api.add()
    assert (again["poll_error"], again["poll_failures"], again["last_changeset"]) == (None, 0, None)
    row = await api.repository()
    assert row.etag is None
    assert row.holder is None
    told = {"repository_id": lease["id"], "shift": lease["shift"], "outcome": "failed", "error": "of the one before"}
    await api.lease(news=[told])
    assert (await api.get("/repositories/mc")).json()["poll_error"] is None


async def test_an_alias_of_a_deleted_repository_is_free(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    await api.delete("/repositories/mc", params={"force": "true"})
    other = await api.add("mc", url="https://hg.mozilla.org/other")
    assert other["generation"] == 0
    await api.push(push_event(101, repository_id=2, changesets=[{"node": node("other")}]))
    push = (await api.get("/pushes/mc/101")).json()
    assert push["revision"] == node("other"), "the one that is monitored comes first"


async def test_a_reset_begins_a_generation_at_the_given_cursor_or_the_present_end(api: Api) -> None:
    await api.add()
    await api.push(push_event(101))
    leased = (await api.lease())["leases"][0]
    reset = (await api.post("/repositories/mc/reset", {})).json()
    assert (reset["generation"], reset["last_push_id"], reset["last_changeset"]) == (1, 41, None)
    (late,) = await api.push(push_event(102, shift=1))
    assert (late["verdict"], late["shift"]) == ("rejected", 2)
    assert "generation" in late["reason"]
    named = {"repository_id": leased["id"], "shift": leased["shift"]}
    told = {**named, "outcome": "listed", "since": 101, "cursor": 101, "lastpushid": 101, "at_cursor": node(101)}
    (lease,) = (await api.lease(news=[told]))["leases"]
    assert (await api.get("/repositories/mc")).json()["last_changeset"] is None
    assert (lease["generation"], lease["cursor"], lease["etag"]) == (1, 41, None)


async def test_a_reset_needs_to_know_the_end(sqlite_api: Api) -> None:
    await sqlite_api.add()
    sqlite_api.hg.end = Unavailable("hg", "it is being reset")
    is_problem(await sqlite_api.post("/repositories/mc/reset", {}), 502, "it is being reset", "last_push_id")
    refused: list[Any] = [{"last_push_id": -1}, {"last_push_id": "1"}, {"cursor": 1}, [], None]
    for body in refused:
        is_problem(await sqlite_api.post("/repositories/mc/reset", body), 422)
    assert (await sqlite_api.get("/repositories/mc")).json()["generation"] == 0


async def _writes(api: Api, token: str | None) -> dict[str, httpx.Response]:
    return {
        "create": await api.post("/repositories", MC, token=token),
        "patch": await api.patch("/repositories/mc", {"level": "3"}, token=token),
        "delete": await api.delete("/repositories/mc", token=token),
        "reset": await api.post("/repositories/mc/reset", {}, token=token),
        "retry": await api.post("/pushes/mc/1/retry", token=token),
        "replay": await api.post("/dead-letters/1/replay", token=token),
        "drop": await api.delete("/dead-letters/1", token=token),
    }


async def test_writes_need_a_scope_and_the_answer_names_it(sqlite_api: Api) -> None:
    before = await sqlite_api.add()
    for token, status in ((None, 401), (READER, 403)):
        for name, answer in (await _writes(sqlite_api, token)).items():
            scope = "tc-treeherder:action:retry:mc" if name == "retry" else "tc-treeherder:repositories:write"
            if token is None and name == "retry":  # it depends on more than the route
                is_problem(answer, status, "needs credentials")
            else:
                assert is_problem(answer, status, scope)["missing_scope"] == scope
            assert ("www-authenticate" in answer.headers) == (status == 401)
    assert (await sqlite_api.get("/repositories/mc")).json() == before


async def test_who_may_not_write_learns_that_before_anything_else(sqlite_api: Api) -> None:
    for token, status in ((None, 401), (READER, 403)):
        is_problem(await sqlite_api.post("/repositories", {"alias": 1}, token=token), status)
        is_problem(await sqlite_api.patch("/repositories/nowhere", {"level": 1}, token=token), status)
        is_problem(await sqlite_api.delete("/repositories/nowhere", token=token), status)
        is_problem(await sqlite_api.post("/repositories/nowhere/reset", [], token=token), status)
        is_problem(await sqlite_api.delete("/dead-letters/x", token=token), status)


async def test_a_stranger_does_not_hold_the_databases_only_write_lock(sqlite_api: Api) -> None:
    async with sqlite_api.database.writing():
        answer = await asyncio.wait_for(sqlite_api.delete("/repositories/mc", token=None), 15)
        assert answer.status_code == 401


async def test_a_commit_that_fails_is_no_2xx(api: Api) -> None:
    before = await api.add()
    with api.commits_fail():
        for answer in (
            await api.post(
                "/repositories", {"alias": "new", "url": "https://hg.mozilla.org/new", "level": "1", "last_push_id": 1}
            ),
            await api.patch("/repositories/mc", {"level": "3"}),
            await api.post("/repositories/mc/reset", {"last_push_id": 1}),
            await api.delete("/repositories/mc"),
        ):
            is_problem(answer, 500, "try again")
    assert (await api.get("/repositories")).json()["items"] == [before]
